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

A dataset whose windows share frames may also have `frame_ids(i)`, `load_frame(frame_id)` and `labels_of(i)` (all but
the frames): then each frame is read and encoded once. An id names one frame across the splits, not in one of them
only: an id in both is reported as leakage. `content_digest()` (str) lets a feature file know its data again,
`class_weights` (dict head -> list of floats) weighs the classes, and `frame_spacing` (seconds between the frames of a
window) is kept in the checkpoint, for the robot.
"""

import difflib
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.utils.data import Dataset

from simv0.errors import DataError
from simv0.labels import HEADS, TELEMETRY
from simv0.own_class import calling

LABEL_KEYS = tuple(f"{head}_id" for head in HEADS)
KNOWN_KEYS = frozenset({"frames", "vis_feats", "telemetry", *LABEL_KEYS, "weight", "sample_id", "group", "t"})


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
    """Where several processes work: these are the rows start..stop-1 of so many. Without any, one row stands in."""


@runtime_checkable
class SharesFrames(Protocol):
    """A dataset whose windows share frames."""

    def frame_ids(self, index: int) -> Sequence[Hashable]:
        """F hashable names of the window's frames, unique across the splits."""

    def load_frame(self, frame_id: Hashable) -> Any:
        """One frame, [3,H,W]."""

    def labels_of(self, index: int) -> Mapping[str, Any]:
        """The sample without its frames."""


