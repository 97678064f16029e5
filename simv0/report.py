"""`evaluation/report.html`: what a checkpoint is worth, and what it misses, on one page that opens from disk.

Self-contained: styles, SVG figures and pictures stand in the file; it asks no network for anything and runs no script.
"""

import base64
import html
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from simv0 import plots
from simv0.alarm import Alarm, Rate, choose_alarm, rate_of, recordings, softmax
from simv0.config import EvaluationConfig
from simv0.errors import SimError
from simv0.files import write_atomically
from simv0.labels import HEADS, HIGH
from simv0.metrics import Metrics, macro_f1
from simv0.split_labels import Labels

RESAMPLES = 300
STRIPS = 8
"""Missed highs, and false alarms, shown at most."""
THUMB = 150
"""Width of a frame in a strip, pixels."""
SHOWN = {
    "risk_high_recall": "high, called high (argmax)",
    "alarm_recall": "high, raised the alarm",
    "alarm_false_alarm_rate": "others, raised the alarm",
    "risk_macro_f1": "risk, macro F1",
    "reason_macro_f1": "reason, macro F1",
    "action_macro_f1": "action, macro F1",
    "action_accuracy": "action, accuracy",
}
STYLE = """
:root { color-scheme: light dark; --bg: #fbfbfd; --ink: #1b1e25; --dim: #626a78; --card: #fff; --line: #e1e4ea;
  --cell: 59 130 246; --bad: #c92f2f; }
@media (prefers-color-scheme: dark) { :root { --bg: #121419; --ink: #e8ebf1; --dim: #9aa3b2; --card: #1a1d24;
  --line: #2d323d; --bad: #ff7a7a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 1rem; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .3rem 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
p { margin: .4rem 0; max-width: 75ch; } .dim { color: var(--dim); } .bad { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: .8rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; min-width: 0; }
.wide { overflow-x: auto; } svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, sans-serif !important; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--dim); font-weight: 500; }
.confusion { font-size: .76rem; } .confusion th { white-space: normal; }
.confusion :is(th, td) { padding: .2rem .25rem; }
@media (min-width: 1000px) { .matrices { grid-template-columns: 3.8fr 4.8fr 5.6fr; } }
@media (max-width: 500px) { table { font-size: .76rem; } .confusion { font-size: .66rem; } body { padding: .7rem; }
  th, td { padding: .2rem .25rem; } .confusion :is(th, td) { padding: .2rem .15rem; } .card { padding: .5rem; }
  th, td:first-child { white-space: normal; } th { font-size: .7rem; } }
.strip { margin: .8rem 0; } .strip div { display: flex; overflow-x: auto; gap: 2px; }
.strip img { flex: 0 0 auto; width: 118px; border-radius: 3px; }
"""


@dataclass(frozen=True)
class Evaluated:
    """Everything the page tells."""

    about: Mapping[str, Any]
    metrics: Metrics
    logits: Mapping[str, Float[np.ndarray, "N _"]]
    labels: Labels
    alarm: Alarm | None
    epoch: int
    baselines: Mapping[str, Metrics] | str
    """Name -> metrics, or why there are none."""
    history: tuple[list[dict[str, Any]], list[dict[str, Any]]]
    """Lines of train_metrics.jsonl and val_metrics.jsonl; empty outside a run."""
    frames: Callable[[int], Tensor] | str
    """Window -> its frames [F,3,H,W], or why they cannot be shown."""


