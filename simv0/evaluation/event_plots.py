"""The report's pictures of the alarm on recordings: what finding events costs, and the recordings themselves."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from simv0.evaluation.events import EventTable, Figure
from simv0.evaluation.plots import COLORS, INK, WIDE, figure_and_axes, legend, svg

TRUTH, MISSED, ALARM, FALSE = "#22a06b", "#e23b3b", "#f0803c", "#b063d6"
THRESHOLDS = 200
"""At most, of the curves."""
ROW = 300
"""Windows in one time line, at most."""
ROWS = 12
"""Time lines, at most."""
LONG = (10.0, 1.35)
"""Inches of a time line."""


@dataclass(frozen=True)
class Curve:
    """What every threshold finds and costs, from the highest down."""

    found: Float[np.ndarray, " T"]
    false_alarms_per_hour: Float[np.ndarray, " T"]
    time_in_alarm: Float[np.ndarray, " T"]


def curve(table: EventTable) -> Curve:
    """Of thresholds at which something changes."""
    replayed = table.replayed
    levels = np.unique(replayed.levels[replayed.levels > 0])
    chosen = levels[np.linspace(0, len(levels) - 1, min(len(levels), THRESHOLDS)).astype(int)] if len(levels) else []
    tables = [EventTable(replayed, float(level)) for level in [1.01, *chosen[::-1], 0.0]]
    counts = [each.counts for each in tables]
    seconds = np.array([count["seconds"].sum() for count in counts])
    return Curve(
        found=np.array([each.found.mean() for each in tables]),
        false_alarms_per_hour=np.array([len(each.false) for each in tables]) / (seconds / 3600),
        time_in_alarm=np.array([count["seconds_in_alarm"].sum() for count in counts]) / seconds,
    )


def trade_offs(table: EventTable, promised: float | None) -> list[str]:
    """Events found against false alarms an hour, and against the time in alarm, with the alarm in force.

    Args:
        table: with at least one event.
        promised: share of events that the alarm in force promises to find in new data.
    """
    line, figures = curve(table), table.figures
    much = np.flatnonzero(line.time_in_alarm <= 0.5)[-1] + 1
    drawn = []
    for x, name, label in (
        (line.false_alarms_per_hour, "false_alarms_per_hour", "false alarms an hour"),
        (100 * line.time_in_alarm, "share_of_time_in_alarm", "% of all time in alarm"),
    ):
        figure, axes = figure_and_axes(WIDE)
        axes.plot(x[:much], 100 * line.found[:much], color=COLORS[0])
        axes.plot(x[much - 1 :], 100 * line.found[much - 1 :], color=COLORS[0], linestyle=":")
        if promised is not None:
            axes.axhspan(100 * promised, 100, color=TRUTH, alpha=0.12, linewidth=0)
            axes.axhline(100 * promised, color=TRUTH, linestyle="--", label=f"promised: {100 * promised:.0f} % or more")
        scale = 100 if name.startswith("share") else 1
        _point(axes, figures[name], figures["found"], scale, f"in force, P(high) ≥ {table.threshold:.3f}")
        axes.set(xlabel=label, ylabel="% of events found", ylim=(0, 104))
        axes.set_xlim(0, 102 if scale == 100 else None)
        legend(axes, "lower right")
        drawn.append(svg(figure))
    return drawn


def _point(axes: Any, x: Figure | None, y: Figure | None, scale: int, label: str) -> None:
    """The alarm in force, with both its intervals where there are any."""
    if x is None or y is None:
        return
    across, up = _reach(x, scale), _reach(y, 100)
    axes.errorbar(scale * x.value, 100 * y.value, up, across, fmt="o", color=MISSED, capsize=3, label=label, zorder=5)


def _reach(figure: Figure, scale: int) -> list[list[float]] | None:
    """How far the interval reaches to either side, as matplotlib takes it."""
    if figure.low is None or figure.high is None:
        return None
    return [[scale * (figure.value - figure.low)], [scale * (figure.high - figure.value)]]


@dataclass(frozen=True)
class Row:
    """A part of a recording that is drawn as one time line: places `first` to `end`."""

    first: int
    end: int
    missed: int
    false: int


def rows(table: EventTable) -> list[Row]:
    """Every recording in parts of at most `ROW` windows: those with missed events first, then with false alarms."""
    line = table.replayed.line
    missed = table.replayed.events[~table.found, 0]
    parts = []
    for number in range(len(line.names)):
        places = np.flatnonzero(line.recording == number)
        for part in np.array_split(places, -(-len(places) // ROW)):
            first, end = int(part[0]), int(part[-1]) + 1
            inside = [int(((first <= starts) & (starts < end)).sum()) for starts in (missed, table.false[:, 0])]
            parts.append(Row(first, end, *inside))
    return sorted(parts, key=lambda part: (-part.missed, -part.false))


def time_line(table: EventTable, row: Row) -> str:
    """Truth, P(high) and the alarm over the recorded seconds; gaps are dotted lines."""
    replayed, line = table.replayed, table.replayed.line
    inside = slice(row.first, row.end)
    until = np.cumsum(line.seconds[inside])
    since = until - line.seconds[inside]
    figure, axes = figure_and_axes(LONG)

    def spans(runs: np.ndarray) -> list[tuple[float, float]]:
        clipped = [(max(first, row.first), min(end, row.end)) for first, end in runs]
        return [(since[a - row.first], until[b - row.first - 1] - since[a - row.first]) for a, b in clipped if a < b]

    for found, color in ((True, TRUTH), (False, MISSED)):
        for start, length in spans(replayed.events[table.found == found]):
            axes.axvspan(start, start + length, color=color, alpha=0.35, linewidth=0)
    for start, _ in spans(replayed.events[~table.found]):
        axes.text(start, 0.84, " missed", color=MISSED, fontsize=8, clip_on=True)
    false = {int(first) for first, _ in table.false}
    for first, end in table.alarms:
        if bars := spans(np.array([[first, end]])):
            axes.broken_barh(bars, (1.04, 0.14), color=FALSE if int(first) in false else ALARM, linewidth=0)
    gaps = np.flatnonzero(~line.follows[inside][1:]) + 1
    axes.vlines(since[gaps], 0, 1, color=INK, alpha=0.35, linestyle=":", linewidth=0.8)
    axes.stairs(replayed.p_high[inside], np.append(since, until[-1]), baseline=None, color=COLORS[0], linewidth=1)
    axes.axhline(table.threshold, color=INK, alpha=0.6, linestyle="--", linewidth=0.8)
    axes.set(xlim=(0, until[-1]), ylim=(0, 1.2), yticks=[0, 0.5, 1])
    axes.set(xlabel="recorded seconds", ylabel="P(high)")
    return svg(figure)