def check_sample(
    sample: Any, split: str, index: int, *, F: int, dv: int | None = None, labels: bool = True, frames: bool = True
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

    Raises:
        DataError: one line with split, index, key, what was expected and what was found.
    """
    where = f"{split}[{index}]"
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
            checked["vis_feats"] = _check_feats(sample["vis_feats"], f"{where}: vis_feats", F, dv)
    checked["telemetry"] = _check_telemetry(_get(sample, "telemetry", where), f"{where}: telemetry")
    for head, names in HEADS.items():
        key = f"{head}_id"
        if labels or key in sample:
            checked[key] = _check_label(_get(sample, key, where), f"{where}: {key}", names)
    checked["weight"] = _check_weight(sample.get("weight", 1.0), f"{where}: weight")
    checked["sample_id"] = _check_text(sample.get("sample_id", str(index)), f"{where}: sample_id")
    if sample.get("group") is not None:
        checked["group"] = _check_text(sample["group"], f"{where}: group")
    return checked


def misspelt_keys(sample: Any) -> dict[str, str]:
    """Keys of a sample that are none of the contract's, but nearly: key -> the one that was meant."""
    if not isinstance(sample, Mapping):
        return {}
    found = {}
    for key in sample.keys() - KNOWN_KEYS:
        near = _nearest_key(str(key))
        if near is not None and near not in sample:
            found[str(key)] = near
    return found


@functools.cache
def _nearest_key(key: str) -> str | None:
    return next(iter(difflib.get_close_matches(key, KNOWN_KEYS, n=1, cutoff=0.8)), None)


def check_frame_count(names: Sequence[Hashable], split: str, index: int, F: int) -> None:
    """Refuse a window that does not name F frames.

    Raises:
        DataError: with both numbers.
    """
    if len(names) != F:
        raise DataError(f"{split}[{index}]: frames: expected {F} (model.F), found {len(names)}")


def check_frames(value: Any, where: str, F: int | None = None) -> Tensor:
    """Check frames [F,3,H,W] (or one frame [3,H,W] with `F=None`): uint8, or float 0..1 returned as float32.

    Raises:
        DataError: naming `where`.
    """
    expected = f"[{F},3,H,W]" if F is not None else "[3,H,W]"
    tensor = _as_tensor(value, where, f"uint8 or float {expected}")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise DataError(f"{where}: expected uint8 0..255 or float 0..1, found {_describe(tensor)}")
    if F is not None and tensor.ndim == 4 and tensor.shape[1] == 3 and len(tensor) != F:
        raise DataError(f"{where}: expected {F} (model.F), found {len(tensor)}")
    lead = [F] if F is not None else []
    if tensor.ndim != len(lead) + 3 or list(tensor.shape[:-2]) != [*lead, 3] or 0 in tensor.shape:
        turned = tensor.ndim == len(lead) + 3 and tensor.shape[-1] == 3 and tensor.shape[-3] != 3
        axes = ", ".join(map(str, [*range(len(lead)), *(len(lead) + i for i in (2, 0, 1))]))
        remedy = f"; put the channels first: permute({axes}), in numpy transpose({axes})" if turned else ""
        raise DataError(f"{where}: expected {expected}, found {_describe(tensor)}{remedy}")
    if tensor.dtype == torch.uint8:
        return tensor
    tensor = tensor.float()
    low, high = tensor.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise DataError(f"{where}: holds NaN or inf")
    if low < 0 or high > 1:
        raise DataError(f"{where}: float frames must lie in 0..1, found {low:.4g}..{high:.4g}; give uint8 for 0..255")
    return tensor


def _check_feats(value: Any, where: str, F: int, dv: int | None) -> Tensor:
    expected = f"float [{F},{'dv' if dv is None else dv}]"
    tensor = _as_tensor(value, where, expected)
    good = tensor.is_floating_point() and tensor.ndim == 2 and tensor.shape[0] == F and tensor.shape[1] > 0
    if not good or (dv is not None and tensor.shape[1] != dv):
        raise DataError(f"{where}: expected {expected}, found {_describe(tensor)}")
    return _finite(tensor, where)


def _check_telemetry(value: Any, where: str) -> Float[Tensor, "8"]:
    expected = f"float [{len(TELEMETRY)}] ({', '.join(TELEMETRY)})"
    tensor = _as_tensor(value, where, expected)
    if not tensor.is_floating_point() or tensor.shape != (len(TELEMETRY),):
        raise DataError(f"{where}: expected {expected}, found {_describe(tensor)}")
    tensor = tensor.float()
    bad = [name for name, good in zip(TELEMETRY, torch.isfinite(tensor).tolist(), strict=True) if not good]
    if bad:
        raise DataError(f"{where}: holds NaN or inf in {', '.join(bad)}")
    return tensor


def _check_label(value: Any, where: str, names: tuple[str, ...]) -> int:
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        numbers = f"0..{len(names) - 1} ({', '.join(names)})"
        raise DataError(f"{where}: expected an int {numbers}, found {type(value).__name__} {value!r:.40}")
    if not 0 <= value < len(names):
        raise DataError(f"{where}: expected 0..{len(names) - 1} ({', '.join(names)}), found {int(value)}")
    return int(value)


def _check_weight(value: Any, where: str) -> float:
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{where}: expected a float >= 0, found {type(value).__name__} {value!r:.60}")
    if not 0 <= value <= torch.finfo(torch.float32).max:
        raise DataError(f"{where}: expected a finite float32 >= 0, found {value!s:.60}")
    return float(value)


def _check_text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: expected a text, found {type(value).__name__} {value!r}")
    if "\0" in value or (not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise DataError(f"{where}: expected a text without NUL and lone surrogates, found {value!r}")
    return value


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


def _as_tensor(value: Any, where: str, expected: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)  # messages and files may be big-endian
        # A copy where numpy's own memory is read-only (a memmap, a frozen array), of which torch would warn, or runs
        # backwards (a view such as frame[..., ::-1]), which torch cannot.
        as_it_is = array.flags.writeable and min(array.strides, default=0) >= 0
        return torch.from_numpy(array if as_it_is else array.copy())
    except (TypeError, ValueError):
        raise DataError(f"{where}: expected {expected}, found {type(value).__name__}") from None


def _finite(tensor: Tensor, where: str) -> Tensor:
    if not torch.isfinite(tensor).all():
        bad = (~torch.isfinite(tensor)).nonzero()[0].tolist()
        raise DataError(f"{where}: holds NaN or inf, first at {bad}")
    return tensor


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} [{','.join(map(str, tensor.shape))}]"


class CheckedDataset(Dataset[dict[str, Any]]):
    """A user's dataset behind the contract: every sample is checked as it is read.

    `resize`, if given, is applied to frames here, so that it runs in the loader's workers. What the dataset draws is a
    function of (`seed`, epoch, index), in any process; an index alone is of epoch 0.
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
        self.seed = seed
        self.misspelt: dict[str, str] = {}
        """Of the samples read in this process."""

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """A sample by its index, or by (epoch, index)."""
        epoch, index = index if isinstance(index, tuple) else (0, index)
        with calling(f"{self.split}[{index}]", self.seed, epoch, index):
            given = self.dataset[index]
        self.misspelt |= misspelt_keys(given)
        sample = check_sample(given, self.split, index, F=self.F, labels=self.labels)
        if self.resize is not None and "frames" in sample:
            sample["frames"] = self.resize(sample["frames"])
        return sample


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
            found = "none" if other is None else _describe(other)
            raise DataError(
                f"{key}: one batch needs one shape and type, found {_describe(first)} in {samples[0]['sample_id']} "
                f"and {found} in {sample['sample_id']}"
            )
    batch[key] = torch.stack([sample[key] for sample in samples])
    return batch  # type: ignore[return-value]
