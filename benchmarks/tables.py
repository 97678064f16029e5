"""Tables for benchmarks/results/train_step_*.md, each row measured by `benchmarks.train_step` in a process of its own.

python -m benchmarks.tables growth [--rounds 5] [--layers 4]     # batch 16..512, K 1..16, d 64..2048
python -m benchmarks.tables memory [--arch qwen2.5-0.5b]         # peak of loading and of a step
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STANDARD = {"arch": "smollm2-135m", "batch": 64, "K": 4}
GROWTH: list[dict[str, Any]] = [
    *({"batch": batch} for batch in (16, 32, 64, 128, 256, 512)),
    *({"K": K} for K in (1, 2, 4, 8, 16)),
    *({"arch": f"llama-{d}"} for d in (64, 128, 256, 512, 1024, 2048)),
]
MEMORY = ("causal_fp32_not_frozen", "auto_fp32", "autocast", "reference", "simv0_uncompiled", "simv0")


def train_step(*flags: str, **options: Any) -> list[dict[str, Any]]:
    """The rows of one run."""
    words = [f"--{key}={value}" for key, value in options.items()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.train_step", *flags, *words, "--json", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def growth(args: argparse.Namespace) -> None:
    """samples/s and fraction of the limit along each axis, the others at their usual values."""
    print("| LLM | batch | K | limit, samples/s | uncompiled | compiled |")
    print("|---" * 6 + "|")
    for point in GROWTH:
        shape = STANDARD | point
        variants = "simv0_uncompiled,simv0"
        rows = train_step(**shape, variants=variants, rounds=args.rounds, layers=args.layers, patience=args.patience)
        named = {row["variant"]: row for row in rows}
        cells = [f"{named[name]['samples_per_s']:.0f} ({named[name]['fraction']:.2f})" for name in variants.split(",")]
        print(f"| {shape['arch']} | {shape['batch']} | {shape['K']} | {rows[0]['samples_per_s']:.0f} | ", end="")
        print(" | ".join(cells), "|", flush=True)


def memory(args: argparse.Namespace) -> None:
    """Peak resident memory in MiB, the process itself (some 500 for Python, PyTorch and transformers) included."""
    print(f"| {args.arch} | loading | steps at batch 64 |")
    print("|---" * 3 + "|")
    for variant in MEMORY:
        (row,) = train_step("--memory", arch=args.arch, variants=variant)
        print(f"| {variant} | {row['load_peak_mib']:,} | {row['peak_mib']:,} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("growth", "memory"))
    parser.add_argument("--arch", default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4, help="of the growth table's LLMs")
    parser.add_argument("--patience", type=float, default=10.0)
    args = parser.parse_args()
    growth(args) if args.table == "growth" else memory(args)


if __name__ == "__main__":
    main()
