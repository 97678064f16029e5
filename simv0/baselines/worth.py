"""What one model has over another on the same windows, with an interval: does the LLM earn its keep?

The measure is the average precision of "high": it reads the whole order of P(high), so it is far less noisy than F1 or
recall at argmax on some hundred windows, and no threshold, class weight or calibration moves it. Differences are
paired: both models are resampled together, so that what is hard for both cancels.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from simv0.alarm.roc import average_precision

RESAMPLES = 500
STRETCHES = 30
"""Stretches of the windows that are resampled where recordings are not known: neighbouring windows are alike."""
MEASURE = 'average precision of "high"'


@dataclass(frozen=True)
class Worth:
    """How much higher the average precision of "high" is than another model's, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"

    @property
    def sign(self) -> int:
        """1 or -1 where the interval says which is better, else 0."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """This checkpoint against others on the same windows."""

    over: Mapping[str, Worth]
    """Simple model -> what the checkpoint has over it."""
    best: str | None
    """The simple model of the highest average precision on these windows: chosen on them, which favours it."""
    pretraining: Worth | None = None
    """What the checkpoint has over the same recipe around a randomised copy of its LLM."""

    @property
    def sentences(self) -> list[str]:
        """In plain words."""
        said = []
        if self.best is not None:
            worth = self.over[self.best]
            verdict = {1: "The LLM earns its keep", 0: "The LLM does not earn its keep here", -1: "The LLM loses"}
            said.append(f"{verdict[worth.sign]}: {worth} {MEASURE} over the best simple model ({self.best}).")
        if self.pretraining is not None:
            verdict = {1: "Pretraining pays", 0: "Pretraining does not show here", -1: "Pretraining costs"}
            worth = self.pretraining
            said.append(f"{verdict[worth.sign]}: {worth} {MEASURE} over a randomised LLM; one seed of each.")
        return said

    def plain(self) -> dict[str, Any]:
        """For metrics.json."""
        return {**asdict(self), "measure": MEASURE, "sentences": self.sentences}


def compare(
    p_high: Float[np.ndarray, " N"],
    simple: Mapping[str, Float[np.ndarray, " N"]],
    randomised: Float[np.ndarray, " N"] | None,
    is_high: Bool[np.ndarray, " N"],
    unit: Int[np.ndarray, " N"] | None,
) -> Comparison | None:
    """Compare a checkpoint's P(high) with those of simple models, and of its copy around a randomised LLM.

    Args:
        p_high: of the checkpoint.
        simple: name -> of a simple model.
        randomised: of the copy, where there is one.
        is_high: the truth.
        unit: the recording of each window, resampled as a whole; None resamples `stretches` of the windows.

    Returns:
        None without others, and where no window is "high", or all are.
    """
    if is_high.all() or not is_high.any() or not (simple or randomised is not None):
        return None
    over = {name: paired(p_high, theirs, is_high, unit) for name, theirs in simple.items()}
    best = min(over, key=lambda name: over[name].value) if over else None
    pretraining = None if randomised is None else paired(p_high, randomised, is_high, unit)
    return Comparison(over, best, pretraining)


def paired(
    ours: Float[np.ndarray, " N"],
    theirs: Float[np.ndarray, " N"],
    is_high: Bool[np.ndarray, " N"],
    unit: Int[np.ndarray, " N"] | None,
) -> Worth:
    """Difference of the average precisions of two P(high) on the same windows; percentile bootstrap over units."""
    units = stretches(len(is_high)) if unit is None else unit
    ordered = [(p[order], is_high[order], units[order]) for p in (ours, theirs) for order in [np.argsort(-p)]]
    n, rng = int(units.max()) + 1, np.random.default_rng(0)

    def difference(drawn: Int[np.ndarray, " U"]) -> float:
        ours, theirs = (average_precision(p, high, drawn[unit]) for p, high, unit in ordered)
        return float("nan") if ours is None or theirs is None else ours - theirs

    resampled = [difference(np.bincount(rng.integers(0, n, n), minlength=n)) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Worth(difference(np.ones(n, int)), float(low), float(high))


def stretches(n: int) -> Int[np.ndarray, " n"]:
    """The stretch of each of n windows."""
    return np.arange(n) * min(STRETCHES, n) // n
