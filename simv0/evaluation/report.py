"""`evaluation/report.html`: what a checkpoint is worth, and what it misses, on one page that opens from disk.

Self-contained: styles, SVG figures and pictures are in the file; it needs no network and runs no script.
`report.html.j2` is the page; here is what it shows.
"""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from simv0.alarm.calibration import softmax
from simv0.alarm.stored import Alarm
from simv0.alarm.threshold import choose_alarm
from simv0.config.schema import EvaluationConfig
from simv0.disk.files import write_atomically
from simv0.errors import ConfigError
from simv0.evaluation import plots
from simv0.evaluation.evaluated import CONTROL, Evaluated, confusion
from simv0.evaluation.event_report import event_section
from simv0.evaluation.strips import strips
from simv0.labels import HEADS, HIGH, TELEMETRY
from simv0.model.metrics import chosen_by

NO_ALARM = "alarm: this checkpoint carries none, only best.pt does; figures use a threshold chosen on these windows"
SHOWN = {
    "risk_high_recall": ("high, called high (argmax)", "high"),
    "alarm_recall": ("high, raised the alarm", "high"),
    "alarm_false_alarm_rate": ("others, raised the alarm", "others"),
    "risk_macro_f1": ("risk, macro F1", "all"),
    "reason_macro_f1": ("reason, macro F1", "all"),
    "action_macro_f1": ("action, macro F1", "all"),
    "action_accuracy": ("action, accuracy", "all"),
    "composite": ("composite", "all"),
    "unlike_share": ("unlike the training data", "all"),
}
"""Metric -> what it is, and which windows it is taken over."""
COMPARED = {
    "risk_macro_f1": "risk F1",
    "action_macro_f1": "action F1",
    "risk_high_recall": "high recall",
    "risk_high_recall_at_5": "at 5 % false alarms",
    "risk_high_auroc": "AUROC",
    "risk_high_average_precision": "AP",
}
UNCOUNTED = ("checkpoint", "data")


def write_report(path: Path, evaluated: Evaluated) -> None:
    """Write the page.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed.
    """
    write_atomically(path, render(evaluated).encode())


