"""When to raise the alarm: a threshold on P(high) chosen on val, its price, and probabilities that mean what they say.

Argmax asks which class is likeliest; an alarm asks how many "high" windows may be missed. So the threshold is read off
the val split for a wanted recall, after temperature scaling, and travels in the checkpoint with the rates it had.
Everything here is a deterministic function of val's logits and labels.
"""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict

from simv0.config.schema import EvaluationConfig
from simv0.labels import HEADS, HIGH

LEAST_HIGH = 10
"""Fewer windows on either side of the threshold say nothing, whatever recall is wanted."""
LEAST_RECORDINGS = 3
"""Fewer recordings with (or without) "high" have no spread to resample."""
RESAMPLES = 1000
BINS = 15


class Stored(BaseModel):
    """What all parts share: they travel in a checkpoint, and are checked when it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Rate(Stored):
    """A rate on val with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class OperatingPoint(Stored):
    """A threshold on the calibrated P(high), and what it is worth on val."""

    threshold: float
    recall: Rate
    """Share of the "high" windows that raise the alarm."""
    false_alarm_rate: Rate
    """Share of the other windows that raise it."""


class Alarm(Stored):
    """The chosen alarm of a checkpoint."""

    target_recall: float
    max_false_alarm_rate: float
    windows: int
    n_high: int
    groups: int | None
    """Recordings that the intervals were resampled over; None: windows, and neighbouring ones are not independent."""
    reason: str | None
    """Why there is no threshold, where there is none."""
    chosen: OperatingPoint | None
    """The highest threshold that finds `target_recall` of the "high" windows: the one in force."""
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
        """The threshold in force; None where val could not give one."""
        return None if self.chosen is None else self.chosen.threshold

    def __str__(self) -> str:
        """One human-readable line."""
        if self.chosen is None:
            return f"alarm: no threshold: {self.reason}"
        over = f"{self.groups} recordings" if self.groups else "windows: no groups given, so they are too narrow"
        return (
            f"alarm: P(high) >= {self.chosen.threshold:.3f}: recall {self.chosen.recall} on {self.n_high} high windows"
            f", false-alarm rate {self.chosen.false_alarm_rate} (95 % intervals over {over})"
        )


def choose_alarm(
    logits: Mapping[str, Float[np.ndarray, "N _"]],
    ids: Mapping[str, Int[np.ndarray, " N"]],
    sample_ids: Sequence[str],
    groups: Sequence[str] | None,
    wanted: EvaluationConfig,
) -> Alarm:
    """Choose the alarm on a split.

    Args:
        logits: head -> logits of every window.
        ids: head -> labels.
        sample_ids: names of the windows; they tell recordings apart where they read `recording-number`.
        groups: the recording of each window, where known.
        wanted: `target_recall` and `max_false_alarm_rate`.
    """
    temperatures = {head: fit_temperature(logits[head], ids[head]) for head in HEADS}
    before = {head: softmax(logits[head]) for head in HEADS}
    after = {head: softmax(logits[head], temperatures[head]) for head in HEADS}
    p_high, is_high = after["risk"][:, HIGH], ids["risk"] == HIGH
    unit = recordings(sample_ids, groups, is_high)
    reason = too_few(is_high, wanted)
    chosen = quiet = None
    if reason is None:
        chosen = _point(threshold_for_recall(p_high, is_high, wanted.target_recall), p_high, is_high, unit)
        quiet = _point(threshold_for_false_alarms(p_high, is_high, wanted.max_false_alarm_rate), p_high, is_high, unit)
    return Alarm(
        target_recall=wanted.target_recall,
        max_false_alarm_rate=wanted.max_false_alarm_rate,
        windows=len(is_high),
        n_high=int(is_high.sum()),
        groups=None if unit is None else int(unit.max()) + 1,
        reason=reason,
        chosen=chosen,
        at_max_false_alarm_rate=quiet,
        temperatures=temperatures,
        ece_before={head: calibration_error(before[head], ids[head]) for head in HEADS},
        ece_after={head: calibration_error(after[head], ids[head]) for head in HEADS},
    )


def too_few(is_high: Bool[np.ndarray, " N"], wanted: EvaluationConfig) -> str | None:
    """Why val is too small for these rates: a recall of 0.95 cannot be told from 1 on fewer than 20 windows."""
    for n, rate, what in (
        (int(is_high.sum()), 1 - wanted.target_recall, 'of risk "high"'),
        (int((~is_high).sum()), wanted.max_false_alarm_rate, "of other risks"),
    ):
        needed = max(LEAST_HIGH, math.ceil(1 / rate - 1e-9))
        if n < needed:
            return f"val has {n} windows {what}; at least {needed} are needed"
    return None


