"""Dividing recordings among splits: none shared, every class in every split where that is possible."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from jaxtyping import Float, Int

EVERY = 200_000
"""Up to so many divisions, all of them are tried: 17 recordings in two splits, 11 in three."""
PLACEMENTS = 1_000_000
"""Beyond that, so many recordings are placed, in different orders."""
AS_GOOD = 1e-3
"""Divisions whose unevenness differs by less are equally good: a few percentage points for a few classes."""


def divide(windows: Int[np.ndarray, "R C"], shares: Sequence[float], seed: int = 0) -> Int[np.ndarray, " R"]:
    """The split of each recording.

    The division with the fewest classes missing from a split wins; of several such, one in which the first split lacks
    fewest, then the second; then the most even one: every split has nearly its share of all windows, of the recordings
    and of each class. `seed` chooses among those that are equally good.

    Up to `EVERY` divisions are all compared. Of more, many are made one recording after the other, in random orders
    (the first: largest first), each recording going where it brings the rarest missing class, else where most is
    lacking, and the best is taken. The second is the greedy rule of iterative stratification (Sechidis, Tsoumakas and
    Vlahavas, "On the Stratification of Multi-Label Data", 2011), with recordings as examples.

    Args:
        windows: of each recording, how many windows of each class; column 0 counts all windows, whatever their class.
        shares: of each split; their sum is 1.
        seed: same seed, same division.
    """
    rng = np.random.default_rng(seed)
    counted = np.column_stack([windows[:, 0], np.ones(len(windows)), windows[:, 1:]])
    table = counted / np.maximum(counted.sum(0), 1)  # a recording's share of the windows, the recordings, each class
    if len(shares) ** len(table) <= EVERY:
        candidates = np.array(list(product(range(len(shares)), repeat=len(table))), np.int8)
    else:
        candidates = _placed(table, np.asarray(shares), rng)
    cost = _cost(candidates, table, shares).round(9)  # machines differ in the last digits
    chosen: Int[np.ndarray, " R"] = candidates[rng.choice(np.flatnonzero(cost <= cost.min() + AS_GOOD))].astype(int)
    return chosen


def _cost(
    candidates: Int[np.ndarray, "N R"], table: Float[np.ndarray, "R C"], shares: Sequence[float]
) -> Float[np.ndarray, " N"]:
    """What is wrong with each division: first what is missing, then how uneven it is (below 2)."""
    weight = _weights(table)
    cost = np.zeros(len(candidates))
    for split, share in enumerate(shares):
        has = (candidates == split).astype(float) @ table
        missing = (has < 1e-12).sum(1) - (table.sum(0) < 1e-12).sum()
        cost += missing * (1000 - 10 * split)  # for train weighs most, and two always more than one
        cost += np.square(has - share) @ weight
    return cost


def _weights(table: Float[np.ndarray, "R C"]) -> Float[np.ndarray, " C"]:
    """How much each column counts: the windows are what a share was asked of; an alarm's promise counts recordings."""
    classes = table.shape[1] - 2
    return np.array([0.5, 0.1, *[0.4 / max(1, classes)] * classes])


def _placed(
    table: Float[np.ndarray, "R C"], shares: Float[np.ndarray, " P"], rng: np.random.Generator
) -> Int[np.ndarray, "N R"]:
    """Divisions made one recording after the other, N of them side by side."""
    n = int(np.clip(PLACEMENTS // len(table), 16, 4096))
    orders = np.array([rng.permutation(len(table)) for _ in range(n)])
    orders[0] = np.argsort(-table[:, 0], kind="stable")
    rarity = 1 / np.maximum((table > 0).sum(0), 1)
    rows, found = np.arange(n), np.zeros((n, len(table)), np.int8)
    lacking = np.broadcast_to(shares[:, None], (n, len(shares), table.shape[1])).copy()
    bare = np.ones((n, len(shares), table.shape[1]), bool)
    for recording in orders.T:
        brings = table[recording]
        gain = (bare & (brings > 0)[:, None]) @ rarity
        lack = (lacking * brings[:, None]) @ _weights(table)
        split = (1000 * gain + lack).round(9).argmax(1)  # a missing class comes first
        found[rows, recording] = split
        lacking[rows, split] -= brings
        bare[rows, split] &= brings == 0
    return found
