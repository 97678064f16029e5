"""The report's part about events: `events.html.j2`, filled."""

from collections.abc import Callable
from typing import Any

from simv0.evaluation import event_plots
from simv0.evaluation.by_recording import worst_line
from simv0.evaluation.evaluated import Evaluated
from simv0.evaluation.events import MEANINGS, RANKED, EventTable

RECORDINGS = 50
"""Rows of the table of recordings, at most."""
COLUMNS = {
    "windows": "windows",
    "high": "high",
    "recall": "recall of windows",
    "false_alarm_rate": "false-alarm rate of windows",
    "events": "events",
    "found": "found",
    "false_alarms": "false alarms",
    "false_alarms_per_hour": "an hour",
    "share_of_time_in_alarm": "share of time in alarm",
}
"""Of that table."""


def event_section(evaluated: Evaluated, markup: Callable[[str], str]) -> dict[str, Any]:
    """What the template takes."""
    table = None if isinstance(evaluated.events, str) else evaluated.events
    rows = evaluated.recordings
    names = [name for name in COLUMNS if rows and name in rows[0]]
    return {
        "no_events": evaluated.events if isinstance(evaluated.events, str) else None,
        "event_table": _figures(table) if table else [],
        "event_words": _words(table) if table else "",
        "event_of": str(table) if table else "",
        "trade_offs": [markup(svg) for svg in _trade_offs(evaluated, table)],
        "time_lines": _time_lines(table, markup) if table else [],
        "time_line_count": len(event_plots.rows(table)) if table else 0,
        "worst_recording": worst_line(rows),
        "recording_columns": [COLUMNS[name] for name in names],
        "recording_rows": [(row["recording"], [_cell(row[name]) for name in names]) for row in rows[:RECORDINGS]],
        "recording_count": len(rows),
    }


def _figures(table: EventTable) -> list[tuple[str, str, str]]:
    shown = [(MEANINGS[name], str(it or "–"), it.interval if it else "") for name, it in table.figures.items()]
    ranked = table.replayed.ranking.items()
    return shown + [(RANKED[name], "–" if value is None else f"{value:.3f}", "") for name, value in ranked]


def _words(table: EventTable) -> str:
    """The table as one would say it."""
    events, found, figures = len(table.found), int(table.found.sum()), table.figures
    lead, per_hour = figures["lead_p50_seconds"], figures["false_alarms_per_hour"]
    time = figures["share_of_time_in_alarm"]
    said = (
        f"The alarm finds {found} of {events} events and misses {events - found}." if events else "There is no event."
    )
    if lead is not None:
        when = "before" if lead.value >= 0 else "after"
        said += f" Half of those found are raised {abs(lead.value):.1f} s {when} their first high window, or earlier."
    if per_hour is not None and time is not None:
        said += f" It cries for nothing {per_hour} times an hour, and is raised {time.value:.0%} of the time."
    return said


def _trade_offs(evaluated: Evaluated, table: EventTable | None) -> list[str]:
    if table is None or not len(table.found):
        return []
    promise = evaluated.alarm.promise if evaluated.alarm else None
    promised = promise.recall if promise is not None and promise.of == "events" else None
    return event_plots.trade_offs(table, promised)


def _time_lines(table: EventTable, markup: Callable[[str], str]) -> list[dict[str, Any]]:
    line = table.replayed.line
    return [
        {
            "caption": f"{line.names[line.recording[row.first]]}, t = {line.t[row.first]:.1f} s to "
            f"{line.t[row.end - 1]:.1f} s: events missed: {row.missed}, false alarms: {row.false}",
            "figure": markup(event_plots.time_line(table, row)),
        }
        for row in event_plots.rows(table)[: event_plots.ROWS]
    ]


def _cell(value: int | float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if value < 10 else f"{value:,.1f}"
