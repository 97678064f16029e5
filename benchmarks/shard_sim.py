"""The shard scheme of `cache/`, simulated: ranks claim shards one by one, die, come back, and some are slow.

A rank walks through the shards that were missing when it last looked, from its own place on (`_from_own_place`), claims
those that nobody holds, and keeps each when it is finished. A rank that dies loses the shard in its hands and nothing
else; anyone may take that one over. At the end of its walk a rank looks again; where all that is missing is held by
others, it waits. Left out: claims that loader workers make ahead of time, frames that neighbouring shards share, and
that a waiting rank watches one lock, so that it may notice another rank's death late.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        makespan: seconds from the start to the last finished shard.
        lost: seconds of work that deaths threw away, over all ranks.
        deaths: how many.
    """

    makespan: float
    lost: float
    deaths: int


def simulate(
    work: Sequence[float], speeds: Sequence[float], uptimes: Sequence[Iterator[float]], restart: float
) -> Outcome:
    """Finish all shards.

    Args:
        work: seconds that each shard takes a rank of speed 1, its writing included.
        speeds: of the ranks.
        uptimes: for each rank, how long it lives after each (re)start; an iterator that ends means for ever.
        restart: seconds from a death to the rank's next claim.
    """
    ranks, free = len(speeds), set(range(len(work)))
    walks: list[Iterator[int]] = [iter(()) for _ in range(ranks)]
    dies = [next(life, np.inf) for life in uptimes]
    idle: set[int] = set()
    held: dict[int, tuple[int, float]] = {}
    events: list[tuple[float, int, str]] = [(0.0, rank, "start") for rank in range(ranks)]
    heapq.heapify(events)
    missing = set(free)
    lost, deaths, now = 0.0, 0, 0.0

    def claim(rank: int) -> int | None:
        for fresh in (False, True):
            if fresh:
                walks[rank] = iter(_from_own_place(sorted(missing), rank, ranks))
            for shard in walks[rank]:
                if shard in free:
                    return shard
        return None

    while missing:
        now, rank, what = heapq.heappop(events)
        if what == "done":
            missing.discard(held.pop(rank)[0])
        elif what == "death":
            shard, began = held.pop(rank)
            free.add(shard)
            lost, deaths = lost + now - began, deaths + 1
            dies[rank] = now + restart + next(uptimes[rank], np.inf)
            heapq.heappush(events, (now + restart, rank, "start"))
            walks[rank] = iter(())
        waking = [rank, *sorted(idle)] if what != "death" else sorted(idle)
        idle.clear()
        for candidate in waking:
            shard_or_none = claim(candidate)
            if shard_or_none is None:
                idle.add(candidate)
                continue
            free.discard(shard_or_none)
            held[candidate] = (shard_or_none, now)
            if dies[candidate] <= now:  # died while it had nothing to do: nothing lost but the count of its life
                dies[candidate] = now + next(uptimes[candidate], np.inf)
            end = now + work[shard_or_none] / speeds[candidate]
            event = (end, candidate, "done") if end <= dies[candidate] else (dies[candidate], candidate, "death")
            heapq.heappush(events, event)
    return Outcome(now, lost, deaths)


def _from_own_place(shards: list[int], rank: int, ranks: int) -> list[int]:
    first = len(shards) * rank // ranks
    return shards[first:] + shards[:first]


def random_lives(mtbf: float, rng: np.random.Generator) -> Iterator[float]:
    """Lives between deaths at a constant rate, `mtbf` seconds on average; no deaths for inf."""
    while np.isfinite(mtbf):
        yield float(rng.exponential(mtbf))


def random_speeds(ranks: int, slow_share: float, slow_factor: float, rng: np.random.Generator) -> list[float]:
    """Speeds of the ranks: 1 with 5 % of noise; a `slow_share` of them, at random, `slow_factor` times slower."""
    slow = np.where(rng.random(ranks) < slow_share, 1 / slow_factor, 1.0)
    speeds: list[float] = (slow * np.exp(0.05 * rng.standard_normal(ranks))).tolist()
    return speeds
