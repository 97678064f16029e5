"""What commands take on work that is done or tiny: nearly all of it is start-up.

    python -m benchmarks.startup --run runs/demo [--other CHECKOUT] [--only check,cache-vis] [--rounds 3] [--imports]

On a finished run folder of `simv0 demo` (or any run with `config_resolved.yaml`). CPU seconds of the process and its
children beside wall seconds, medians; `--other` alternates with another checkout in the same rounds. `--imports` adds
what importing costs, by package (`python -X importtime`, which itself slows imports).
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


def commands(run: Path, scratch: Path) -> dict[str, list[str]]:
    """Name -> arguments of `python`."""
    config, best = str(run / "config_resolved.yaml"), str(run / "checkpoints" / "best.pt")
    epoch = ["--set", "training.epochs=1", "--set", f"output.output_dir={scratch / 'run'}", "--overwrite"]
    return {
        "torch alone": ["-c", "import torch"],
        "--help": ["-m", "cli", "--help"],
        "--version": ["-m", "cli", "--version"],
        "check": ["-m", "cli", "check", "--config", config],
        "cache-vis, complete": ["-m", "cli", "cache-vis", "--config", config],
        "inspect a checkpoint": ["-m", "cli", "inspect", best],
        "train, one epoch": ["-m", "cli", "train", "--config", config, *epoch],
        "evaluate": ["-m", "cli", "evaluate", "--ckpt", best, "--no-baselines", "--out", str(scratch / "evaluation")],
    }


def seconds(checkout: Path, arguments: list[str]) -> tuple[float, float, str]:
    """CPU and wall seconds, and what came on stderr."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=checkout, env=environment, check=True, capture_output=True, text=True
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, done.stderr


def by_package(said: str) -> str:
    """The largest shares of `-X importtime`, own time of each package's modules."""
    spent: Counter[str] = Counter()
    for own, module in re.findall(r"import time:\s+(\d+) \|\s+\d+ \| +(\S+)", said):
        spent[module.split(".")[0]] += int(own)
    return ", ".join(f"{name} {share / spent.total():.0%}" for name, share in spent.most_common(6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--other", type=Path, help="another checkout, alternating with this one")
    parser.add_argument("--only", help="commands whose names contain one of these, comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--imports", action="store_true")
    args = parser.parse_args()
    checkouts = [Path(__file__).parents[1], *([args.other.resolve()] if args.other else [])]
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in commands(args.run.resolve(), Path(folder)).items():
            if args.only and not any(part in name for part in args.only.split(",")):
                continue
            found: dict[Path, list[tuple[float, float]]] = {checkout: [] for checkout in checkouts}
            for _ in range(args.rounds):
                for checkout in checkouts:
                    found[checkout].append(seconds(checkout, arguments)[:2])
            for checkout, times in found.items():
                cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
                print(f"{name:22} {cpu:7.2f} s CPU {wall:7.2f} s wall  {checkout}", flush=True)
            if args.imports:
                print(f"    imports: {by_package(seconds(checkouts[0], ['-X', 'importtime', *arguments])[2])}")


if __name__ == "__main__":
    main()
