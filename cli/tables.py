"""Tables for the terminal."""

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

if TYPE_CHECKING:
    from simv0.data.split_manifest import Division
    from simv0.evaluation.evaluated import Evaluated
    from simv0.model.metrics import Metrics

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


def metrics_table(found: "Evaluated", title: str) -> None:
    """Print the metrics with what they mean, what simple models make of the same windows (or why not), and what to know
    before believing them, a line each.
    """
    metrics, baselines = found.metrics, found.baselines
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    for key, meaning in ROWS.items():
        table.add_row(key, _shown(metrics[key]), meaning)
    Console().print(table)
    _events(found)
    if isinstance(baselines, str):
        Console().print(f"no comparison with simple models: {baselines}", style="dim")
    if found.compared:
        _compare(found.compared)
    if found.alarm is not None:
        Console(soft_wrap=True).print(str(found.alarm), markup=False, highlight=False)
    for line in [*(found.comparison.sentences if found.comparison else []), *found.cautions]:
        Console(soft_wrap=True).print(line, style="bold", markup=False, highlight=False)


def _events(found: "Evaluated") -> None:
    """The event table, or why there is none; the worst recording."""
    from simv0.evaluation.by_recording import worst_line
    from simv0.evaluation.events import MEANINGS, RANKED

    if isinstance(found.events, str):
        Console(soft_wrap=True).print(found.events, style="dim", markup=False, highlight=False)
    else:
        table = Table(title=str(found.events), title_justify="left", header_style="bold")
        for column in ("events and alarms", "value", "95 % interval"):
            table.add_column(column, justify="left" if column.startswith("events") else "right")
        for name, figure in found.events.figures.items():
            table.add_row(MEANINGS[name], "-" if figure is None else str(figure), figure.interval if figure else "")
        for name, value in found.events.replayed.ranking.items():
            table.add_row(RANKED[name], _shown(value), "")
        Console().print(table)
    if (line := worst_line(found.recordings)) is not None:
        Console(soft_wrap=True).print(line, markup=False, highlight=False)


def _compare(compared: Mapping[str, "Metrics"]) -> None:
    table = Table(title="against simple models, fitted on train", title_justify="left", header_style="bold")
    table.add_column("model")
    for name in COMPARED.values():
        table.add_column(name, justify="right")
    for name, found in compared.items():
        table.add_row(name, *(_shown(found[key]) for key in COMPARED))
    Console().print(table)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def split_table(division: "Division") -> None:
    """Print what each part of a divided manifest holds, and where it is."""
    parts = division.parts
    table = Table(header_style="bold")
    for column in ("", *(part.name for part in parts)):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("recordings", *(f"{len(part.recordings):,}" for part in parts))
    table.add_row("windows", *(f"{part.windows:,}" for part in parts))
    table.add_row("share (asked)", *(f"{part.share:.1%} ({part.asked:.1%})" for part in parts), end_section=True)
    for head, name in parts[0].classes:
        table.add_row(f"{head} {name}", *(f"{part.classes[head, name]:,}" for part in parts))
    Console().print(table)
    for part in parts:
        Console(soft_wrap=True).print(str(part.path), markup=False, highlight=False)
    if division.link is not None:
        way = "set data.dataset_kwargs={follow_links: true}, which lets the parts find their frames there"
        said = f"{division.link} is a link to {division.link.resolve()}: {way}"
        Console(soft_wrap=True).print(said, markup=False, highlight=False)


def watched(indices: list[int], split: str) -> Iterable[int]:
    """Go through the windows of a split that are read, with a bar on a terminal."""
    return track(
        indices, f"reading {split}", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    )


def facts_table(facts: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Print what `simv0 check` found, one area after the other."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in ("area", "what"):
        table.add_column(column)
    table.add_column("value", overflow="fold")
    for area, found in facts.items():
        for name, value in found.items():
            table.add_row(area, *_with_unit(name, value))
            area = ""
        table.add_section()
    Console().print(table)


def _with_unit(name: str, value: Any) -> tuple[str, str]:
    """A fact's name and value for display; the suffix of the name is its unit."""
    what, _, unit = name.rpartition("_")
    if value is None:
        return name.replace("_", " "), "unknown"
    if unit == "bytes":
        return what.replace("_", " "), f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e6:.2f} MB"
    if unit == "seconds":
        return what.replace("_", " "), f"{value:.1f} s" if value < 120 else f"{value / 60:.0f} min"
    if isinstance(value, bool):
        return name.replace("_", " "), "yes" if value else "no"
    return name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)
