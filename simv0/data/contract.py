"""The sample contract: what a dataset must yield, checked where it enters, and how samples become a batch.

| key | what |
|---|---|
| `frames` | [F,3,H,W], uint8 0..255 or float 0..1, RGB |
| or `vis_feats` | float [F,dv] |
| `telemetry` | float [8]: ax, ay, az (m/s^2), gx, gy, gz (rad/s), v (m/s), w (rad/s) |
| `risk_id`, `reason_id`, `action_id` | int, in range |
| `weight` | optional float32 >= 0 |
| `sample_id` | optional str, unique within the split |
| `group` | optional str: the recording that a window comes from |
| `t` | optional float: seconds of the window's last frame within its recording |

A dataset whose windows share frames may also have `frame_ids(i)`, `load_frame(frame_id)` and `labels_of(i)` (all but
the frames): then each frame is read and encoded once. An id names one frame across the splits, not in one of them
only: an id in both is reported as leakage. `content_digest()` (str) lets a feature file recognise its data,
`class_weights` (dict head -> list of floats) weighs the classes, and `frame_spacing` (seconds between the frames of a
window) is kept in the checkpoint, for the robot. `where_is(i)` (str) names a sample in messages, instead of
`split[index]`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypedDict, runtime_checkable

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.utils.data import Dataset

from simv0.data.misspelt import Misspelt
from simv0.data.user_class import calling, draws_kept
from simv0.data.values import (
    check_feats,
    check_frames,
    check_label,
    check_seconds,
    check_telemetry,
    check_text,
    check_weight,
    describe,
)
from simv0.errors import DataError
from simv0.labels import HEADS

LABEL_KEYS = tuple(f"{head}_id" for head in HEADS)


class Batch(TypedDict, total=False):
    """Samples stacked; `frames` or `vis_feats`, and the labels where there are any."""

    frames: Num[Tensor, "B F 3 H W"]
    vis_feats: Float[Tensor, "B F dv"]
    telemetry: Float[Tensor, "B 8"]
    risk_id: Int[Tensor, " B"]
    reason_id: Int[Tensor, " B"]
    action_id: Int[Tensor, " B"]
    weight: Float[Tensor, " B"]
    sample_id: list[str]
    share: tuple[int, int, int]
    """With several processes: these are rows start..stop-1 of that many. An empty share holds one row as a stand-in."""


@runtime_checkable
class SharesFrames(Protocol):
    """A dataset whose windows share frames."""

    def frame_ids(self, index: int) -> Sequence[Hashable]:
        """F hashable names of the window's frames, unique across the splits."""

    def load_frame(self, frame_id: Hashable) -> Any:
        """One frame, [3,H,W]."""

    def labels_of(self, index: int) -> Mapping[str, Any]:
        """The sample without its frames."""


def place_of(dataset: Any, split: str, index: int) -> str:
    """How messages name a sample: as the dataset itself does (`where_is`: a manifest's file and line), else as
    `split[index]`.
    """
    return str(dataset.where_is(index)) if hasattr(dataset, "where_is") else f"{split}[{index}]"


def check_sample(
    sample: Any,
    split: str,
    index: int,
    *,
    F: int,
    dv: int | None = None,
    labels: bool = True,
    frames: bool = True,
    where: str | None = None,
) -> dict[str, Any]:
    """Check one sample and return it in its standard types (tensors, int, float, str; absent optional keys filled in).

    Args:
        sample: what the dataset gave.
        split: name of the split, for messages.
        index: index in the split, for messages and for the default `sample_id`.
        F: frames per window.
        dv: feature width, if known.
        labels: whether the three labels must be there.
        frames: whether `frames` or `vis_feats` must be there (`labels_of` gives neither).
        where: the sample's name in messages, where it has another than `split[index]`.

    Raises:
        DataError: one line with the place, the key, what was expected and what was found.
    """
    where = where or f"{split}[{index}]"
    if not isinstance(sample, Mapping):
        raise DataError(f"{where}: expected a dict, found {type(sample).__name__}")
    checked: dict[str, Any] = {}
    if frames:
        if ("frames" in sample) == ("vis_feats" in sample):
            raise DataError(
                f"{where}: expected one of the keys 'frames' and 'vis_feats', "
                f"found the keys {', '.join(map(str, sample)) or '(none)'}"
            )
        if "frames" in sample:
            checked["frames"] = check_frames(sample["frames"], f"{where}: frames", F)
        else:
            checked["vis_feats"] = check_feats(sample["vis_feats"], f"{where}: vis_feats", F, dv)
    checked["telemetry"] = check_telemetry(_get(sample, "telemetry", where), f"{where}: telemetry")
    for head, names in HEADS.items():
        key = f"{head}_id"
        if labels or key in sample:
            checked[key] = check_label(_get(sample, key, where), f"{where}: {key}", names)
    checked["weight"] = check_weight(sample.get("weight", 1.0), f"{where}: weight")
    checked["sample_id"] = check_text(sample.get("sample_id", str(index)), f"{where}: sample_id")
    if sample.get("group") is not None:
        checked["group"] = check_text(sample["group"], f"{where}: group")
    if sample.get("t") is not None:
        checked["t"] = check_seconds(sample["t"], f"{where}: t")
    return checked


