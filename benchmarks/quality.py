"""Does the model earn its keep? Baselines, the default recipe, and one thing changed at a time, over several seeds.

    python -m benchmarks.quality demo|rover [--tune] [--seeds 5] [--variants "default,random LLM"] [--out FILE.md]

`rover` needs SIMV0_REAL. Every model is measured on val at its last epoch: nothing is chosen there. With --tune val
stays unread: five blocks of train are held out in turn, and the predictions for them pooled.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cache.pipeline import cache_vis
from cli.demo import LLM, TOWER, WORLD, demo_config
from simv0.config.load import build_config, load_config
from simv0.config.schema import Config
from simv0.demo.networks import save_tiny_llm, save_tiny_tower
from simv0.demo.world import write_world
from simv0.evaluation.baselines import Logits, fit_baselines, part, predict_all, score
from simv0.labels import HEADS
from simv0.llm.frozen import FrozenLLM
from simv0.model.build import build_model
from simv0.model.metrics import Metrics
from simv0.model.network import SimV0Model
from simv0.training.epoch import LogitsKept, evaluate, train_one_epoch
from simv0.training.recipe import class_weights, lr_factor, make_optimizer, set_stats, visual_dropout
from simv0.training.splits import Batches, BatchOrder, Split, open_split

SHOWN = ("risk_macro_f1", "action_macro_f1", "reason_macro_f1", "risk_high_recall", "risk_high_recall_at_5")
T_975 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""Student's t for a two-sided 95 % interval, by degrees of freedom."""
BLOCKS = 5
WIDTH = 128
"""Of the prefix of the model without an LLM."""
GAP = 21
"""Windows left out on both sides of a block that is held out: 3 s of the rover's recording."""

Fold = tuple[Split, Split]
"""What is trained on, what is measured."""


class PrefixMean(nn.Module):
    """In the LLM's place: the mean of the prefix."""

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,d] -> [B,d]."""
        return x.mean(1)


def no_llm(model: SimV0Model) -> None:
    llm = model.llm
    model.llm = FrozenLLM(PrefixMean(), d=llm.d, hidden_size=llm.d, embed_rms=llm.embed_rms, identity=llm.identity)


def random_llm(model: SimV0Model) -> None:
    """Random matrices of the same size; norms as they are."""
    for weight in model.llm.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)


def without_vision(model: SimV0Model) -> None:
    nn.init.zeros_(model.projector.weight).requires_grad_(False)


def without_telemetry(model: SimV0Model) -> None:
    last = model.telemetry_mlp[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight).requires_grad_(False)


def loud_picture(model: SimV0Model) -> None:
    """The projector starts as a plain random projection, without the learned token."""
    nn.init.normal_(model.projector.weight, std=model.dv**-0.5)
    nn.init.zeros_(model.projector.bias)


@dataclass(frozen=True)
class Variant:
    """What is changed in the default recipe."""

    set: dict[str, dict[str, object]] = field(default_factory=dict)
    patch: Callable[[SimV0Model], None] | None = None


def training(**changes: object) -> Variant:
    return Variant({"training": changes})


LR_SCALE = {"projector": 1.0, "telemetry_mlp": 1.0, "task_token": 1.0, "heads": 1.0}
VARIANTS = {
    "default": Variant(),
    "no LLM (mean of the prefix)": Variant(patch=no_llm),
    "random LLM": Variant(patch=random_llm),
    "without vision": Variant(patch=without_vision),
    "without telemetry": Variant(patch=without_telemetry),
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


def prepare(world: str, folder: Path) -> Config:
    """The config, its feature files made."""
    if world == "rover":
        config = load_config("configs/rover.yaml", [f'cache.dir="{folder.absolute()}/rover_cache"'])
    else:
        config = demo_config(folder / "demo")
        if not Path(config.data.val_split_path).exists():
            write_world(folder / "demo" / "world", **WORLD)
        save_tiny_llm(folder / "demo" / "models" / "llm", **LLM)
        save_tiny_tower(folder / "demo" / "models" / "vision", **TOWER)
    cache_vis(config)
    return config


def blocks_of(train: Split) -> list[Fold]:
    """Each fifth of a split in its own order, with the rest of it but for what lies close by."""
    n = len(train.labels)
    edges = [round(i * n / BLOCKS) for i in range(BLOCKS + 1)]
    return [
        (part(train, [*range(start - GAP), *range(stop + GAP, n)]), part(train, range(start, stop)))
        for start, stop in itertools.pairwise(edges)
    ]


def measure(config: Config, variant: Variant, seed: int, folds: list[Fold]) -> Metrics:
    """The metrics of one variant at its last epoch, the logits of all folds pooled."""
    tree = config.model_dump()
    for section, changes in variant.set.items():
        tree[section] |= changes
    tree["training"] |= {"seed": seed, "amp": False}
    config = build_config(tree, "benchmark")
    return pooled([logits_of(train_model(config, variant, train), val) for train, val in folds], folds)


def train_model(config: Config, variant: Variant, train: Split) -> SimV0Model:
    """Train as `fit` does: same draws, same order."""
    recipe, device = config.training, torch.device("cpu")
    model = build_model(config, train.dv, None, device)
    model.visual_dropout = visual_dropout(recipe, train)
    set_stats(model, train, config)
    if variant.patch:
        torch.manual_seed(recipe.seed + 1)
        variant.patch(model)
    optimizer = make_optimizer(model, recipe)
    order = BatchOrder(len(train.labels), config.batch_size, recipe.seed)
    total = len(order) * recipe.epochs
    steps = iter(range(total))

    def before_step() -> None:
        step = next(steps)
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_factor(step, total)

    weights = class_weights(recipe.class_weights, train, device)
    batches = Batches(train, order, 0)
    for order.epoch in range(recipe.epochs):
        train_one_epoch(
            model,
            batches,
            optimizer,
            None,
            device,
            class_weights=weights,
            grad_clip=recipe.grad_clip,
            before_step=before_step,
        )
    return model


def logits_of(model: SimV0Model, split: Split) -> Logits:
    kept = LogitsKept()
    batches = Batches(split, BatchOrder(len(split.labels), 256), 0)
    evaluate(model, batches, torch.device("cpu"), on_batch=kept.keep)
    return kept.arrays()


def pooled(logits: list[Logits], folds: list[Fold]) -> Metrics:
    """The metrics of all folds' predictions together."""
    labels = [val.labels for _, val in folds]
    ids = {head: np.concatenate([each.ids[head] for each in labels]) for head in HEADS}
    weight = np.concatenate([each.weight for each in labels])
    whole = replace(labels[0], ids=ids, weight=weight)
    return score({head: np.concatenate([each[head] for each in logits]) for head in HEADS}, whole)


