"""Does the LLM earn its keep? LLMs, simpler models and variants of the recipe on the same windows, over several seeds.

    python -m benchmarks.quality demo|rover|autocar [--llm FOLDER ...] [--seeds 5] [--epochs N] [--out FILE.md]
    python -m benchmarks.quality windows --train TRAIN.jsonl --val VAL.jsonl --set model.vision_encoder_name=...

Everything is measured on val at the last epoch: nothing is chosen there. With --tune val stays unread: parts of train
are held out in turn (recordings, or stretches where there is no `group`), and the predictions for them pooled. Features
are cached once, in --folder. `rover`, `autocar` and, unless --set names another encoder, `windows` need SIMV0_REAL.

The first row with an LLM is the reference. Beside each figure of another row: its difference to the reference with a
95 % interval, from resampling seeds and recordings (or stretches of the windows) of both together.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from benchmarks.variants import VARIANTS, Variant, predictions
from cache.pipeline import cache_vis
from cli.demo import LLM, TOWER, WORLD, demo_config
from simv0.alarm.rates import recordings
from simv0.baselines.fit import Logits, fit_baselines, part, predict_all, score
from simv0.baselines.linear import folds as folds_of
from simv0.baselines.worth import stretches
from simv0.config.load import load_config
from simv0.config.schema import Config
from simv0.data.labels import Labels
from simv0.demo.networks import save_tiny_llm, save_tiny_tower
from simv0.demo.world import write_world
from simv0.labels import HEADS, HIGH
from simv0.llm.randomised import save_randomised
from simv0.runtime.threads import limited_to
from simv0.training.splits import Split, open_split

SHOWN = {
    "risk_macro_f1": "risk F1",
    "action_macro_f1": "action F1",
    "risk_high_recall": "high recall",
    "risk_high_recall_at_5": "at 5 %",
    "risk_high_auroc": "AUROC",
    "risk_high_average_precision": "AP",
}
RESAMPLES = 300
BLOCKS = 5
GAP = 21
"""Windows left out on both sides of a stretch that is held out: 3 s of the rover's recording."""
WIDTH = 128
"""Of the prefix of the model without an LLM."""
REAL = {
    "rover": [],
    "autocar": [
        "data.train_split_path=${SIMV0_REAL}/data/autocar/train.jsonl",
        "data.val_split_path=${SIMV0_REAL}/data/autocar/val.jsonl",
        "data.frame_spacing=null",
    ],
}

Fold = tuple[Split, Split]
"""What is trained on, what is measured."""


@dataclass(frozen=True)
class Row:
    """One line of the table: the metrics of each seed, and of each seed on each resample."""

    name: str
    seeds: Float[np.ndarray, "S M"]
    resampled: Float[np.ndarray, "B S M"]
    seconds: float

    def mean(self) -> Float[np.ndarray, " M"]:
        """Over the seeds."""
        mean: np.ndarray = self.seeds.mean(0)
        return mean

    def over(self, reference: "Row") -> Float[np.ndarray, "3 M"]:
        """Difference to another row, and the ends of its 95 % interval."""
        drawn = np.random.default_rng(0).integers(0, len(self.seeds), self.resampled.shape[:2])
        differences = np.take_along_axis(self.resampled - reference.resampled, drawn[:, :, None], 1).mean(1)
        ends = np.nanpercentile(differences, [2.5, 97.5], axis=0)
        return np.stack([self.mean() - reference.mean(), *ends])


def prepare(arguments: argparse.Namespace) -> Config:
    """The config, its feature files made."""
    folder: Path = arguments.folder / arguments.world
    changes = [f'cache.dir="{folder.absolute()}/cache"', *arguments.set]
    if arguments.epochs:
        changes.append(f"training.epochs={arguments.epochs}")
    if arguments.world == "demo":
        config = demo_config(folder)
        if not Path(config.data.val_split_path).exists():
            write_world(folder / "world", **WORLD)
        save_tiny_llm(folder / "models" / "llm", **LLM)
        save_tiny_tower(folder / "models" / "vision", **TOWER)
        if arguments.epochs:
            config = Variant({"training": {"epochs": arguments.epochs}}).config(config, 0)
    elif arguments.world == "windows":
        splits = [f'data.train_split_path="{arguments.train}"', f'data.val_split_path="{arguments.val}"']
        config = load_config("configs/rover.yaml", [*splits, "data.frame_spacing=null", *changes])
    else:
        config = load_config("configs/rover.yaml", [*REAL[arguments.world], *changes])
    cache_vis(config)
    return config


