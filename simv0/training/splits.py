"""The two splits as training reads them: where the features come from, their labels, their stats, their order."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from simv0.config.schema import Config
from simv0.data.contract import Batch, CheckedDataset, collate
from simv0.data.labels import Labels, read_labels
from simv0.data.loading import make_loader, started
from simv0.data.source import open_source, scale_pictures
from simv0.data.spacing import split_spacing
from simv0.data.user_class import draws_kept
from simv0.data.workers import workers_for
from simv0.errors import CacheError, DataError, SimError, unwrap
from simv0.features.identity import compare_splits, labels_digest
from simv0.features.made import cached_features
from simv0.runtime.distributed import processes, share_of, world_size
from simv0.vision.encoder import Encoder

log = logging.getLogger("simv0")

STATS_WINDOWS = 65_536
"""Features of at most so many windows, evenly spaced, give the feature stats."""
STATS_WINDOWS_RAW = 256
"""The same where every window must first be encoded."""


@dataclass(frozen=True)
class Split:
    """One split, ready to be loaded in batches."""

    name: str
    dataset: Dataset[Any]
    labels: Labels
    class_weights: dict[str, list[float]] | None
    dv: int
    identity: dict[str, Any] | None
    """Of the feature file; None where the dataset itself yields features or frames."""
    frame_spacing: float | None = None
    """Seconds between the frames of a window; None: unknown."""
    workers: int = 0
    """Processes that read it."""


def open_split(config: Config, name: str, encoder: Encoder | None = None) -> Split:
    """Open a split of the config: with an encoder the dataset's frames; else the feature file; else a dataset that
    yields `vis_feats` itself.

    Raises:
        CacheError: no feature file, or one of other data or another encoder.
        DataError: what breaks the sample contract.
    """
    cached = cached_features(config, name, config.cache.in_memory) if encoder is None else None
    if cached is None:
        return _open_dataset(config, name, encoder)
    spacing = split_spacing(config.data, cached.frame_spacing, name)
    return Split(name, cached, cached.labels, cached.class_weights, cached.dv, cached.identity, spacing)


def _open_dataset(config: Config, name: str, encoder: Encoder | None) -> Split:
    """The dataset's frames, or its own features."""
    F = config.model.F
    source = open_source(config.data, name)
    seed = config.training.seed if name == "train" else 0  # every epoch is judged on the same windows
    resize = encoder.resize if encoder is not None else None
    scale_pictures(source.dataset, encoder.smallest if encoder is not None else None)
    checked = CheckedDataset(source.dataset, name, F=F, resize=resize, seed=seed)
    if encoder is not None:
        dv = encoder.dv
    else:
        first = checked[0]
        if "vis_feats" not in first:
            raise CacheError(
                f"{config.feature_file(name)}: no feature file for split {name}; run `simv0 cache-vis` with this "
                "config first (or set model.use_cached_vis_feats=false to encode the frames in every epoch)"
            )
        dv = first["vis_feats"].shape[-1]
        check_own_dv(config, name, dv)
    labels = read_labels(source.dataset, name, F)
    workers = _workers(config, checked, encoder)
    return Split(name, checked, labels, source.class_weights, dv, None, source.frame_spacing, workers)


def _workers(config: Config, checked: CheckedDataset, encoder: Encoder | None) -> int:
    """`data.num_workers`; `auto` does without where no encoder has to be kept busy."""
    wanted = config.data.num_workers
    if encoder is None:
        return 0 if wanted == "auto" else wanted
    ahead = -(-config.batch_size // processes()) * config.model.F
    return workers_for(wanted, checked, range(len(checked)), encoder.seconds_per_frame, ahead).number


def check_own_dv(config: Config, name: str, dv: int) -> None:
    """Refuse a `model.dv` that is not the width of the dataset's own features.

    Raises:
        DataError: with both.
    """
    if config.model.dv not in (None, dv):
        raise DataError(f"{name}[0]: vis_feats are {dv} wide, but model.dv is {config.model.dv}; drop model.dv")


def check_pair(
    config: Config,
    identities: tuple[dict[str, Any] | None, dict[str, Any] | None],
    widths: tuple[int, int],
    name: str = "val",
) -> None:
    """Refuse a train and another split whose features do not belong together; without a feature file identities are
    None.

    Raises:
        CacheError: made in two ways, or one from its feature file and one from the dataset itself.
        DataError: of two widths.
    """
    train, val = identities
    if train is not None and val is not None:
        compare_splits(train, val, name)
    elif train is not None or val is not None:
        cached, other = ("train", name) if train is not None else (name, "train")
        raise CacheError(
            f"{config.cache.dir}: {cached} would come from its feature file, {other} from the dataset itself; "
            "run `simv0 cache-vis` for all, or choose another cache.dir"
        )
    if widths[0] != widths[1]:
        raise DataError(f"{name}: features of width {widths[1]}, but train has {widths[0]}")


def split_digest(split: Split) -> str:
    """sha256 over a split's labels and its feature file's identity: what a resumed run must find again."""
    facts = [labels_digest(split.labels, split.class_weights), split.identity]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class BatchOrder(Sampler[list[int]]):
    """Batches, shuffled if there is a seed; the order is a function of (seed, epoch) alone, from any step on.

    So a resumed run, or one with another number of workers or processes, sees the same batches. Where several processes
    work, each batch is theirs together, and this is the order of the shares of this one.
    """

    def __init__(self, n: int, batch_size: int, seed: int | None = None) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return -(-self.n // self.batch_size) - self.start

    def __iter__(self) -> Iterator[list[int]]:
        if self.seed is None:
            order = np.arange(self.n)
        else:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        for batch, (start, stop, _) in enumerate(self.shares(), self.start):
            at = batch * self.batch_size
            yield order[at + start : at + max(stop, start + 1)].tolist()

    def shares(self) -> Iterator[tuple[int, int, int]]:
        """`Batch.share` of every batch."""
        for at in range(self.start * self.batch_size, self.n, self.batch_size):
            total = min(self.batch_size, self.n - at)
            yield (*share_of(total), total)


class _InEpoch(Sampler[list[tuple[int, int]]]):
    """The order's batches as (epoch, index): what a dataset draws depends on both, and workers know of no epoch."""

    def __init__(self, order: BatchOrder) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(self.order.epoch, index) for index in batch] for batch in self.order)


