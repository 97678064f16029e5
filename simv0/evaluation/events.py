"""The event table: what a robot's alarm would have done on whole recordings, in events, seconds and hours.

Each recording is replayed through the alarm that `Stream` runs (`alarm.events`). Said once, for all that follows:

- an event is a run of "high" windows of one recording; it is found if the alarm is raised in one of them;
- an alarm lasts from its raise to its release; it is false if no window in it is "high";
- the lead is the time from the raise to the event's first "high" window: negative where the raise comes after it;
- time is recorded time: a window stands for the seconds to the next one, gaps in a recording for none.

Intervals are of 95 %, by a bootstrap over recordings; there are none over fewer than three.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from simv0.alarm.events import Timeline, best, replay, runs, timeline
from simv0.alarm.rates import LEAST_RECORDINGS
from simv0.alarm.roc import auroc, average_precision
from simv0.data.labels import Labels
from simv0.labels import HIGH

RESAMPLES = 300
PERCENTILES = (10, 50, 90)
MEANINGS = {
    "found": "share of events found",
    "lead_p10_seconds": 'seconds from the raise to the first "high" window (negative: after it): one in ten has less',
    "lead_p50_seconds": "the same, half of the events found",
    "lead_p90_seconds": "the same, nine in ten",
    "false_alarms_per_hour": 'alarms without a "high" window, an hour',
    "false_alarm_p10_seconds": "seconds that a false alarm lasts: one in ten is shorter",
    "false_alarm_p50_seconds": "the same, half of them",
    "false_alarm_p90_seconds": "the same, nine in ten",
    "share_of_time_in_alarm": "share of all time with the alarm raised",
}
"""What the figures of the table are."""
RANKED = {
    "auroc": "probability that an event's best score is above that of an equally long slice of calm",
    "average_precision": "precision among events and such slices, averaged over all thresholds",
}
"""What those of `Replayed.ranking` are."""


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval over recordings, None where they are too few."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> str:
        """For display."""
        return "" if self.low is None or self.high is None else f"{_shown(self.low)} to {_shown(self.high)}"

    def __str__(self) -> str:
        return _shown(self.value)


def _shown(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


@dataclass(frozen=True)
class Replayed:
    """The N windows of a split in the order of `line`, replayed."""

    line: Timeline
    is_high: Bool[np.ndarray, " N"]
    p_high: Float[np.ndarray, " N"]
    levels: Float[np.ndarray, " N"]
    """The alarm is raised at every threshold up to this one."""
    confirm: Sequence[int]
    release: float

    @cached_property
    def events(self) -> Int[np.ndarray, "E 2"]:
        """First place and the place after the last."""
        return runs(self.line, self.is_high)

    @cached_property
    def scores(self) -> Float[np.ndarray, " E"]:
        """Of each event: the highest threshold at which it is found."""
        return best(self.levels, self.events)

    @cached_property
    def calm_scores(self) -> Float[np.ndarray, " C"]:
        """The highest threshold at which the alarm is raised in each calm slice, for comparison with `scores`.

        A slice is a run of other windows, cut to the length of the median event: a longer one has more chances. The
        first M windows after an event are left out, because the event's own alarm may still be raised there.
        """
        length = max(1, int(np.median(np.diff(self.events)))) if len(self.events) else 1
        calm = ~self.is_high
        for _, end in self.events:
            calm[end : end + self.confirm[1]] = False
        slices = [
            (at, min(at + length, end)) for first, end in runs(self.line, calm) for at in range(first, end, length)
        ]
        return best(self.levels, np.array(slices, int).reshape(-1, 2))

    @cached_property
    def ranking(self) -> dict[str, float | None]:
        """AUROC and average precision of the events' scores against those of calm slices."""
        scores = np.maximum(np.concatenate([self.scores, self.calm_scores]), -1.0)  # -inf: raised at no threshold
        is_event = np.arange(len(scores)) < len(self.events)
        return {"auroc": auroc(scores, is_event), "average_precision": average_precision(scores, is_event)}


def replay_split(
    labels: Labels,
    p_high: Float[np.ndarray, " N"],
    confirm: Sequence[int],
    release: float,
    spacing: float | None,
    unlike: Bool[np.ndarray, " N"] | None = None,
) -> Replayed | str:
    """Replay a split, or say in one line why that cannot be done and what to add."""
    line = timeline(labels.group, labels.t)
    if isinstance(line, str):
        return line
    p_high, unlike = p_high[line.order], None if unlike is None else unlike[line.order]
    is_high = labels.ids["risk"][line.order] == HIGH
    levels = replay(line, p_high, confirm, release, spacing, unlike)
    return Replayed(line, is_high, p_high, levels, confirm, release)


