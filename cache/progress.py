"""The progress of cache-vis: frames, percentage, rate and time left."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from cache.frames import CARRIED_FRAMES, Carry
from cache.shards import Counts, ShardWork

log = logging.getLogger("simv0")

LOG_EVERY = 10.0
"""Seconds between lines of progress where stderr is not a terminal."""


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
    """Show a bar on stderr if that is a terminal, else a line at the start and every `LOG_EVERY` seconds.

    Under torchrun rank 0 shows it, for all.
    """
    if os.environ.get("RANK", "0") != "0" or not work.parts.missing(work.plan):
        yield
        return
    done = FramesDone(work)
    kept = done()
    name, began, shown = work.source.split, time.monotonic(), time.monotonic()
    log.info(
        "%s: %s frames to encode, for %s windows%s",
        *(name, f"{done.total - kept:,}", f"{work.plan.identity['N']:,}"),
        f"; {kept:,} are already done" if kept else "",
    )
    on_terminal = sys.stderr.isatty()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} frames"),
        TextColumn("{task.fields[pace]}"),
        console=Console(stderr=True),
        disable=not on_terminal,
    )
    task = bar.add_task(name, total=done.total, completed=kept, pace="")

    def update(counts: Counts) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < (0.5 if on_terminal else LOG_EVERY):
            return
        shown, frames = now, done()
        rate = (frames - kept) / (now - began)
        left = f", {duration((done.total - frames) / rate)} left" if rate else ""
        pace = f"{rate:.1f} frames/s{left}, {counts.waited / max(counts.seconds, 1e-9):.0%} waiting for data"
        bar.update(task, completed=frames, pace=pace)
        if not on_terminal:
            share = int(100 * frames / done.total)
            log.info("%s: %s of %s frames (%d%%), %s", name, f"{frames:,}", f"{done.total:,}", share, pace)

    work.on_progress = update
    with bar:
        yield
        bar.update(task, completed=done.total)


def duration(seconds: float) -> str:
    """A human-readable duration: `41 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
