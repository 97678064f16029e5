"""What people see while features are made."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cache.shards import Counts, ShardWork

log = logging.getLogger("simv0")

LOG_EVERY = 60.0
"""Seconds between lines where stderr is no terminal."""


@contextmanager
def show_progress(work: ShardWork) -> Iterator[None]:
    """Show a bar with frames/s, ETA and data-wait share on stderr (rank 0 only); log lines where that is no terminal.

    The bar counts windows of the split that are on disk, whoever made them.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    total, shards = int(work.plan.identity["N"]), len(work.plan)
    name, start = work.source.split, work.counts.encoded
    progress = Progress(
        TextColumn(f"{name}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} windows"),
        TextColumn("{task.fields[rate]:.1f} frames/s"),
        TextColumn("{task.fields[wait]:.0%} waiting for data"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    bar = progress.add_task(name, total=total, rate=0.0, wait=0.0)
    began = last = time.monotonic()

    def update(counts: Counts) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < (1.0 if sys.stderr.isatty() else LOG_EVERY):
            return
        last = now
        finished = work.parts.count_records()
        done = min(total, finished * work.plan.shard_windows)
        rate, wait = (counts.encoded - start) / (now - began), counts.waited / max(counts.seconds, 1e-9)
        progress.update(bar, completed=done, rate=rate, wait=wait)
        if progress.disable:
            log.info("%s: %d of %d shards, %.1f frames/s, %.0f%% waiting", name, finished, shards, rate, 100 * wait)

    work.on_progress = update
    with progress:
        yield