def _get(sample: Mapping[str, Any], key: str, where: str) -> Any:
    if key in sample:
        return sample[key]
    head = key.removesuffix("_id")
    if head in HEADS and head in sample:
        numbers = ", ".join(f"{name} {number}" for number, name in enumerate(HEADS[head]))
        raise DataError(
            f"{where}: {key} is missing; found {head} {sample[head]!r:.40}: write {key}, a number ({numbers})"
        )
    found = [str(key) for key in sample if key not in ("frames", "vis_feats")]
    raise DataError(f"{where}: {key} is missing; found the keys {', '.join(found)}")


class CheckedDataset(Dataset[dict[str, Any]]):
    """A user's dataset behind the contract: whatever it gives is checked as it is read.

    `resize`, if given, is applied to a sample's frames here, so that it runs in the loader's workers. What the dataset
    draws is a function of (`seed`, epoch, index), in any process; an index alone is of epoch 0.

    Attributes:
        shares: whether windows share frames, which then have names.
        misspelt: keys of the samples read in this process.
    """

    def __init__(
        self,
        dataset: Any,
        split: str,
        *,
        F: int,
        labels: bool = True,
        resize: Callable[[Num[Tensor, "N 3 H W"]], Num[Tensor, "N 3 h w"]] | None = None,
        seed: int = 0,
    ) -> None:
        self.dataset, self.split, self.F, self.labels, self.resize = dataset, split, F, labels, resize
        self.seed, self.shares, self.misspelt = seed, isinstance(dataset, SharesFrames), Misspelt()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int] | list[tuple[int, int]]) -> list[dict[str, Any]]:
        """The samples of a batch."""
        with draws_kept():
            return [self[index] for index in indices]

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """A sample by its index, or by (epoch, index)."""
        epoch, index = index if isinstance(index, tuple) else (0, index)
        where = place_of(self.dataset, self.split, index)
        with calling(where, self.seed, epoch, index):
            given = self.dataset[index]
        self.misspelt.note(given, where)
        sample = check_sample(given, self.split, index, F=self.F, labels=self.labels, where=where)
        if self.resize is not None and "frames" in sample:
            sample["frames"] = self.resize(sample["frames"])
        return sample

    def pictures(self, index: int) -> Num[Tensor, "F 3 h w"]:
        """A window's frames.

        Raises:
            KeyError: it brings features.
        """
        frames: Tensor = self[index]["frames"]
        return frames

    def labels_of(self, index: int) -> dict[str, Any]:
        """A sample without its frames, which are read only where the dataset has no `labels_of`."""
        where, short = place_of(self.dataset, self.split, index), hasattr(self.dataset, "labels_of")
        with calling(where, 0, 0, index):
            given = self.dataset.labels_of(index) if short else self.dataset[index]
        self.misspelt.note(given, where)
        if self.shares:
            self.frame_ids(index)
        sample = check_sample(given, self.split, index, F=self.F, labels=self.labels, frames=not short, where=where)
        return {key: value for key, value in sample.items() if key not in ("frames", "vis_feats")}

    def frame_ids(self, index: int) -> list[Hashable]:
        """Names of a window's frames, where they have names.

        Raises:
            DataError: not F of them.
        """
        where = place_of(self.dataset, self.split, index)
        with calling(f"{where}, frame_ids"):
            names = list(self.dataset.frame_ids(index))
        if len(names) != self.F:
            raise DataError(f"{where}: frames: expected {self.F} (model.F), found {len(names)}")
        return names

    def load_frame(self, frame_id: Hashable) -> Num[Tensor, "3 H W"]:
        """One frame by its name."""
        with calling(f"{self.split}, frame {frame_id!r}", 0, 0, frame_id):
            frame = self.dataset.load_frame(frame_id)
        return check_frames(frame, f"{self.split}: frame {frame_id!r}")


def collate(samples: list[dict[str, Any]] | Batch) -> Batch:
    """Stack checked samples; a dataset that fetches whole batches has done so already.

    Raises:
        DataError: frames (or features) of two shapes in one batch.
    """
    if isinstance(samples, dict):
        return samples
    batch: dict[str, Any] = {
        "telemetry": torch.stack([sample["telemetry"] for sample in samples]),
        "weight": torch.tensor([sample["weight"] for sample in samples], dtype=torch.float32),
        "sample_id": [sample["sample_id"] for sample in samples],
    }
    for key in LABEL_KEYS:
        if key in samples[0]:
            batch[key] = torch.tensor([sample[key] for sample in samples], dtype=torch.int64)
    key = "frames" if "frames" in samples[0] else "vis_feats"
    for sample in samples:
        first, other = samples[0][key], sample.get(key)
        if other is None or first.shape != other.shape or first.dtype != other.dtype:
            found = "none" if other is None else describe(other)
            raise DataError(
                f"{key}: one batch needs one shape and type, found {describe(first)} in {samples[0]['sample_id']} "
                f"and {found} in {sample['sample_id']}"
            )
    batch[key] = torch.stack([sample[key] for sample in samples])
    return batch  # type: ignore[return-value]


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with its tensors on `device`."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }  # type: ignore
