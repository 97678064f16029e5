"""What an evaluation prints: its metrics with what they mean, events, simple models, and what to know before believing
the figures.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from simv0.evaluation.by_recording import worst_line
from simv0.evaluation.events import MEANINGS, RANKED
from simv0.model.metrics import Metrics

if TYPE_CHECKING:
    from simv0.evaluation.evaluated import Evaluated

ROWS = {
    "risk_high_recall": 'share of "high" windows predicted high',
    "risk_high_fn_rate": 'share of "high" windows that were missed',
    "risk_high_false_alarm_rate": "share of the other windows predicted high",
    "alarm_recall": 'share of "high" windows that raised the alarm',
    "alarm_false_alarm_rate": "share of the other windows that raised the alarm",
    "risk_high_recall_at_5": 'recall of "high" at a 5 % false-alarm rate',
    "risk_high_auroc": 'probability that a "high" window has the higher P(high) than another',
    "risk_high_average_precision": 'precision of "high", averaged over all thresholds',
    "risk_macro_f1": "risk, F1 averaged over its classes",
    "reason_macro_f1": "reason, macro F1",
    "action_macro_f1": "action, macro F1",
    "risk_accuracy": "risk, share predicted correctly",
    "action_accuracy": "action, share predicted correctly",
    "macro_f1": "mean of the risk and action F1",
    "composite": "harmonic mean of high recall, risk F1 and action F1",
    "unlike_share": "share of windows that are unlike the training data",
    "loss": "weighted cross-entropy over all heads",
}


COMPARED = {
    "risk_macro_f1": "risk\nF1",
    "action_macro_f1": "action\nF1",
    "risk_high_recall": "high\nrecall",
    "risk_high_recall_at_5": "at 5 %\nfalse\nalarms",
    "risk_high_auroc": "AUROC",
    "risk_high_average_precision": "average\nprecision",
}


def tables_of(found: "Evaluated") -> Iterator[Table | Text]:
    """The metrics with what they mean, what simple models make of the same windows (or why not), and what to know
    before believing them, a line each.
    """
    metrics, baselines = found.metrics, found.baselines
    title = f"{found.about['checkpoint']} on {found.about['data']}"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    for key, meaning in ROWS.items():
        table.add_row(key, _shown(metrics[key]), meaning)
    yield table
    yield from _events(found)
    if isinstance(baselines, str):
        yield Text(f"no comparison with simple models: {baselines}", style="dim")
    if found.compared:
        yield _compare(found.compared)
    if found.alarm is not None:
        yield Text(str(found.alarm))
    for line in [*(found.comparison.sentences if found.comparison else []), *found.cautions]:
        yield Text(line, style="bold")


def _events(found: "Evaluated") -> Iterator[Table | Text]:
    """The event table, or why there is none; the worst recording."""
    if isinstance(found.events, str):
        yield Text(found.events, style="dim")
    else:
        table = Table(title=str(found.events), title_justify="left", header_style="bold")
        for column in ("events and alarms", "value", "95 % interval"):
            table.add_column(column, justify="left" if column.startswith("events") else "right")
        for name, figure in found.events.figures.items():
            table.add_row(MEANINGS[name], "-" if figure is None else str(figure), figure.interval if figure else "")
        for name, value in found.events.replayed.ranking.items():
            table.add_row(RANKED[name], _shown(value), "")
        yield table
    if (line := worst_line(found.recordings)) is not None:
        yield Text(line)


def _compare(compared: Mapping[str, Metrics]) -> Table:
    table = Table(title="against simple models, fitted on train", title_justify="left", header_style="bold")
    table.add_column("model")
    for name in COMPARED.values():
        table.add_column(name, justify="right")
    for name, found in compared.items():
        table.add_row(name, *(_shown(found[key]) for key in COMPARED))
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