class Batches:
    """A split's batches in `order`, whose `epoch` and `start` the caller moves; this process's shares of them."""

    def __init__(self, split: Split, order: BatchOrder) -> None:
        self.order = order
        if split.identity is not None:  # features are gathered from memory faster than a worker could send them
            self.loader: DataLoader[Batch] = make_loader(split.dataset, order, collate, 0)
        else:
            self.loader = make_loader(split.dataset, _InEpoch(order), collate, split.workers, persistent=True)

    def __iter__(self) -> Iterator[Batch]:
        if world_size() == 1:
            return started(self.loader)
        return (
            batch | {"share": share} for batch, share in zip(started(self.loader), self.order.shares(), strict=True)
        )


def train_batches(config: Config, split: Split) -> Batches:
    """Batches of the config's size, shuffled by its seed."""
    order = BatchOrder(len(split.labels), config.batch_size, config.training.seed)
    return Batches(split, order)


def eval_batches(config: Config, split: Split) -> Batches:
    """The split in its own order; a process's share of a batch is `evaluation.batch_size`."""
    order = BatchOrder(len(split.labels), config.evaluation.batch_size * world_size())
    return Batches(split, order)


@contextmanager
def no_worker_left(*all_batches: Batches) -> Iterator[None]:
    """End the loaders' workers on leaving, also where an error's traceback still holds on to them."""
    try:
        yield
    finally:
        for batches in all_batches:
            iterator: Any = batches.loader._iterator
            if iterator is not None:
                iterator._shutdown_workers()
                batches.loader._iterator = None


def telemetry_stats(telemetry: Float[np.ndarray, "N 8"]) -> tuple[Float[Tensor, "8"], Float[Tensor, "8"]]:
    """Mean and std of each channel; a channel that does not vary gets std 1."""
    values = telemetry.astype(np.float64)
    return _finish(values.mean(0), values.std(0))


def feature_stats(
    split: Split, encode: Callable[[Batch], Float[Tensor, "B F dv"]], raw: bool
) -> tuple[Float[Tensor, " dv"], Float[Tensor, " dv"]]:
    """Mean and std of each feature over a split's frames (of evenly spaced windows); std 1 where it does not vary."""
    indices = evenly_spaced(len(split.labels), STATS_WINDOWS_RAW if raw else STATS_WINDOWS)
    step = 16 if raw else 1024
    count, total, squares = 0, torch.zeros(split.dv).double(), torch.zeros(split.dv).double()
    shift: Tensor | None = None
    for batch in batches_of(split, indices, step):
        feats = encode(batch).flatten(0, 1).cpu().double()
        shift = feats.mean(0) if shift is None else shift  # sums of squares about a near mean do not cancel
        count += len(feats)
        total += (feats - shift).sum(0)
        squares += (feats - shift).square().sum(0)
    assert shift is not None
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    return _finish((mean + shift).numpy(), variance.sqrt().numpy())


def evenly_spaced(n: int, at_most: int) -> list[int]:
    """Indices of so many of n windows, the first and the last among them."""
    spread: list[int] = np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(int)).tolist()
    return spread


def batches_of(split: Split, indices: list[int], step: int) -> Iterator[Batch]:
    """Some samples of a split, `step` at a time."""
    order = [indices[at : at + step] for at in range(0, len(indices), step)]
    with draws_kept():  # a loader draws a seed for its workers
        batches = started(make_loader(split.dataset, order, collate, split.workers))
    try:
        yield from batches
    except SimError as error:
        raise unwrap(error) from None


def fetch(dataset: Any, indices: list[int]) -> Batch:
    """Some samples of a split as one batch."""
    if hasattr(dataset, "__getitems__"):
        return collate(dataset.__getitems__(indices))
    return collate([dataset[i] for i in indices])


def _finish(mean: np.ndarray, std: np.ndarray) -> tuple[Tensor, Tensor]:
    std = np.where(std <= 1e-6 * np.maximum(np.abs(mean), 1e-6), 1.0, std)
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()
