"""Work on the shards of one split: claim one, encode its frames, write it, record it. Any number of processes may."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from cache.frames import CARRIED_FRAMES, Carry, FrameSource, Job, in_stretches, read_jobs
from cache.publish import mendable_write
from simv0.data.workers import Readers, workers_for
from simv0.disk.locks import FileLock
from simv0.errors import CacheError
from simv0.features.info import FeatureInfo
from simv0.features.reader import sha256
from simv0.features.shards import Parts, Plan, Record
from simv0.features.writer import write_features
from simv0.vision.encoder import Encoder

log = logging.getLogger("simv0")

TOLERANCE = {"fp32": 0.01, "bf16": 0.05}
"""Relative difference of features that another machine or thread count may bring; a changed encoder brings more."""


@dataclass
class Counts:
    """What one process did: windows written, frames they needed, frames encoded, seconds, seconds spent waiting."""

    windows: int = 0
    frames: int = 0
    encoded: int = 0
    seconds: float = 0.0
    waited: float = 0.0


@dataclass
class _Task:
    """A claimed shard in progress: its lock, the frames to encode, those to forget afterwards."""

    lock: FileLock
    new: list[Hashable]
    drop: list[Hashable]
    feats: list[Tensor] = field(default_factory=list)
    read: bool = False

    @property
    def encoded(self) -> int:
        """Frames encoded so far."""
        return sum(map(len, self.feats))


class ShardWork:
    """Encodes the missing shards of one split.

    Args:
        parts: the folder of shards.
        plan: how the work is divided.
        source: the frames.
        info: what is to be made: all of the split but its features.
        encoder: frames to features.

    Attributes:
        readers: processes that read frames; none until `choose_workers`.
        on_progress: called after each encoder call.
    """

    def __init__(
        self,
        parts: Parts,
        plan: Plan,
        source: FrameSource,
        info: FeatureInfo,
        encoder: Encoder,
    ) -> None:
        self.parts, self.plan, self.source, self.info, self.encoder = parts, plan, source, info, encoder
        self.readers = Readers(0)
        self.on_progress: Callable[[], None] = lambda: None
        self.device = next(encoder.buffers()).device
        self.dtype = getattr(torch, plan.identity["dtype"])
        self.counts = Counts()
        self.tasks: dict[int, _Task] = {}

    def run(self) -> None:
        """Encode every missing shard, and wait for those that other processes have claimed.

        Raises:
            CacheError: disk full, or features that are NaN, inf or too large for `cache.dtype`.
            DataError: a frame that breaks the sample contract, or frames of two types.
        """
        try:
            while missing := _from_own_place(self.parts.missing(self.plan)):
                before = self.counts.windows
                self._encode(missing)
                if self.counts.windows == before:  # all claimed by others: wait until the first lets go
                    lock = self._lock(missing[0])
                    lock.acquire()
                    lock.release(remove=True)
        finally:
            for task in self.tasks.values():
                task.lock.release(remove=True)
            self.tasks.clear()

    def probe(self) -> None:
        """Re-encode a few windows of finished shards and compare.

        Raises:
            CacheError: they differ by more than another machine explains: frames or encoder changed under the same
                names.
        """
        done = [shard for shard in range(len(self.plan)) if self.parts.record(shard)]
        for shard in sorted({done[0], done[-1]} if done else ()):
            try:
                stored = self.parts.read_shard(shard, self.plan).map()
            except CacheError as error:
                self.parts.forget(shard, str(error))
            else:
                check_unchanged(stored, self.plan.windows(shard), self, str(self.parts.shard_path(shard)))

    def choose_workers(self, wanted: int | Literal["auto"]) -> None:
        """Settle how many processes read frames (`data.num_workers`)."""
        ahead = max(self.plan.batch_size, self.source.F)
        seconds, on_cpu = self.encoder.seconds_per_frame, self.device.type == "cpu"
        self.readers = workers_for(wanted, self.source, self._unread(), seconds, ahead, on_cpu=on_cpu)

    def _unread(self) -> Iterator[Hashable]:
        """The units of all missing shards, each once."""
        seen: set[Hashable] = set()
        for shard in _from_own_place(self.parts.missing(self.plan)):
            for window in self.plan.windows(shard):
                new = [unit for unit in self.source.units(self.source.frames_of(window)) if unit not in seen]
                seen.update(new)
                yield from new

    def _lock(self, shard: int) -> FileLock:
        return FileLock(self.parts.folder / f"shard-{shard:06d}.lock")

    def _claim(self, shards: list[int]) -> Iterator[int]:
        """Claim the shards that no other process works on, one by one as they are consumed."""
        for shard in shards:
            lock = self._lock(shard)
            if self.parts.record(shard) or not lock.acquire(wait=False):
                continue
            if self.parts.record(shard):  # finished between the two looks
                lock.release(remove=True)
                continue
            self.tasks[shard] = _Task(lock, [], [])
            yield shard

    def _jobs(self, shards: list[int]) -> Iterator[Job]:
        """Jobs of up to one encoder batch. Runs ahead of the encoding, as far as the loader prefetches."""
        carry = Carry(CARRIED_FRAMES if self.source.shares else 0)
        step = self.plan.batch_size if self.source.shares else max(1, self.plan.batch_size // self.source.F)
        for shard in self._claim(shards):
            task = self.tasks[shard]
            task.new, task.drop = carry.plan(
                frame for window in self.plan.windows(shard) for frame in self.source.frames_of(window)
            )
            jobs = in_stretches(self.source.units(task.new), self.readers.number, step)
            task.new = [name for units in jobs for name in self.source.names(units)]
            for i, units in enumerate(jobs, 1):
                yield Job(shard, units, last=i == len(jobs))

    def _encode(self, shards: list[int]) -> None:
        known: dict[Hashable, Tensor] = {}
        waiting: deque[tuple[int, Tensor]] = deque()
        clock = time.perf_counter()
        started = clock
        for job, frames in read_jobs(self.source, self._jobs(shards), self.readers):
            self.counts.waited += time.perf_counter() - clock
            if waiting and waiting[-1][0] != job.shard and waiting[-1][1].dtype != frames.dtype:
                self._encode_waiting(waiting, leave=0)
            if len(frames):
                waiting.append((job.shard, frames))
            self.tasks[job.shard].read = job.last
            self._encode_waiting(waiting, leave=self.plan.batch_size - 1)
            self._finish_encoded(known)
            clock = time.perf_counter()
            self.counts.seconds += clock - started
            started = clock
            self.on_progress()
        self._encode_waiting(waiting, leave=0)
        self._finish_encoded(known)
        self.counts.seconds += time.perf_counter() - started
        self.on_progress()

    def _encode_waiting(self, waiting: deque[tuple[int, Tensor]], leave: int) -> None:
        """Encode waiting frames until at most `leave` are left.

        A batch may hold frames of several shards: small ones fill none, and features do not depend on neighbours.
        """
        while sum(len(frames) for _, frames in waiting) > leave:
            batch: list[tuple[int, Tensor]] = []
            room = self.plan.batch_size
            while waiting and room:
                shard, frames = waiting.popleft()
                batch.append((shard, frames[:room]))
                if len(frames) > room:
                    waiting.appendleft((shard, frames[room:]))
                room -= len(batch[-1][1])
            feats = self.encode(self.source.join([frames for _, frames in batch]))
            self.counts.encoded += len(feats)
            for (shard, _), part in zip(batch, torch.split(feats, [len(frames) for _, frames in batch]), strict=True):
                self.tasks[shard].feats.append(part)

    def _finish_encoded(self, known: dict[Hashable, Tensor]) -> None:
        """Finish the shards whose frames are all encoded, in order: a shard may use frames of those before it."""
        for shard, task in list(self.tasks.items()):
            if not task.read or task.encoded < len(task.new):
                return
            self._finish(shard, known)

    def encode(self, frames: Num[Tensor, "n 3 h w"]) -> Float[Tensor, "n dv"]:
        """Encode up to `batch_size` frames, padded to it: other sizes would give other last bits."""
        padding = frames.new_zeros(self.plan.batch_size - len(frames), *frames.shape[1:])
        batch = torch.cat([frames, padding]) if len(padding) else frames
        feats: Tensor = self.encoder(batch.to(self.device, non_blocking=True))
        return feats[: len(frames)]

    def _finish(self, shard: int, known: dict[Hashable, Tensor]) -> None:
        """Assemble the shard's windows, write them, record the shard and release it."""
        task, windows = self.tasks[shard], self.plan.windows(shard)
        if task.new:
            feats = torch.cat(task.feats).cpu()
            self._check_finite(feats, task.new, windows)
            known.update(zip(task.new, feats.to(self.dtype), strict=True))
        block = torch.stack([torch.stack([known[name] for name in self.source.frames_of(i)]) for i in windows]).numpy()
        for name in task.drop:
            del known[name]
        labels = self.info.labels[windows.start : windows.stop]
        info = replace(self.info, labels=labels, block_sha256=[sha256(block)], first_window=windows.start)
        path = self.parts.shard_path(shard)
        with mendable_write(path):
            write_features(path, info, [block], path.with_suffix(".h5.tmp"))
            self.parts.write_record(shard, Record(path.stat().st_size, info.block_sha256[0]))
        log.debug("wrote %s: windows %d to %d", path, windows.start, windows.stop - 1)
        self.counts.windows += len(windows)
        self.counts.frames += block.shape[0] * block.shape[1]
        del self.tasks[shard]
        task.lock.release(remove=True)

    def _check_finite(self, feats: Float[Tensor, "n dv"], names: list[Hashable], windows: range) -> None:
        good = torch.isfinite(feats.to(self.dtype)).all(dim=1)
        if good.all():
            return
        bad = int((~good).nonzero()[0])
        sample = next(i for i in windows if names[bad] in self.source.frames_of(i))
        what = f"{self.source.split}[{sample}] ({self.info.labels.sample_id[sample]}), frame {names[bad]!r}"
        if torch.isfinite(feats[bad]).all():
            raise CacheError(f"{what}: a feature is {feats[bad].abs().max():.4g}; set cache.dtype: float32")
        raise CacheError(f"{what}: the encoder gave NaN or inf; try cache.precision: fp32, or inspect the frame")