def render(evaluated: Evaluated) -> str:
    """The page.

    Raises:
        ConfigError: as `write_report`.
    """
    plots.import_matplotlib()
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise ConfigError("evaluation/report.html needs jinja2: pip install 'simv0[report]'") from None
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        files("simv0.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    alarm = _alarm(evaluated)
    return page.render(
        title=f"{evaluated.about['checkpoint']} on {evaluated.split}",
        number=_number,
        breakable=lambda name: Markup(name.replace("_", "_<wbr>")),  # of the vocabularies only
        **_about(evaluated),
        **_scores(evaluated),
        **_figures(evaluated, alarm, Markup),
        heads=[_head(evaluated, head) for head in HEADS],
        **event_section(evaluated, Markup),
        strips=strips(evaluated),
    )


def pictures(evaluated: Evaluated) -> dict[str, bytes]:
    """Name -> PNG of what trackers are shown of the page: confusions, reliability, precision and recall.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    labels, alarm = evaluated.labels, _alarm(evaluated)
    figures = {
        f"confusions_{head}": plots.confusions(
            head, confusion(evaluated.logits[head].argmax(1), labels.ids[head], len(names)).numpy()
        )
        for head, names in HEADS.items()
    }
    after = softmax(evaluated.logits["risk"], alarm.temperatures["risk"])
    figures["reliability"] = plots.reliability(softmax(evaluated.logits["risk"]), after, labels.ids["risk"])
    if evaluated.is_high.any():
        figures["precision_recall"] = plots.precision_recall(after[:, HIGH], evaluated.is_high, alarm.chosen)
    return {name: plots.png(figure) for name, figure in figures.items()}


def _alarm(evaluated: Evaluated) -> Alarm:
    """The stored one; without it (last.pt) one chosen on these very windows, and the page says so."""
    labels = evaluated.labels
    return evaluated.alarm or choose_alarm(evaluated.logits, labels.ids, labels.group, EvaluationConfig(), t=labels.t)


def _about(evaluated: Evaluated) -> dict[str, Any]:
    """Where the figures come from, and how far they can be trusted."""
    _, val = evaluated.history
    best = next((row for row in val if row["epoch"] == evaluated.epoch), None)
    is_best = best is not None and evaluated.about["checkpoint"] == "best.pt"
    counted = {key: str(value) for key, value in evaluated.about.items() if key not in UNCOUNTED}
    return {
        "facts": evaluated.facts or counted,
        "cautions": evaluated.cautions,
        "notes": evaluated.notes,
        "leaked": bool(evaluated.leakage),
        "split": evaluated.split,
        "windows": f"{len(evaluated.labels):,}",
        "raw_telemetry": evaluated.raw_telemetry,
        "epoch": evaluated.epoch,
        "chosen_by": chosen_by(best, val, evaluated.best_metric) if best is not None and is_best else None,
    }


def _scores(evaluated: Evaluated) -> dict[str, Any]:
    """The metrics with their intervals, and those of simple models."""
    n, N = int(evaluated.is_high.sum()), len(evaluated.labels)
    sizes = {"high": f"{n:,} high", "others": f"{N - n:,} others", "all": f"{N:,}"}
    rows = [
        {
            "meaning": meaning,
            "value": (value := evaluated.metrics.get(key)),
            "of": sizes[over],
            "interval": None if value is None else evaluated.spread.get(key),
        }
        for key, (meaning, over) in SHOWN.items()
    ]
    unit, baselines, comparison = evaluated.unit, evaluated.baselines, evaluated.comparison
    compared = evaluated.compared
    over = {**comparison.over, CONTROL: comparison.pretraining or ""} if comparison is not None else {}
    return {
        "metrics": rows,
        "over": "windows; neighbouring windows are similar, so they are too narrow"
        if unit is None
        else f"{int(unit.max()) + 1} recordings",
        "not_compared": baselines if isinstance(baselines, str) else None,
        "compared_by": list(COMPARED.values()),
        "compared": {name: [metrics.get(key) for key in COMPARED] for name, metrics in compared.items()},
        "over_it": {name: str(over.get(name, "")) for name in compared},
        "verdicts": comparison.sentences if comparison is not None else [],
    }


def _head(evaluated: Evaluated, head: str) -> dict[str, Any]:
    """One head's confusions and classes."""
    names = HEADS[head]
    counts = confusion(evaluated.logits[head].argmax(1), evaluated.labels.ids[head], len(names))
    return {"name": head, "names": names, "counts": counts.tolist(), "classes": evaluated.classes[head]}


def _figures(evaluated: Evaluated, alarm: Alarm, markup: Callable[[str], str]) -> dict[str, Any]:
    """The plots, and the lines beside them."""
    labels, (train, val) = evaluated.labels, evaluated.history
    after = softmax(evaluated.logits["risk"], alarm.temperatures["risk"])
    alarm_figures = [plots.svg(plots.reliability(softmax(evaluated.logits["risk"]), after, labels.ids["risk"]))]
    if evaluated.is_high.any():
        alarm_figures.insert(0, plots.svg(plots.precision_recall(after[:, HIGH], evaluated.is_high, alarm.chosen)))
    channels = range(len(TELEMETRY))
    figures = {
        "alarm_figures": alarm_figures,
        "curves": plots.training_curves(train, val, evaluated.epoch) if val else [],
        "label_figures": [plots.label_histogram(head, labels.ids[head]) for head in HEADS],
        "telemetry_figures": [
            plots.telemetry_histogram(i, labels.telemetry[:, i], evaluated.raw_telemetry) for i in channels
        ],
    }
    calibration = (f"{head} {alarm.ece_before[head]:.3f} → {alarm.ece_after[head]:.3f}" for head in HEADS)
    safe = {name: [markup(svg) for svg in some] for name, some in figures.items()}
    said = NO_ALARM if evaluated.alarm is None else str(alarm)
    return {**safe, "alarm": said, "calibration": ", ".join(calibration)}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
