"""What `simv0 check` finds out about a split: where its features come from, whether a batch keeps the contract."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simv0.build import check_class_weights_mode
from simv0.cached import CachedDataset
from simv0.config import Config
from simv0.datasets import ManifestDataset, class_weights_of
from simv0.errors import CacheError, DataError, SimError
from simv0.identity import compare_identity, wanted_identity
from simv0.labels import HEADS
from simv0.own_class import file_of, load_dataset
from simv0.parts import Parts, parts_of, shard_windows_of
from simv0.samples import CheckedDataset, SharesFrames, collate
from simv0.split_labels import Labels, read_labels
from simv0.splits import brings_features, check_own_dv
from simv0.store import file_bytes

Facts = dict[str, Any]


@dataclass(frozen=True)
class SplitOutline:
    """One split, before it is read as a whole.

    Attributes:
        source: what training reads: a finished feature file, the dataset's own `vis_feats`, or frames.
        dv: feature width; None for frames.
        frames: frames that must be encoded once: those of overlapping windows count once.
        labels: None where they cannot be had without reading every window.
        text_bytes: the longest sample_id and group together, of what was read.
        identity: of the feature file.
    """

    name: str
    source: Literal["feature file", "vis_feats", "frames"]
    dataset: Any
    windows: int
    dv: int | None
    frames: int
    labels: Labels | None
    text_bytes: int
    identity: dict[str, Any] | None = None

    def facts(self) -> Facts:
        """For the report."""
        facts: Facts = {"source": self.source, "windows": self.windows}
        if self.dataset is not None and not isinstance(self.dataset, ManifestDataset):
            facts["class from"] = str(file_of(sys.modules[type(self.dataset).__module__]))
        for head, names in HEADS.items():
            if self.labels is None:
                facts[head] = "not counted: that would read every window (give the class labels_of)"
            else:
                counts = np.bincount(self.labels.ids[head], minlength=len(names))
                facts[head] = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        return facts

    def feature_bytes(self, config: Config, dv: int) -> int:
        """Size of the feature file that cache-vis would make."""
        cache = config.cache
        block_windows = shard_windows_of(self.windows, cache.shard_windows)
        return file_bytes(self.windows, config.model.F, dv, cache.dtype, block_windows, self.text_bytes)


class Noting:
    """A `with` block whose SimError is taken down, every line once, instead of raised: the next check goes on."""

    def __init__(self, problems: list[SimError]) -> None:
        self.problems = problems

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, SimError):
            return False
        told = {line for problem in self.problems for line in str(problem).splitlines()}
        # `Mistakes` adds a count to what a single sample has told already.
        if new := [line for line in str(error).splitlines() if line.partition(" (and ")[0] not in told]:
            self.problems.append(type(error)("\n".join(new)))
        return True


def check_split(config: Config, name: str, problems: list[SimError]) -> SplitOutline | None:
    """Look at "train" or "val" as the commands would find it; None where that is not possible."""
    with Noting(problems):
        cached = finished_features(config, name) if config.model.use_cached_vis_feats else None
        if cached is None:
            return _check_dataset(config, name, problems)
        with Noting(problems):
            check_class_weights_mode(config.training.class_weights, cached.class_weights)
        labels, N = cached.labels, len(cached)
        return SplitOutline(name, "feature file", None, N, cached.dv, 0, labels, _text_bytes(labels), cached.identity)
    return None


def finished_features(config: Config, name: str) -> CachedDataset | None:
    """The split's feature file, or its shards if all are done, its features unread; None where cache-vis has work.

    Raises:
        CacheError: what is there, finished or not, is damaged or of something else.
    """
    path = Path(config.cache.dir) / f"{name}.h5"
    parts = parts_of(path)
    try:
        if not path.exists() and not _all_shards(config, name, parts):
            return None
        features = path if path.exists() else parts.folder
        cached = CachedDataset(features, "never")
        compare_identity(cached.identity, wanted_identity(config, name), features)
    except CacheError:
        if not brings_features(config, name):  # what lies there is not of this dataset, which needs no file
            raise
        return None
    return cached


def _all_shards(config: Config, name: str, parts: Parts) -> bool:
    """Whether a folder of shards is finished; an unfinished one must be one that cache-vis can go on with."""
    plan = parts.read_plan() if parts.folder.is_dir() else None
    if plan is None or not parts.missing(plan):
        return plan is not None
    compare_identity(plan.identity, wanted_identity(config, name), parts.folder)
    plan.wanted_by(config.cache.shard_windows, config.cache.batch_size, parts.folder)
    return False


def _check_dataset(config: Config, name: str, problems: list[SimError]) -> SplitOutline | None:
    """One batch of the user's dataset, and all labels where they come without frames.

    Raises:
        DataError, ConfigError: what `load_dataset` refuses, an empty split.
    """
    F = config.model.F
    dataset = load_dataset(config.data, name)
    N = len(dataset)
    if N == 0:
        raise DataError(f"{name}: the split is empty")
    with Noting(problems):
        own = class_weights_of(dataset, HEADS)
        check_class_weights_mode(config.training.class_weights, own)
    samples: list[dict[str, Any]] = []
    with Noting(problems):
        samples = _one_batch(config, CheckedDataset(dataset, name, F=F))
    labels = None
    if hasattr(dataset, "labels_of"):
        with Noting(problems):
            labels = read_labels(dataset, name, F)
    if not samples:
        return None
    dv = samples[0]["vis_feats"].shape[-1] if "vis_feats" in samples[0] else None
    text = _text_bytes(labels) if labels else max(_bytes(s["sample_id"]) + _bytes(s.get("group", "")) for s in samples)
    if dv is not None:
        with Noting(problems):
            check_own_dv(config, name, dv)
        return SplitOutline(name, "vis_feats", dataset, N, dv, 0, labels, text)
    frames = N * F
    if isinstance(dataset, SharesFrames):
        frames = len({frame for i in range(N) for frame in dataset.frame_ids(i)})
    return SplitOutline(name, "frames", dataset, N, None, frames, labels, text)


def _one_batch(config: Config, checked: CheckedDataset) -> list[dict[str, Any]]:
    """The windows of a training batch of features, or of one encoder call.

    Raises:
        DataError: a window that breaks the contract.
    """
    first = checked[0]
    windows = config.batch_size if "vis_feats" in first else max(1, config.cache.batch_size // config.model.F)
    samples = [first, *(checked[i] for i in range(1, min(windows, len(checked))))]
    if "vis_feats" in first:
        collate(samples)
    return samples


def _text_bytes(labels: Labels) -> int:
    return max(map(_bytes, labels.sample_id)) + max(map(_bytes, labels.group or [""]))


def _bytes(text: str) -> int:
    return len(text.encode())
