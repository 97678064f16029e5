"""Data loaders whose workers report what goes wrong, and exit."""

import multiprocessing
import pickle
import shutil
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from simv0.errors import DataError

T = TypeVar("T")

PAUSE = 2.0
"""Seconds after which a reader whose turn does not come looks whether its main process is alive."""

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps shared memory; 64 MB in a container by default."""
LAST_SECONDS = 10
"""How long a worker outlives a SIGTERM: long enough for its main process to stop in good order."""


def make_loader(
    dataset: Any,
    order: Iterable[Any],
    collate: Callable[[Any], Any],
    workers: int,
    *,
    persistent: bool = False,
) -> DataLoader[Any]:
    """A loader of whole batches; iterate over it with `started`.

    Args:
        dataset: map-style.
        order: the indices of each batch.
        collate: makes a batch of samples, in the worker.
        workers: processes; 0 reads in this one.
        persistent: whether they are kept from epoch to epoch.
    """
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_Collated(collate),
        persistent_workers=persistent and workers > 0,
        worker_init_fn=_leave_signals_to_main,
        pin_memory=torch.cuda.is_available(),  # batches go to the device while it still computes
    )


def started(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's batches, its workers started; they end with the batches, with an error, or when nothing wants more.

    Raises:
        DataError: they cannot be started.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # told below
            batches = iter(loader)
    except OSError as error:
        raise DataError(
            f"data.num_workers: {loader.num_workers} processes cannot be started: {error.strerror or error}; "
            "lower it, or set data.num_workers=0"
        ) from None
    except (pickle.PicklingError, TypeError, AttributeError) as error:  # where workers are not forked
        raise DataError(
            f"data.num_workers: the dataset cannot be pickled for another process: {' '.join(str(error).split())[:200]}"
            "; open files and create functions in __getitem__, or set data.num_workers=0"
        ) from error
    return _to_their_end(batches, kept=loader.persistent_workers) if loader.num_workers else batches


def _to_their_end(batches: Any, kept: bool) -> Iterator[Any]:
    """What workers read. An error's traceback would hold on to them, and the program wait for them at its end."""
    ends = not kept
    try:
        yield from batches
    except Exception:
        ends = True
        raise
    finally:
        if ends:
            batches._shutdown_workers()


class Turns:
    """Readers pause while the main process computes: for a network that runs on the same cores.

    Beside it they would hold up one of its threads at a time, and the others wait for that one. In turns, each has all
    cores: one reader a core.
    """

    def __init__(self) -> None:
        self._reading = multiprocessing.Event()
        self._reading.set()

    def wait(self) -> None:
        """In a reader, before it reads: until the main process waits for data, or is dead."""
        main = multiprocessing.parent_process()
        while not self._reading.wait(PAUSE) and main is not None and main.is_alive():
            pass

    def taken(self, batches: Iterator[T]) -> Iterator[T]:
        """In the main process: the readers' turn is while it waits for the next batch."""
        try:
            for batch in batches:
                self._reading.clear()
                yield batch
                self._reading.set()
        finally:
            self._reading.set()


def _leave_signals_to_main(worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach every process of the group: a worker that died of it would end the run.

    SIGTERM is also how Python ends workers that are left over at exit, so it still ends this one, later.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST_SECONDS))


class _Collated:
    """A collate function that also hands its batch over; a class, so that it can be sent to spawned workers."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        return handed_over(self.collate(samples))


def handed_over(batch: T) -> T:
    """In a worker, put a batch's tensors where the main process reads them; elsewhere do nothing.

    torch does so when the worker has let go of the batch: without room it is lost, and the main process waits for it.

    Raises:
        DataError: there is no room.
    """
    if get_worker_info() is None:
        return batch
    tensors = [value for value in (batch.values() if isinstance(batch, dict) else [batch]) if isinstance(value, Tensor)]
    for tensor in tensors:
        try:
            if tensor.numel():
                tensor.share_memory_()  # type: ignore[no-untyped-call]
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0].rpartition(": ")[2]
            size = sum(tensor.nbytes for tensor in tensors)
            raise DataError(
                f"data.num_workers: a worker cannot hand over a batch of {size / 1e6:.1f} MB in shared memory ({reason}"
                f"{_room()}); {_more(reason)}, or set data.num_workers=0"
            ) from None
    return batch


def _more(reason: str) -> str:
    if "open files" in reason:
        return "raise the limit (ulimit -n 65536)"
    return "enlarge it (docker run --shm-size=8g)"


def _room() -> str:
    if not SHARED_MEMORY.is_dir():
        return ""
    found = shutil.disk_usage(SHARED_MEMORY)
    return f"; {SHARED_MEMORY} has {found.free / 1e6:.1f} of {found.total / 1e6:.1f} MB free"
