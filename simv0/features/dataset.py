"""The dataset that training reads: a feature file, or a folder of shards."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.utils.data import Dataset

from simv0.data.contract import Batch
from simv0.data.labels import Labels
from simv0.features.shards import open_features
from simv0.runtime.distributed import local_world_size

CGROUP = Path("/sys/fs/cgroup")
"""Where a container (cgroup v2) says how much memory it may use."""

MEMINFO = Path("/proc/meminfo")

MAPS_AT_MOST = 16_384
"""Shards mapped at a time, however many files a process may open."""


class CachedDataset(Dataset[dict[str, Any]]):
    """Features and labels of one split. Fetches a whole batch at once; works in forked and spawned workers.

    Args:
        path: `<split>.h5`, or a folder of shards.
        in_memory: `always` reads the features into RAM and checks their digests; `never` maps the file and leaves the
            digests to `simv0 inspect --verify`; `auto` reads when they take less than half of the free RAM.

    Attributes:
        identity: what the features were made of.
        F: frames per window.
        dv: feature width.
        labels: of all windows.
        class_weights: the dataset's own, or None.
        frame_spacing: seconds between the frames of a window; None: unknown.
        split_name: `train` for `train.h5`.
        exceeds_ram: whether the page cache cannot hold the features: then only what a batch needs is read, all at once.

    Raises:
        CacheError: missing, unfinished, damaged, foreign.
    """

    def __init__(self, path: str | Path, in_memory: Literal["auto", "always", "never"] = "auto") -> None:
        self.path = Path(path)
        self.in_memory = in_memory
        self._files = open_features(self.path)
        first = self._files[0].info
        self.identity, self.class_weights = first.identity, first.class_weights
        self.frame_spacing = first.frame_spacing
        self.split_name = self.path.name.split(".")[0]
        self.F: int = first.identity["F"]
        self.dv: int = first.identity["dv"]
        self.labels = Labels.joined([file.info.labels for file in self._files])
        self._per_file = len(first.labels)
        self._maps: dict[int, np.ndarray] = {}
        self._ram: np.ndarray | None = None
        free = available_memory()
        self.exceeds_ram = 0 < free < self.nbytes  # mapped, the processes of a machine share one copy
        if is_read_into_ram(self.nbytes, in_memory, free):
            self._ram = np.empty((len(self), self.F, self.dv), first.dtype)
            at = 0
            for file in self._files:
                for block in file.blocks():
                    self._ram[at : at + len(block)] = block
                    at += len(block)

    @property
    def nbytes(self) -> int:
        """Size of the features."""
        return len(self) * self.F * self.dv * self._files[0].info.dtype.itemsize

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = {key: column[index] for key, column in self.labels.columns().items()}
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
        feats = torch.from_numpy(self._gather(np.array([index]))[0])
        return {**plain, "vis_feats": feats, "telemetry": torch.from_numpy(row["telemetry"].copy())}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch in one gather; vis_feats in the stored type."""
        rows = np.asarray(indices)
        return Batch(
            vis_feats=torch.from_numpy(self._gather(rows)),
            telemetry=torch.from_numpy(self.labels.telemetry[rows]),
            risk_id=torch.from_numpy(self.labels.ids["risk"][rows]),
            reason_id=torch.from_numpy(self.labels.ids["reason"][rows]),
            action_id=torch.from_numpy(self.labels.ids["action"][rows]),
            weight=torch.from_numpy(self.labels.weight[rows]),
            sample_id=[self.labels.sample_id[row] for row in rows],
        )

    def _gather(self, rows: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B F dv"]:
        if self._ram is not None:
            return np.asarray(self._ram[rows])
        places = [divmod(row, self._per_file) for row in rows.tolist()]
        if self.exceeds_ram:  # touched one by one, they would also be read one after the other
            for file, row in places:
                self._files[file].ask_for(self._map(file), row)
        if len(self._files) == 1:
            return np.asarray(self._map(0)[rows])
        gathered = np.empty((len(rows), self.F, self.dv), self._files[0].info.dtype)
        for at, (file, row) in enumerate(places):
            gathered[at] = self._map(file)[row]
        return gathered

    def _map(self, number: int) -> np.ndarray:
        if number not in self._maps:
            while len(self._maps) >= maps_at_once():
                self._maps.pop(next(iter(self._maps)))
            self._maps[number] = self._files[number].map(random=self.exceeds_ram)
        return self._maps[number]

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker maps the file instead of being sent its contents."""
        return {**self.__dict__, "_maps": {}, "_ram": None}


def is_read_into_ram(nbytes: int, in_memory: str, free: int) -> bool:
    """Whether `cache.in_memory` has so many bytes of features read into RAM; of a machine's processes each does so."""
    return in_memory == "always" or (in_memory == "auto" and nbytes < free / 2 / local_world_size())


def maps_at_once() -> int:
    """How many shards may be mapped: each costs a file descriptor, and half of them are left to others."""
    try:
        import resource
    except ImportError:  # Windows
        return MAPS_AT_MOST
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAPS_AT_MOST if files == resource.RLIM_INFINITY else max(1, min(files // 2, MAPS_AT_MOST))


def available_memory() -> int:
    """Bytes of RAM that are free or can be freed, within the limit of a container; half of all where the system tells
    only that (macOS), 0 where it tells nothing.
    """
    free = _free_memory()
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else max(1, min(free or int(limit), int(limit) - int(used)))
    except (OSError, ValueError):
        return free


def _free_memory() -> int:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):  # no Linux, or /proc is not mounted
        pass
    for pages, share in (("SC_AVPHYS_PAGES", 1), ("SC_PHYS_PAGES", 2)):  # macOS tells only how much there is in all
        try:
            found = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, AttributeError):  # AttributeError: Windows
            continue
        if found > 0:
            return found // share
    return 0
