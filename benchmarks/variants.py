"""The default recipe with one thing changed at a time, for `benchmarks.quality`."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from simv0.baselines.fit import Logits
from simv0.config.load import build_config
from simv0.config.schema import Config
from simv0.model.build import build_model
from simv0.model.network import SimV0Model
from simv0.runtime.threads import sharing
from simv0.training.epoch import LogitsKept, evaluate, train_one_epoch
from simv0.training.recipe import class_weights, lr_factor, make_optimizer, set_stats, visual_dropout
from simv0.training.splits import Batches, BatchOrder, Split

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Variant:
    """What is changed in the default recipe."""

    set: dict[str, dict[str, object]] = field(default_factory=dict)
    patch: Callable[[SimV0Model], None] | None = None

    def config(self, config: Config, seed: int) -> Config:
        """The config with the changes, in fp32."""
        tree = config.model_dump()
        for section, changes in self.set.items():
            tree[section] |= changes
        tree["training"] |= {"seed": seed, "amp": False}
        return build_config(tree, "benchmark")


def without_vision(model: SimV0Model) -> None:
    nn.init.zeros_(model.projector.weight).requires_grad_(False)


def without_telemetry(model: SimV0Model) -> None:
    last = model.telemetry_mlp[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight).requires_grad_(False)


def random_matrices(model: SimV0Model) -> None:
    """Random matrices that keep activations at their size; norms as they are."""
    for weight in model.llm.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)


def loud_picture(model: SimV0Model) -> None:
    """The projector starts as a plain random projection, without the learned token."""
    nn.init.normal_(model.projector.weight, std=model.dv**-0.5)
    nn.init.zeros_(model.projector.bias)


def training(**changes: object) -> Variant:
    return Variant({"training": changes})


LR_SCALE = {"projector": 1.0, "telemetry_mlp": 1.0, "task_token": 1.0, "heads": 1.0}
VARIANTS = {
    "default": Variant(),
    "random matrices": Variant(patch=random_matrices),
    "without vision": Variant(patch=without_vision),
    "without telemetry": Variant(patch=without_telemetry),
    "without BOS": Variant({"model": {"bos": False}}),
    "heads at 10 times the rate": training(lr_scale={"heads": 10.0}),
    "K=1": Variant({"model": {"K": 1}}),
    "K=2": Variant({"model": {"K": 2}}),
    "K=8": Variant({"model": {"K": 8}}),
    "loud picture at the start": Variant(patch=loud_picture),
    "one learning rate": training(lr_scale=LR_SCALE),
    "projector at lr": training(lr_scale={**dict.fromkeys(LR_SCALE, 10.0), "projector": 1.0}),
    "nothing hidden": training(visual_dropout=0.0),
    "half hidden": training(visual_dropout=0.5),
    "no class weights": training(class_weights="none"),
    "balanced": training(class_weights="balanced"),
    "20 epochs": training(epochs=20),
}


def predictions(config: Config, variant: Variant, seed: int, train: Split, val: Split) -> Logits:
    """Logits for `val` after the last epoch on `train`: nothing is chosen on val. Same draws and order as `fit`."""
    config = variant.config(config, seed)
    recipe = config.training
    model = build_model(config, train.dv, None, CPU)
    model.visual_dropout = visual_dropout(recipe, train)
    set_stats(model, train, config)
    if variant.patch:
        torch.manual_seed(recipe.seed + 1)
        variant.patch(model)
    optimizer = make_optimizer(model, recipe, len(train.labels))
    order = BatchOrder(len(train.labels), config.batch_size, recipe.seed)
    total = len(order) * recipe.epochs
    steps = iter(range(total))

    def before_step() -> None:
        step = next(steps)
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_factor(step, total)

    weights = class_weights(recipe.class_weights, train, CPU)
    batches, kept = Batches(train, order), LogitsKept()
    splits = model.llm.trains_beside_one_thread(config.batch_size, model.tokens)
    with sharing() if splits else nullcontext():
        for order.epoch in range(recipe.epochs):
            train_one_epoch(
                model,
                batches,
                optimizer,
                None,
                CPU,
                class_weights=weights,
                grad_clip=recipe.grad_clip,
                before_step=before_step,
            )
        evaluate(model, Batches(val, BatchOrder(len(val.labels), 256)), CPU, on_batch=kept.keep)
    return kept.arrays()
