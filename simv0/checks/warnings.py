"""What `simv0 check` warns of: training would run, but its results would say little, or flatter."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float

from simv0.alarm.threshold import shortcomings
from simv0.checks.data import SplitOutline
from simv0.config.schema import Config
from simv0.data.contract import place_of
from simv0.data.labels import Labels, leak, same_telemetry
from simv0.labels import HEADS, HIGH, TELEMETRY

log = logging.getLogger("simv0")

FEW_WINDOWS = 20
"""A smaller split is a mistake more often than not."""
GRAVITY = 9.81
MOST_COMPARED = 64
"""Pairs of windows with equal telemetry whose frames are compared."""


@contextmanager
def heard() -> Iterator[list[str]]:
    """The warnings of simv0's logger in a `with` block, recorded instead of printed."""
    warnings: list[str] = []

    def is_printed(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if record.levelno == logging.WARNING and said not in warnings:
            warnings.append(said)
        return record.levelno != logging.WARNING

    log.addFilter(is_printed)
    try:
        yield warnings
    finally:
        log.removeFilter(is_printed)


def warn_of_split(config: Config, split: SplitOutline) -> None:
    """Log what is odd about one split."""
    for warning in _of_split(config, split):
        log.warning(warning)


def _of_split(config: Config, split: SplitOutline) -> Iterator[str]:
    name = split.name
    if split.windows < FEW_WINDOWS:
        say = {"train": "too few to train on", "val": "too few to compare epochs"}.get(name, "too few for an alarm")
        yield f"{name}: only {split.windows} windows: {say}"
    if name == "train" and config.batch_size > split.windows:
        yield f"data.batch_size: {config.batch_size} windows a step, but train has {split.windows}: one step an epoch"
    if split.differs:
        yield (
            f"{name}[0]: changes when it is read again: the class uses its own random generator, so no "
            "run can be repeated or resumed exactly; draw from torch, numpy.random or random, which are seeded"
        )
    if split.labels is not None:
        yield from _of_labels(config, name, split.labels)
    if config.data.telemetry_norm == "train":
        yield from _of_telemetry(name, split.seen.telemetry)


def _of_labels(config: Config, name: str, labels: Labels) -> Iterator[str]:
    for head, names in HEADS.items():
        counts = np.bincount(labels.ids[head], minlength=len(names))
        absent = [names[i] for i in np.flatnonzero(counts == 0)]
        if absent:
            say = "it cannot be learned" if name == "train" else "its accuracy cannot be measured"
            yield f"{name}: no window has {head} {' or '.join(absent)}: {say}"
    if name == list(config.data.splits)[-1]:
        yield from shortcomings(labels.ids["risk"] == HIGH, labels.group, labels.t, config.evaluation, name)


def _of_telemetry(name: str, telemetry: Float[np.ndarray, "N 8"]) -> Iterator[str]:
    """Channels that say nothing, and those that seem to be in another unit than the contract's."""
    values = telemetry.astype(np.float64)
    constant = [channel for channel, values in zip(TELEMETRY, values.T, strict=True) if np.ptp(values) == 0]
    if constant and len(values) > 1:
        yield f"{name}: telemetry {', '.join(constant)}: the same in every window, so nothing can be learned from it"
    pull = np.linalg.norm(values[:, :3], axis=1)
    gyro, yaw, speed, turn = np.abs(values[:, 3:6]), values[:, 5], np.abs(values[:, 6]), values[:, 7]
    middle = float(np.median(pull))
    where, how = f"{name}: telemetry", "expected m/s^2"
    if 0.9 < middle < 1.1 and np.mean(np.abs(pull - 1) < 0.3) > 0.8:
        yield f"{where} ax ay az: the median of |a| is {middle:.2f}, as in g; {how} (about {GRAVITY} with gravity)"
    elif middle > 5 * GRAVITY:
        yield f"{where} ax ay az: the median of |a| is {middle:.4g}; {how} (about {GRAVITY} with gravity)"
    if float(np.quantile(gyro, 0.99)) > 20 or _is_degrees(yaw, turn):
        yield f"{where} gx gy gz: up to {gyro.max():.4g}, as in degrees/s; expected rad/s"
    if float(np.quantile(np.abs(turn), 0.99)) > 20 or _is_degrees(turn, yaw):
        yield f"{where} w: up to {np.abs(turn).max():.4g}, as in degrees/s; expected rad/s"
    if float(np.quantile(speed, 0.99)) > 60:
        yield f"{where} v: up to {speed.max():.4g}; expected m/s"


def _is_degrees(rate: Float[np.ndarray, " N"], other: Float[np.ndarray, " N"]) -> bool:
    """Whether two measurements of one turn rate differ by the factor of degrees (57.3)."""
    if len(rate) < 10 or np.ptp(rate) == 0 or np.ptp(other) == 0:
        return False
    return bool(abs(np.corrcoef(rate, other)[0, 1]) > 0.9 and 45 < rate.std() / other.std() < 70)


def warn_of_both(one: SplitOutline, other: SplitOutline, leaks: bool) -> None:
    """Log what two splits share but should not, unless `leaks` of another kind have been reported."""
    groups = [split.name for split in (one, other) if split.seen.group is None]
    if groups:
        log.warning(
            f"{' and '.join(groups)}: no group: cannot tell whether {one.name} and {other.name} share recordings; give "
            "each window the name of its recording"
        )
    if not leaks:
        _warn_of_same_windows(one, other)


def _warn_of_same_windows(one: SplitOutline, other: SplitOutline) -> None:
    """Windows of one content, whatever their names: among those that were read, and some with one telemetry."""
    same = [(index, one.contents[content]) for content, index in other.contents.items() if content in one.contents]
    if one.labels is not None and other.labels is not None:
        pairs = same_telemetry(one.labels, other.labels)
        pairs = pairs[:: max(1, len(pairs) // MOST_COMPARED)][:MOST_COMPARED]
        same += [pair for pair in pairs if one.content_of(pair[1]) == other.content_of(pair[0])]
    if same:
        (index, twin), found = same[0], len({index for index, _ in same})
        more = f" ({found} such windows among those compared)" if found > 1 else ""
        here, there = place_of(other.dataset, other.name, index), place_of(one.dataset, one.name, twin)
        log.warning(leak(f"{here} is the same window as {there}{more}", other.name))