def write_report(path: Path, evaluated: Evaluated) -> None:
    """Write the page.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    write_atomically(path, render(evaluated).encode())


def render(evaluated: Evaluated) -> str:
    """The page."""
    plots.import_pyplot()
    # Without a stored alarm (last.pt) the probabilities are shown as they come.
    alarm = evaluated.alarm or choose_alarm(
        evaluated.logits, evaluated.labels.ids, evaluated.labels.sample_id, evaluated.labels.group, EvaluationConfig()
    )
    after = {head: softmax(evaluated.logits[head], alarm.temperatures[head]) for head in HEADS}
    is_high = evaluated.labels.ids["risk"] == HIGH
    p_high = after["risk"][:, HIGH]
    title = f"{evaluated.about['checkpoint']} on {Path(str(evaluated.about['data'])).name}"
    train, val = evaluated.history
    sections = [
        ("How good", _card(_metrics_table(evaluated, is_high)) + f"<p>{_text(str(alarm))}.</p>"),
        ("Against simple models", _card(_baselines_table(evaluated))),
        ("Where it errs: rows are labels, columns predictions", _confusions(evaluated)),
        (
            "The alarm and the probabilities",
            '<div class="cards">'
            + _card(
                plots.precision_recall(p_high, is_high, alarm.chosen) if is_high.any() else "<p>No window is high.</p>"
            )
            + _card(plots.reliability(softmax(evaluated.logits["risk"]), after["risk"], evaluated.labels.ids["risk"]))
            + "</div>"
            + "<p>Expected calibration error before and after scaling: "
            + ", ".join(f"{h} {alarm.ece_before[h]:.3f} → {alarm.ece_after[h]:.3f}" for h in HEADS)
            + ".</p>",
        ),
        (
            "High windows that it missed" if alarm.threshold is None else "High windows that raised no alarm",
            _strips(evaluated, p_high, alarm.threshold, missed=True),
        ),
        ("Worst false alarms", _strips(evaluated, p_high, alarm.threshold, missed=False)),
    ]
    if val:
        sections.append(("Training", _card(plots.training_curves(train, val, evaluated.epoch))))
    histograms = plots.label_histograms(evaluated.labels.ids), plots.telemetry_histograms(evaluated.labels.telemetry)
    sections.append(("The data", "".join(map(_card, histograms))))
    body = "".join(f"<h2>{_text(head)}</h2>{content}" for head, content in sections)
    facts = ", ".join(f"{key} {value}" for key, value in evaluated.about.items() if key not in ("checkpoint", "data"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{_text(title)}</h1><p class="dim">{_text(facts)}</p>{body}</body></html>\n'
    )


def intervals(
    logits: Mapping[str, Float[np.ndarray, "N _"]], labels: Labels, unit: Int[np.ndarray, " N"] | None
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap of what is no plain rate: macro F1 of each head and the accuracy of action."""
    unit = np.arange(len(labels)) if unit is None else unit
    n, rng = int(unit.max()) + 1, np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(RESAMPLES):
        weight = np.bincount(rng.integers(0, n, n), minlength=n)[unit]
        for head, names in HEADS.items():
            counts = _confusion(logits[head].argmax(1), labels.ids[head], len(names), weight)
            drawn.setdefault(f"{head}_macro_f1", []).append(macro_f1(counts) or 0.0)
            drawn.setdefault(f"{head}_accuracy", []).append(float(counts.trace()) / max(1, int(counts.sum())))
    return {key: tuple(np.percentile(values, [2.5, 97.5]).tolist()) for key, values in drawn.items()}


def _confusion(
    predicted: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"], n: int, weight: Int[np.ndarray, " N"]
) -> Int[Tensor, "n n"]:
    counts = np.bincount(labels * n + predicted, weight, n * n).astype(np.int64)
    return torch.from_numpy(counts.reshape(n, n))


def _metrics_table(evaluated: Evaluated, is_high: Any) -> str:
    unit = recordings(evaluated.labels.sample_id, evaluated.labels.group, is_high)
    spread = intervals(evaluated.logits, evaluated.labels, unit)
    rates = dict(_rates(evaluated, is_high, unit))
    rows = []
    for key, meaning in SHOWN.items():
        low, high = (rates[key].low, rates[key].high) if key in rates else spread.get(key, (None, None))
        value = evaluated.metrics.get(key)
        interval = "" if value is None or low is None else f"{low:.3f} to {high:.3f}"
        rows.append([meaning, _number(value), interval])
    over = "recordings" if unit is not None else "windows; neighbours are alike, so they are too narrow"
    return _table(["", "value", "95 % interval"], rows) + f'<p class="dim">Intervals by bootstrap over {over}.</p>'