def llms(config: Config, arguments: argparse.Namespace) -> Iterator[tuple[str, Config]]:
    """Name and config of each LLM; with --randomised each is followed by a copy with random weights."""
    for name in arguments.llm or [config.model.llm_name_or_path]:
        yield Path(name).name, Variant({"model": {"llm_name_or_path": name}}).config(config, 0)
        if arguments.randomised:
            folder = (arguments.folder / "randomised" / Path(name).name).absolute()
            if not folder.exists():
                save_randomised(name, None, folder, seed=0)
            copy = Variant({"model": {"llm_name_or_path": str(folder)}})
            yield f"{Path(name).name}, randomised", copy.config(config, 0)


def held_out(train: Split) -> list[Fold]:
    """Parts of a split, each with what may be trained on for it: whole recordings where there are several, else
    stretches of it, with the rest of it but for what lies close by.
    """
    n, group = len(train.labels), train.labels.group
    if group is not None and len(set(group)) > 1:
        fold = folds_of(group, n)
        sides = [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(fold.max() + 1)]
        return [(part(train, known.tolist()), part(train, new.tolist())) for known, new in sides]
    edges = [round(i * n / BLOCKS) for i in range(BLOCKS + 1)]
    return [
        (part(train, [*range(start - GAP), *range(stop + GAP, n)]), part(train, range(start, stop)))
        for start, stop in itertools.pairwise(edges)
    ]


class Table:
    """The rows, each measured on the same resamples of the same windows."""

    def __init__(self, folds: list[Fold]) -> None:
        self.folds = folds
        self.labels = Labels.joined([val.labels for _, val in folds])
        is_high = self.labels.ids["risk"] == HIGH
        recording = recordings(self.labels.group, is_high)
        self.unit = stretches(len(is_high)) if recording is None else recording
        self.over = f"{self.unit.max() + 1} {'stretches' if recording is None else 'recordings'}"

    def row(self, name: str, runs: list[list[Logits]], seconds: float) -> Row:
        """Measure one model. `runs`: seed -> fold -> logits."""
        with limited_to(1):  # thousands of small operations
            return self._row(name, runs, seconds)

    def _row(self, name: str, runs: list[list[Logits]], seconds: float) -> Row:
        whole = [{head: np.concatenate([fold[head] for fold in run]) for head in HEADS} for run in runs]
        everything = np.arange(len(self.labels))
        seeds = np.stack([measured(run, self.labels, everything) for run in whole])
        resampled = np.stack(
            [np.stack([measured(run, self.labels, rows) for run in whole]) for rows in drawn_rows(self.unit)]
        )
        return Row(name, seeds, resampled, seconds)

    def llm(self, name: str, config: Config, variant: Variant, seeds: int) -> Row:
        """Train with each seed."""
        started = time.perf_counter()
        runs = [[predictions(config, variant, seed, *fold) for fold in self.folds] for seed in range(seeds)]
        return self.row(name, runs, time.perf_counter() - started)

    def baselines(self, config: Config, seeds: int) -> Iterator[Row]:
        """Fit with each seed: the two networks depend on it."""
        started, runs, K = time.perf_counter(), [], config.model.K
        for seed in range(seeds):
            recipe = config.training.model_copy(update={"seed": seed})
            with limited_to(1):
                runs.append([predict_all(fit_baselines(train, recipe, K, WIDTH), val, K) for train, val in self.folds])
        seconds = time.perf_counter() - started
        for name in runs[0][0]:
            yield self.row(name, [[fold[name] for fold in run] for run in runs], seconds)


def measured(logits: Logits, labels: Labels, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, " M"]:
    """The metrics of some windows, as often as they are named; NaN where there is none."""
    ids = {head: ids[rows] for head, ids in labels.ids.items()}
    some = replace(labels, ids=ids, weight=labels.weight[rows])
    metrics = score({head: logits[head][rows] for head in HEADS}, some)
    return np.array([metrics[key] for key in SHOWN], np.float64)


