"""Everything of a split but its pixels: read, checked as a whole, compared with the other split."""

import logging
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from simv0.data.contract import SharesFrames, check_frame_count, check_sample, place_of
from simv0.data.misspelt import Misspelt
from simv0.data.user_class import draws_kept, naming, seed_draws, windows_in
from simv0.errors import DataError, Mistakes
from simv0.labels import HEADS

log = logging.getLogger("simv0")


@dataclass(frozen=True)
class Labels:
    """Everything of a split but its pixels, as arrays over its N samples."""

    telemetry: Float[np.ndarray, "N 8"]
    ids: dict[str, Int[np.ndarray, " N"]]
    weight: Float[np.ndarray, " N"]
    sample_id: list[str]
    group: list[str] | None
    t: Float[np.ndarray, " N"] | None = None

    def __len__(self) -> int:
        return len(self.sample_id)


def read_labels(dataset: Any, split: str, F: int) -> Labels:
    """Read the labels and the telemetry of a whole split: by `labels_of` where the dataset has it, else by reading
    every sample once.

    Raises:
        DataError: what `check_sample` and `check_labels` refuse.
    """
    N, short = windows_in(dataset, split), hasattr(dataset, "labels_of")
    if not short:
        log.info("%s: reading all %d windows for their labels (define labels_of on the class to avoid this)", split, N)
    rows = _read(dataset, split, F, N, short)
    return check_labels(rows, split, dataset)


def check_windows(dataset: Any, split: str, F: int) -> None:
    """Check all of a split but pictures and labels, where the dataset gives that without its pictures.

    Raises:
        DataError: what `check_sample` refuses, every kind once; a `sample_id` twice.
    """
    if hasattr(dataset, "labels_of"):
        check_unique(_read(dataset, split, F, windows_in(dataset, split), True, labels=False), split, dataset)


def _read(dataset: Any, split: str, F: int, N: int, short: bool, labels: bool = True) -> list[dict[str, Any]]:
    """Every sample without its pictures, checked; by `labels_of` if `short`."""
    named = isinstance(dataset, SharesFrames)
    rows: list[dict[str, Any]] = []
    mistakes, misspelt = Mistakes(), Misspelt()
    with draws_kept():
        for i in range(N):
            with mistakes:
                seed_draws(0, 0, i)
                where = place_of(dataset, split, i)
                with naming(where):
                    names = dataset.frame_ids(i) if named else None
                    given = dataset.labels_of(i) if short else dataset[i]
                misspelt.note(given, where)
                if names is not None:
                    check_frame_count(names, where, F)
                sample = check_sample(given, split, i, F=F, labels=labels, frames=not short, where=where)
                rows.append({key: value for key, value in sample.items() if key not in ("frames", "vis_feats")})
            if mistakes.enough:
                break
    misspelt.warn()
    mistakes.tell()
    return rows


def check_labels(rows: list[dict[str, Any]], split: str, dataset: Any = None) -> Labels:
    """Check what only a whole split can show, and return it as arrays.

    Args:
        rows: its checked samples, in order.
        split: its name.
        dataset: names the samples in messages, if it can.

    Raises:
        DataError: an empty split, a `sample_id` twice, all weights zero, `group` or `t` on some samples only.
    """
    if not rows:
        raise DataError(f"{split}: the split is empty")
    check_unique(rows, split, dataset)
    weight = np.array([row["weight"] for row in rows], np.float32)
    if not weight.any():
        raise DataError(f"{split}: all {len(rows)} weights are zero; nothing would be learned")
    group, t = _all_or_none(rows, "group", split, dataset), _all_or_none(rows, "t", split, dataset)
    return Labels(
        telemetry=np.stack([row["telemetry"].numpy() for row in rows]),
        ids={head: np.array([row[f"{head}_id"] for row in rows], np.int64) for head in HEADS},
        weight=weight,
        sample_id=[row["sample_id"] for row in rows],
        group=group,
        t=None if t is None else np.array(t, np.float64),
    )


def _all_or_none(rows: list[dict[str, Any]], key: str, split: str, dataset: Any) -> list[Any] | None:
    """The values of an optional key; None where no row has it."""
    have = [key in row for row in rows]
    if not any(have):
        return None
    if not all(have):
        without, first = (place_of(dataset, split, have.index(given)) for given in (False, True))
        raise DataError(f"{without}: {key} is missing, but {first} has one; set it on all samples or on none")
    return [row[key] for row in rows]


def check_unique(rows: list[dict[str, Any]], split: str, dataset: Any = None) -> None:
    """Refuse a `sample_id` that stands twice.

    Raises:
        DataError: naming both places.
    """
    first_at: dict[str, int] = {}
    for i, row in enumerate(rows):
        earlier = first_at.setdefault(row["sample_id"], i)
        if earlier != i:
            here, there = (place_of(dataset, split, at) for at in (i, earlier))
            raise DataError(
                f"{here}: sample_id {row['sample_id']!r} already appears at {there}; "
                "sample_ids must be unique within a split"
            )


def warn_of_leakage(
    train: Any,
    val: Any,
    train_group: list[str] | None,
    val_group: list[str] | None,
    *,
    names: tuple[str, str] = ("train", "val"),
) -> list[str]:
    """Warn, loudly, when two splits share recordings or frames: then the figures of the second flatter.

    Returns the warnings, which are also logged.
    """
    warnings = find_leakage(train, val, train_group, val_group, names=names)
    for warning in warnings:
        log.warning(warning)
    return warnings


def find_leakage(
    train: Any,
    val: Any,
    train_group: list[str] | None,
    val_group: list[str] | None,
    *,
    names: tuple[str, str] = ("train", "val"),
) -> list[str]:
    """What two splits share, one line each kind: recordings, frames.

    Args:
        train: its dataset, or None.
        val: the other split's dataset, or None.
        train_group: recording of each window, where known.
        val_group: the same of the other split.
        names: of both.
    """
    first, name = names
    warnings = []
    shared_groups = sorted(set(train_group or []) & set(val_group or []))
    if shared_groups:
        warnings.append(
            f"LEAKAGE: {len(shared_groups)} groups appear in both {first} and {name} (first: {shared_groups[0]!r}); "
            f"the {name} figures will flatter the model. Split by recording."
        )
    if isinstance(train, SharesFrames) and isinstance(val, SharesFrames) and type(train) is type(val):
        seen = set(frames_of(train, first))
        shared = [frame for frame in frames_of(val, name) if frame in seen]
        if shared:
            warnings.append(
                f"LEAKAGE: {len(set(shared))} frames appear in both {first} and {name} (first: {shared[0]}); "
                f"the {name} figures will flatter the model. Split by recording."
            )
    return warnings


def frames_of(dataset: SharesFrames, split: str) -> Iterator[Hashable]:
    """The names of every window's frames, in order."""
    for i in range(len(dataset)):  # type: ignore[arg-type]
        with naming(f"{place_of(dataset, split, i)}, frame_ids"):
            names = dataset.frame_ids(i)
        yield from names
