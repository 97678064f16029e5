"""Tables for the terminal."""

from rich.console import Console
from rich.table import Table

from simv0.metrics import Metrics

ROWS = {
    "risk_high_recall": 'share of "high" windows that were called high',
    "risk_high_fn_rate": 'share of "high" windows that were missed',
    "risk_high_false_alarm_rate": "share of the other windows that were called high",
    "alarm_recall": 'share of "high" windows that raised the alarm',
    "alarm_false_alarm_rate": "share of the other windows that raised it",
    "risk_macro_f1": "risk, mean F1 over its classes",
    "reason_macro_f1": "reason, mean F1",
    "action_macro_f1": "action, mean F1",
    "risk_accuracy": "risk, share of right answers",
    "action_accuracy": "action, share of right answers",
    "macro_f1": "mean of the risk and action F1",
    "composite": "harmonic mean of high recall, risk F1 and action F1",
    "loss": "weighted cross entropy of all heads",
}


def metrics_table(metrics: Metrics, title: str) -> None:
    """Print the metrics with what they mean."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    for key, meaning in ROWS.items():
        value = metrics[key]
        table.add_row(key, "-" if value is None else f"{value:.3f}", meaning)
    Console().print(table)
