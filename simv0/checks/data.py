"""What `simv0 check` finds out about a split: where its features come from, whether a batch keeps the contract."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from simv0.checks.walk import Reader, Watch, content_of, fault_of, walk
from simv0.config.schema import Config, DataConfig
from simv0.data.class_weights import class_weights_of
from simv0.data.contract import CheckedDataset, SharesFrames
from simv0.data.labels import Labels, frames_of, read_labels
from simv0.data.manifest import ManifestDataset, labels_in, read_jsonl
from simv0.data.spacing import split_spacing
from simv0.data.user_class import file_of, load_dataset, of_user, windows_in
from simv0.errors import CacheError, SimError
from simv0.features.dataset import CachedDataset
from simv0.features.identity import check_features
from simv0.features.shards import Parts, parts_of, shard_windows_of
from simv0.features.writer import file_bytes
from simv0.labels import HEADS
from simv0.training.recipe import check_class_weights_mode
from simv0.training.splits import brings_features, check_own_dv

Facts = dict[str, Any]

MANIFEST = "simv0.datasets.ManifestDataset"


@dataclass(frozen=True)
class SplitOutline:
    """One split, before it is read as a whole.

    Attributes:
        source: what training reads: a finished feature file, the dataset's own `vis_feats`, or frames.
        dv: feature width; None for frames.
        frames: frames that must be encoded once: those of overlapping windows count once.
        labels: None where they cannot be had without reading every window.
        text_bytes: the longest sample_id and group together, of what was read.
        telemetry: of the windows that were read.
        grouped: whether they name their recordings.
        content_of: window -> a digest of its frames or features and telemetry.
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
    frames: int
    labels: Labels | None
    text_bytes: int
    telemetry: Float[np.ndarray, "N 8"]
    grouped: bool
    content_of: Callable[[int], bytes]
    read: int = 0
    contents: dict[bytes, int] = field(default_factory=dict)
    differs: bool = False
    identity: dict[str, Any] | None = None
    frame_spacing: float | None = None

    def facts(self) -> Facts:
        """For the report."""
        facts: Facts = {"source": self.source, "windows": self.windows}
        if self.source != "feature file":
            facts["windows read"] = "all" if self.read == self.windows else f"{self.read} (all with --full)"
        if self.dataset is not None and not isinstance(self.dataset, ManifestDataset):
            facts["class from"] = str(file_of(sys.modules[type(self.dataset).__module__]))
        known = f"{self.frame_spacing:g} s" if self.frame_spacing else "unknown: set data.frame_spacing for the robot"
        facts["frame spacing"] = known
        for head, names in HEADS.items():
            if self.labels is None:
                facts[head] = "not counted: that would read every window (define labels_of on the class, or use --full)"
            else:
                counts = np.bincount(self.labels.ids[head], minlength=len(names))
                facts[head] = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        return facts

    def feature_bytes(self, config: Config, dv: int) -> int:
        """Size of the feature file that cache-vis would make."""
        cache = config.cache
        block_windows = shard_windows_of(self.windows, cache.shard_windows)
        return file_bytes(self.windows, config.model.F, dv, cache.dtype, block_windows, self.text_bytes)


class ErrorCollector:
    """A `with` block that collects its SimError, every line once, instead of raising it: the next check runs. So is an
    exception of the user's class, once its traceback is logged.
    """

    def __init__(self, problems: list[SimError]) -> None:
        self.problems = problems

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception) and not isinstance(error, SimError) and of_user(error):
            error = fault_of(error)
        if not isinstance(error, SimError):
            return False
        told = {_kind(line) for problem in self.problems for line in str(problem).splitlines()}
        if new := [line for line in str(error).splitlines() if _kind(line) not in told]:
            self.problems.append(type(error)("\n".join(new)))
        return True


def _kind(line: str) -> tuple[str, str]:
    """What a line of `Mistakes` says of which split, whatever the window and however often."""
    place, _, said = line.partition(": ")
    return re.sub(r"(\[\d+\]|:\d+)$", "", place), re.sub(r" \(and \d+ more like it\)$", "", said)


