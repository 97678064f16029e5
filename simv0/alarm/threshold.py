"""When to raise the alarm: a threshold on P(high) that keeps a promised recall on new data, and its price.

Argmax asks which class is likeliest; an alarm asks how many "high" windows may be missed. So the threshold is read off
a split that was not trained on, after temperature scaling, and travels in the checkpoint with what it promises and the
rates that it had there. Everything here is a deterministic function of that split's logits and labels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from simv0.alarm.calibration import calibration_error, fit_temperature, softmax
from simv0.alarm.promise import carried, highest_threshold, units_needed
from simv0.alarm.rates import Rate, Stored, rate_of, recordings
from simv0.config.schema import EvaluationConfig
from simv0.labels import HEADS, HIGH

LEAST_HIGH = 10
"""Fewer windows on either side of the threshold say nothing."""


class OperatingPoint(Stored):
    """A threshold on the calibrated P(high), and what it is worth on the split that it was chosen on."""

    threshold: float
    recall: Rate
    """Share of the "high" windows that raise the alarm."""
    false_alarm_rate: Rate
    """Share of the other windows that raise it."""


class Promise(Stored):
    """What the threshold in force keeps on new data of the same kind."""

    recall: float
    """At least this share of all that is to be found, pooled over new units."""
    confidence: float
    """How sure that is: the share of such promises that are kept."""
    unit: Literal["recordings", "windows"]
    """What was taken as independent."""
    units: int
    """How many of them hold "high" windows."""
    most: float
    """What so many could promise at best, where none of their "high" windows is missed."""
    needed: int
    """How many like them the target needs."""


class Alarm(Stored):
    """The chosen alarm of a checkpoint."""

    target_recall: float
    max_false_alarm_rate: float
    windows: int
    n_high: int
    groups: int | None
    """Recordings that the intervals were resampled over; None: windows, and neighbouring ones are not independent."""
    split: Literal["val", "calibration"] = "val"
    """Where all this was chosen and measured. Val has also chosen the epoch."""
    promise: Promise | None = None
    """None where there is no threshold, and in checkpoints of an older simv0."""
    confirm: list[int] = Field(default=[2, 3])
    """(N, M) of `Confirmation`: how a robot is to run it."""
    release: float = 0.8
    """Of the same."""
    reason: str | None
    """Why there is no threshold, where there is none."""
    chosen: OperatingPoint | None
    """The threshold in force: the highest that keeps the promise."""
    at_max_false_alarm_rate: OperatingPoint | None
    """The lowest threshold that keeps within `max_false_alarm_rate`, for comparison."""
    temperatures: dict[str, float]
    """Head -> what its logits are divided by."""
    ece_before: dict[str, float]
    """Head -> expected calibration error of the raw probabilities."""
    ece_after: dict[str, float]
    """The same after temperature scaling, on the same windows."""

    @property
    def threshold(self) -> float | None:
        """The threshold in force; None where the split could not give one."""
        return None if self.chosen is None else self.chosen.threshold

    @property
    def below_target(self) -> bool:
        """Whether less is promised than was wanted, or nothing."""
        return self.promise is None or self.promise.recall < self.target_recall

    def __str__(self) -> str:
        """One human-readable line."""
        if self.chosen is None:
            return f"alarm: no threshold: {self.reason}"
        over = f"{self.groups} recordings" if self.groups else "windows: no groups given, so they are too narrow"
        return (
            f"alarm: P(high) >= {self.chosen.threshold:.3f}: {self._promised()}; on {self.split} recall "
            f"{self.chosen.recall} of {self.n_high} high windows, false-alarm rate {self.chosen.false_alarm_rate} "
            f"(95 % intervals over {over}){'; val also chose the epoch' if self.split == 'val' else ''}"
        )

    def _promised(self) -> str:
        promise = self.promise
        if promise is None:
            return "NO PROMISE for new data: an older simv0 chose it"
        said = f"recall {promise.recall:.3f} is promised for new data at {promise.confidence:.0%} confidence"
        if self.below_target:
            said = f"BELOW TARGET: {said}; {what_is_missing(promise, self.target_recall)}"
        if promise.unit == "windows":
            said += " (IF windows are independent: there is no `group`, and where neighbours are alike this is void)"
        return said


def what_is_missing(promise: Promise, target: float) -> str:
    """What so many units can promise, and how many the target needs, in numbers."""
    return (
        f"{promise.units} {promise.unit} with high can promise {promise.most:.3f} at most, {target:g} needs "
        f"{promise.needed}"
    )


def choose_alarm(
    logits: Mapping[str, Float[np.ndarray, "N _"]],
    ids: Mapping[str, Int[np.ndarray, " N"]],
    groups: Sequence[str] | None,
    wanted: EvaluationConfig,
    split: Literal["val", "calibration"] = "val",
) -> Alarm:
    """Choose the alarm on a split.

    Args:
        logits: head -> logits of every window.
        ids: head -> labels.
        groups: the recording of each window, where known; else windows are taken as independent.
        wanted: `target_recall`, `confidence` and `max_false_alarm_rate`.
        split: which it is.
    """
    temperatures = {head: fit_temperature(logits[head], ids[head]) for head in HEADS}
    before = {head: softmax(logits[head]) for head in HEADS}
    after = {head: softmax(logits[head], temperatures[head]) for head in HEADS}
    p_high, is_high = after["risk"][:, HIGH], ids["risk"] == HIGH
    unit = recordings(groups, is_high)
    reason = too_few(is_high, split)
    promise = chosen = quiet = None
    if reason is None:
        promise = promise_of(is_high, groups, wanted)
        chosen = _point(promised_threshold(p_high, is_high, groups, promise), p_high, is_high, unit)
        quiet = _point(threshold_for_false_alarms(p_high, is_high, wanted.max_false_alarm_rate), p_high, is_high, unit)
    return Alarm(
        target_recall=wanted.target_recall,
        max_false_alarm_rate=wanted.max_false_alarm_rate,
        windows=len(is_high),
        n_high=int(is_high.sum()),
        groups=None if unit is None else int(unit.max()) + 1,
        split=split,
        promise=promise,
        confirm=wanted.confirm,
        release=wanted.release,
        reason=reason,
        chosen=chosen,
        at_max_false_alarm_rate=quiet,
        temperatures=temperatures,
        ece_before={head: calibration_error(before[head], ids[head]) for head in HEADS},
        ece_after={head: calibration_error(after[head], ids[head]) for head in HEADS},
    )


def shortcomings(
    is_high: Bool[np.ndarray, " N"], groups: Sequence[str] | None, wanted: EvaluationConfig, split: str
) -> Iterator[str]:
    """What keeps a split from promising the target, one line each: known before anything is trained."""
    if (reason := too_few(is_high, split)) is not None:
        yield f"{reason} to choose the alarm's threshold: best.pt will have none"
        return
    promise = promise_of(is_high, groups, wanted)
    if promise.recall < wanted.target_recall:
        yield (
            f"{split}: the alarm will promise a recall of {promise.recall:.3f} at {promise.confidence:.0%} confidence, "
            f"below target: {what_is_missing(promise, wanted.target_recall)}"
        )
    if groups is None:
        yield (
            f"{split}: no group: the alarm's promise takes windows as independent, and is void where neighbours are "
            "alike; give each window the name of its recording"
        )


def too_few(is_high: Bool[np.ndarray, " N"], split: str) -> str | None:
    """Why a split is too small for any threshold."""
    for n, what in ((int(is_high.sum()), 'of risk "high"'), (int((~is_high).sum()), "of other risks")):
        if n < LEAST_HIGH:
            return f"{split} has {n} windows {what}; at least {LEAST_HIGH} are needed"
    return None


def promise_of(is_high: Bool[np.ndarray, " N"], groups: Sequence[str] | None, wanted: EvaluationConfig) -> Promise:
    """What is promised, settled before any score is looked at, so that no luck of the scores can choose it.

    It is the target, where so many units carry it. Else it is what they carry where they lose as much as the target
    allows: `target * most`, whose threshold finds about the target here. To promise `most` itself nothing may be missed
    here, and one odd window would make the alarm cry at everything; who wants that asks for a higher target.
    """
    _, of = _units_of_high(is_high, groups)
    target, most = wanted.target_recall, carried(of, wanted.confidence)
    return Promise(
        recall=target if target <= most else target * most,
        confidence=wanted.confidence,
        unit="windows" if groups is None else "recordings",
        units=len(of),
        most=most,
        needed=units_needed(of, target, wanted.confidence),
    )


def promised_threshold(
    p_high: Float[np.ndarray, " N"], is_high: Bool[np.ndarray, " N"], groups: Sequence[str] | None, promise: Promise
) -> float:
    """The highest threshold that keeps the promise."""
    scores, (unit, of) = p_high[is_high], _units_of_high(is_high, groups)
    at = highest_threshold(
        np.unique(scores),
        lambda threshold: np.bincount(unit[scores < threshold], minlength=len(of)),
        of,
        promise.recall,
        promise.confidence,
    )
    assert at is not None  # the lowest misses nothing, which keeps whatever is carried
    return _apart_from_lower(p_high, at)


def _units_of_high(
    is_high: Bool[np.ndarray, " N"], groups: Sequence[str] | None
) -> tuple[Int[np.ndarray, " H"], Int[np.ndarray, " U"]]:
    """The unit of each "high" window, and how many each unit has."""
    if groups is None:
        return np.arange(is_high.sum()), np.ones(is_high.sum(), int)
    _, unit, of = np.unique(np.asarray(groups)[is_high], return_inverse=True, return_counts=True)
    return unit, of


def threshold_for_false_alarms(p_high: Float[np.ndarray, " N"], is_high: Bool[np.ndarray, " N"], rate: float) -> float:
    """The lowest threshold at which at most `rate` of the windows that are not high stand at or above it."""
    others = np.sort(p_high[~is_high])[::-1]
    first_kept_out = float(others[math.floor(rate * len(others) + 1e-9)])
    higher = p_high[p_high > first_kept_out]
    return _between(first_kept_out, float(higher.min()) if len(higher) else 1.0)


def _apart_from_lower(p_high: Float[np.ndarray, " N"], at: float) -> float:
    """Midway from a score to the next lower one, so that float noise (stored features, another device) flips no window
    across the threshold.
    """
    lower = p_high[p_high < at]
    return _between(float(lower.max()) if len(lower) else 0.0, at)


def _between(low: float, high: float) -> float:
    middle = (low + high) / 2
    return middle if middle > low else high


def _point(
    threshold: float,
    p_high: Float[np.ndarray, " N"],
    is_high: Bool[np.ndarray, " N"],
    unit: Int[np.ndarray, " N"] | None,
) -> OperatingPoint:
    raised = p_high >= threshold
    return OperatingPoint(
        threshold=threshold,
        recall=rate_of(raised, is_high, unit),
        false_alarm_rate=rate_of(raised, ~is_high, unit),
    )
