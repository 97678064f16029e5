"""Tables for the terminal."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from simv0.metrics import Metrics

ROWS = {
    "risk_high_recall": 'share of "high" windows that were called high',
    "risk_high_fn_rate": 'share of "high" windows that were missed',
    "risk_high_false_alarm_rate": "share of the other windows that were called high",
    "alarm_recall": 'share of "high" windows that raised the alarm',
    "alarm_false_alarm_rate": "share of the other windows that raised it",
    "risk_high_recall_at_5": "the same, with 5 % false alarms",
    "risk_macro_f1": "risk, mean F1 over its classes",
    "reason_macro_f1": "reason, mean F1",
    "action_macro_f1": "action, mean F1",
    "risk_accuracy": "risk, share of right answers",
    "action_accuracy": "action, share of right answers",
    "macro_f1": "mean of the risk and action F1",
    "composite": "harmonic mean of high recall, risk F1 and action F1",
    "loss": "weighted cross entropy of all heads",
}


COMPARED = {
    "risk_high_recall": "high recall",
    "risk_high_recall_at_5": "at 5 % false alarms",
    "risk_macro_f1": "risk F1",
    "reason_macro_f1": "reason F1",
    "action_macro_f1": "action F1",
}


def metrics_table(metrics: Metrics, baselines: Mapping[str, Metrics] | str, title: str) -> None:
    """Print the metrics with what they mean, and what simple models make of the same windows (or why not)."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    for key, meaning in ROWS.items():
        table.add_row(key, _shown(metrics[key]), meaning)
    Console().print(table)
    if isinstance(baselines, str):
        Console().print(f"not compared with simple models: {baselines}", style="dim")
        return
    table = Table(title="against simple models, fitted on train", title_justify="left", header_style="bold")
    table.add_column("model")
    for name in COMPARED.values():
        table.add_column(name, justify="right")
    for name, found in {"this checkpoint": metrics, **baselines}.items():
        table.add_row(name, *(_shown(found[key]) for key in COMPARED))
    Console().print(table)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
