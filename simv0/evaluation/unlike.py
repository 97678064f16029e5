"""How many windows of an evaluation are unlike the training data, and when that is too many."""

from collections.abc import Iterator

import numpy as np

from simv0.alarm.unlike import NOTHING_KEPT, RATE, Distances, Unlike
from simv0.model.metrics import Metrics
from simv0.model.predictions import Prediction


def unlike_shares(rows: list[Prediction]) -> Metrics:
    """Share of predictions that are `unlike`, and of each distance beyond its limit; None where nothing is known."""
    far = [row.distance for row in rows if row.distance is not None]
    shares: Metrics = {"unlike_share": float(np.mean([row.unlike for row in rows])) if far else None}
    for name in Distances._fields:
        shares[f"unlike_{name}_share"] = float(np.mean([own[name] > 1 for own in far])) if far else None
    return shares


def unlike_facts(unlike: Unlike | None) -> dict[str, str]:
    """What the checkpoint knows its own kind of windows by, for display."""
    known = f"this checkpoint {NOTHING_KEPT}"
    if unlike is not None:
        known = f"{unlike.windows:,} train windows, limits from {unlike.limit_windows:,} others"
    return {"its kind of data": known}


def unlike_caution(metrics: Metrics) -> Iterator[str]:
    """A line where more windows are unlike the training data than held-out ones of its kind would be."""
    share = metrics.get("unlike_share")
    if share is not None and share > RATE:
        by = ", ".join(f"{name} {metrics[f'unlike_{name}_share']:.0%}" for name in Distances._fields)
        yield (
            f"UNLIKE: {share:.0%} of the windows are unlike the training data (by {by}); of its own kind at most "
            f'{RATE:.0%} are. A stream says "unknown" there, and the alarm\'s rates are not those of val.'
        )
