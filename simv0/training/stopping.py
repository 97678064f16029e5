"""Ctrl-C and SIGTERM as a request: training stops between two batches, with a checkpoint."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from simv0.errors import TrainingError
from simv0.runtime.distributed import processes, world_size


class Stopped(TrainingError):
    """Training was asked to stop, and did so with a checkpoint."""

    exit_code = 130


class StopRequest:
    """Set by a signal, checked after each step. Create it before the processes connect: later torchrun may be gone.

    Attributes:
        signal: the name of the last one.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._parent = os.getppid()

    @property
    def asked(self) -> str | None:
        """Who asked for the stop. A killed torchrun cannot ask, and its processes would train on without anyone's
        knowledge.
        """
        if self.signal is None and processes() > 1 and os.getppid() != self._parent:
            return "the end of torchrun"
        return self.signal


@contextmanager
def asked_by_signals(request: StopRequest) -> Iterator[None]:
    """For a `with` block, turn Ctrl-C and SIGTERM into a request; a second Ctrl-C interrupts at once.

    One of several processes that fails keeps it so: it is about to say why and to end.
    """
    previous: dict[signal.Signals, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number).name
        if world_size() == 1:  # torchrun passes a Ctrl-C on that has already come from the keyboard
            signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: signals are its business
        pass
    failed = True
    try:
        yield
        failed = False
    finally:
        if (
            not failed or world_size() == 1
        ):  # else torchrun ends the processes: its SIGTERM must not cut the message off
            for number, handler in previous.items():
                signal.signal(number, handler)
