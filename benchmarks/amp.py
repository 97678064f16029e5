"""Does bf16 train as fp32 does? Loss by epoch on the demo world, several seeds, with `training.amp` on and off.

    python -m benchmarks.amp [--seeds 4] [--epochs 8] [--train 1500] [--val 500]

Prints the mean over seeds of both, the standard deviation between seeds, and the mean difference of the two with one
and the same seed with its own standard error.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from cache.pipeline import cache_vis
from cli.demo import LLM, TOWER, demo_config
from simv0.config.load import build_config
from simv0.config.schema import Config
from simv0.demo.networks import save_tiny_llm, save_tiny_tower
from simv0.demo.world import write_world
from simv0.runtime.device import has_bf16_units
from simv0.training.fit import fit


def curve(config: Config, run: str, epochs: int, amp: bool) -> list[float]:
    """The val loss after each epoch."""
    tree = config.model_dump()
    tree["training"] |= {"epochs": epochs, "amp": amp}
    tree["output"] |= {"output_dir": f"{config.output.output_dir}/{run}"}
    lines = fit(build_config(tree, "benchmark")).val_metrics.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--val", type=int, default=500)
    args = parser.parse_args()
    if not has_bf16_units("cpu"):
        raise SystemExit("this CPU has no units for bf16, so both would be fp32: run it where AMX or AVX512-BF16 is")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_world(root / "world", train_windows=args.train, val_windows=args.val, seed=0)
        save_tiny_llm(root / "models" / "llm", **LLM)
        save_tiny_tower(root / "models" / "vision", **TOWER)
        cache_vis(demo_config(root))
        curves = {
            amp: [curve(demo_config(root, seed), f"{amp}{seed}", args.epochs, amp) for seed in range(args.seeds)]
            for amp in (False, True)
        }
    print("| epoch | fp32 | bf16 | between seeds | bf16 - fp32, same seed |")
    print("|---" * 5 + "|")
    for epoch, (exact, rounded) in enumerate(zip(*(zip(*curves[amp], strict=True) for amp in curves), strict=True)):
        differences = [b - a for a, b in zip(exact, rounded, strict=True)]
        error = statistics.stdev(differences) / args.seeds**0.5
        print(
            f"| {epoch + 1} | {statistics.mean(exact):.4f} | {statistics.mean(rounded):.4f} "
            f"| {statistics.stdev(exact):.4f} | {statistics.mean(differences):+.4f} ± {error:.4f} |"
        )


if __name__ == "__main__":
    main()
