"""From 10^4 to 10^9 windows: bytes, hours, files, memory; and the shard scheme under failures and slow ranks.

    python -m benchmarks.scaling [--rates my_rates.json] [--ranks 8] [--seed 0] > tables.md

Prints the tables of benchmarks/results/scaling_model_*.md. `--rates` overrides entries of RATES; `simv0 check --probe`
measures frames and training windows per second on your machine (a training window is 4 x llm_weights x 6 operations).
"""

import argparse
import json
import math
import resource
import statistics
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.shard_sim import random_lives, random_speeds, simulate
from simv0.data.labels import read_labels
from simv0.data.manifest import ManifestDataset
from simv0.features.dataset import CachedDataset
from simv0.features.info import FeatureInfo
from simv0.features.reader import sha256
from simv0.features.shards import MAX_SHARDS, SHARD_WINDOWS
from simv0.features.writer import file_bytes, write_features
from simv0.training.splits import BatchOrder

F, DV, EPOCHS = 8, 512, 10
SIZES = [10**power for power in range(4, 10)]
RATES: dict[str, float] = {
    "cpu_frames_a_second": 38.1,  # ViT-B-32, bf16, 2 cores: results/cache_vis_epyc_2026-11-23.md
    "cpu_operations_a_second": 1e12,  # matrix products in bf16, 2 cores: simv0/llm/compile.py
    "gpu_frames_a_second": 5000.0,  # ASSUMED, never measured here
    "gpu_operations_a_second": 1e14,  # ASSUMED; 3e13 to 6e13: results/train_step_h200_2026-11-26.md
    "llm_weights": 357_855_104,  # Qwen2.5-0.5B without its embedding, as `simv0 check` counts them
    "shard_seconds": 0.009,  # to write and record a shard of no size: least of 20, busy machine
    "write_bytes_a_second": 1e9,  # what 17 ms for 1024 windows (the same page) leave beside that
    "restart_seconds": 60.0,  # ASSUMED: a scheduler notices, Python starts, the encoder is loaded
}
KINDS = ("cpu", "gpu")
SHARD_SIZES = (64, 256, 1024, 4096, 16_384)
DEFAULT = SHARD_WINDOWS[-1]


def sizes_table(rates: dict[str, float]) -> list[list[str]]:
    """Bytes, hours and files of each number of windows; hours are of one worker (2 CPU cores, or one GPU)."""
    head = ["windows", "feature file", "if frames were stored once", "shards", "cache-vis, windows apart"]
    rows = [[*head, "ranks to do that in a day", "cache-vis, stride 1", f"train, {EPOCHS} epochs"]]
    for windows in SIZES:
        operations = 4.0 * rates["llm_weights"] * 6 * windows * EPOCHS  # 4 visual tokens, telemetry, task
        apart = [windows * F / rates[f"{kind}_frames_a_second"] for kind in KINDS]
        stride_1 = [windows / rates[f"{kind}_frames_a_second"] for kind in KINDS]
        training = [operations / rates[f"{kind}_operations_a_second"] for kind in KINDS]
        stored = file_bytes(windows, F, DV, "float16", DEFAULT, 24)
        once = stored - windows * (F - 1) * DV * 2 + windows * F * 4
        rows.append(
            [
                power_of_ten(windows),
                show_bytes(stored),
                show_bytes(once),
                f"{-(-windows // DEFAULT):,}",
                " / ".join(map(show_time, apart)),
                " / ".join(f"{math.ceil(seconds / 86400):,}" for seconds in apart),
                " / ".join(map(show_time, stride_1)),
                " / ".join(map(show_time, training)),
            ]
        )
    return rows


def memory_table(windows: int = 20_000) -> list[list[str]]:
    """RAM that each step holds for every window, measured at `windows` of them, and what that is for more."""
    rows = [["RAM for", "bytes a window", *map(power_of_ten, SIZES[2:])]]
    with TemporaryDirectory() as folder:
        dataset = ManifestDataset(write_manifest(Path(folder), windows))
        write_labels(Path(folder) / "train.h5", dataset)
        for what in HOLDERS:
            with get_context("spawn").Pool(1) as fresh:  # memory that others have freed would hide what is taken
                each = fresh.apply(measure_ram, (what, folder, windows)) / windows
            rows.append([what, f"{each:,.0f}", *(show_bytes(each * size) for size in SIZES[2:])])
    return rows


HOLDERS = (
    "the manifest (ManifestDataset)",
    "labels, while a dataset's are read (read_labels)",
    "labels of a feature file (CachedDataset)",
    "order of an epoch (BatchOrder)",
)


def measure_ram(what: str, folder: str, windows: int) -> int:
    """Peak bytes of one of HOLDERS."""
    manifest = Path(folder) / "train.jsonl"
    dataset = ManifestDataset(manifest) if what == HOLDERS[1] else None
    steps: list[Callable[[], Any]] = [
        lambda: ManifestDataset(manifest),
        lambda: read_labels(dataset, "train", F),
        lambda: CachedDataset(manifest.with_suffix(".h5"), "never"),
        lambda: next(iter(BatchOrder(windows, 64, 0))),
    ]
    return peak(steps[HOLDERS.index(what)])


