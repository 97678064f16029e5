"""Networks in the LLM's place, trained by the same recipe: what is left of the model without an LLM."""

from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from simv0.baselines.linear import stats
from simv0.config.schema import Module, TrainingConfig
from simv0.data.contract import Batch
from simv0.llm.frozen import FrozenLLM
from simv0.model.losses import loss_sums, objective
from simv0.model.network import SimV0Model
from simv0.training.recipe import class_weights, lr_factor, make_optimizer, visual_dropout
from simv0.training.splits import Split, telemetry_stats

WIDTH = 128
LAYERS = 2
BATCH = 64
RATES: dict[Module, float] = {"projector": 0.3}
"""Beside the recipe's: tokens that start a third as large as beside an LLM need a third of the step."""
STEPS = 2000
"""At most, whatever the recipe's epochs."""
LEAST_STEPS = 200
WEIGHTS_FOR_ALL = 5_000_000
"""Weights of an LLM beside which as many steps of the small transformer take an eighth of the training's operations: it
has 0.4 million, and their gradients are computed too.
"""


class PrefixMean(nn.Module):
    """The mean of the prefix: no LLM at all."""

    def forward(self, x: Float[Tensor, "B T d"]) -> Float[Tensor, "B d"]:
        """Average the tokens."""
        return x.mean(1)


class SmallTransformer(nn.Module):
    """`LAYERS` layers of attention over a prefix of `tokens`, read at the last one; to be trained from scratch."""

    def __init__(self, tokens: int, d: int = WIDTH) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(tokens, d))
        layer = (
            nn.TransformerEncoderLayer(d, 4, 2 * d, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(LAYERS)
        )
        self.layers = nn.Sequential(*layer)

    def forward(self, x: Float[Tensor, "B T d"]) -> Float[Tensor, "B d"]:
        """Run the layers."""
        hidden: Tensor = self.layers(x + self.positions)
        return hidden[:, -1]


def affordable_steps(recipe: TrainingConfig, windows: int, llm_weights: int) -> int:
    """Steps that each network may take, so that both take no more than a quarter of the training's operations: all of
    the recipe's beside an LLM of some million weights, fewer beside a toy.
    """
    share = min(1.0, llm_weights / WEIGHTS_FOR_ALL)
    return min(STEPS, max(LEAST_STEPS, int(share * recipe.epochs * windows / BATCH)))


def train_without_llm(known: Batch, train: Split, recipe: TrainingConfig, d: int, steps: int = STEPS) -> SimV0Model:
    """The model with the mean of its prefix, of width `d`, in the LLM's place."""
    return _train(PrefixMean(), d, known, train, recipe, steps)


def train_small_transformer(known: Batch, train: Split, recipe: TrainingConfig, steps: int = STEPS) -> SimV0Model:
    """The model with a small transformer in the LLM's place, which is trained too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        stack = SmallTransformer(known["vis_feats"].shape[1] + 2)
    return _train(stack, WIDTH, known, train, recipe, steps)


def _train(stack: nn.Module, d: int, known: Batch, train: Split, recipe: TrainingConfig, steps: int) -> SimV0Model:
    """Train beside `stack` on `known`, whose features are segment means [N,K,dv], with the recipe of `fit`, in so many
    steps at most.

    One process does so by itself, whatever others there are.
    """
    n, K, dv = known["vis_feats"].shape
    llm = FrozenLLM(stack, d=d, hidden_size=d, embed_rms=1.0, identity={})
    size = min(BATCH, n)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(recipe.seed)
        # Without a pretrained LLM there are no sinks to keep clear of (`network.START_RMS`).
        model = SimV0Model(llm, dv=dv, F=K, K=K, start_rms=1.0)
        model.visual_dropout = visual_dropout(recipe, train)
        model.set_stats(telemetry_stats(known["telemetry"].numpy()), stats(known["vis_feats"].flatten(0, 1)))
        optimizer = make_optimizer(model, recipe.model_copy(update={"lr_scale": {**RATES, **recipe.lr_scale}}), n)
        own = list(stack.requires_grad_(True).parameters())
        if own:
            optimizer.add_param_group({"params": own, "lr": recipe.lr, "peak_lr": recipe.lr})
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        weights = class_weights(recipe.class_weights, train, torch.device("cpu"))
        orders = (np.random.default_rng([recipe.seed, epoch]).permutation(n) for epoch in range(recipe.epochs))
        batches = (torch.from_numpy(order[at : at + size]) for order in orders for at in range(0, n, size))
        total = min(steps, recipe.epochs * -(-n // size))
        for step, rows in enumerate(islice(batches, total)):
            torch.manual_seed(recipe.seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * lr_factor(step, total)
            batch = rows_of(known, rows)
            loss = objective(loss_sums(model(batch), batch, weights))["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, recipe.grad_clip)
            optimizer.step()
    return model.eval()


def rows_of(batch: Batch, rows: Int[Tensor, " n"]) -> Batch:
    """Some windows of a batch of tensors."""
    some: Any = {key: value[rows] for key, value in batch.items()}  # type: ignore[index]
    return some  # type: ignore[no-any-return]
