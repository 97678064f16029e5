"""`data.num_workers: auto`: how many processes read frames ahead of an encoder.

As many as let reading keep pace with encoding: seconds to read a frame / seconds to encode one, both measured here and
now, at most one a core. Where the encoder runs on the same cores and reading is work, not waiting for a disk or a
network, one a core, and they take turns with the encoder.

None where reading everything takes no longer than starting one, or where the dataset cannot be read in another process.
"""

import logging
import math
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor
from torch.utils.data import Dataset

from simv0.data.loading import SHARED_MEMORY, make_loader, started
from simv0.data.user_class import draws_kept
from simv0.data.wrapped import Wrapped
from simv0.runtime.distributed import local_world_size

log = logging.getLogger("simv0")

WORTH = 1.0
"""Seconds of reading that pay for starting a worker."""
PATIENCE = 0.3
"""Seconds for measuring how long reading takes."""
TRIAL = 60.0
"""Seconds after which a worker that has handed over nothing is given up."""
WORK = 0.5
"""Share of the seconds of reading from which it is work for a core, and not waiting."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's share of the cores: microseconds of use, or `max`, in so many microseconds."""


@runtime_checkable
class Source(Protocol):
    """A split that is read in units: single frames, or windows."""

    dataset: Any
    split: str

    def pictures(self, unit: Any) -> Num[Tensor, "n 3 h w"]:
        """A unit's frames, at the encoder's size."""


class Readers(NamedTuple):
    """How many processes read, and whether only while nothing is encoded (`simv0.data.loading.Turns`)."""

    number: int
    in_turns: bool = False


def workers_for(
    wanted: int | Literal["auto"],
    source: Source,
    units: Iterable[Any],
    seconds_to_encode: Callable[[], float],
    frames_ahead: int,
    *,
    on_cpu: bool = False,
) -> Readers:
    """How many processes shall read; says so if the choice was free.

    Args:
        wanted: `data.num_workers`; a number is taken as it is.
        source: what reads a unit.
        units: all that is to be read.
        seconds_to_encode: measures how long a frame takes to encode.
        frames_ahead: frames that a worker hands over at a time.
        on_cpu: whether the encoder runs on the readers' cores, and the caller lets them take turns.
    """
    if wanted != "auto":
        return Readers(wanted)
    remaining = iter(units)
    first = next(remaining, None)
    try:
        frames = source.pictures(first)  # also opens files, and fills caches
        seconds, work = _seconds_per_unit(source, remaining)
    except Exception:  # of an empty split, or one that will be refused where it is read in earnest
        return Readers(0)
    if seconds * sum(1 for _ in islice(remaining, math.ceil(WORTH / seconds))) < WORTH:
        return Readers(0)
    read, encode = seconds / len(frames), seconds_to_encode()
    rates = f"{source.split}: a frame takes {1000 * read:.3g} ms to read and {1000 * encode:.3g} ms to encode"
    in_turns = on_cpu and work > WORK * seconds
    number = cores() if in_turns else enough(read, encode)
    number = min(number, _most_in_shared_memory(frames_ahead * frames[0].nbytes))
    if number == 0:
        fault = f"no room in {SHARED_MEMORY} (docker run --shm-size=8g)"
    else:
        fault = _cannot_be_sent(source.dataset) or _fault_of_a_worker(source, first, frames)
    if fault:
        log.info(f"{rates}; data.num_workers: auto reads in this process alone: {fault}")
        return Readers(0)
    turns = ", in turns with the encoder" if in_turns else ""
    log.info(f"{rates}; processes that read ahead: {number}{turns} (data.num_workers: auto)")
    return Readers(number, in_turns)


def enough(read: float, encode: float) -> int:
    """Processes that read as fast as the encoder needs it, at most one a core.

    Args:
        read: core seconds to read a frame.
        encode: seconds to encode one, on all cores or on a GPU.
    """
    return min(cores(), math.ceil(read / encode))


def cores() -> int:
    """Cores for this process: its share of the machine's, or of the container's, under torchrun."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no container, or no limit
        quota, period = map(int, QUOTA.read_text().split())
        usable = min(usable, math.ceil(quota / period))
    return max(1, usable // local_world_size())


def _seconds_per_unit(source: Source, units: Iterator[Any]) -> tuple[float, float]:
    """Mean seconds that a unit takes to read, of some, and how many of them are work of this process."""
    count, began, worked = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < PATIENCE and (unit := next(units, None)) is not None:
        source.pictures(unit)
        count += 1
    return (time.perf_counter() - began) / count, (time.process_time() - worked) / count


def _most_in_shared_memory(size: int) -> int:
    """Workers whose batches of this size, two each ahead, take no more than half of what is free."""
    if not SHARED_MEMORY.is_dir():
        return cores()
    return shutil.disk_usage(SHARED_MEMORY).free // (4 * size * local_world_size())


def _cannot_be_sent(dataset: Any) -> str:
    """Why a user's dataset cannot be pickled, or nothing.

    That is asked even where workers are forked: what holds an open file, a decoder or a lock cannot be pickled, and
    must not be shared with a fork.
    """
    if type(dataset).__module__.startswith("simv0.") and not isinstance(dataset, Wrapped):
        return ""
    try:
        _DryRun(_Nowhere()).dump(dataset)
    except Exception as error:
        return f"the dataset cannot be pickled for another process: {' '.join(str(error).split())[:200]}"
    return ""


class _Nowhere:
    def write(self, data: Any) -> None:
        """Forget it."""


class _DryRun(pickle.Pickler):
    def persistent_id(self, value: Any) -> str | None:
        """Leave out arrays: they can be pickled, but may be large."""
        return "array" if isinstance(value, (np.ndarray, Tensor)) and value.dtype != object else None


class _Trial(Dataset[Any]):
    """A split of which a worker reads one unit."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitems__(self, units: list[Any]) -> Tensor:
        """The frames of the only one."""
        return self.source.pictures(units[0])


def _fault_of_a_worker(source: Source, unit: Any, frames: Tensor) -> str:
    """What keeps another process from reading these frames of a unit, or nothing."""
    loader = make_loader(_Trial(source), [[unit]], _as_it_is, 1)
    loader.timeout = TRIAL
    try:
        with draws_kept():
            (found,) = started(loader)
    except Exception as error:
        said = [line for line in str(error).splitlines() if not line.startswith((" ", "in "))]  # of its traceback
        return f"a worker failed: {said[-1].removeprefix('data.num_workers: ').partition(';')[0]}"
    return "" if torch.equal(found, frames) else "another process reads other frames"


def _as_it_is(batch: Any) -> Any:
    return batch
