"""What do trackers cost a training step?

    python -m benchmarks.trackers tensorboard wandb mlflow trackio --step-ms 4

Gives points to a run's trackers as `train` does, only faster, and reads the CPU time that this process took for one: in
the thread that trains, and with the delivery beside it, which at worst takes Python's lock from it. CPU time, so that a
busy machine counts little. A point comes every 25 steps.
"""

import argparse
import tempfile
import time
from pathlib import Path

from simv0.config.load import build_config
from simv0.training.rundir import RunDir
from simv0.training.trackers.follow import STEP_EVERY, followed

POINTS = 2000


def cost(name: str, folder: Path) -> tuple[float, float]:
    """Microseconds of CPU time for a point: of the thread that trains, of the whole process."""
    tree = {
        "data": {"train_split_path": "train", "val_split_path": "val"},
        "training": {"trackers": [name]},
        "output": {"output_dir": str(folder / name)},
    }
    config = build_config(tree, "benchmark")
    run = RunDir(config.output.output_dir)
    run.claim()
    run.begin(config)
    with followed(config, run, 0) as follower:
        follower.step(1, 1, 1.0, 1e-3)  # what is loaded at the first one
        time.sleep(3)
        thread, process = time.thread_time(), time.process_time()
        for number in range(2, POINTS + 2):
            follower.step(1, number * STEP_EVERY, 1.0 / number, 1e-3)
        thread = time.thread_time() - thread
        while follower.waiting:
            time.sleep(0.1)
        process = time.process_time() - process
    return 1e6 * thread / POINTS, 1e6 * process / POINTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trackers", nargs="+")
    parser.add_argument("--step-ms", type=float, default=4.0, help="the step to compare with")
    arguments = parser.parse_args()
    print(f"| tracker | us a point, training thread | with delivery | share of a step of {arguments.step_ms} ms |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.trackers:
            thread, process = cost(name, Path(folder))
            share = process / STEP_EVERY / (1000 * arguments.step_ms)
            print(f"| {name} | {thread:.0f} | {process:.0f} | {share:.2%} |", flush=True)


if __name__ == "__main__":
    main()
