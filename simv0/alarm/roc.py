"""How well P(high) tells "high" windows from the others, whatever the threshold.

Every function takes a weight for each window, so that a bootstrap resamples without copying: a window drawn twice
weighs 2. Windows of equal P(high) are counted together, so their order does not matter.
"""

import numpy as np
from jaxtyping import Bool, Float, Num

from simv0.alarm.threshold import threshold_for_false_alarms

FALSE_ALARMS = 0.05
"""Rate of false alarms at which the recall of "high" is compared."""


def auroc(
    p_high: Float[np.ndarray, " N"], is_high: Bool[np.ndarray, " N"], weight: Num[np.ndarray, " N"] | None = None
) -> float | None:
    """Probability that a "high" window has the higher P(high) than another one, ties counting half; None without both.

    The area under the ROC curve. 0.5 is chance.
    """
    found, raised = _counts(p_high, is_high, weight)
    others = raised - found
    if not found[-1] or not others[-1]:
        return None
    return float(np.trapezoid(found / found[-1], others / others[-1]))


def average_precision(
    p_high: Float[np.ndarray, " N"], is_high: Bool[np.ndarray, " N"], weight: Num[np.ndarray, " N"] | None = None
) -> float | None:
    """Precision of the alarm averaged over the recalls of all thresholds (without interpolation); None without "high".

    Chance is the share of "high" windows.
    """
    found, raised = _counts(p_high, is_high, weight)
    if not found[-1]:
        return None
    return float((np.diff(found) * found[1:] / np.maximum(raised[1:], 1e-300)).sum() / found[-1])


def _counts(
    p_high: Float[np.ndarray, " N"], is_high: Bool[np.ndarray, " N"], weight: Num[np.ndarray, " N"] | None
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """At each threshold from above all scores down to the lowest: weight of "high" that is raised, and of all."""
    order = np.argsort(-p_high, kind="stable")
    weights = np.ones(len(order)) if weight is None else weight[order].astype(np.float64)
    last_of_its_score = np.append(np.flatnonzero(np.diff(p_high[order])), len(order) - 1)
    found, raised = (np.cumsum(each)[last_of_its_score] for each in (weights * is_high[order], weights))
    return np.append(0.0, found), np.append(0.0, raised)


def recall_at_false_alarms(p_high: Float[np.ndarray, " N"], is_high: Bool[np.ndarray, " N"]) -> float | None:
    """Recall of "high" at the lowest threshold that raises at most `FALSE_ALARMS` false alarms.

    None where there is no high window, or nothing else. A model that gives every window the same p recalls nothing.
    """
    if is_high.all() or not is_high.any():
        return None
    return float((p_high[is_high] >= threshold_for_false_alarms(p_high, is_high, FALSE_ALARMS)).mean())