def _rates(evaluated: Evaluated, is_high: Any, unit: Any) -> Iterator[tuple[str, Rate]]:
    called = evaluated.logits["risk"].argmax(1) == HIGH
    if is_high.any():
        yield "risk_high_recall", rate_of(called, is_high, unit)
    if evaluated.alarm is not None and evaluated.alarm.threshold is not None:
        p_high = softmax(evaluated.logits["risk"], evaluated.alarm.temperatures["risk"])[:, HIGH]
        raised = p_high >= evaluated.alarm.threshold
        if is_high.any():
            yield "alarm_recall", rate_of(raised, is_high, unit)
        if not is_high.all():
            yield "alarm_false_alarm_rate", rate_of(raised, ~is_high, unit)


def _baselines_table(evaluated: Evaluated) -> str:
    if isinstance(evaluated.baselines, str):
        return f'<p class="dim">Not compared: {_text(evaluated.baselines)}</p>'
    columns = ("risk_high_recall", "risk_high_false_alarm_rate", "risk_macro_f1", "action_macro_f1", "composite")
    rows = [
        [name, *(_number(metrics.get(column)) for column in columns)]
        for name, metrics in [("this checkpoint", evaluated.metrics), *evaluated.baselines.items()]
    ]
    return _table(["", "high recall", "false alarms", "risk F1", "action F1", "composite"], rows)


def _confusions(evaluated: Evaluated) -> str:
    cards = []
    for head, names in HEADS.items():
        ones = np.ones(len(evaluated.labels), np.int64)
        counts = _confusion(evaluated.logits[head].argmax(1), evaluated.labels.ids[head], len(names), ones).numpy()
        rows = "".join(
            f"<tr><td>{name}</td>"
            + "".join(
                f'<td style="background:rgb(var(--cell) / {0.75 * count / max(1, line.sum()):.2f})">{count}</td>'
                for count in line
            )
            + "</tr>"
            for name, line in zip(names, counts, strict=True)
        )
        heads = "".join(f"<th>{name.replace('_', '_<wbr>')}</th>" for name in names)
        cards.append(_card(f"<table class=confusion><tr><th>{head}</th>{heads}</tr>{rows}</table>"))
    return f'<div class="cards matrices">{"".join(cards)}</div>'


def _strips(evaluated: Evaluated, p_high: Float[np.ndarray, " N"], threshold: float | None, *, missed: bool) -> str:
    """The worst windows of one kind, each as a strip of its frames."""
    is_high = evaluated.labels.ids["risk"] == HIGH
    raised = p_high >= threshold if threshold is not None else evaluated.logits["risk"].argmax(1) == HIGH
    wrong = np.flatnonzero(is_high & ~raised if missed else ~is_high & raised)
    if not len(wrong):
        return '<p class="dim">None.</p>'
    worst = wrong[np.argsort(p_high[wrong] if missed else -p_high[wrong], kind="stable")][:STRIPS]
    said = {head: evaluated.logits[head].argmax(1) for head in HEADS}
    parts = [f'<p class="dim">{len(wrong)} windows; the {len(worst)} furthest from right:</p>']
    if isinstance(evaluated.frames, str):
        parts.append(f'<p class="dim">Their frames are not shown: {_text(evaluated.frames)}</p>')
    for i in worst:
        words = "; ".join(
            f"{head} {names[evaluated.labels.ids[head][i]]}, said {names[said[head][i]]}"
            for head, names in HEADS.items()
        )
        caption = f"{evaluated.labels.sample_id[i]}: P(high) {p_high[i]:.3f}; {words}"
        images = "" if isinstance(evaluated.frames, str) else _pictures(evaluated.frames, int(i))
        parts.append(f'<div class="strip">{_text(caption)}<div>{images}</div></div>')
    return "".join(parts)


def _pictures(frames: Callable[[int], Tensor], window: int) -> str:
    try:
        tensor = frames(window)
    except SimError as error:
        return f'<span class="dim">{_text(str(error))}</span>'
    tags = []
    for i, frame in enumerate(tensor):
        pixels = frame if frame.dtype == torch.uint8 else (frame * 255).round().to(torch.uint8)
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        image.thumbnail((THUMB, THUMB))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        data = base64.b64encode(buffer.getvalue()).decode()
        tags.append(f'<img alt="frame {i + 1}" src="data:image/jpeg;base64,{data}">')
    return "".join(tags)


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _card(content: str) -> str:
    return f'<div class="card wide">{content}</div>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _text(text: str) -> str:
    return html.escape(text)
