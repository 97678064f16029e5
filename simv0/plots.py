"""The report's figures, as SVG texts that take the page's colours: whatever is `INK` here follows light and dark."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from simv0.alarm import BINS, OperatingPoint
from simv0.errors import ConfigError
from simv0.labels import HEADS, TELEMETRY

INK = "#010203"
COLORS = ("#3b82f6", "#f0803c", "#22a06b", "#b063d6")


def import_pyplot() -> Any:
    """matplotlib, without a screen.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("evaluation/report.html needs matplotlib: pip install 'simv0[report]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def precision_recall(
    p_high: Float[np.ndarray, " N"], is_high: Bool[np.ndarray, " N"], chosen: OperatingPoint | None
) -> str:
    """Precision against recall of "high" over all thresholds, and the chosen point."""
    order = np.argsort(-p_high, kind="stable")
    found = np.cumsum(is_high[order])
    last_of_tie = np.append(np.diff(p_high[order]) != 0, True)
    recall, precision = (found / is_high.sum())[last_of_tie], (found / np.arange(1, len(found) + 1))[last_of_tie]
    figure, axes = _figure(4.6, 3.4)
    axes.plot(recall, precision, color=COLORS[0], drawstyle="steps-post")
    axes.axhline(is_high.mean(), color=INK, alpha=0.4, linestyle=":", label="always raised")
    if chosen is not None:
        raised = p_high >= chosen.threshold
        point = (raised & is_high).sum() / is_high.sum(), (raised & is_high).sum() / max(1, raised.sum())
        axes.plot(*point, "o", color="#e23b3b", label=f"chosen, P(high) ≥ {chosen.threshold:.3f}")
    axes.set(xlabel="recall of high", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return _svg(figure)


def reliability(
    before: Float[np.ndarray, "N C"], after: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]
) -> str:
    """Accuracy against confidence of the likeliest class, in bins, before and after temperature scaling."""
    figure, axes = _figure(4.6, 3.4)
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linestyle=":")
    for probs, color, name in ((before, COLORS[1], "before scaling"), (after, COLORS[0], "after")):
        confidence, right = probs.max(1), probs.argmax(1) == labels
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        n = np.bincount(bins, minlength=BINS)
        shown = n > 0
        x, y = (np.bincount(bins, values, BINS)[shown] / n[shown] for values in (confidence, right))
        axes.plot(x, y, color=color, alpha=0.8)
        axes.scatter(x, y, s=10 + 120 * n[shown] / n.sum(), color=color, label=name)
    axes.set(xlabel="confidence", ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="upper left")
    return _svg(figure)


def training_curves(train: Sequence[dict[str, Any]], val: Sequence[dict[str, Any]], best: int) -> str:
    """Loss of both splits, and the val metrics that best.pt follows, over the epochs."""
    plt = import_pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.2))
    for rows, color, name in ((train, COLORS[1], "train"), (val, COLORS[0], "val")):
        left.plot([row["epoch"] for row in rows], _values(rows, "loss"), color=color, marker=".", label=name)
    left.set(xlabel="epoch", ylabel="loss")
    for key, color in zip(("composite", "risk_high_recall", "risk_macro_f1", "action_macro_f1"), COLORS, strict=True):
        right.plot([row["epoch"] for row in val], _values(val, key), color=color, marker=".", label=key)
    right.set(xlabel="epoch", ylabel="val", ylim=(0, 1.02))
    for axes in (left, right):
        axes.axvline(best, color=INK, alpha=0.4, linestyle=":")
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _dress(axes)
    return _svg(figure)


def label_histograms(ids: dict[str, Int[np.ndarray, " N"]]) -> str:
    """How often each class occurs."""
    plt = import_pyplot()
    figure, row = plt.subplots(1, 3, figsize=(9.2, 2.6))
    for axes, (head, names) in zip(row, HEADS.items(), strict=True):
        counts = np.bincount(ids[head], minlength=len(names))
        axes.barh(range(len(names)), counts, color=COLORS[0])
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_title(head, color=INK, fontsize=10)
        _dress(axes)
    return _svg(figure)


def telemetry_histograms(telemetry: Float[np.ndarray, "N 8"]) -> str:
    """The distribution of each channel."""
    plt = import_pyplot()
    figure, grid = plt.subplots(2, 4, figsize=(9.2, 3.6))
    for axes, values, name in zip(grid.flat, telemetry.T, TELEMETRY, strict=True):
        axes.hist(values, bins=30, color=COLORS[0])
        axes.set_title(name, color=INK, fontsize=10)
        axes.set_yticks([])
        _dress(axes)
    return _svg(figure)


def _values(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [float("nan") if row.get(key) is None else row[key] for row in rows]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure, axes = import_pyplot().subplots(figsize=(width, height))
    _dress(axes)
    return figure, axes


def _dress(axes: Any) -> None:
    axes.tick_params(colors=INK, labelsize=8)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set(color=INK, fontsize=9)
    for side, spine in axes.spines.items():
        spine.set(color=INK, visible=side in ("left", "bottom"), alpha=0.5)


def _svg(figure: Any) -> str:
    """The figure as an inline SVG of flexible width, its ink the page's text colour."""
    plt = import_pyplot()
    figure.tight_layout()
    buffer = io.StringIO()
    # Text stays text: it is small, can be searched, and takes the page's font and colour.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "simv0"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
