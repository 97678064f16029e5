"""What people see of a call: lines of the log while it runs, and what its result prints as."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.jupyter import JupyterMixin
from rich.table import Table
from rich.text import Text

from simv0.disk.locks import check_platform
from simv0.errors import of_lost_worker

log = logging.getLogger("simv0")


class Printed(JupyterMixin):
    """An object that prints its `parts`: as plain text by `repr` and `print`, in colour in a notebook."""

    def parts(self) -> Iterator[Table | Text]:
        """What it prints, in order."""
        raise NotImplementedError

    def __rich_console__(self, *_: object) -> Iterator[Table | Text]:
        yield from self.parts()

    def __repr__(self) -> str:
        text = StringIO()
        Console(file=text, width=120, color_system=None, force_jupyter=False).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, str]:
        return {**super()._repr_mimebundle_(*args, **kwargs), "text/plain": repr(self)}  # without escape codes


@contextmanager
def heard_on(said: Any, *, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """For a `with` block, write the log to the stream `said`, and its warnings to stderr.

    `quiet` leaves the warnings; `verbose` adds details and the time.
    """
    level = log.level
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False  # open_clip gives the root logger a handler of its own
    handlers: list[logging.Handler] = [logging.StreamHandler(said), logging.StreamHandler(sys.stderr)]
    handlers[0].addFilter(lambda record: record.levelno < logging.WARNING and not quiet)
    handlers[1].setLevel(logging.WARNING)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S") if verbose else None)
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
        log.propagate = True
        log.setLevel(level)


@contextmanager
def called_from_python() -> Iterator[None]:
    """For a `with` block that does what a command does: the log is heard, unless the caller has chosen a level or
    handlers for it; errors that the user can fix are SimErrors.
    """
    chosen = log.level != logging.NOTSET or log.handlers or (log.isEnabledFor(logging.INFO) and log.hasHandlers())
    check_platform()
    try:
        if chosen:
            yield
        else:
            with heard_on(sys.stdout):
                yield
    except Exception as error:
        if (told := of_lost_worker(error)) is not None:
            raise told from error
        raise


def from_here(path: str | Path) -> str:
    """A path for display: relative where it is in the current folder."""
    here = os.path.relpath(path)
    return str(path) if here.startswith("..") else here
