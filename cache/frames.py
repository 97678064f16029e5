"""Which frames a shard needs, each once, and reading them in workers."""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor
from torch.utils.data import Dataset

from simv0.data.contract import CheckedDataset, place_of
from simv0.data.loading import Turns, handed_over, make_loader, started
from simv0.data.user_class import draws_kept
from simv0.data.workers import Readers
from simv0.errors import DataError, SimError

CARRIED_FRAMES = 65_536
"""Frames whose features are kept for the shards to come: 64 MiB of float16 at dv = 512."""


@dataclass(frozen=True)
class Job:
    """Some frames of one shard to be read; `last` ends the shard."""

    shard: int
    units: list[Hashable]
    last: bool


class FrameSource(Dataset[Any]):
    """A dataset seen as frames with names.

    Windows that share frames (`samples.SharesFrames`) are read frame by frame; others window by window, and their
    frames are all different.

    Attributes:
        turns: what readers wait for before each unit; None: nothing.
    """

    turns: Turns | None = None

    def __init__(self, dataset: Any, split: str, F: int, resize: Callable[[Tensor], Tensor]) -> None:
        self.checked, self.split, self.F, self.resize = CheckedDataset(dataset, split, F=F), split, F, resize
        self.dataset = dataset
        self.shares = self.checked.shares

    def frames_of(self, window: int) -> list[Hashable]:
        """Names of the F frames of one window.

        Raises:
            DataError: not F of them.
        """
        if not self.shares:
            return list(range(window * self.F, (window + 1) * self.F))
        return self.checked.frame_ids(window)

    def units(self, frames: Iterable[Hashable]) -> list[Hashable]:
        """What must be read to get these frames: themselves, or their windows."""
        if self.shares:
            return list(frames)
        return list(dict.fromkeys(frame // self.F for frame in frames))  # type: ignore[operator]

    def names(self, units: Iterable[Hashable]) -> list[Hashable]:
        """The frames obtained by reading these units, in order."""
        if self.shares:
            return list(units)
        return [frame for window in units for frame in self.frames_of(window)]  # type: ignore[arg-type]

    def read(self, units: Iterable[Hashable]) -> Num[Tensor, "n 3 h w"]:
        """Read frames and bring them to the encoder's size.

        Raises:
            DataError: a frame that breaks the sample contract, or frames of two types.
        """
        with draws_kept():
            frames = [self.resize(self._read_unit(unit)) for unit in units]
        return self.join(frames) if frames else torch.empty(0, 3, 0, 0)

    def pictures(self, unit: Hashable) -> Num[Tensor, "n 3 h w"]:
        """The frames of one unit."""
        return self.read([unit])

    def join(self, frames: list[Tensor]) -> Num[Tensor, "n 3 h w"]:
        """Concatenate several runs of frames. Only frames that meet here must share a type: other shards may have
        another, and each is scaled by its own.

        Raises:
            DataError: two types: `torch.cat` would silently mix 0..255 with 0..1.
        """
        if len({frame.dtype for frame in frames}) > 1:
            raise DataError(f"{self.split}: some frames are uint8, others float; use one type")
        return frames[0] if len(frames) == 1 else torch.cat(frames)

    def _read_unit(self, unit: Any) -> Num[Tensor, "n 3 H W"]:
        if self.turns is not None:
            self.turns.wait()
        if self.shares:
            return self.checked.load_frame(unit)[None]
        sample = self.checked[unit]
        if "frames" not in sample:
            where = place_of(self.checked.dataset, self.split, unit)
            raise DataError(f"{where}: yields vis_feats, other samples yield frames; yield one of them")
        frames: Tensor = sample["frames"]
        return frames

    def __getitems__(self, job: Job) -> tuple[Job, Tensor | SimError]:
        """Read a job; an error that the user can fix comes back as a value: loaders rewrite exceptions of workers."""
        try:
            return job, handed_over(self.read(job.units))
        except SimError as error:
            return job, error


def in_stretches(units: list[Hashable], workers: int, step: int) -> list[list[Hashable]]:
    """One shard's units in jobs of at most `step`, so that every worker reads one stretch of neighbours.

    Loaders deal jobs to workers in turn, so the stretches are dealt in turn too, and every shard gives each worker as
    many jobs as the others. In the order of the units each worker would have to decode the whole of a video. A shard
    too small to give each worker a whole job has fewer stretches: shorter ones cost more seeking than they spare.
    """
    stretches = max(1, min(workers, len(units) // step))
    rounds = max(1, math.ceil(len(units) / (stretches * step)))
    ends = [len(units) * i // (stretches * rounds) for i in range(stretches * rounds + 1)]
    jobs = [units[start:end] for start, end in pairwise(ends)]
    return [jobs[stretch * rounds + i] for i in range(rounds) for stretch in range(stretches)]


def read_jobs(
    source: FrameSource, jobs: Iterator[Job], readers: Readers
) -> Iterator[tuple[Job, Num[Tensor, "n 3 h w"]]]:
    """Read jobs in order, ahead of their use where there are readers.

    Raises:
        DataError: as `FrameSource.read`.
    """
    source.turns = turns = Turns() if readers.in_turns else None
    loader = make_loader(source, jobs, _as_it_is, readers.number)
    for job, frames in turns.taken(started(loader)) if turns else started(loader):
        if isinstance(frames, SimError):
            raise frames
        yield job, frames


def _as_it_is(batch: Any) -> Any:
    return batch


class Carry:
    """Which frames need no encoding because an earlier shard had them: the most recently used ones, up to a limit.

    Shards are planned ahead of their encoding, so this keeps names only; the encoding loop keeps the features, and
    drops what `plan` says after each shard.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._recent: OrderedDict[Hashable, None] = OrderedDict()

    def plan(self, frames: Iterable[Hashable]) -> tuple[list[Hashable], list[Hashable]]:
        """The frames to encode, in order of first use, and those to drop after this shard."""
        unique = list(dict.fromkeys(frames))
        new = [frame for frame in unique if frame not in self._recent]
        for frame in unique:
            self._recent[frame] = None
            self._recent.move_to_end(frame)
        surplus = max(0, len(self._recent) - self.limit)
        return new, [self._recent.popitem(last=False)[0] for _ in range(surplus)]
