"""What a checkpoint keeps of its alarm: all that a robot needs of this room but the confirmation."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Stored(BaseModel):
    """What all parts share: they travel in a checkpoint, and are checked when it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Rate(Stored):
    """A rate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class OperatingPoint(Stored):
    """A threshold on the calibrated P(high), and what it is worth on the split that it was chosen on."""

    threshold: float
    recall: Rate
    """Share of the "high" windows that raise the alarm."""
    false_alarm_rate: Rate
    """Share of the other windows that raise it."""
    event_recall: Rate | None = None
    """Share of the events in which the confirmed alarm is raised, where recordings can be replayed."""


class Promise(Stored):
    """What the threshold in force keeps on new data of the same kind."""

    recall: float
    """At least this share of all there is to find, pooled over new units."""
    confidence: float
    """How sure that is: the share of such promises that are kept."""
    of: Literal["windows", "events"] = "windows"
    """What is found: single "high" windows, or events, by the confirmed alarm of a stream."""
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
    n_events: int | None = None
    """Runs of "high" windows; None where recordings cannot be replayed."""
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
        point = self.chosen
        if point is None:
            return f"alarm: no threshold: {self.reason}"
        over = f"{self.groups} recordings" if self.groups else "windows: too narrow, for want of three recordings"
        events = "" if point.event_recall is None else f"{point.event_recall} of {self.n_events} events and "
        return (
            f"alarm: P(high) >= {point.threshold:.3f}: {self._promised()}; on {self.split} recall {events}"
            f"{point.recall} of {self.n_high} high windows, false-alarm rate {point.false_alarm_rate} (95 % intervals "
            f"over {over}){'; val also chose the epoch' if self.split == 'val' else ''}"
        )

    def _promised(self) -> str:
        promise = self.promise
        if promise is None:
            return "NO PROMISE for new data: an older simv0 chose it"
        sure = f"{promise.confidence:.0%} confidence"
        said = f"recall {promise.recall:.3f} of {promise.of} is promised for new data at {sure}"
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
