"""The progress of cache-vis: frames, percentage, rate and time left."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cache.frames import CARRIED_FRAMES, Carry
from cache.shards import ShardWork
from simv0.runtime.progress import progress_of

log = logging.getLogger("simv0")


class FramesDone:
    """How many of a split's frames are encoded, by any process: those of shards on disk, and those in progress here."""

    def __init__(self, work: ShardWork) -> None:
        self.work, self.frames = work, frames_to_encode(work)
        self.total = sum(self.frames)

    def __call__(self) -> int:
        """Frames done."""
        recorded = {shard for shard in self.work.parts.recorded() if shard < len(self.frames)}
        here = {shard: task.encoded for shard, task in self.work.tasks.items() if shard not in recorded}
        under_way = sum(min(encoded, self.frames[shard]) for shard, encoded in here.items())
        return sum(self.frames[shard] for shard in recorded) + under_way


def frames_to_encode(work: ShardWork) -> list[int]:
    """Frames that each shard adds to those before it: what one process encodes for it, working from the first on."""
    if not work.source.shares:
        return [len(work.plan.windows(shard)) * work.source.F for shard in range(len(work.plan))]
    carry = Carry(CARRIED_FRAMES)
    windows = (work.plan.windows(shard) for shard in range(len(work.plan)))
    return [len(carry.plan(frame for i in some for frame in work.source.frames_of(i))[0]) for some in windows]


@contextmanager
def show_progress(work: ShardWork) -> Iterator[None]:
    """Log what there is to do, and show how far it is; under torchrun rank 0 does so, for all ranks."""
    if os.environ.get("RANK", "0") != "0" or not work.parts.missing(work.plan):
        yield
        return
    done, name, counts = FramesDone(work), work.source.split, work.counts
    kept = done()
    log.info(
        "%s: %s frames to encode, for %s windows%s",
        *(name, f"{done.total - kept:,}", f"{work.plan.identity['N']:,}"),
        f"; {kept:,} are already done" if kept else "",
    )

    def waiting() -> str:
        return f", {counts.waited / max(counts.seconds, 1e-9):.0%} waiting for data"

    with progress_of(name, done.total, done, waiting) as work.on_progress:
        yield
