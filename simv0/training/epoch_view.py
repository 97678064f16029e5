"""What people see of a run: a bar within an epoch where stderr is a terminal, and a line for each epoch."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simv0.model.metrics import Metrics


@contextmanager
def epoch_bar(title: str, total: int, done: int = 0, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Count the batches of an epoch; the bar is gone when it ends, and the line of the epoch takes its place.

    Args:
        title: beside the bar.
        total: batches of the epoch.
        done: batches that were done when it was begun earlier.
        shown: whether this process speaks.

    Yields:
        A function to call after each batch.
    """
    if not (shown and sys.stderr.isatty()):
        yield _nothing
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("batches, left"))
    bar = Progress(
        *columns,
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=2,  # each drawing takes a millisecond from the steps
    )
    task = bar.add_task(title, total=total, completed=done)
    with bar:
        yield lambda: bar.advance(task)


def _nothing() -> None:
    pass


COLUMNS = (
    ("val loss", "loss"),
    ("high recall", "risk_high_recall"),
    ("false alarms", "risk_high_false_alarm_rate"),
    ("risk F1", "risk_macro_f1"),
    ("action F1", "action_macro_f1"),
    ("reason F1", "reason_macro_f1"),
    ("composite", "composite"),
)


def table_head() -> str:
    """The header of the table of epochs."""
    return "epoch  train loss  " + "  ".join(f"{title:>9}" for title, _ in COLUMNS) + "  data wait  seconds"


def table_row(epoch: int, learnt: Metrics, measured: Metrics, better: bool) -> str:
    """One epoch; a star marks a new best."""
    cells = "  ".join(f"{show(measured[key]):>{max(9, len(title))}}" for title, key in COLUMNS)
    wait = f"{learnt['data_wait_share'] or 0:.1%}"
    star = " *" if better else ""
    return f"{epoch:>5}  {show(learnt['loss']):>10}  {cells}  {wait:>9}  {learnt['seconds'] or 0:>7.1f}{star}"


def show(value: float | None) -> str:
    """A metric as people read it."""
    return "-" if value is None else f"{value:.3f}"
