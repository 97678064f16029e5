"""Speed of `cache-vis`, ViT-B-32 shapes with random weights.

    python -m benchmarks.cache_vis [--rounds 3] [--windows 32] [--precision auto] [--threads 2] [--clock wall]
    python -m benchmarks.cache_vis --json cache_vis.json [--rounds 3] [--windows 32] [--patience 60]

With `--json`: from files to features, against the perfect pipeline (`benchmarks.end_to_end`). Else medians of
alternating runs on frames that are decoded already:
- stride-1 windows (F = 8): windows/s of cache-vis against encoding every window's frames;
- non-overlapping windows: images/s of cache-vis against the bare encoder on the same batches;
- writing one shard of 1024 windows, as a share of the time the encoder needs for its frames.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.end_to_end import end_to_end
from cache.pipeline import cache_split, open_job, start_over
from cli.shared import keep_freed_memory
from simv0.config.load import build_config
from simv0.config.schema import Config
from simv0.data.labels import Labels
from simv0.features.info import FeatureInfo
from simv0.features.reader import sha256
from simv0.features.shards import Parts, Record
from simv0.features.writer import write_features
from simv0.labels import HEADS
from simv0.vision.encoder import Encoder, resolve_precision

F, BATCH = 8, 32


class Film:
    """Windows over a film of random frames of the encoder's size, in memory."""

    def __init__(self, split: str, windows: int, stride: int) -> None:
        self.windows, self.stride = windows, stride
        frames = (windows - 1) * stride + F
        self.frames = torch.randint(0, 256, (frames, 3, 224, 224), dtype=torch.uint8)

    def __len__(self) -> int:
        return self.windows

    def frame_ids(self, index: int) -> list[int]:
        """See `simv0.data.contract.SharesFrames`."""
        return list(range(index * self.stride, index * self.stride + F))

    def load_frame(self, frame_id: int) -> torch.Tensor:
        """See there."""
        return self.frames[frame_id]

    def labels_of(self, index: int) -> dict[str, Any]:
        """See there."""
        return {"telemetry": [0.0] * 8, "risk_id": 0, "reason_id": 0, "action_id": 0}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.labels_of(index), "frames": self.frames[index * self.stride : index * self.stride + F]}


def alternate(rounds: int, clock: Callable[[], float], **runs: Callable[[], int]) -> dict[str, float]:
    """Median rate of each run (what it returns, per second), the runs taking turns."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = clock()
            done = run()
            rates[name].append(done / (clock() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def random_encoder(precision: str) -> Encoder:
    """ViT-B-32's image tower with random weights."""
    import open_clip

    vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
    preprocess = {"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    visual = open_clip.CLIP(512, vision, text).visual
    return Encoder(visual, preprocess, "ViT-B-32", None, resolve_precision(precision))


def film_config(folder: Path, windows: int, stride: int) -> Config:
    data = {"dataset_class_path": f"{__name__}.Film", "dataset_kwargs": {"windows": windows, "stride": stride}}
    tree = {
        "data": {**data, "train_split_path": "train", "val_split_path": "val"},
        "cache": {"dir": str(folder / f"cache{stride}"), "batch_size": BATCH},
        "model": {"F": F},
    }
    return build_config(tree, "benchmark")


def compare(config: Config, encoder: Encoder, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Windows/s of cache-vis, and of the bare encoder over every window's frames."""
    split = open_job(config, "train")
    film: Film = split.source.dataset

    def cache_vis() -> int:
        start_over([split])
        cache_split(config, split, encoder)
        return len(film)

    def bare() -> int:
        frames = torch.cat([film.frames[film.frame_ids(i)] for i in range(len(film))])
        for batch in frames.split(BATCH):  # type: ignore[no-untyped-call]
            encoder(batch)
        return len(film)

    return alternate(rounds, clock, cache_vis=cache_vis, bare=bare)


def write_shard(folder: Path, dv: int) -> float:
    """Seconds to write and record one shard of 1024 windows; median of 9."""
    n = 1024
    block = np.random.default_rng(0).normal(size=(n, F, dv)).astype(np.float16)
    ids = {head: np.zeros(n, np.int64) for head in HEADS}
    labels = Labels(np.zeros((n, 8), np.float32), ids, np.ones(n, np.float32), [str(i) for i in range(n)], None)
    identity = {"F": F, "dv": dv, "dtype": "float16", "N": 9 * n}
    parts, seconds = Parts(folder), []
    for shard in range(9):
        began = time.perf_counter()
        info = FeatureInfo(identity, labels, None, n, [sha256(block)], shard * n)
        path = parts.shard_path(shard)
        write_features(path, info, [block], path.with_suffix(".tmp"))
        parts.write_record(shard, Record(path.stat().st_size, info.block_sha256[0]))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a busy machine, with 1 thread"
    )
    parser.add_argument("--json", type=Path, help="measure from files to features, and write the rows here")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a quiet machine, each time")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = random_encoder(arguments.precision)
        if arguments.json is not None:
            keep_freed_memory()  # as the command does
            rows = end_to_end(folder, encoder, arguments.windows, arguments.rounds, arguments.patience)
            about = {"date": str(date.today()), "torch": torch.__version__, "precision": encoder.precision}
            arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=1))
            return
        config = film_config(folder, arguments.windows, stride=F)
        print(f"precision {encoder.precision}, {arguments.threads} threads, batches of {BATCH}")
        apart = compare(config, encoder, arguments.rounds, clock)
        print(
            f"non-overlapping: cache-vis {F * apart['cache_vis']:.1f} images/s, bare encoder {F * apart['bare']:.1f}: "
            f"{apart['cache_vis'] / apart['bare']:.3f} of it"
        )
        config = film_config(folder, F * arguments.windows - F + 1, stride=1)
        overlapping = compare(config, encoder, arguments.rounds, clock)
        print(
            f"stride 1: cache-vis {overlapping['cache_vis']:.1f} windows/s, every window's frames "
            f"{overlapping['bare']:.1f}: {overlapping['cache_vis'] / overlapping['bare']:.1f} times"
        )
        seconds = write_shard(folder, encoder.dv)
        share = seconds / (1024 / apart["bare"])
        print(f"writing a shard of 1024 windows: {seconds * 1000:.0f} ms, {share:.2%} of the encoder's time for it")


if __name__ == "__main__":
    main()
