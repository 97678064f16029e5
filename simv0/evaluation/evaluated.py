"""What an evaluation found, and how far it can be trusted: intervals, and the cautions before the figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from rich.table import Table
from rich.text import Text
from torch import Tensor

from simv0.alarm.calibration import softmax
from simv0.alarm.rates import rate_of, recordings
from simv0.alarm.stored import Alarm, Rate
from simv0.baselines.worth import Comparison
from simv0.config.schema import EvaluationConfig
from simv0.data.labels import Labels
from simv0.evaluation.by_recording import by_recording
from simv0.evaluation.events import EventTable, Replayed, replay_split
from simv0.evaluation.tables import tables_of
from simv0.evaluation.unlike import unlike_caution
from simv0.labels import HEADS, HIGH
from simv0.model.metrics import Metrics, from_confusions
from simv0.runtime.speaking import Printed, from_here

RESAMPLES = 300
FEW_HIGH = 20
"""Fewer "high" windows cannot tell a recall of 0.95 from 1."""
MODEL = "this checkpoint"
CONTROL = "its LLM randomised"


@dataclass(frozen=True, repr=False)
class Evaluated(Printed):
    """Everything the report tells, and where it was written."""

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
    control: Metrics | None = None
    """Of the same recipe around a randomised copy of the LLM, where it was trained."""
    comparison: Comparison | None = None
    """What the checkpoint has over the others; None without others, and without "high" windows."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Run, data, networks, versions, date and command, for display."""
    leakage: Sequence[str] = ()
    """What these windows share with those that the checkpoint was trained on."""
    notes: Sequence[str] = ()
    """What else bears on the figures, but is no fault."""
    best_metric: str = "composite"
    """What best.pt follows."""
    raw_telemetry: bool = True
    """Whether the telemetry is in SI units; else the dataset has normalised it."""
    unlike: Bool[np.ndarray, " N"] | None = None
    """Which windows are unlike the training data; None: nothing is known of it."""
    frame_spacing: float | None = None
    """Seconds between the frames of a training window, where known."""
    folder: Path | None = None
    """Where `metrics.json`, `predictions.jsonl` and `report.html` are."""
    predictions: Sequence[Mapping[str, Any]] = ()
    """The lines of `predictions.jsonl`, one a window."""

    @property
    def report(self) -> Path | None:
        """`report.html`; None where the extra `report` is not installed."""
        page = None if self.folder is None else self.folder / "report.html"
        return page if page is not None and page.exists() else None

    def parts(self) -> Iterator[Table | Text]:
        """What it prints: what `simv0 evaluate` does."""
        yield from tables_of(self)
        if self.folder is not None:
            yield Text(f"written to {from_here(self.folder)}")

    @property
    def compared(self) -> dict[str, Metrics]:
        """All models of the comparison, this checkpoint first; empty where there is none."""
        simple = {} if isinstance(self.baselines, str) else self.baselines
        others = {**({CONTROL: self.control} if self.control else {}), **simple}
        return {MODEL: self.metrics, **others} if others else {}

    @property
    def split(self) -> str:
        """What was evaluated, as a word: "val", or the name of a file."""
        return str(self.about["data"]).rstrip("/").rpartition("/")[2]

    @cached_property
    def is_high(self) -> Bool[np.ndarray, " N"]:
        """Which windows are of risk "high"."""
        high: np.ndarray = self.labels.ids["risk"] == HIGH
        return high

    @cached_property
    def unit(self) -> Int[np.ndarray, " N"] | None:
        """The recording of each window, which intervals are resampled over; None: windows."""
        return recordings(self.labels.group, self.is_high)

    @cached_property
    def p_high(self) -> Float[np.ndarray, " N"]:
        """P(high), calibrated where the checkpoint has an alarm."""
        return softmax(self.logits["risk"], self.alarm.temperatures["risk"] if self.alarm else 1.0)[:, HIGH]

    @property
    def threshold(self) -> float | None:
        """The one in force."""
        return None if self.alarm is None else self.alarm.threshold

    @cached_property
    def raised(self) -> Bool[np.ndarray, " N"]:
        """Which windows raise the alarm by themselves; without a threshold, which are called high."""
        if self.threshold is not None:
            return self.p_high >= self.threshold
        called: np.ndarray = self.logits["risk"].argmax(1) == HIGH
        return called

    @cached_property
    def replayed(self) -> Replayed | str:
        """The recordings as a robot would have seen them, or why they cannot be replayed."""
        usual = self.alarm or EvaluationConfig()
        return replay_split(self.labels, self.p_high, usual.confirm, usual.release, self.frame_spacing, self.unlike)

    @cached_property
    def events(self) -> EventTable | str:
        """What the alarm in force does on them, or why that is not known."""
        if isinstance(self.replayed, str):
            return f"no event table: {self.replayed}"
        if self.threshold is None:
            reason = "only best.pt has an alarm" if self.alarm is None else self.alarm.reason
            return f"no event table: there is no threshold: {reason}"
        return EventTable(self.replayed, self.threshold)

    @cached_property
    def recordings(self) -> list[dict[str, Any]]:
        """The rates of each recording, the worst first; none without `group`."""
        events = None if isinstance(self.events, str) else self.events
        return by_recording(self.labels.group, self.is_high, self.raised, events)

    @cached_property
    def spread(self) -> dict[str, tuple[float, float]]:
        """95 % intervals, by metric."""
        rates = {key: (rate.low, rate.high) for key, rate in self._rates()}
        return {**intervals(self.logits, self.labels, self.unit), **rates}

    @cached_property
    def classes(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Head -> class -> precision, recall, F1 (None where nothing was counted) and support."""
        return {head: dict(_classes(self, head)) for head in HEADS}

    @cached_property
    def cautions(self) -> list[str]:
        """What to know before believing the figures, one line each, the worst first."""
        return [
            *self.leakage,
            *unlike_caution(self.metrics),
            *_too_few(self),
            *_absent(self),
            *_perfect(self),
            *_as_good(self),
        ]

    def _rates(self) -> Iterator[tuple[str, Rate]]:
        called = self.logits["risk"].argmax(1) == HIGH
        if self.is_high.any():
            yield "risk_high_recall", rate_of(called, self.is_high, self.unit)
        if self.threshold is not None:
            if self.is_high.any():
                yield "alarm_recall", rate_of(self.raised, self.is_high, self.unit)
            if not self.is_high.all():
                yield "alarm_false_alarm_rate", rate_of(self.raised, ~self.is_high, self.unit)


def _classes(evaluated: Evaluated, head: str) -> Iterator[tuple[str, dict[str, float | None]]]:
    names = HEADS[head]
    counts = confusion(evaluated.logits[head].argmax(1), evaluated.labels.ids[head], len(names)).numpy()
    for i, name in enumerate(names):
        right, support, said = int(counts[i, i]), int(counts[i].sum()), int(counts[:, i].sum())
        rates = {"precision": (right, said), "recall": (right, support), "f1": (2 * right, said + support)}
        shares = {key: part / whole if whole else None for key, (part, whole) in rates.items()}
        yield name, {**shares, "support": support}


def _too_few(evaluated: Evaluated) -> Iterator[str]:
    n, N = int(evaluated.is_high.sum()), len(evaluated.labels)
    if n == 0:
        yield f'NO HIGH: none of {N} windows is of risk "high": the recall of danger cannot be measured here.'
    elif n < FEW_HIGH:
        called = evaluated.logits["risk"].argmax(1) == HIGH
        rate = rate_of(called, evaluated.is_high, evaluated.unit)
        yield (
            f'FEW WINDOWS: {n} of {N} are of risk "high"; their recall, {rate.value:.3f}, may be anything from '
            f"{rate.low:.3f} to {rate.high:.3f} (95 %). {FEW_HIGH} or more are needed for a useful estimate."
        )


def _absent(evaluated: Evaluated) -> Iterator[str]:
    missing = [
        f"{head} {', '.join(absent)}"
        for head, names in HEADS.items()
        if (absent := [name for i, name in enumerate(names) if not (evaluated.labels.ids[head] == i).any()])
    ]
    if missing:
        yield f"ABSENT: no window has {'; '.join(missing)}: their accuracy cannot be measured here."


def _perfect(evaluated: Evaluated) -> Iterator[str]:
    if evaluated.metrics.get("composite") == 1:
        yield (
            "PERFECT: every risk and action is right. This is more often leakage, or few and similar windows, than "
            "a good model: try recordings from another day."
        )


def _as_good(evaluated: Evaluated) -> list[str]:
    """Simple models that are within the checkpoint's interval or above: overall, else in the F1 of single heads."""
    whole = "macro_f1" if evaluated.metrics.get("composite") is None else "composite"
    lines = {key: _matched(evaluated, key) for key in (whole, *(f"{head}_macro_f1" for head in HEADS))}
    told = [line for line in lines.values() if line is not None]
    return told[:1] if lines[whole] is not None else told


def _matched(evaluated: Evaluated, key: str) -> str | None:
    """By which figures the best simple model equals or beats the checkpoint in one metric; None where it does not."""
    baselines = {} if isinstance(evaluated.baselines, str) else evaluated.baselines
    scores = {name: score for name, metrics in baselines.items() if (score := metrics.get(key)) is not None}
    ours, interval = evaluated.metrics.get(key), evaluated.spread.get(key)
    if ours is None or interval is None or not scores or max(scores.values()) < interval[0]:
        return None
    name = max(scores, key=lambda name: scores[name])
    what = "A LINEAR MODEL" if name.startswith("linear") else "A SIMPLE MODEL"
    how = "better" if scores[name] > ours else "as good"
    return (
        f"{what} is {how} in {key}: {name!r} has {scores[name]:.3f}, {MODEL} {ours:.3f} "
        f"(95 % interval {interval[0]:.3f} to {interval[1]:.3f})."
    )


def intervals(
    logits: Mapping[str, Float[np.ndarray, "N _"]], labels: Labels, unit: Int[np.ndarray, " N"] | None
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap of the metrics that are read off the confusions of whole resampled splits.

    A resample cannot show a mistake that was never made: where all are right the lower end is the exact binomial one of
    as many independent units (as `alarm.rate_of`), for the composite of as many units with "high".

    Args:
        logits: head -> logits of every window.
        labels: of the windows.
        unit: the recording of each window, resampled as a whole; None resamples windows.
    """
    unit = np.arange(len(labels)) if unit is None else unit
    n, rng = int(unit.max()) + 1, np.random.default_rng(0)
    predicted = {head: logits[head].argmax(1) for head in HEADS}
    drawn: dict[str, list[float]] = {}
    for _ in range(RESAMPLES):
        weight = np.bincount(rng.integers(0, n, n), minlength=n)[unit]
        counts = {
            head: confusion(predicted[head], labels.ids[head], len(names), weight) for head, names in HEADS.items()
        }
        for key, value in from_confusions(counts).items():
            if value is not None:
                drawn.setdefault(key, []).append(value)
    units_of_high = len(np.unique(unit[labels.ids["risk"] == HIGH]))
    spread = {}
    for key, values in drawn.items():
        low, high = (float(end) for end in np.percentile(values, [2.5, 97.5]))
        units = units_of_high if key in ("composite", "risk_high_recall") else n
        spread[key] = (0.025 ** (1 / units) if min(values) == 1 else low, high)
    return spread


def confusion(
    predicted: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"], n: int, weight: Int[np.ndarray, " N"] | None = None
) -> Int[Tensor, "n n"]:
    """Counts [label, prediction] of n classes, each window `weight` times."""
    counts = np.bincount(labels * n + predicted, weight, n * n).astype(np.int64)
    return torch.from_numpy(counts.reshape(n, n))
