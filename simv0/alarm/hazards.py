"""What an alarm must find, and what it promises of it: events, where recordings can be replayed through it, else "high"
windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from simv0.alarm.events import Timeline, best, replay, runs, timeline
from simv0.alarm.promise import carried, highest_threshold, units_needed
from simv0.alarm.stored import Promise
from simv0.config.schema import EvaluationConfig


@dataclass(frozen=True)
class Hazards:
    """The H "high" windows or events of a split, and the unit of each: what one unit loses says nothing of another."""

    kind: Literal["windows", "events"]
    unit: Literal["recordings", "windows"]
    number: Int[np.ndarray, " H"]
    """Of each hazard's unit, 0..U-1."""
    is_high: Bool[np.ndarray, " N"]
    line: Timeline | None = None
    """Of the split's windows, where they are replayed."""

    @property
    def of(self) -> Int[np.ndarray, " U"]:
        """How many each unit has, at least 1."""
        return np.bincount(self.number)

    def levels(
        self, p_high: Float[np.ndarray, " N"], confirmed: EvaluationConfig, spacing: float | None
    ) -> tuple[Float[np.ndarray, " H"], Float[np.ndarray, " N"]]:
        """The highest threshold at which each hazard is found, and at which each window is in alarm.

        Args:
            p_high: calibrated P(high) of the split's windows.
            confirmed: `confirm` and `release` of the alarm.
            spacing: seconds between the frames of a window, where known.
        """
        if self.line is None:
            return p_high[self.is_high], p_high
        order = self.line.order
        levels = replay(self.line, p_high[order], confirmed.confirm, confirmed.release, spacing)
        return best(levels, runs(self.line, self.is_high[order])), levels


def hazards_of(
    is_high: Bool[np.ndarray, " N"], groups: Sequence[str] | None, t: Float[np.ndarray, " N"] | None = None
) -> Hazards:
    """Events where `group` and `t` of the windows are known, else windows; without `group` each is its own unit."""
    if groups is None:
        return Hazards("windows", "windows", np.arange(is_high.sum()), is_high)
    line = timeline(groups, t)
    if isinstance(line, str):
        return Hazards("windows", "recordings", _numbered(np.asarray(groups)[is_high]), is_high)
    firsts = runs(line, is_high[line.order])[:, 0]
    return Hazards("events", "recordings", _numbered(line.recording[firsts]), is_high, line)


def _numbered(names: np.ndarray) -> Int[np.ndarray, " H"]:
    """Equal names as equal numbers from 0 on."""
    numbers: np.ndarray = np.unique(names, return_inverse=True)[1]
    return numbers


def promise_of(hazards: Hazards, wanted: EvaluationConfig) -> Promise:
    """What is promised, settled before any score is looked at, so that no luck of the scores can choose it.

    It is the target, where so many units carry it. Else it is what they carry where they lose as much as the target
    allows: `target * most`, whose threshold finds about the target here. To promise `most` itself nothing may be missed
    here, and one odd window would make the alarm cry at everything; who wants that asks for a higher target.
    """
    target, most = wanted.target_recall, carried(hazards.of, wanted.confidence)
    return Promise(
        recall=target if target <= most else target * most,
        confidence=wanted.confidence,
        of=hazards.kind,
        unit=hazards.unit,
        units=len(hazards.of),
        most=most,
        needed=units_needed(hazards.of, target, wanted.confidence),
    )


def choose_threshold(
    p_high: Float[np.ndarray, " N"],
    is_high: Bool[np.ndarray, " N"],
    groups: Sequence[str] | None,
    t: Float[np.ndarray, " N"] | None,
    wanted: EvaluationConfig,
    spacing: float | None = None,
) -> tuple[float, Promise, Hazards, Float[np.ndarray, " H"]]:
    """The highest threshold that keeps the promise; the promise; of what it is; up to which threshold each is found."""
    hazards = hazards_of(is_high, groups, t)
    promise, of = promise_of(hazards, wanted), hazards.of
    found, levels = hazards.levels(p_high, wanted, spacing)
    at = highest_threshold(
        np.unique(found[np.isfinite(found)]),
        lambda threshold: np.bincount(hazards.number[found < threshold], minlength=len(of)),
        of,
        promise.recall,
        promise.confidence,
    )
    if at is None:  # many events end before an alarm can be confirmed; windows can always be promised
        return choose_threshold(p_high, is_high, groups, None, wanted)
    return _apart_from_lower(levels, at), promise, hazards, found


def _apart_from_lower(levels: Float[np.ndarray, " N"], at: float) -> float:
    """Midway from a level to the next lower one, so that float noise (stored features, another device) flips no window
    across the threshold.
    """
    lower = levels[levels < at]
    return between(max(0.0, float(lower.max())) if len(lower) else 0.0, at)


def between(low: float, high: float) -> float:
    """Halfway, or the higher where nothing lies between."""
    middle = (low + high) / 2
    return middle if middle > low else high
