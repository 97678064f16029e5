"""Rates with their intervals, resampled over recordings where they are known."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from simv0.alarm.stored import Rate

LEAST_RECORDINGS = 3
"""Fewer recordings with (or without) "high" have no spread to resample."""
RESAMPLES = 1000


def rate_of(raised: Bool[np.ndarray, " N"], among: Bool[np.ndarray, " N"], unit: Int[np.ndarray, " N"] | None) -> Rate:
    """Share of `among` that is `raised`, with a 95 % percentile bootstrap over units (windows where None).

    A resample cannot show what never happened: at a rate of 0 or 1 the far end of the interval is the exact binomial
    one of as many independent units, 0.025 ** (1 / units) (Clopper & Pearson 1934).
    """
    unit = np.arange(len(among)) if unit is None else unit
    totals = np.bincount(unit[among])
    hits = np.bincount(unit[among], raised[among], len(totals))
    hits, totals = hits[totals > 0], totals[totals > 0]
    n, rng = len(totals), np.random.default_rng(0)
    value = float(hits.sum() / totals.sum())
    if (totals == 1).all():  # the same distribution, drawn at once
        drawn = rng.binomial(n, value, RESAMPLES) / n
    else:
        picks = (rng.integers(0, n, n) for _ in range(RESAMPLES))
        drawn = np.array([hits[pick].sum() / totals[pick].sum() for pick in picks])
    low, high = (float(x) for x in np.percentile(drawn, [2.5, 97.5]))
    far = float(0.025 ** (1 / n))
    return Rate(value=value, low=min(low, far) if value == 1 else low, high=max(high, 1 - far) if value == 0 else high)


def recordings(groups: Sequence[str] | None, is_high: Bool[np.ndarray, " N"]) -> Int[np.ndarray, " N"] | None:
    """The recording of each window as a number; None without `groups`, or where too few recordings hold "high" windows,
    or others, to be resampled.
    """
    if groups is None:
        return None
    _, unit = np.unique(np.asarray(groups), return_inverse=True)
    enough = all(len(np.unique(unit[side])) >= LEAST_RECORDINGS for side in (is_high, ~is_high))
    return unit if enough else None
