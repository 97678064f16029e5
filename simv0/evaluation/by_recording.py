"""Each recording on its own: a good mean may hide the one in which everything is missed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from simv0.evaluation.events import EventTable

Row = dict[str, Any]


def by_recording(
    group: Sequence[str] | None,
    is_high: Bool[np.ndarray, " N"],
    raised: Bool[np.ndarray, " N"],
    events: EventTable | None,
) -> list[Row]:
    """The rates of every recording, the worst recall first; none without `group`.

    Args:
        group: the recording of each window.
        is_high: the truth.
        raised: windows that raise the alarm by themselves, or without a threshold those called high.
        events: of the same windows, where they can be replayed.
    """
    if group is None:
        return []
    names, unit = np.unique(np.asarray(group), return_inverse=True)
    windows, high = (np.bincount(unit, among, len(names)) for among in (np.ones(len(unit)), is_high))
    hits, cries = (np.bincount(unit, raised & among, len(names)) for among in (is_high, ~is_high))
    rows = [
        {
            "recording": str(name),
            "windows": int(windows[i]),
            "high": int(high[i]),
            "recall": _share(hits[i], high[i]),
            "false_alarm_rate": _share(cries[i], windows[i] - high[i]),
            **({} if events is None else _of_events(events, i)),
        }
        for i, name in enumerate(names)
    ]
    return sorted(rows, key=_badness)


def worst(rows: Sequence[Row]) -> Row | None:
    """The recording of the lowest recall, of events where they are known; None without "high" windows."""
    return next((row for row in rows if recall_of(row) is not None), None)


def worst_line(rows: Sequence[Row]) -> str | None:
    """The worst recording by its name, in words."""
    row = worst(rows)
    if row is None:
        return None
    if "events" in row:
        return f"worst recording: {row['recording']}: {row['found']} of {row['events']} events found"
    return f"worst recording: {row['recording']}: recall {row['recall']:.3f} of {row['high']} high windows"


def recall_of(row: Row) -> float | None:
    """Share of a recording's events that are found, or of its "high" windows where events are not known."""
    share: float | None = row["recall"] if "events" not in row else _share(float(row["found"]), float(row["events"]))
    return share


def _badness(row: Row) -> tuple[float, int]:
    recall = recall_of(row)
    return (2.0 if recall is None else recall), -row["high"]


def _of_events(events: EventTable, i: int) -> Row:
    """Recordings are numbered by their names here as there."""
    counts = {name: counted[i] for name, counted in events.counts.items()}
    hours = counts["seconds"] / 3600
    return {
        "events": int(counts["events"]),
        "found": int(counts["found"]),
        "hours": float(hours),
        "false_alarms": int(counts["false_alarms"]),
        "false_alarms_per_hour": float(counts["false_alarms"] / hours),
        "share_of_time_in_alarm": float(counts["seconds_in_alarm"] / counts["seconds"]),
    }


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
