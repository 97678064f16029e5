"""Everything of a split except its pixels: read, checked as a whole, and compared with the other splits."""

import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from simv0.data.contract import LABEL_KEYS, CheckedDataset, SharesFrames, place_of
from simv0.data.user_class import draws_kept, naming, windows_in
from simv0.errors import DataError, Mistakes
from simv0.labels import HEADS

log = logging.getLogger("simv0")

KEYS = ("telemetry", *LABEL_KEYS, "weight", "sample_id", "group", "t")
"""Of a sample without its frames."""

Rows = dict[int, dict[str, Any]]
"""Index of a window -> its checked sample without frames or features."""


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

    @classmethod
    def of(cls, rows: Rows) -> "Labels":
        """Checked samples, in order; `group` and `t` where all have them."""
        columns: dict[str, Any] = {
            key: [row[key] for row in rows.values()] for key in KEYS if all(key in row for row in rows.values())
        }
        return cls.of_columns({**columns, "telemetry": np.stack([row.numpy() for row in columns["telemetry"]])})

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any]) -> "Labels":
        """Arrays or lists over the samples by the contract's keys, of which `group` and `t` may be missing."""
        return cls(
            telemetry=columns["telemetry"],
            ids={head: np.asarray(columns[f"{head}_id"], np.int64) for head in HEADS},
            weight=np.asarray(columns["weight"], np.float32),
            sample_id=columns["sample_id"],
            group=columns.get("group"),
            t=np.asarray(columns["t"], np.float64) if "t" in columns else None,
        )

    def columns(self) -> dict[str, Any]:
        """What `of_columns` takes: arrays, and lists of texts."""
        ids = {f"{head}_id": self.ids[head] for head in HEADS}
        texts_and_times = {"sample_id": self.sample_id, "group": self.group, "t": self.t}
        columns = {"telemetry": self.telemetry, **ids, "weight": self.weight, **texts_and_times}
        return {key: column for key, column in columns.items() if column is not None}

    def __getitem__(self, rows: slice) -> "Labels":
        return self.of_columns({key: column[rows] for key, column in self.columns().items()})

    @classmethod
    def joined(cls, parts: Sequence["Labels"]) -> "Labels":
        """The samples of several parts, one after the other; shards of an older version have no `t`."""
        if len(parts) == 1:
            return parts[0]
        tables = [part.columns() for part in parts]
        keys = set.intersection(*map(set, tables))
        return cls.of_columns({key: _joined([table[key] for table in tables]) for key in keys})


def _joined(columns: list[Any]) -> Any:
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    return [text for column in columns for text in column]


def read_labels(dataset: Any, split: str, F: int) -> Labels:
    """Read the labels and the telemetry of a whole split: with `labels_of` if the dataset has it, else by reading every
    sample once.

    Raises:
        DataError: what `check_sample` and `check_labels` refuse.
    """
    N = windows_in(dataset, split)
    if not hasattr(dataset, "labels_of"):
        log.info("%s: reading all %d windows for their labels (define labels_of on the class to avoid this)", split, N)
    checked = CheckedDataset(dataset, split, F=F)
    return check_labels(_read(checked, N), split, dataset)


def check_windows(dataset: Any, split: str, F: int) -> None:
    """Check all of a split but pictures and labels, where the dataset gives that without its pictures.

    Raises:
        DataError: what `check_sample` refuses, every kind once; a `sample_id` twice.
    """
    if hasattr(dataset, "labels_of"):
        checked = CheckedDataset(dataset, split, F=F, labels=False)
        check_unique(_read(checked, windows_in(dataset, split)), split, dataset)


def _read(checked: CheckedDataset, N: int) -> Rows:
    """Every sample without its pictures."""
    rows, mistakes = read_rows(checked.labels_of, range(N))
    checked.misspelt.warn()
    mistakes.tell()
    return rows


def read_rows(read: Callable[[int], dict[str, Any]], indices: Iterable[int]) -> tuple[Rows, Mistakes]:
    """Read some samples, skipping those that are wrong, until there are enough mistakes."""
    rows: Rows = {}
    mistakes = Mistakes()
    with draws_kept():
        for i in indices:
            with mistakes:
                rows[i] = read(i)
            if mistakes.enough:
                break
    return rows, mistakes


def check_labels(rows: Rows, split: str, dataset: Any = None) -> Labels:
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
    for key in ("group", "t"):
        have, lack = ([i for i, row in rows.items() if (key in row) is given] for given in (True, False))
        if have and lack:
            without, first = (place_of(dataset, split, found[0]) for found in (lack, have))
            raise DataError(f"{without}: {key} is missing, but {first} has one; set it on all samples or on none")
    labels = Labels.of(rows)
    if not labels.weight.any():
        raise DataError(f"{split}: all {len(rows)} weights are zero; nothing would be learned")
    return labels


def check_unique(rows: Rows, split: str, dataset: Any = None) -> None:
    """Refuse a `sample_id` that occurs twice.

    Raises:
        DataError: naming both places.
    """
    first_at: dict[str, int] = {}
    for i, row in rows.items():
        earlier = first_at.setdefault(row["sample_id"], i)
        if earlier != i:
            here, there = (place_of(dataset, split, at) for at in (i, earlier))
            raise DataError(
                f"{here}: sample_id {row['sample_id']!r} already appears at {there}; "
                "sample_ids must be unique within a split"
            )


def find_leakage(
    train: Any,
    val: Any,
    train_group: list[str] | None,
    val_group: list[str] | None,
    *,
    names: tuple[str, str] = ("train", "val"),
) -> list[str]:
    """A warning for each kind of thing that two splits share: then the figures of the second flatter.

    Recordings and frames are compared.

    Args:
        train: its dataset, or None.
        val: the other split's dataset, or None.
        train_group: recording of each window, where known.
        val_group: the same of the other split.
        names: of both.
    """
    first, name = names
    found = []
    shared_groups = sorted(set(train_group or []) & set(val_group or []))
    if shared_groups:
        what = f"{_appear(shared_groups, 'group')} in both {first} and {name} (first: {shared_groups[0]!r})"
        found.append(leak(what, name))
    if isinstance(train, SharesFrames) and isinstance(val, SharesFrames) and type(train) is type(val):
        seen = set(frames_of(train, first))
        shared = [frame for frame in frames_of(val, name) if frame in seen]
        if shared:
            what = f"{_appear(set(shared), 'frame')} in both {first} and {name} (first: {shared[0]})"
            found.append(leak(what, name))
    return found


def _appear(found: Collection[Hashable], noun: str) -> str:
    return f"1 {noun} appears" if len(found) == 1 else f"{len(found)} {noun}s appear"


def leak(what: str, name: str) -> str:
    """The warning of something that train and another split share."""
    return f"LEAKAGE: {what}; the {name} figures will flatter the model. Split by recording."


def same_telemetry(train: Labels, other: Labels) -> list[tuple[int, int]]:
    """(window of the other split, window of train) for each of its windows whose eight numbers are in train too, to the
    last bit: unless that is chance, they are one window under two names.
    """
    seen = {row.tobytes(): i for i, row in enumerate(np.asarray(train.telemetry, np.float32))}
    rows = [row.tobytes() for row in np.asarray(other.telemetry, np.float32)]
    return [(i, seen[row]) for i, row in enumerate(rows) if row in seen]


def frames_of(dataset: SharesFrames, split: str) -> Iterator[Hashable]:
    """The names of every window's frames, in order."""
    for i in range(len(dataset)):  # type: ignore[arg-type]
        with naming(f"{place_of(dataset, split, i)}, frame_ids"):
            names = dataset.frame_ids(i)
        yield from names
