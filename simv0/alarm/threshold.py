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

from simv0.alarm.calibration import calibration_error, fit_temperature, softmax
from simv0.alarm.hazards import between, choose_threshold, hazards_of, promise_of
from simv0.alarm.rates import LEAST_RECORDINGS, rate_of, recordings
from simv0.alarm.stored import Alarm, OperatingPoint, Promise, what_is_missing
from simv0.config.schema import EvaluationConfig
from simv0.labels import HEADS, HIGH

LEAST_HIGH = 10
"""With fewer windows on either side, no threshold is chosen."""


def choose_alarm(
    logits: Mapping[str, Float[np.ndarray, "N _"]],
    ids: Mapping[str, Int[np.ndarray, " N"]],
    groups: Sequence[str] | None,
    wanted: EvaluationConfig,
    split: Literal["val", "calibration"] = "val",
    t: Float[np.ndarray, " N"] | None = None,
    spacing: float | None = None,
) -> Alarm:
    """Choose the alarm on a split: for events, where recordings can be replayed through it, else for single windows.

    Args:
        logits: head -> logits of every window.
        ids: head -> labels.
        groups: the recording of each window, where known; else windows are taken as independent.
        wanted: `target_recall`, `confidence`, `max_false_alarm_rate`, `confirm` and `release`.
        split: which it is.
        t: seconds of each window's last frame within its recording, where known.
        spacing: seconds between the frames of a window, where known.
    """
    temperatures = {head: fit_temperature(logits[head], ids[head]) for head in HEADS}
    before = {head: softmax(logits[head]) for head in HEADS}
    after = {head: softmax(logits[head], temperatures[head]) for head in HEADS}
    p_high, is_high = after["risk"][:, HIGH], ids["risk"] == HIGH
    unit = recordings(groups, is_high)
    reason = too_few(is_high, split)
    promise = chosen = quiet = n_events = None
    if reason is None:
        promise, chosen, n_events = _in_force(p_high, is_high, groups, t, wanted, spacing)
        quiet = _point(threshold_for_false_alarms(p_high, is_high, wanted.max_false_alarm_rate), p_high, is_high, unit)
    return Alarm(
        target_recall=wanted.target_recall,
        max_false_alarm_rate=wanted.max_false_alarm_rate,
        windows=len(is_high),
        n_high=int(is_high.sum()),
        n_events=n_events,
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


def _in_force(
    p_high: Float[np.ndarray, " N"],
    is_high: Bool[np.ndarray, " N"],
    groups: Sequence[str] | None,
    t: Float[np.ndarray, " N"] | None,
    wanted: EvaluationConfig,
    spacing: float | None,
) -> tuple[Promise, OperatingPoint, int | None]:
    """The promise, the threshold that keeps it, and the number of events, if it is theirs."""
    threshold, promise, hazards, found = choose_threshold(p_high, is_high, groups, t, wanted, spacing)
    point = _point(threshold, p_high, is_high, recordings(groups, is_high))
    if hazards.kind == "windows":
        return promise, point, None
    unit = hazards.number if len(hazards.of) >= LEAST_RECORDINGS else None
    rate = rate_of(found >= threshold, np.ones(len(found), bool), unit)
    return promise, point.model_copy(update={"event_recall": rate}), len(found)


def shortcomings(
    is_high: Bool[np.ndarray, " N"],
    groups: Sequence[str] | None,
    t: Float[np.ndarray, " N"] | None,
    wanted: EvaluationConfig,
    split: str,
) -> Iterator[str]:
    """What keeps a split from promising the target, one line each: known before anything is trained."""
    if (reason := too_few(is_high, split)) is not None:
        yield f"{reason} to choose the alarm's threshold: best.pt will have none"
        return
    promise = promise_of(hazards_of(is_high, groups, t), wanted)
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


def threshold_for_false_alarms(p_high: Float[np.ndarray, " N"], is_high: Bool[np.ndarray, " N"], rate: float) -> float:
    """The lowest threshold at which at most `rate` of the windows that are not high stand at or above it."""
    others = np.sort(p_high[~is_high])[::-1]
    first_kept_out = float(others[math.floor(rate * len(others) + 1e-9)])
    higher = p_high[p_high > first_kept_out]
    return between(first_kept_out, float(higher.min()) if len(higher) else 1.0)


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
