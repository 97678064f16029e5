"""What people see of a run: how far an epoch is, and a line for each epoch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from simv0.model.metrics import Metrics
from simv0.runtime.progress import progress_of

LOG_EVERY = 60.0
"""Seconds between the lines of an epoch, where no terminal shows its bar."""


@contextmanager
def batches_shown(title: str, total: int, done: int = 0, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Count the batches of an epoch; its bar is gone when it ends, and the line of the epoch takes its place.

    Args:
        title: what they are of.
        total: batches of the epoch.
        done: batches that were done when it was begun earlier.
        shown: whether this process speaks.

    Yields:
        A function to call after each batch.
    """
    if not shown:
        yield lambda: None
        return
    with progress_of(title, total, lambda: done, unit="batches", log_every=LOG_EVERY, passing=True) as show:

        def moved() -> None:
            nonlocal done
            done += 1
            show()

        yield moved


COLUMNS = (
    ("val loss", "loss"),
    ("high recall", "risk_high_recall"),
    ("high missed", "risk_high_fn_rate"),
    ("action accuracy", "action_accuracy"),
    ("macro F1", "macro_f1"),
    ("composite", "composite"),
)
"""Title -> metric of val. What `best_metric` may choose by is among them; the metrics files have the rest."""


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


def every_metric(split: str, metrics: Metrics) -> str:
    """All metrics of one split in one line."""
    return f"{split}: " + ", ".join(f"{key} {show(value)}" for key, value in metrics.items())
