"""`simv0 cache-vis`: dataset + encoder -> feature files. Resumes by itself; several processes may share the work."""

import itertools
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cache.frames import FrameSource
from cache.progress import show_progress
from cache.publish import mendable_write, publish, room_for_both
from cache.shards import Counts, ShardWork, check_unchanged
from simv0.config.schema import Config
from simv0.data.labels import Labels, find_leakage, read_labels
from simv0.data.source import Source, check_decode, open_source, scale_pictures
from simv0.data.user_class import yields_features
from simv0.disk.files import sync_folder
from simv0.disk.locks import FileLock
from simv0.errors import CacheError, DataError
from simv0.features.identity import compare_identity, content_digest, differing, full_identity
from simv0.features.info import FeatureInfo
from simv0.features.reader import read_features
from simv0.features.shards import Parts, Plan, parts_of, shard_windows_of
from simv0.runtime.device import chosen_device
from simv0.runtime.distributed import broadcast_from_rank0, process_group
from simv0.runtime.speaking import from_here
from simv0.runtime.threads import sharing
from simv0.vision.encoder import Encoder, load_encoder
from simv0.vision.known import facts_of_encoder, known_encoder, record_encoder

log = logging.getLogger("simv0")

Outcome = Literal["skipped", "written", "shards"]


@dataclass(frozen=True)
class CacheReport:
    """The outcome of one split.

    Attributes:
        path: the feature file, or the folder of shards if that was requested or the disk had no room for a copy.
        outcome: `skipped` (was complete), `written`, or `shards` (complete, but left as shards).
        windows: in the split.
        counts: what this process did.
    """

    split: str
    path: Path
    outcome: Outcome
    windows: int
    counts: Counts

    def __str__(self) -> str:
        """One human-readable line."""
        if self.outcome == "skipped":
            return f"{self.split}: {from_here(self.path)} is complete ({self.windows} windows); nothing to do"
        done = self.counts
        kept = "; left as shards, which train reads" if self.outcome == "shards" else ""
        return (
            f"{self.split}: {from_here(self.path)}: {self.windows} windows; encoded here: {done.windows} windows, "
            f"{done.frames} frames seen, {done.encoded} encoded, {done.frames - done.encoded} reused; "
            f"{done.windows / max(done.seconds, 1e-9):.1f} windows/s, "
            f"{done.waited / max(done.seconds, 1e-9):.0%} waiting for data{kept}"
        )


class Cached(dict[str, CacheReport]):
    """Split -> its outcome, as `cache.cache_vis` returns it; prints a line each."""

    def __repr__(self) -> str:
        return "\n".join(str(report) for report in self.values())


@dataclass(frozen=True)
class SplitJob:
    """One split in progress: where it is written and what it is made of."""

    source: Source
    labels: Labels
    final: Path

    @property
    def name(self) -> str:
        """The split's name."""
        return self.source.name

    def info(self, plan: Plan) -> FeatureInfo:
        """All of its feature file but the features."""
        source = self.source
        spacing = source.frame_spacing
        return FeatureInfo(plan.identity, self.labels, source.class_weights, plan.shard_windows, [], 0, spacing)

    @property
    def parts(self) -> Parts:
        """Its folder of shards."""
        return parts_of(self.final)

    @property
    def gate(self) -> FileLock:
        """Held shared by every process that works on the split, exclusively by one that finishes it or starts over."""
        return _gate_of(self.final)


def cache_vis(config: Config, *, overwrite: bool = False, verify: bool = False) -> list[CacheReport]:
    """Make the feature files of all splits.

    A complete file is skipped, an unfinished one is resumed. Under torchrun LOCAL_RANK chooses the GPU and rank 0
    shows the progress; otherwise processes coordinate only through locks on the shards.

    Args:
        config: `data`, `cache` and `model`.
        overwrite: start over, whatever is there; ranks do so together. Joins processes that have already started.
        verify: read every frame again, whatever has been recorded of those that were read.

    Raises:
        DataError: a sample that breaks the contract; found before the encoder is loaded, except for wrong pixels.
        CacheError: what is there does not match the config, no space, features that cannot be stored.
        ModelError: no such encoder.
    """
    splits = [open_job(config, name) for name in config.data.splits]
    _warn_of_leakage(splits)
    facts = facts_of_encoder(config)
    encoder = load_encoder(config.model, config.cache.precision, chosen_device(config), decode=config.cache.decode)
    record_encoder(config, encoder, facts)
    if overwrite:
        with process_group():  # until all have come: a late one would remove what the others have made
            broadcast_from_rank0(start_over, splits)
    with sharing():
        return [cache_split(config, split, encoder, verify) for split in splits]


def complete_already(config: Config) -> list[CacheReport] | None:
    """The reports of feature files that are complete, found without the encoder: its identity has been recorded, and
    the splits' digests tell that no frame has changed. None: `cache_vis` must look.

    Raises:
        DataError, CacheError: as `cache_vis`.
    """
    encoder = known_encoder(config)
    if encoder is None or not all(_is_settled(config.feature_file(name)) for name in config.data.splits):
        return None
    splits = [open_job(config, name) for name in config.data.splits]
    for split in splits:
        content = content_digest(config, split.name, split.source.dataset)
        wanted = full_identity(config, split.name, encoder, split.labels, split.source.class_weights, content)
        if content is None or differing(read_features(split.final).info.identity, wanted):
            return None
    _warn_of_leakage(splits)
    return [CacheReport(split.name, split.final, "skipped", len(split.labels), Counts()) for split in splits]