def table(config: Config, names: list[str], seeds: int, tune: bool) -> Iterator[str]:
    """Markdown, line by line as it is measured."""
    train = open_split(config, "train")
    folds = blocks_of(train) if tune else [(train, open_split(config, "val"))]
    yield f"| | {' | '.join(key.replace('_', ' ') for key in SHOWN)} |"
    yield "|---" * (len(SHOWN) + 1) + "|"
    fitted = [
        predict_all(fit_baselines(train, config.training, config.model.K, WIDTH), val, config.model.K)
        for train, val in folds
    ]
    for name in fitted[0]:
        metrics = pooled([each[name] for each in fitted], folds)
        yield f"| {name} | " + " | ".join(f"{metrics[key] or 0:.3f}" for key in SHOWN) + " |"
    reference: list[Metrics] = []
    for name in names:
        started = time.perf_counter()
        runs = [measure(config, VARIANTS[name], seed, folds) for seed in range(seeds)]
        reference = reference or runs
        cells = [cell(key, runs, reference) for key in SHOWN]
        yield f"| {name} | " + " | ".join(cells) + " |"
        print(f"    {time.perf_counter() - started:.0f} s", flush=True)


def cell(key: str, runs: list[Metrics], reference: list[Metrics]) -> str:
    """Mean ± sd, and the paired difference to the default with its 95 % interval."""
    values = [run[key] or 0.0 for run in runs]
    text = f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"
    if runs is reference or len(values) < 2:
        return text
    differences = [value - (other[key] or 0.0) for value, other in zip(values, reference, strict=True)]
    half = T_975[len(values) - 1] * statistics.stdev(differences) / len(values) ** 0.5
    return f"{text} ({statistics.mean(differences):+.3f} ± {half:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=("demo", "rover"))
    parser.add_argument("--tune", action="store_true", help="measure on blocks of train instead of val")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated; the first is the reference")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = []
    config, names = prepare(arguments.world, arguments.folder), arguments.variants.split(",")
    for line in table(config, names, arguments.seeds, arguments.tune):
        print(line, flush=True)
        lines.append(line)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