def _from_own_place(shards: list[int]) -> list[int]:
    """Under torchrun each rank starts at another place, since neighbouring shards share frames. Any order gives the
    same bytes.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    first = len(shards) * rank // world
    return shards[first:] + shards[:first]


def check_unchanged(stored: Float[np.ndarray, "N F dv"], windows: range, work: ShardWork, path: str) -> None:
    """Encode the first two windows again and compare them with the stored features [n,F,dv].

    Raises:
        CacheError: frames or encoder changed under the same names.
    """
    tolerance = TOLERANCE[work.plan.identity["vision_precision"]]
    for row, window in enumerate(windows[:2]):
        frames = work.source.read(work.source.units(work.source.frames_of(window)))
        feats = (
            torch.cat([work.encode(part) for part in torch.split(frames, work.plan.batch_size)]).cpu().to(work.dtype)
        )
        old = torch.from_numpy(stored[row].astype(np.float32))
        difference = float(((feats.float() - old).norm(dim=1) / old.norm(dim=1).clamp_min(1e-12)).max())
        if difference > tolerance:
            raise CacheError(
                f"{path}: window {window} ({work.info.labels.sample_id[window]}) now encodes to different features "
                f"(relative difference {difference:.2g}): its frames or the encoder changed under the same names. "
                "Recreate it with `simv0 cache-vis --overwrite`, or choose another cache.dir"
            )
        if difference:
            log.info("%s: features differ by rounding (%.2g): another thread count or machine", path, difference)