def _warn_of_leakage(splits: list[SplitJob]) -> None:
    for one, other in itertools.combinations(splits, 2):
        datasets, groups = (one.source.dataset, other.source.dataset), (one.labels.group, other.labels.group)
        for warning in find_leakage(*datasets, *groups, names=(one.name, other.name)):
            log.warning(warning)


def open_job(config: Config, name: str) -> SplitJob:
    """Load one split and check all that can be checked without an encoder."""
    source = open_source(config.data, name)
    if yields_features(source.dataset, name):
        raise DataError(
            f"{name}: {config.data.dataset_class_path} yields vis_feats itself; it does not need cache-vis: "
            "`simv0 train` reads it directly"
        )
    check_decode(config.cache.decode, source.dataset)
    labels = read_labels(source.dataset, name, config.model.F)
    return SplitJob(source, labels, config.feature_file(name))


def cache_split(config: Config, split: SplitJob, encoder: Encoder, verify: bool = False) -> CacheReport:
    """Write one feature file, or resume writing it.

    Raises:
        CacheError, DataError: as `cache_vis`.
    """
    content = content_digest(config, split.name, split.source.dataset, verify=verify)
    identity = full_identity(config, split.name, encoder, split.labels, split.source.class_weights, content)
    shard_windows = shard_windows_of(len(split.labels), config.cache.shard_windows)
    plan = Plan(identity, shard_windows, config.cache.batch_size)
    scale_pictures(split.source.dataset, encoder.smallest)
    source = FrameSource(split.source.dataset, split.name, config.model.F, encoder.resize)
    try:
        split.final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"cache.dir: {split.final.parent} cannot be created: {error.strerror}") from None

    work = ShardWork(split.parts, plan, source, split.info(plan), encoder)
    outcome: Outcome | None = None
    if _is_settled(split.final):
        _check_complete(split, work)  # no process is working on it: no lock, so that the folder may be read-only
        return CacheReport(split.name, split.final, "skipped", len(split.labels), work.counts)
    while outcome is None:
        with split.gate.held(shared=True):
            if split.final.exists():
                _check_complete(split, work)
                outcome = "written" if work.counts.windows else "skipped"
                break
            plan = work.plan = _agree_on(plan, split.parts, config.cache.shard_windows)
            work.info = split.info(plan)
            if not room_for_both(split.parts, plan) and config.cache.publish == "file":
                log.warning("%s: no room for the final file beside its shards: keeping the shards", split.final)
            work.probe()
            work.choose_workers(config.data.num_workers)
            with show_progress(work):
                work.run()
        with split.gate.held():  # the others have finished, or died
            if not split.final.exists():
                outcome = _finish(split, plan, config.cache.publish)
    _tidy(split)
    path = split.parts.folder if outcome == "shards" else split.final
    return CacheReport(split.name, path, outcome, len(split.labels), work.counts)


def _finish(split: SplitJob, plan: Plan, publish_as: Literal["file", "shards"]) -> Outcome | None:
    """Write the final file if it is requested and there is room; None if damaged shards must be encoded again."""
    if publish_as == "shards" or not room_for_both(split.parts, plan):
        return "shards"
    return "written" if publish(split.final, split.parts, plan, split.info(plan)) else None


def start_over(splits: list[SplitJob]) -> None:
    """Remove existing files, unless another process is working on them, which then has started over already."""
    for split in splits:
        gate = split.gate
        if not split.final.parent.exists():
            continue
        if not gate.acquire(wait=False):
            log.warning("%s: another cache-vis is working on it: --overwrite removes nothing and joins it", split.final)
            continue
        with mendable_write(split.final):
            split.final.unlink(missing_ok=True)
        shutil.rmtree(split.parts.folder, ignore_errors=True)
        gate.release()


def _gate_of(final: Path) -> FileLock:
    return FileLock(final.with_name(final.name + ".lock"))


def _is_settled(final: Path) -> bool:
    """Whether the file is there and no process is working on it."""
    return final.exists() and not (parts_of(final).folder.exists() or _gate_of(final).path.exists())


def _check_complete(split: SplitJob, work: ShardWork) -> None:
    """Refuse a complete file that does not match the config."""
    file = read_features(split.final)
    compare_identity(file.info.identity, work.plan.identity, split.final)
    check_unchanged(file.map(), range(len(split.labels)), work, str(split.final))


def _agree_on(plan: Plan, parts: Parts, shard_windows: int | None) -> Plan:
    """The plan found in the folder of shards, which the config must allow; if there is none, write ours."""
    with mendable_write(parts.folder):
        parts.folder.mkdir(exist_ok=True)
        with FileLock(parts.folder / "plan.lock").held():
            there = parts.read_plan()
            if there is None:
                parts.write_plan(plan)
                sync_folder(parts.folder.parent)
                return plan
    compare_identity(there.identity, plan.identity, parts.folder)
    return there.wanted_by(shard_windows, plan.batch_size, parts.folder)


def _tidy(split: SplitJob) -> None:
    """Remove shards that have become a file, unless another process still uses them: then that one does."""
    gate = split.gate
    if gate.acquire(wait=False):
        if split.final.exists():
            shutil.rmtree(split.parts.folder, ignore_errors=True)
        gate.release(remove=True)
