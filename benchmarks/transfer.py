"""What is an old robot's checkpoint worth to a new one? `training.init_from` beside training from scratch.

    python -m benchmarks.transfer rover-autocar|demo-demo [--seeds 3] [--epochs 10] [--out FILE.md]

Rover -> autocar: another camera, another place, most telemetry channels missing; the demo -> the demo with another
world seed: the same robot elsewhere. The new robot has 10 %, 30 % or all of its train windows: one stretch of them, as
if so much had been recorded, which begins elsewhere with every seed. With --equal-steps each share trains for as many
steps as all of them do. All is measured on the new robot's val at the last epoch: nothing is chosen there. Beside each
figure: its difference to the row from scratch above it, with a 95 % interval from resampling seeds and recordings of
both together. `old robot`: its checkpoint as it is, with the new robot's statistics.
"""

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.quality import SHOWN, Row, Table, line, prepare
from benchmarks.quality import parsed as quality_arguments
from benchmarks.variants import CPU, Variant, predictions
from cache.pipeline import cache_vis
from cli.demo import LLM, TOWER, demo_config
from simv0.baselines.fit import Logits, part
from simv0.config.schema import Config
from simv0.demo.networks import save_tiny_llm, save_tiny_tower
from simv0.demo.world import write_world
from simv0.model.build import build_model
from simv0.model.checkpoint import Checkpoint, load_checkpoint
from simv0.training.epoch import LogitsKept, evaluate
from simv0.training.fit import fit
from simv0.training.origin import start_from
from simv0.training.recipe import set_stats
from simv0.training.splits import Batches, BatchOrder, Split, open_split

SHARES = (0.1, 0.3, 1.0)
DEMO = {"train_windows": 2000, "val_windows": 1000}
"""Windows of each world."""


def robots(arguments: argparse.Namespace) -> list[Config]:
    """The configs of the old robot and of the new one, their feature files made."""
    if arguments.pair == "demo-demo":
        return [demo(arguments.folder / f"world {seed}", seed) for seed in range(2)]
    words = ["--folder", str(arguments.folder)]
    return [prepare(quality_arguments([name, *words])) for name in arguments.pair.split("-")]


def demo(folder: Path, seed: int) -> Config:
    """A world like the demo's, around the demo's networks."""
    if not (folder / "world" / "val.jsonl").exists():
        write_world(folder / "world", **DEMO, seed=seed)
    save_tiny_llm(folder / "models" / "llm", **LLM)
    save_tiny_tower(folder / "models" / "vision", **TOWER)
    config = demo_config(folder)
    cache_vis(config)
    return config


def origins(old: Config, arguments: argparse.Namespace) -> list[Checkpoint]:
    """The old robot's best.pt of each seed."""
    found = []
    for seed in range(arguments.seeds):
        folder = (arguments.folder / f"{arguments.pair} old {seed}").absolute()
        config = Variant({"output": {"output_dir": str(folder)}}).config(old, seed)
        found.append(load_checkpoint(fit(config, resume=True).best))
    return found


def stretch(train: Split, share: float, seed: int) -> Split:
    """A share of a split in one piece, from a place that the seed tells; around the end if need be."""
    n = len(train.labels)
    start = round(n * (0.37 * seed % 1))
    return part(train, sorted((start + i) % n for i in range(round(n * share))))


def untrained(config: Config, origin: Checkpoint, train: Split, val: Split) -> Logits:
    """Logits of the old robot's modules with the new robot's statistics."""
    model, kept = build_model(config, train.dv, None, CPU), LogitsKept()
    set_stats(model, train, config)
    start_from(origin, model)
    evaluate(model, Batches(val, BatchOrder(len(val.labels), 256), 0), CPU, on_batch=kept.keep)
    return kept.arrays()


def pairs(new: Config, origin: list[Checkpoint], arguments: argparse.Namespace) -> Iterator[tuple[Row, Row]]:
    """Row and the row that it is compared with, as they are measured."""
    train, val = open_split(new, "train"), open_split(new, "val")
    table, seeds = Table([(train, val)]), range(len(origin))
    config = Variant({"training": {"epochs": arguments.epochs}}).config(new, 0)

    def row(name: str, share: float, epochs: int, started_from: list[Checkpoint] | None) -> Row:
        clock, runs = time.perf_counter(), []
        for seed in seeds:
            patch = None if started_from is None else partial(start_from, started_from[seed])
            variant = Variant({"training": {"epochs": epochs}}, patch)
            runs.append([predictions(config, variant, seed, stretch(train, share, seed), val)])
        return table.row(name, runs, time.perf_counter() - clock)

    clock = time.perf_counter()
    as_it_is = [[untrained(config, checkpoint, train, val)] for checkpoint in origin]
    before = table.row("old robot", as_it_is, time.perf_counter() - clock)
    yield before, before
    for share in SHARES:
        epochs = round(arguments.epochs / share) if arguments.equal_steps else arguments.epochs
        scratch = row(f"{share:.0%}, from scratch", share, epochs, None)
        yield scratch, scratch
        yield row(f"{share:.0%}, init_from", share, epochs, origin), scratch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=("rover-autocar", "demo-demo"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--equal-steps", action="store_true", help="10 %% of the windows for 10 times as many epochs")
    parser.add_argument("--folder", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    old, new = robots(arguments)
    head = f"| {arguments.pair.replace('-', ' -> ')} | {' | '.join(SHOWN.values())} |"
    lines = [head, "|" + "---|" * (len(SHOWN) + 1)]
    print("\n".join(lines))
    for row, reference in pairs(new, origins(old, arguments), arguments):
        lines.append(line(row, reference))
        print(lines[-1], flush=True)
        if arguments.out:
            arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
