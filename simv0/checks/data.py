"""What `simv0 check` finds out about a split: where its features come from, and whether a batch keeps the contract."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simv0.checks.collector import ErrorCollector
from simv0.checks.walk import Reader, Watch, content_of, unwatched, walk
from simv0.config.schema import Config, DataConfig
from simv0.data.contract import CheckedDataset
from simv0.data.jsonl import read_jsonl
from simv0.data.labels import Labels, check_labels, frames_of, read_labels
from simv0.data.manifest import ManifestDataset, labels_in
from simv0.data.source import Source, check_decode, open_source
from simv0.data.spacing import split_spacing
from simv0.data.user_class import file_of
from simv0.features.dataset import CachedDataset
from simv0.features.made import are_others, cached_features, features_at
from simv0.features.shards import Parts
from simv0.labels import HEADS
from simv0.training.recipe import check_class_weights_mode
from simv0.training.splits import check_own_dv

Facts = dict[str, Any]

MANIFEST = "simv0.datasets.ManifestDataset"


@dataclass(frozen=True)
class SplitOutline:
    """One split, before it is read as a whole.

    Attributes:
        source: what training reads: a finished feature file, the dataset's own `vis_feats`, or frames.
        dv: feature width; None for frames.
        seen: labels of the windows that were read; all where that takes no frames.
        content_of: window -> a digest of its frames or features and telemetry.
        frames: frames that must be encoded once: those of overlapping windows count once.
        read: windows whose frames or features were read.
        contents: such digests of those -> the window.
        differs: whether the first window was another when it was read again.
        identity: of the feature file.
        frame_spacing: seconds between the frames of a window, where known.
    """

    name: str
    source: Literal["feature file", "vis_feats", "frames"]
    dataset: Any
    windows: int
    dv: int | None
    seen: Labels
    content_of: Callable[[int], bytes]
    frame_spacing: float | None
    frames: int = 0
    read: int = 0
    contents: dict[bytes, int] = field(default_factory=dict)
    differs: bool = False
    identity: dict[str, Any] | None = None

    @property
    def labels(self) -> Labels | None:
        """Labels of all windows; None if they are only known for those that were read."""
        return self.seen if len(self.seen) == self.windows else None

    def facts(self, class_path: str) -> Facts:
        """For the report; `class_path` is the config's."""
        facts: Facts = {"source": self.source, "windows": self.windows}
        if self.source != "feature file":
            facts["windows read"] = "all" if self.read == self.windows else f"{self.read} (all with --full)"
        if self.dataset is not None and class_path != MANIFEST:
            facts["class from"] = str(file_of(sys.modules[class_path.rpartition(".")[0]]))
        known = f"{self.frame_spacing:g} s" if self.frame_spacing else "unknown: set data.frame_spacing for the robot"
        facts["frame spacing"] = known
        for head, names in HEADS.items():
            if self.labels is None:
                facts[head] = "not counted: that would read every window (define labels_of on the class, or use --full)"
            else:
                counts = np.bincount(self.labels.ids[head], minlength=len(names))
                facts[head] = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        return facts


def check_split(
    config: Config, name: str, errors: ErrorCollector, *, full: bool = False, watch: Watch = unwatched
) -> SplitOutline | None:
    """Look at "train" or "val" as the commands would find it; None where that is not possible.

    Args:
        config: the whole config.
        name: of the split.
        errors: records what is wrong.
        full: read every window of a dataset.
        watch: goes through the windows that are read.
    """
    cached = None
    with errors:
        if config.model.use_cached_vis_feats and _is_finished(config, name):
            cached = cached_features(config, name, "never")
    with errors:
        return _check_dataset(config, name, errors, full, watch) if cached is None else _outline(config, cached, errors)
    return None


def _is_finished(config: Config, name: str) -> bool:
    """Whether cache-vis has made all features of a split; what it has begun must be what it would continue."""
    path = features_at(config, name)
    if path is None or not path.is_dir():
        return path is not None
    parts = Parts(path)
    plan = parts.read_plan()
    if plan is None or not parts.missing(plan):
        return plan is not None
    if not are_others(config, name, plan.identity, path):
        plan.wanted_by(config.cache.shard_windows, config.cache.batch_size, path)
    return False


def _outline(config: Config, cached: CachedDataset, errors: ErrorCollector) -> SplitOutline:
    """A split whose features are made."""
    name, spacing = cached.split_name, None
    with errors:
        check_class_weights_mode(config.training.class_weights, cached.class_weights)
    with errors:
        spacing = split_spacing(config.data, cached.frame_spacing, name)
    return SplitOutline(
        name,
        "feature file",
        None,
        len(cached),
        cached.dv,
        cached.labels,
        lambda i: content_of(cached[i]),
        spacing,
        identity=cached.identity,
    )


def _check_dataset(config: Config, name: str, errors: ErrorCollector, full: bool, watch: Watch) -> SplitOutline | None:
    """All labels of the user's dataset where they come without frames, and some of its windows, or all.

    Raises:
        DataError, ConfigError: what `open_source` refuses.
    """
    F, source, labels = config.model.F, None, None
    with errors:
        source = open_source(config.data, name, errors)
    if source is None:
        if config.data.dataset_class_path == MANIFEST:  # missing pictures need not hide wrong labels
            read_labels(_Rows(config.data, name), name, F)
        return None
    with errors:
        check_decode(config.cache.decode, source.dataset)
    with errors:
        check_class_weights_mode(config.training.class_weights, source.class_weights)
    if hasattr(source.dataset, "labels_of"):
        with errors:
            labels = read_labels(source.dataset, name, F)
    reader = Reader(CheckedDataset(source.dataset, name, F=F), by_frame=config.model.use_cached_vis_feats)
    found, mistakes = walk(reader, source.windows, full, watch)
    with errors:
        mistakes.tell()
        if labels is None and len(found.rows) == source.windows:
            labels = check_labels(found.rows, name, source.dataset)
    if not found.rows:
        return None
    if found.dv is not None:
        with errors:
            check_own_dv(config, name, found.dv)
    return SplitOutline(
        name,
        "frames" if found.dv is None else "vis_feats",
        source.dataset,
        source.windows,
        found.dv,
        labels or Labels.of(found.rows),
        lambda i: reader.read(i)[1],
        source.frame_spacing,
        frames=_frames_to_encode(source, reader.checked) if found.dv is None else 0,
        read=len(found.rows),
        contents=found.contents,
        differs=0 in found.rows and Reader(reader.checked, reader.by_frame).read(0)[1] not in found.contents,
    )


def _frames_to_encode(source: Source, checked: CheckedDataset) -> int:
    return len(set(frames_of(source.dataset, source.name))) if checked.shares else source.windows * checked.F


class _Rows:
    """A manifest's labels, whatever the state of its pictures."""

    where_is = ManifestDataset.where_is

    def __init__(self, data: DataConfig, name: str) -> None:
        self.manifest = Path(data.splits[name])
        self.rows = read_jsonl(self.manifest)

    def __len__(self) -> int:
        return len(self.rows)

    def labels_of(self, index: int) -> dict[str, Any]:
        """As `ManifestDataset.labels_of`."""
        return labels_in(self.rows[index])