def check_split(
    config: Config,
    name: str,
    problems: list[SimError],
    *,
    full: bool = False,
    watch: Watch = lambda indices, _: indices,
) -> SplitOutline | None:
    """Look at "train" or "val" as the commands would find it; None where that is not possible.

    Args:
        config: the whole config.
        name: of the split.
        problems: what is wrong is added here.
        full: read every window of a dataset.
        watch: goes through the windows that are read.
    """
    cached = None
    with ErrorCollector(problems):
        cached = finished_features(config, name) if config.model.use_cached_vis_feats else None
    with ErrorCollector(problems):
        if cached is None:
            return _check_dataset(config, name, problems, full, watch)
        with ErrorCollector(problems):
            check_class_weights_mode(config.training.class_weights, cached.class_weights)
        spacing = None
        with ErrorCollector(problems):
            spacing = split_spacing(config.data, cached.frame_spacing, name)
        labels = cached.labels
        return SplitOutline(
            name=name,
            source="feature file",
            dataset=None,
            windows=len(cached),
            dv=cached.dv,
            frames=0,
            labels=labels,
            text_bytes=_text_bytes(labels),
            telemetry=labels.telemetry,
            grouped=labels.group is not None,
            content_of=lambda i: content_of(cached[i]),
            identity=cached.identity,
            frame_spacing=spacing,
        )
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
        check_features(config, name, cached.identity, features)
    except CacheError:
        if not brings_features(config, name):  # what lies there is not of this dataset, which needs no file
            raise
        return None
    return cached


def _all_shards(config: Config, name: str, parts: Parts) -> bool:
    """Whether a folder of shards is finished; an unfinished one must be one that cache-vis can resume."""
    plan = parts.read_plan() if parts.folder.is_dir() else None
    if plan is None or not parts.missing(plan):
        return plan is not None
    check_features(config, name, plan.identity, parts.folder)
    plan.wanted_by(config.cache.shard_windows, config.cache.batch_size, parts.folder)
    return False


def _check_dataset(
    config: Config, name: str, problems: list[SimError], full: bool, watch: Watch
) -> SplitOutline | None:
    """All labels of the user's dataset where they come without frames, and some of its windows, or all.

    Raises:
        DataError, ConfigError: what `load_dataset` refuses, an empty split.
    """
    F = config.model.F
    dataset = None
    with ErrorCollector(problems):
        dataset = load_dataset(config.data, name)
    if dataset is None:
        if config.data.dataset_class_path == MANIFEST:  # missing pictures need not hide wrong labels
            read_labels(_Rows(config.data, name), name, F)
        return None
    N = windows_in(dataset, name)
    with ErrorCollector(problems):
        own = class_weights_of(dataset, HEADS)
        check_class_weights_mode(config.training.class_weights, own)
    spacing = None
    with ErrorCollector(problems):
        spacing = split_spacing(config.data, getattr(dataset, "frame_spacing", None), name)
    labels = None
    if hasattr(dataset, "labels_of"):
        with ErrorCollector(problems):
            labels = read_labels(dataset, name, F)
    reader = Reader(CheckedDataset(dataset, name, F=F), by_frame=config.model.use_cached_vis_feats)
    found, mistakes = walk(reader, N, full, config.batch_size, watch)
    with ErrorCollector(problems):
        mistakes.tell()
        labels = labels or found.labels(name)
    if not found.rows:
        return None
    rows = found.rows.values()
    if labels is not None:
        text, telemetry, grouped = _text_bytes(labels), labels.telemetry, labels.group is not None
    else:
        text = max(_bytes(row["sample_id"]) + _bytes(row.get("group", "")) for row in rows)
        telemetry, grouped = np.stack([row["telemetry"].numpy() for row in rows]), all("group" in row for row in rows)
    frames = 0
    if found.dv is not None:
        with ErrorCollector(problems):
            check_own_dv(config, name, found.dv)
    else:
        frames = len(set(frames_of(dataset, name))) if isinstance(dataset, SharesFrames) else N * F
    return SplitOutline(
        name=name,
        source="frames" if found.dv is None else "vis_feats",
        dataset=dataset,
        windows=N,
        dv=found.dv,
        frames=frames,
        labels=labels,
        text_bytes=text,
        telemetry=telemetry,
        grouped=grouped,
        content_of=lambda i: reader.read(i)[1],
        read=len(found.rows),
        contents=found.contents,
        differs=0 in found.rows and _reread(config, dataset, name) not in found.contents,
        frame_spacing=spacing,
    )


class _Rows:
    """A manifest's labels, whatever has become of its pictures."""

    def __init__(self, data: DataConfig, name: str) -> None:
        self.manifest = Path(data.train_split_path if name == "train" else data.val_split_path)
        self.rows = read_jsonl(self.manifest)

    def __len__(self) -> int:
        return len(self.rows)

    where_is = ManifestDataset.where_is

    def labels_of(self, index: int) -> dict[str, Any]:
        """As `ManifestDataset.labels_of`."""
        return labels_in(self.rows[index])


def _reread(config: Config, dataset: Any, name: str) -> bytes:
    """The content of the first window, read once more."""
    checked = CheckedDataset(dataset, name, F=config.model.F)
    return Reader(checked, by_frame=config.model.use_cached_vis_feats).read(0)[1]


def _text_bytes(labels: Labels) -> int:
    return max(map(_bytes, labels.sample_id)) + max(map(_bytes, labels.group or [""]))


def _bytes(text: str) -> int:
    return len(text.encode())
