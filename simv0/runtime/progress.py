"""How far a long command is: a bar on stderr where that is a terminal, else a line in the log now and then."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger("simv0")

LOG_EVERY = 10.0
"""Seconds between lines."""
DRAW_EVERY = 0.5
"""Seconds between drawings, each of which takes a millisecond from the work."""

_hidden = False


@contextmanager
def no_progress() -> Iterator[None]:
    """For a `with` block, show no progress: `--quiet`."""
    global _hidden
    before, _hidden = _hidden, True
    try:
        yield
    finally:
        _hidden = before


@contextmanager
def progress_of(
    title: str,
    total: int | None,
    count: Callable[[], int],
    note: Callable[[], str] = str,
    *,
    unit: str = "frames",
    log_every: float | None = None,
    passing: bool = False,
) -> Iterator[Callable[[], None]]:
    """Show how much is done, the rate and the time left.

    Args:
        title: what is being done.
        total: how much there is, if known.
        count: how much is done; called only when something is shown.
        note: what to add behind the rate.
        unit: what is counted.
        log_every: seconds between lines, where there is no terminal; `LOG_EVERY` by default.
        passing: leave no bar behind.

    Yields:
        A function to call whenever there may be news.
    """
    if _hidden:
        yield _nothing
        return
    on_terminal, kept = sys.stderr.isatty(), count()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    bar = Progress(
        *columns,
        console=Console(stderr=True),
        disable=not on_terminal,
        transient=passing,
        refresh_per_second=1 / DRAW_EVERY,
    )
    task = bar.add_task(title, total=total, completed=kept, told="")
    began = shown = time.monotonic()
    every = DRAW_EVERY if on_terminal else LOG_EVERY if log_every is None else log_every

    def show() -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < every:
            return
        shown, done = now, count()
        rate, told = (done - kept) / (now - began), f"{done:,} {unit}"
        if total is not None and total >= done:
            told = f"{done:,} of {total:,} {unit} ({100 * done // max(total, 1)}%)"
        told += f", {rate:.1f} {unit}/s"
        if total is not None and total >= done and rate:
            told += f", {duration((total - done) / rate)} left"
        bar.update(task, completed=done, told=told + note())
        if not on_terminal:
            log.info(f"{title}: {told}{note()}")

    with bar:
        yield show
        if total is not None and not passing:
            bar.update(task, completed=total, told=f"{total:,} of {total:,} {unit} (100%)")


def _nothing() -> None:
    pass


def duration(seconds: float) -> str:
    """A human-readable duration: `41 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
