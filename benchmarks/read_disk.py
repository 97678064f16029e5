"""Random batches of 64 from a folder of shards that the page cache does not hold, against what the disk itself gives.

    python -m benchmarks.read_disk [--windows 400000] [--shard-windows 1024] [--rounds 5] [--folder /with/room]

Windows are [8,512] float16, 8 kB. Before each cold run the files' pages are dropped (posix_fadvise DONTNEED; the disk's
own cache stays). Every run reads other windows, few enough that hardly any page is met twice. The disk's rates: the
same shards from front to end, and 8 kB at random places, one at a time and 32 threads at a time. Medians of alternating
runs. `read / asked` is what the kernel read for each byte asked for.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.read import BATCH, DV, F
from simv0.data.labels import Labels
from simv0.features.dataset import CachedDataset
from simv0.features.info import FeatureInfo
from simv0.features.reader import sha256
from simv0.features.shards import Parts, Plan, Record
from simv0.features.writer import write_features
from simv0.labels import HEADS

ROW = F * DV * 2
SAMPLES = 100 * BATCH


def write_shards(folder: Path, windows: int, shard_windows: int) -> None:
    """A finished folder of shards, every shard with the same features."""
    draw = np.random.default_rng(0)
    block = draw.normal(size=(shard_windows, F, DV)).astype(np.float16)
    ids = {head: draw.integers(0, len(names), windows) for head, names in HEADS.items()}
    telemetry = draw.normal(size=(windows, 8)).astype(np.float32)
    labels = Labels(telemetry, ids, np.ones(windows, np.float32), [f"window-{i}" for i in range(windows)], None)
    plan = Plan({"F": F, "dv": DV, "dtype": "float16", "N": windows}, shard_windows, 64)
    folder.mkdir()
    parts = Parts(folder)
    parts.write_plan(plan)
    for shard in range(len(plan)):
        rows, path = plan.windows(shard), parts.shard_path(shard)
        feats = block[: len(rows)]
        info = FeatureInfo(
            plan.identity, labels[rows.start : rows.stop], None, shard_windows, [sha256(feats)], rows.start
        )
        write_features(path, info, [feats], path.with_suffix(".tmp"))
        parts.write_record(shard, Record(path.stat().st_size, info.block_sha256[0]))


def drop(folder: Path) -> None:
    """Let the page cache forget the shards."""
    for path in folder.glob("*.h5"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bytes_read() -> int:
    """What this process has caused to be read from disks, by page faults too."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def batches(folder: Path, exceeds_ram: bool, rows: np.ndarray) -> Callable[[], int]:
    """Whole batches of a dataset that has just been opened."""
    dataset = CachedDataset(folder, "never")
    dataset.exceeds_ram = exceeds_ram

    def read() -> int:
        for batch in rows.reshape(-1, BATCH):
            dataset.__getitems__(batch)
        return rows.size * ROW

    return read


def sequential(folder: Path) -> int:
    done, buffer = 0, bytearray(1 << 20)
    for path in sorted(folder.glob("*.h5")):
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                done += got
    return done


def at_random(folder: Path, places: np.ndarray, threads: int) -> int:
    """8 kB at each place (a fraction of all), through plain reads."""
    files = [os.open(path, os.O_RDONLY) for path in sorted(folder.glob("*.h5"))[:-1]]
    size = os.fstat(files[0]).st_size - 2 * ROW
    for descriptor in files:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def read(place: float) -> int:
        number, within = divmod(place * len(files), 1)
        return len(os.pread(files[int(number)], ROW, int(within * size) // 4096 * 4096))

    try:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(read, places.tolist(), chunksize=1))
    finally:
        for descriptor in files:
            os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=400_000)
    parser.add_argument("--shard-windows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name) / "train.h5.parts"
        write_shards(folder, arguments.windows, arguments.shard_windows)
        began = time.perf_counter()
        CachedDataset(folder, "never")
        shards = sum(1 for _ in folder.glob("*.h5"))
        print(f"{arguments.windows} windows in {shards} shards, opened in {time.perf_counter() - began:.1f} s")

        def rows() -> np.ndarray:
            return draw.permutation(arguments.windows)[: min(SAMPLES, arguments.windows // BATCH * BATCH)]

        def warm(exceeds_ram: bool) -> Callable[[], int]:
            read = batches(folder, exceeds_ram, rows())
            read()
            return read

        def cold(prepare: Callable[[], Callable[[], int]]) -> Callable[[], int]:
            read = prepare()
            drop(folder)
            return read

        runs: dict[str, Callable[[], Callable[[], int]]] = {
            "the disk: front to end": lambda: cold(lambda: lambda: sequential(folder)),
            "the disk: 8 kB at random, one at a time": lambda: cold(
                lambda: lambda: at_random(folder, draw.random(SAMPLES // 4), 1)
            ),
            "the disk: 8 kB at random, 32 at a time": lambda: cold(
                lambda: lambda: at_random(folder, draw.random(SAMPLES), 32)
            ),
            "batches, larger than RAM: cold": lambda: cold(lambda: batches(folder, True, rows())),
            "batches, larger than RAM: warm": lambda: warm(True),
            "batches, fits into RAM: cold": lambda: cold(lambda: batches(folder, False, rows())),
            "batches, fits into RAM: warm": lambda: warm(False),
        }
        rates: dict[str, list[float]] = {what: [] for what in runs}
        share: dict[str, float] = {}
        for _ in range(arguments.rounds):
            for what, prepare in runs.items():
                run, before = prepare(), bytes_read()
                began = time.perf_counter()
                asked = run()
                rates[what].append(asked / (time.perf_counter() - began))
                share[what] = (bytes_read() - before) / asked
                del run
    for what, values in rates.items():
        rate = statistics.median(values)
        print(f"{what:42} {rate / ROW:9,.0f} samples/s {rate / 1e6:8,.0f} MB/s   read / asked {share[what]:6.2f}")


if __name__ == "__main__":
    main()