def drawn_rows(unit: Int[np.ndarray, " N"]) -> Iterator[Int[np.ndarray, " _"]]:
    """The windows of units that are drawn with replacement, the same ones for every row of a table."""
    n, rng = int(unit.max()) + 1, np.random.default_rng(0)
    of_unit = [np.flatnonzero(unit == i) for i in range(n)]
    for _ in range(RESAMPLES):
        yield np.concatenate([of_unit[i] for i in rng.integers(0, n, n)])


def line(row: Row, reference: Row) -> str:
    """Markdown: mean over the seeds ± sd, and the difference to the reference."""
    sd = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in row.seeds.T.tolist()]
    cells = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in zip(row.mean(), sd, strict=True)]
    if row is not reference:
        over = (f"({value:+.3f}: {low:+.3f} to {high:+.3f})" for value, low, high in row.over(reference).T)
        cells = [f"{cell} {difference}" for cell, difference in zip(cells, over, strict=True)]
    return f"| {row.name} | " + " | ".join(cells) + " |"


def as_json(row: Row, reference: Row) -> dict[str, Any]:
    """The figures of a row; null where a metric has none."""
    over = row.over(reference)
    plain: dict[str, Any] = {"name": row.name, "seconds": round(row.seconds, 1), "seeds": {}, "over_reference": {}}
    for i, key in enumerate(SHOWN):
        plain["seeds"][key] = _numbers(row.seeds[:, i])
        plain["over_reference"][key] = dict(zip(("value", "low", "high"), _numbers(over[:, i]), strict=True))
    return plain


def _numbers(values: Float[np.ndarray, " n"]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def rows_of(config: Config, table: Table, arguments: argparse.Namespace) -> Iterator[Row]:
    """Row after row as it is measured, the reference first."""
    names = list(VARIANTS) if arguments.variants == "all" else arguments.variants.split(",")
    for i, (llm, own) in enumerate(llms(config, arguments)):
        for j, name in enumerate(names):
            yield table.llm(llm if name == "default" else f"{llm}, {name}", own, VARIANTS[name], arguments.seeds)
            if i == j == 0 and arguments.baselines:
                yield from table.baselines(config, arguments.seeds)


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=("demo", "rover", "autocar", "windows"))
    parser.add_argument("--train", type=Path, help="manifest, for `windows`")
    parser.add_argument("--val", type=Path, help="manifest, for `windows`")
    parser.add_argument("--llm", action="append", help="folder of an LLM; may be given several times")
    parser.add_argument("--randomised", action="store_true", help="also a copy of each LLM with random weights")
    parser.add_argument("--tune", action="store_true", help="measure on parts of train instead of val")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--variants", default="default", help=f"comma-separated, or all: {', '.join(VARIANTS)}")
    parser.add_argument("--no-baselines", dest="baselines", action="store_false")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, not for `demo`")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    parser.add_argument("--json", type=Path, help="write every figure here, after each row")
    parser.add_argument("--out", type=Path, help="write the table here, after each row")
    arguments = parser.parse_args(words)
    if (arguments.world == "windows") != bool(arguments.train and arguments.val):
        parser.error("--train and --val go with `windows`")
    if arguments.world == "demo" and arguments.set:
        parser.error("--set does not go with `demo`")
    return arguments


def main(words: list[str] | None = None) -> None:
    arguments = parsed(words)
    config = prepare(arguments)
    train = open_split(config, "train")
    table = Table(held_out(train) if arguments.tune else [(train, open_split(config, "val"))])
    high = int((table.labels.ids["risk"] == HIGH).sum())
    about = (
        f"{arguments.world}{', held-out parts of train' if arguments.tune else ''}: {len(table.labels)} windows, "
        f"{high} high; {arguments.seeds} seeds, intervals over seeds and {table.over}"
    )
    lines = [about, "", f"| | {' | '.join(SHOWN.values())} |", "|---" * (len(SHOWN) + 1) + "|"]
    print("\n".join(lines), flush=True)
    rows: list[Row] = []
    for row in rows_of(config, table, arguments):
        rows.append(row)
        lines.append(line(row, rows[0]))
        print(lines[-1], f"  {row.seconds:.0f} s", flush=True)
        if arguments.out:
            arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
        if arguments.json:
            content = {"about": about, "reference": rows[0].name, "rows": [as_json(each, rows[0]) for each in rows]}
            arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
