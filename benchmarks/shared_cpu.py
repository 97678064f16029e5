"""What training, caching and a stream take beside busy neighbours: `while True: pass` at equal priority.

    python -m benchmarks.shared_cpu [--threads 2] [--rounds 3] [--json shared_cpu.json]

Each figure is the median of a few processes; the numbers of neighbours alternate. With n cores and as many threads as
cores, a fair scheduler leaves n * n / (n + neighbours) of them to the threads (all n up to a neighbour on a core of its
own); what that alone explains stands beside what was found. `--spin` sets GOMP_SPINCOUNT, 300000 being libgomp's own.
The small models are the demo's, the large ones ViT-B-32 and SmolLM2-135M's sizes with random weights.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import simv0  # noqa: F401  before torch, as a user would

WORKS = ("train small", "train large", "cache-vis small", "cache-vis large", "stream small", "stream large")
NEIGHBOURS = (0, 1, 2)
WINDOWS = {"small": (512, 128), "large": (64, 64)}


def prepare(root: Path) -> None:
    """Worlds, networks and feature files, once for all runs."""
    from benchmarks.epoch import save_vit_b_32, write_windows
    from benchmarks.llms import save_random
    from cache.pipeline import cache_vis
    from simv0.demo.networks import save_tiny_llm, save_tiny_tower
    from simv0.training.fit import fit

    for size, (train, val) in WINDOWS.items():
        folder = root / size
        write_windows(folder / "world", train, val, apart=False)
        if size == "small":
            save_tiny_llm(folder / "llm", d=128)
            save_tiny_tower(folder / "vision", dv=512, image_size=32)
        else:
            save_random("smollm2-135m", folder / "llm", None)
            save_vit_b_32(folder / "vision")
        cache_vis(config(root, size))
        fit(config(root, size))


def config(root: Path, size: str, cache: str = "cache", run: str = "run", epochs: int = 1) -> Any:
    from benchmarks.epoch import config_for

    base = config_for(root / size, True, epochs)
    folders = {"cache": {"dir": str(root / size / cache)}, "output": {"output_dir": str(root / size / run)}}
    return base.model_copy(
        update={name: getattr(base, name).model_copy(update=values) for name, values in folders.items()}
    )


def seconds_of(work: str, root: Path) -> float:
    """Seconds of the work itself, without start and loading."""
    kind, size = work.split()
    if kind == "train":
        from simv0.training.fit import fit

        run = fit(config(root, size, run="again", epochs=4 if size == "small" else 2), overwrite=True)
        lines = run.train_metrics.read_text().splitlines()
        return sum(json.loads(line)["seconds"] for line in lines)
    if kind == "cache-vis":
        from cache.pipeline import cache_vis

        reports = cache_vis(config(root, size, cache="again"), overwrite=True)
        return sum(report.counts.seconds for report in reports)
    return stream_seconds(root / size)


def stream_seconds(folder: Path) -> float:
    """Mean seconds of a push."""
    import time

    import torch

    from simv0.predict import Predictor
    from simv0.stream import Stream

    stream = Stream(Predictor.load(folder / "run" / "checkpoints" / "best.pt"), 0.2, live=False)
    frames = torch.randint(0, 256, (8, 3, 480, 640), dtype=torch.uint8)
    pushes = 60
    for i in range(8 + pushes):
        if i == 8:
            started = time.perf_counter()
        stream.push(frames[i % 8], torch.zeros(8), 0.2 * i)
    return (time.perf_counter() - started) / pushes


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def explained(count: int, threads: int) -> float:
    """Times longer that as many neighbours alone make the work, where the scheduler is fair."""
    cores = len(os.sched_getaffinity(0))
    share = min(1.0, cores / (threads + count))
    return 1 / share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", default=",".join(WORKS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spin", help="GOMP_SPINCOUNT instead of simv0's own")
    parser.add_argument("--root", type=Path, help="keep worlds and networks here, for the next run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one work, in a process of its own
    args = parser.parse_args()
    if args.one:
        import torch

        torch.set_num_threads(args.threads)
        print(seconds_of(args.one, args.root))
        return
    with tempfile.TemporaryDirectory() as name:
        root = args.root or Path(name)
        if not (root / "large" / "run" / "checkpoints" / "best.pt").exists():
            prepare(root)
        rows = measure(root, args)
    if args.json:
        from benchmarks.llms import device_name

        about = {"date": str(date.today()), "device": device_name(), "threads": args.threads, "spin": args.spin}
        args.json.write_text(json.dumps({**about, "rows": rows}, indent=1))


def measure(root: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    environment = dict(os.environ) | ({"GOMP_SPINCOUNT": args.spin} if args.spin else {})
    works = args.works.split(",")
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds):
        for work in works:
            for count in NEIGHBOURS:
                command = [sys.executable, "-m", "benchmarks.shared_cpu", "--one", work, "--root", str(root)]
                command += ["--threads", str(args.threads)]
                with neighbours(count):
                    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                found.setdefault((work, count), []).append(float(done.stdout.splitlines()[-1]))
    rows = []
    print(f"{'work':16} {'neighbours':>10} {'seconds':>9} {'times':>6} {'explained':>9} {'over':>6}")
    for work in works:
        quiet = statistics.median(found[work, 0])
        for count in NEIGHBOURS:
            seconds, lost = statistics.median(found[work, count]), explained(count, args.threads)
            row = {"work": work, "neighbours": count, "seconds": seconds, "times_quiet": seconds / quiet}
            rows.append(row | {"explained": lost, "over_explained": seconds / quiet / lost})
            print(
                f"{work:16} {count:10} {seconds:9.3f} {seconds / quiet:6.2f} {lost:9.2f} {seconds / quiet / lost:6.2f}"
            )
    return rows


if __name__ == "__main__":
    main()
