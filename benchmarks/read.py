"""Random batches of 64 from a feature file of 200,000 windows [8,512] float16 (1.6 GB), samples/s.

    python -m benchmarks.read [--windows 200000] [--rounds 3] [--folder /where/there/is/room]

Compares CachedDataset (mapped, and in RAM) with what people do (h5py sample by sample, in DataLoader workers) and with
the limit: fancy indexing into a raw numpy memmap. Medians of alternating runs; the file is in the page cache.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.cache_vis import alternate
from simv0.data.contract import collate
from simv0.data.labels import Labels
from simv0.features.dataset import CachedDataset
from simv0.features.info import FeatureInfo
from simv0.features.reader import sha256
from simv0.features.writer import write_features
from simv0.labels import HEADS

F, DV, BATCH, BLOCK = 8, 512, 64, 1000
SECONDS = 2.0
KEYS = ("telemetry", "risk_id", "reason_id", "action_id", "weight")


class Plain(Dataset[Any]):
    """One h5py read a sample and key, the file opened in each worker."""

    def __init__(self, path: Path, windows: int) -> None:
        self.path, self.windows = path, windows
        self.file: h5py.File | None = None

    def __len__(self) -> int:
        return self.windows

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.file = self.file or h5py.File(self.path, "r")
        return {key: torch.as_tensor(self.file[key][index]) for key in ("vis_feats", *KEYS)}


def write(path: Path, windows: int) -> np.ndarray:
    """The file; returns the block that it repeats."""
    draw = np.random.default_rng(0)
    block = draw.normal(size=(BLOCK, F, DV)).astype(np.float16)
    ids = {head: draw.integers(0, len(names), windows) for head, names in HEADS.items()}
    telemetry = draw.normal(size=(windows, 8)).astype(np.float32)
    labels = Labels(telemetry, ids, np.ones(windows, np.float32), [f"window-{i}" for i in range(windows)], None)
    identity = {"F": F, "dv": DV, "dtype": "float16", "N": windows}
    blocks = windows // BLOCK
    info = FeatureInfo(identity, labels, None, BLOCK, [sha256(block)] * blocks)
    write_features(path, info, (block for _ in range(blocks)), path.with_suffix(".tmp"))
    return block


def for_seconds(step: Callable[[], None]) -> int:
    """Repeat a batch for some time; returns the samples."""
    began, samples = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        step()
        samples += BATCH
    return samples


def through(loader: Any) -> Callable[[], int]:
    """Batches of a loader for some time; its workers' start is not counted as they persist."""
    iterators: list[Iterator[Any]] = [iter(loader)]

    def step() -> None:
        try:
            next(iterators[0])
        except StopIteration:
            iterators[0] = iter(loader)

    step()
    return lambda: for_seconds(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        path, raw = Path(name) / "train.h5", Path(name) / "raw.npy"
        block = write(path, arguments.windows)
        memmap = np.lib.format.open_memmap(raw, "w+", np.float16, (arguments.windows, F, DV))
        memmap[:] = np.tile(block, (arguments.windows // BLOCK, 1, 1))
        memmap.flush()
        memmap = np.load(raw, mmap_mode="r")
        rows = lambda: draw.integers(0, arguments.windows, BATCH)  # noqa: E731
        mapped, ram = CachedDataset(path, "never"), CachedDataset(path, "always")
        plain = Plain(path, arguments.windows)
        shuffled = {"batch_size": BATCH, "shuffle": True}
        rates = alternate(
            arguments.rounds,
            time.perf_counter,
            **{
                "numpy memmap, features only (the limit)": lambda: for_seconds(
                    lambda: torch.from_numpy(memmap[rows()])
                ),
                "CachedDataset mapped, features only": lambda: for_seconds(lambda: mapped._gather(rows())),
                "CachedDataset mapped, whole batches": lambda: for_seconds(lambda: mapped.__getitems__(rows())),
                "CachedDataset in RAM, whole batches": lambda: for_seconds(lambda: ram.__getitems__(rows())),
                "CachedDataset mapped, DataLoader": through(DataLoader(mapped, collate_fn=collate, **shuffled)),
                "h5py per sample, 0 workers": through(DataLoader(plain, **shuffled)),
                "h5py per sample, 2 workers": through(DataLoader(plain, num_workers=2, **shuffled)),
            },
        )
    for what, rate in rates.items():
        print(f"{what:42} {rate:10,.0f} samples/s")


if __name__ == "__main__":
    main()
