"""What several processes are worth on this machine: seconds of an epoch, alone and under torchrun.

    python -m benchmarks.ranks                       # SmolLM2-135M's sizes, random weights
    python -m benchmarks.ranks --arch llama-128      # as small as the demo's: the messages weigh most

Every variant is the real command in processes of its own; they alternate, and the median epoch of all rounds counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.llms import save_random

EPOCHS, F, DV = 4, 8, 512
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node"]
VARIANTS: dict[str, tuple[list[str], int]] = {
    "one process, 1 thread": ([], 1),
    "torchrun, 1 process, 1 thread": ([*TORCHRUN, "1"], 1),
    "torchrun, 2 processes, 1 thread each": ([*TORCHRUN, "2"], 1),
    "one process, 2 threads": ([], 2),
}


class Windows:
    """Windows with features of their own; the path is how many."""

    def __init__(self, path: str) -> None:
        self.n = int(Path(path).name)  # the config makes paths absolute
        self.feats = np.random.default_rng(0).normal(size=(F, DV)).astype(np.float32)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Any]:
        labels = {"risk_id": i % 4, "reason_id": i // 2 % 4, "action_id": i % 6}
        return {"vis_feats": self.feats, "telemetry": [0.1 * i] * 8, "sample_id": str(i), **labels}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_random(args.arch, folder / "llm", None)
        config = write_config(folder, args.batch, args.batch * args.steps)
        times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(args.rounds):
            for variant in VARIANTS:
                times[variant] += epochs(folder, config, variant)
    seconds = {variant: statistics.median(own) for variant, own in times.items()}
    show(args.arch, args.batch, seconds)
    if args.json:
        args.json.write_text(json.dumps({"arch": args.arch, "batch": args.batch, "epoch_seconds": seconds}, indent=2))


def write_config(folder: Path, batch: int, windows: int) -> Path:
    """A run over features that the dataset brings itself."""
    config = {
        "data": {
            "dataset_class_path": "benchmarks.ranks.Windows",
            "train_split_path": str(windows),
            "val_split_path": "8",
            "batch_size": batch,
        },
        "cache": {"dir": str(folder / "none")},
        "model": {"llm_name_or_path": str(folder / "llm"), "F": F},
        "training": {"epochs": EPOCHS, "compile": "off"},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path


def epochs(folder: Path, config: Path, variant: str) -> list[float]:
    """Seconds of every epoch of one run but the first."""
    launcher, threads = VARIANTS[variant]
    run = ["-m", "cli", "train", "--config", str(config), "--overwrite", "--set", f"output.output_dir={folder / 'run'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, *launcher, *run], check=True, env=environment, stdout=subprocess.DEVNULL)
    rows = (folder / "run" / "metrics" / "train_metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["seconds"] for row in rows[1:]]


def show(arch: str, batch: int, seconds: dict[str, float]) -> None:
    table = Table(title=f"{arch}, batch {batch}")
    for column in ("variant", "epoch, s", "against one process, 1 thread"):
        table.add_column(column)
    alone = seconds["one process, 1 thread"]
    for variant, own in seconds.items():
        table.add_row(variant, f"{own:.3f}", f"{alone / own:.2f} times as fast")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
