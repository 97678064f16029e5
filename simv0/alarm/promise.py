"""Which recall can be promised for new data, with a confidence: a test over independent units, sharp and small.

A unit is a recording, or a window where windows are independent. In each, so many things of risk "high" (`of`) can be
missed, and so many are (`missed`); the recall promised is the pooled one, 1 - E[missed] / E[of]. A lower threshold
never misses more, so thresholds are tried from the safest up until one fails (learn then test, Angelopoulos et al.
2021, fixed sequence): that one needs no correction for the number of thresholds.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

NODES = 200
"""Of the quadrature: the result agrees with the exact binomial to 1e-9."""
ROUNDING = 1e-7


def p_value(missed: Int[np.ndarray, " U"], of: Int[np.ndarray, " U"], recall: float) -> float:
    """How probable so few misses are at most, were the true pooled recall below `recall`.

    Gaffke's test (2005; Learned-Miller & Thomas 2020) of the mean of `missed - (1 - recall) * of`: one more unit is
    added, as large as the largest and missed as a whole, all units get random weights (exponential, as in a Bayesian
    bootstrap), and the p-value is the probability that the weighted miss rate is above 1 - recall. With units of one
    window it is the exact binomial; without a miss it is that of the all-in bet of Waudby-Smith & Ramdas (2023), which
    is valid for any sizes up to the largest seen. In between no proof is known, and no counterexample
    (benchmarks/alarm.py tries some).

    Computed as the tail of a sum of exponentials, by the inversion of its Laplace transform along the line through
    the saddle point.
    """
    rate, largest = 1 - recall, int(of.max())
    alike, count = np.unique([*(missed * (largest + 1) + of), largest * (largest + 2)], return_counts=True)
    lost, size = np.divmod(alike, largest + 1)
    c = (lost - rate * size) / largest
    low, high = 0.0, 1 / c.max()
    for _ in range(60):
        z = (low + high) / 2
        low, high = (z, high) if (count * c / (1 - c * z)).sum() < 1 / z else (low, z)
    scale = (1 / z**2 + (count * c**2 / (1 - c * z) ** 2).sum()) ** -0.5
    u = np.linspace(0, 12, NODES)
    line = z + 1j * scale * np.sinh(u)
    values = np.exp(-np.log(line) - (count[:, None] * np.log(1 - c[:, None] * line)).sum(0)).real * np.cosh(u)
    return float((values.sum() - values[0] / 2) * scale * u[1] / np.pi)


def carried(of: Int[np.ndarray, " U"], confidence: float) -> float:
    """The highest recall that such units can promise: where nothing in them is missed.

    Of U units of equal size it is (1 - confidence) ** (1 / U).
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        recall = (low + high) / 2
        low, high = (recall, high) if _evidence(of, recall) >= -math.log(1 - confidence) else (low, recall)
    return low


def units_needed(of: Int[np.ndarray, " U"], recall: float, confidence: float) -> int:
    """How many units like these, none of them with a miss, promise `recall`."""
    return math.ceil(len(of) * -math.log(1 - confidence) / _evidence(of, recall) - 1e-9)


def highest_threshold(
    candidates: Float[np.ndarray, " T"],
    missed: Callable[[float], Int[np.ndarray, " U"]],
    of: Int[np.ndarray, " U"],
    recall: float,
    confidence: float,
) -> float | None:
    """The highest of the thresholds that keeps `recall` on new units with `confidence`; None where even the lowest
    cannot.

    Args:
        candidates: ascending.
        missed: threshold -> misses in each unit; at a lower threshold no unit may have more.
        of: what could be missed in each unit, at least 1.
        recall: to promise.
        confidence: that the promise is kept.
    """

    def holds(at: int) -> bool:
        return p_value(missed(float(candidates[at])), of, recall) <= (1 - confidence) * (1 + ROUNDING)

    low, high = -1, len(candidates)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return None if low < 0 else float(candidates[low])


def _evidence(of: Int[np.ndarray, " U"], recall: float) -> float:
    """-log of the p-value where nothing is missed."""
    odds = (1 - recall) / max(recall, 1e-300)
    return float(np.log1p(odds * of / of.max()).sum())