def write_manifest(folder: Path, windows: int) -> Path:
    """A manifest at stride 1 over empty files: only its size matters."""
    for i in range(windows + F - 1):
        (folder / f"{i:08d}.jpg").touch()
    path = folder / "train.jsonl"
    rows = (
        {
            "sample_id": f"run-{i:08d}",
            "group": "run",
            "frames": [f"{i + j:08d}.jpg" for j in range(F)],
            "telemetry": [0.1 * j + i for j in range(8)],
            "risk_id": i % 4,
            "reason_id": 0,
            "action_id": 0,
        }
        for i in range(windows)
    )
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def write_labels(path: Path, dataset: ManifestDataset) -> Path:
    """A feature file whose features take next to nothing."""
    labels = read_labels(dataset, "train", F)
    identity = {"F": 1, "dv": 1, "dtype": "float16", "N": len(labels)}
    features = np.zeros((len(labels), 1, 1), np.float16)
    info = FeatureInfo(identity, labels, None, len(labels), [sha256(features)])
    write_features(path, info, [features], path.with_suffix(".tmp"))
    return path


def peak(work: Callable[[], Any]) -> int:
    """Bytes by which `work` raises the most that this process has held since it began."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is held now
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    work()
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 - pages * resource.getpagesize()


def scenarios(rates: dict[str, float]) -> dict[str, float]:
    """Name -> windows that one rank encodes a second."""
    cpu, gpu = rates["cpu_frames_a_second"], rates["gpu_frames_a_second"]
    return {
        "2 cores, windows apart": cpu / F,
        "2 cores, stride 1": cpu,
        "GPU, windows apart": gpu / F,
        "GPU, stride 1": gpu,
    }


def shard_runs(
    rate: float, mtbf: float, slow: float, rates: dict[str, float], ranks: int, seed: int, repeats: int = 5
) -> dict[int, tuple[float, float]]:
    """Simulate 200 of the default's shards a rank, cut into shards of each size.

    Returns:
        Windows a shard -> (makespan as a multiple of what encoding alone takes, share of work lost), both means.
    """
    found = {}
    windows = 200 * DEFAULT * ranks
    for shard in SHARD_SIZES:
        seconds = shard / rate + rates["shard_seconds"] + shard * F * DV * 2 / rates["write_bytes_a_second"]
        lengths, losses = [], []
        for repeat in range(seed, seed + repeats):
            speeds = random_speeds(ranks, slow, 4.0, np.random.default_rng(repeat))
            lives = [random_lives(mtbf, np.random.default_rng([repeat, rank])) for rank in range(ranks)]
            outcome = simulate([seconds] * (windows // shard), speeds, lives, rates["restart_seconds"])
            alone = windows / rate / sum(speeds)
            lengths.append(outcome.makespan / alone)
            losses.append(outcome.lost / (alone * ranks))
        found[shard] = statistics.mean(lengths), statistics.mean(losses)
    return found


def shards_row(name: str, mtbf: float, slow: float, runs: dict[int, tuple[float, float]]) -> list[str]:
    """One line of the table of shard sizes."""
    failing = "never" if mtbf == np.inf else show_time(mtbf)
    return [name, failing, f"{slow:.0%}", *(f"{length:.3f} ({lost:.2%})" for length, lost in runs.values())]


def shards_table(rates: dict[str, float], ranks: int, seed: int) -> list[list[str]]:
    """Makespan and lost work against shard size, time between failures, and slow ranks."""
    rows = [["one rank", "fails every", "slow ranks", *(f"{shard:,}" for shard in SHARD_SIZES)]]
    worst = dict.fromkeys(SHARD_SIZES, 0.0)
    for name, rate in scenarios(rates).items():
        for mtbf, slow in ((np.inf, 0.0), (24 * 3600.0, 0.0), (3600.0, 0.0), (np.inf, 0.25)):
            runs = shard_runs(rate, mtbf, slow, rates, ranks, seed)
            rows.append(shards_row(name, mtbf, slow, runs))
            best = min(length for length, _ in runs.values())
            worst = {shard: max(worst[shard], runs[shard][0] / best - 1) for shard in SHARD_SIZES}
    rows.append(["**most over its row's best**", "", "", *(f"**{worst[shard]:.1%}**" for shard in SHARD_SIZES)])
    rows.append(["shards of 10^9 windows", "", "", *(_shards_of(10**9, shard) for shard in SHARD_SIZES)])
    return rows


def _shards_of(windows: int, shard: int) -> str:
    count = -(-windows // shard)
    return f"{count:,}" + (" (refused)" if count > MAX_SHARDS else "")


def power_of_ten(number: int) -> str:
    """10^k."""
    return f"10^{len(str(number)) - 1}"


def show_time(seconds: float) -> str:
    """For people: two figures."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= (1.0 if unit != "days" else 2.0) * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.2g} s"


def show_bytes(nbytes: float) -> str:
    """For people: two figures."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.2g} {unit}" if nbytes < 100 * size else f"{nbytes / size:,.0f} {unit}"
    return f"{nbytes:.0f} B"


def markdown(rows: list[list[str]]) -> str:
    """Rows, the first one their header, as a table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=Path, help="JSON with entries of RATES")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    given = json.loads(arguments.rates.read_text()) if arguments.rates else {}
    if unknown := given.keys() - RATES.keys():
        parser.error(f"--rates: unknown {', '.join(sorted(unknown))}; known are {', '.join(RATES)}")
    rates = {**RATES, **given}
    for table in (sizes_table(rates), memory_table(), shards_table(rates, arguments.ranks, arguments.seed)):
        print(markdown(table) + "\n")


if __name__ == "__main__":
    main()