def threshold_for_recall(p_high: Float[np.ndarray, " N"], is_high: Bool[np.ndarray, " N"], recall: float) -> float:
    """The highest threshold at which `p_high >= threshold` holds for at least `recall` of the high windows.

    It lies midway to the next lower score, so that float noise (stored features, another device) flips no window.
    """
    found = np.sort(p_high[is_high])[::-1]
    last = float(found[math.ceil(recall * len(found) - 1e-9) - 1])
    lower = p_high[p_high < last]
    return _between(float(lower.max()) if len(lower) else 0.0, last)


def threshold_for_false_alarms(p_high: Float[np.ndarray, " N"], is_high: Bool[np.ndarray, " N"], rate: float) -> float:
    """The lowest threshold at which at most `rate` of the windows that are not high stand at or above it."""
    others = np.sort(p_high[~is_high])[::-1]
    first_kept_out = float(others[math.floor(rate * len(others) + 1e-9)])
    higher = p_high[p_high > first_kept_out]
    return _between(first_kept_out, float(higher.min()) if len(higher) else 1.0)


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


def rate_of(raised: Bool[np.ndarray, " N"], among: Bool[np.ndarray, " N"], unit: Int[np.ndarray, " N"] | None) -> Rate:
    """Share of `among` that is `raised`, with a 95 % percentile bootstrap over units (windows where None).

    A resample cannot show what never happened: at a rate of 0 or 1 the far end of the interval is the exact binomial
    one of as many independent units, 0.025 ** (1 / units) (Clopper & Pearson 1934).
    """
    unit = np.arange(len(among)) if unit is None else unit
    totals = np.bincount(unit[among])
    hits = np.bincount(unit[among], raised[among], len(totals))
    hits, totals = hits[totals > 0], totals[totals > 0]
    n, rng = len(totals), np.random.default_rng(0)
    value = float(hits.sum() / totals.sum())
    if (totals == 1).all():  # the same distribution, drawn at once
        drawn = rng.binomial(n, value, RESAMPLES) / n
    else:
        picks = (rng.integers(0, n, n) for _ in range(RESAMPLES))
        drawn = np.array([hits[pick].sum() / totals[pick].sum() for pick in picks])
    low, high = (float(x) for x in np.percentile(drawn, [2.5, 97.5]))
    far = float(0.025 ** (1 / n))
    return Rate(value=value, low=min(low, far) if value == 1 else low, high=max(high, 1 - far) if value == 0 else high)


def recordings(
    sample_ids: Sequence[str], groups: Sequence[str] | None, is_high: Bool[np.ndarray, " N"]
) -> Int[np.ndarray, " N"] | None:
    """The recording of each window as a number, from `groups` or else from sample_ids that read `recording-number`.

    None where neither tells, or where too few recordings hold "high" windows, or others, to be resampled.
    """
    if groups is None:
        matches = [re.fullmatch(r"(.+)[-_/:.]\d+", name) for name in sample_ids]
        if not all(matches):
            return None
        groups = [match[1] for match in matches if match]
    _, unit = np.unique(np.asarray(groups), return_inverse=True)
    enough = all(len(np.unique(unit[side])) >= LEAST_RECORDINGS for side in (is_high, ~is_high))
    return unit if enough else None


def softmax(logits: Float[np.ndarray, "N C"], temperature: float = 1.0) -> Float[np.ndarray, "N C"]:
    """Probabilities of logits / temperature, in float64."""
    scaled = logits.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(1, keepdims=True))
    probs: np.ndarray = scaled / scaled.sum(1, keepdims=True)
    return probs


def fit_temperature(logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]) -> float:
    """The temperature in 0.1..10 of the least cross entropy (Guo et al. 2017), by golden section on its logarithm.

    The cross entropy is convex in 1/T, so there is one valley; a perfect or hopeless split ends at the bounds.
    """

    def cross_entropy(log_t: float) -> float:
        scaled = logits.astype(np.float64) / math.exp(log_t)
        scaled -= scaled.max(1, keepdims=True)
        picked = scaled[np.arange(len(labels)), labels]
        return float(np.mean(np.log(np.exp(scaled).sum(1)) - picked))

    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(0.1), math.log(10)
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = cross_entropy(a), cross_entropy(b)
    for _ in range(40):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = cross_entropy(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = cross_entropy(b)
    return math.exp((low + high) / 2)


def calibration_error(probs: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]) -> float:
    """Expected calibration error: mean |confidence - accuracy| over 15 equal bins of the likeliest class's probability,
    weighted by their windows (Naeini et al. 2015).
    """
    confidence, right = probs.max(1), probs.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence, BINS) - np.bincount(bins, right, BINS)
    return float(np.abs(gaps).sum() / len(labels))
