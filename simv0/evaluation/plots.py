"""The report's figures, as SVG texts that take the page's colours: whatever is `INK` here follows light and dark.

Each is one panel, small enough to be read on a phone; the page lays them side by side where it has room.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from simv0.alarm.calibration import BINS
from simv0.alarm.stored import OperatingPoint
from simv0.errors import ConfigError
from simv0.labels import HEADS, TELEMETRY, UNITS

INK = "#010203"
COLORS = ("#3b82f6", "#f0803c", "#22a06b", "#b063d6")
WIDE = (3.7, 2.9)
"""Inches of a figure as wide as a phone: its text is 10 to 11 px there."""
NARROW = (1.95, 1.5)
"""Inches of a figure of half that width."""


def import_matplotlib() -> Any:
    """Matplotlib without pyplot, whose figures and backend are the caller's: a notebook's.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError:
        raise ConfigError("evaluation/report.html needs matplotlib: pip install 'simv0[report]'") from None
    return matplotlib


def precision_recall(
    p_high: Float[np.ndarray, " N"], is_high: Bool[np.ndarray, " N"], chosen: OperatingPoint | None
) -> Any:
    """Precision against recall of "high" over all thresholds, and the chosen point."""
    order = np.argsort(-p_high, kind="stable")
    found = np.cumsum(is_high[order])
    last_of_tie = np.append(np.diff(p_high[order]) != 0, True)
    recall, precision = (found / is_high.sum())[last_of_tie], (found / np.arange(1, len(found) + 1))[last_of_tie]
    figure, axes = figure_and_axes(WIDE)
    axes.plot(recall, precision, color=COLORS[0], drawstyle="steps-post")
    axes.axhline(is_high.mean(), color=INK, alpha=0.4, linestyle=":", label="always raised")
    if chosen is not None:
        raised = p_high >= chosen.threshold
        point = (raised & is_high).sum() / is_high.sum(), (raised & is_high).sum() / max(1, raised.sum())
        axes.plot(*point, "o", color="#e23b3b", label=f"chosen, P(high) ≥ {chosen.threshold:.3f}")
    axes.set(xlabel="recall of high", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    legend(axes)
    return figure


def reliability(
    before: Float[np.ndarray, "N C"], after: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]
) -> Any:
    """Accuracy against confidence of the likeliest class, in bins, before and after temperature scaling."""
    figure, axes = figure_and_axes(WIDE)
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linestyle=":")
    for probs, color, name in ((before, COLORS[1], "before scaling"), (after, COLORS[0], "after")):
        confidence, right = probs.max(1), probs.argmax(1) == labels
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        n = np.bincount(bins, minlength=BINS)
        shown = n > 0
        x, y = (np.bincount(bins, values, BINS)[shown] / n[shown] for values in (confidence, right))
        axes.plot(x, y, color=color, alpha=0.8)
        axes.scatter(x, y, s=10 + 120 * n[shown] / n.sum(), color=color, label=name)
    axes.set(xlabel="confidence in the risk", ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.02))
    legend(axes, loc="upper left")
    return figure


def confusions(head: str, counts: Int[np.ndarray, "C C"]) -> Any:
    """How many windows of each class were called what."""
    names = HEADS[head]
    figure, axes = figure_and_axes(WIDE)
    axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (label, called), count in np.ndenumerate(counts):
        axes.text(called, label, f"{count:,}", ha="center", va="center", color=INK, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=30)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=f"{head}, called", ylabel=f"{head}, labelled")
    return figure


def training_curves(train: Sequence[dict[str, Any]], val: Sequence[dict[str, Any]], best: int) -> list[str]:
    """Loss of both splits, and the val metrics that best.pt follows, over the epochs; a dotted line at the best."""
    loss, loss_axes = figure_and_axes(WIDE)
    for rows, color, name in ((train, COLORS[1], "train"), (val, COLORS[0], "val")):
        loss_axes.plot([row["epoch"] for row in rows], _values(rows, "loss"), color=color, marker=".", label=name)
    loss_axes.set(xlabel="epoch", ylabel="loss")
    rates, rate_axes = figure_and_axes(WIDE)
    for key, color in zip(("composite", "risk_high_recall", "risk_macro_f1", "action_macro_f1"), COLORS, strict=True):
        rate_axes.plot([row["epoch"] for row in val], _values(val, key), color=color, marker=".", label=key)
    rate_axes.set(xlabel="epoch", ylabel="val", ylim=(0, 1.02))
    for axes in (loss_axes, rate_axes):
        axes.axvline(best, color=INK, alpha=0.4, linestyle=":")
        legend(axes)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return [svg(loss), svg(rates)]


def label_histogram(head: str, ids: Int[np.ndarray, " N"]) -> str:
    """How many windows each class of one head has."""
    names = HEADS[head]
    figure, axes = figure_and_axes((WIDE[0], 0.75 + 0.24 * len(names)))
    counts = np.bincount(ids, minlength=len(names))
    bars = axes.barh(range(len(names)), counts, color=COLORS[0])
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, color=INK, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="windows")
    axes.set_title(head, color=INK, fontsize=10)
    _few_ticks(axes)
    return svg(figure)


def telemetry_histogram(channel: int, values: Float[np.ndarray, " N"], units: bool = True) -> str:
    """The distribution of one channel, with its unit where it has one."""
    return svg(telemetry_figure(channel, values, units))


def telemetry_figure(channel: int, values: Float[np.ndarray, " N"], units: bool = True) -> Any:
    """The figure of `telemetry_histogram`."""
    figure, axes = figure_and_axes(NARROW)
    axes.hist(values, bins=30, color=COLORS[0])
    axes.set(xlabel=f"{TELEMETRY[channel]}, {UNITS[channel]}" if units else f"{TELEMETRY[channel]}, normalised")
    axes.set(ylabel="windows")
    _few_ticks(axes)
    return figure


def _few_ticks(axes: Any) -> None:
    """Few enough that no two labels of the abscissa meet, whatever the numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.ticklabel_format(axis="x", useOffset=True, scilimits=(-2, 4))
    axes.xaxis.get_offset_text().set(color=INK, fontsize=7)


def _values(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [float("nan") if row.get(key) is None else row[key] for row in rows]


def legend(axes: Any, loc: str = "best") -> None:
    """The names of what is drawn."""
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc=loc)


def figure_and_axes(size: tuple[float, float]) -> tuple[Any, Any]:
    """An empty panel of so many inches."""
    figure = import_matplotlib().figure.Figure(figsize=size)
    axes = figure.subplots()
    axes.tick_params(colors=INK, labelsize=8)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set(color=INK, fontsize=8.5)
    for side, spine in axes.spines.items():
        spine.set(color=INK, visible=side in ("left", "bottom"), alpha=0.5)
    return figure, axes


def png(figure: Any) -> bytes:
    """The figure as a picture by itself, on white."""
    figure.tight_layout(pad=0.4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Any) -> str:
    """The figure as an inline SVG of flexible width, its ink the page's text colour."""
    figure.tight_layout(pad=0.4)
    buffer = io.StringIO()
    # Text stays text: it is small, can be searched, and takes the page's font and colour.
    with import_matplotlib().rc_context({"svg.fonttype": "none", "svg.hashsalt": "simv0"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