@dataclass(frozen=True)
class EventTable:
    """What the alarm of one threshold does."""

    replayed: Replayed
    threshold: float

    @cached_property
    def raised(self) -> Bool[np.ndarray, " N"]:
        """After which windows the alarm is raised."""
        raised: np.ndarray = self.replayed.levels >= self.threshold
        return raised

    @cached_property
    def found(self) -> Bool[np.ndarray, " E"]:
        """Which events are found."""
        found: np.ndarray = self.replayed.scores >= self.threshold
        return found

    @cached_property
    def alarms(self) -> Int[np.ndarray, "A 2"]:
        """First place of each alarm, and the place after its last."""
        return runs(self.replayed.line, self.raised, over_gaps=True)

    @cached_property
    def false(self) -> Int[np.ndarray, "A 2"]:
        """The false ones."""
        high = np.append(0, np.cumsum(self.replayed.is_high))
        false: np.ndarray = self.alarms[high[self.alarms[:, 1]] == high[self.alarms[:, 0]]]
        return false

    @cached_property
    def leads(self) -> Float[np.ndarray, " F"]:
        """Seconds of each event that is found."""
        t, starts = self.replayed.line.t, self.alarms[:, 0]
        events = self.replayed.events[self.found]
        first_raised = np.array([first + int(self.raised[first:end].argmax()) for first, end in events], int)
        leads: np.ndarray = t[events[:, 0]] - t[starts[np.searchsorted(starts, first_raised, side="right") - 1]]
        return leads

    @cached_property
    def lengths(self) -> Float[np.ndarray, " A"]:
        """Seconds of each false alarm."""
        until = np.append(0.0, np.cumsum(self.replayed.line.seconds))
        lengths: np.ndarray = until[self.false[:, 1]] - until[self.false[:, 0]]
        return lengths

    @cached_property
    def counts(self) -> dict[str, Float[np.ndarray, " R"]]:
        """By recording: events and found ones, false alarms, and seconds recorded and in alarm."""
        line, first = self.replayed.line, self.replayed.events[:, 0]

        def by_recording(places: np.ndarray, weights: np.ndarray | None = None) -> Float[np.ndarray, " R"]:
            return np.bincount(line.recording[places], weights, len(line.names)).astype(np.float64)

        everywhere = np.arange(len(line.t))
        return {
            "events": by_recording(first),
            "found": by_recording(first[self.found]),
            "false_alarms": by_recording(self.false[:, 0]),
            "seconds": by_recording(everywhere, line.seconds),
            "seconds_in_alarm": by_recording(everywhere, line.seconds * self.raised),
        }

    @cached_property
    def figures(self) -> dict[str, Figure | None]:
        """Those of the table with their intervals; None where there is nothing to count."""
        counts, recording = self.counts, self.replayed.line.recording
        hours = counts["seconds"] / 3600
        leads = _by(recording[self.replayed.events[self.found, 0]], self.leads, len(hours))
        lengths = _by(recording[self.false[:, 0]], self.lengths, len(hours))
        return {
            "found": _share(counts["found"], counts["events"]),
            **{f"lead_p{q}_seconds": _percentile(leads, q) for q in PERCENTILES},
            "false_alarms_per_hour": _per_hour(counts["false_alarms"], hours),
            **{f"false_alarm_p{q}_seconds": _percentile(lengths, q) for q in PERCENTILES},
            "share_of_time_in_alarm": _share(counts["seconds_in_alarm"], counts["seconds"]),
        }

    def __str__(self) -> str:
        """What the table is of, in one line."""
        n, m = self.replayed.confirm
        recordings, hours = len(self.replayed.line.names), self.counts["seconds"].sum() / 3600
        long = f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
        return (
            f"{len(self.found)} events in {recordings} recordings of {long} together; the alarm: {n} of "
            f"{m} windows at P(high) >= {self.threshold:.3f}, released below {self.replayed.release:g} of it"
        )

    def plain(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "threshold": self.threshold,
            "confirm": list(self.replayed.confirm),
            "release": self.replayed.release,
            "recordings": len(self.replayed.line.names),
            "hours": float(self.counts["seconds"].sum() / 3600),
            "events": len(self.found),
            "missed": int((~self.found).sum()),
            "false_alarms": len(self.false),
            **{name: None if figure is None else asdict(figure) for name, figure in self.figures.items()},
            **self.replayed.ranking,
        }


def _by(recording: Int[np.ndarray, " X"], values: Float[np.ndarray, " X"], n: int) -> list[np.ndarray]:
    """The values of each of n recordings."""
    return [values[recording == i] for i in range(n)]


def _share(part: Float[np.ndarray, " R"], whole: Float[np.ndarray, " R"]) -> Figure | None:
    """Share of a whole; at 0 or 1 the far end is the exact binomial one of as many recordings, as in `rate_of`."""
    part, whole = part[whole > 0], whole[whole > 0]
    figure = _over_recordings(len(whole), lambda drawn: part[drawn].sum() / whole[drawn].sum())
    if figure is None or figure.low is None or figure.high is None:
        return figure
    far = 0.025 ** (1 / len(whole))
    if figure.value == 1:
        return Figure(1.0, min(figure.low, far), 1.0)
    return Figure(0.0, 0.0, max(figure.high, 1 - far)) if figure.value == 0 else figure


def _per_hour(count: Float[np.ndarray, " R"], hours: Float[np.ndarray, " R"]) -> Figure | None:
    """Count an hour; at 0 the far end is the exact Poisson one."""
    figure = _over_recordings(len(hours), lambda drawn: count[drawn].sum() / hours[drawn].sum())
    if figure is not None and figure.low is not None and figure.value == 0:
        return Figure(0.0, 0.0, -math.log(0.025) / float(hours.sum()))
    return figure


def _percentile(values: Sequence[np.ndarray], q: int) -> Figure | None:
    """A percentile of all values."""
    some = [each for each in values if len(each)]
    return _over_recordings(len(some), lambda drawn: np.percentile(np.concatenate([some[i] for i in drawn]), q))


def _over_recordings(n: int, statistic: Callable[[Int[np.ndarray, " n"]], Any]) -> Figure | None:
    """A statistic of n recordings, given their numbers, and its percentile bootstrap."""
    if n == 0:
        return None
    value = float(statistic(np.arange(n)))
    if n < LEAST_RECORDINGS:
        return Figure(value)
    rng = np.random.default_rng(0)
    drawn = [float(statistic(rng.integers(0, n, n))) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Figure(value, float(low), float(high))
