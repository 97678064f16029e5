"""torch's `Subset` and `ConcatDataset`, which hide what the datasets in them say of themselves."""

import hashlib
from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, Subset

from simv0.errors import DataError

METHODS = ("frame_ids", "load_frame", "labels_of", "where_is", "content_digest")


def unwrapped(dataset: Any) -> Any:
    """A `Subset` or `ConcatDataset`, however nested, with the optional members of what is in it; all else as it is.

    So is a subclass of these, which may read its windows in a way of its own.
    """
    return Wrapped(dataset) if type(dataset) in (Subset, ConcatDataset) else dataset


@dataclass(frozen=True, eq=False, repr=False)
class FrameOf:
    """The name of a frame and the part that can load it. Names are unique across parts, so it equals the bare name."""

    name: Hashable
    part: int

    def __eq__(self, other: object) -> bool:
        return bool(self.name == (other.name if isinstance(other, FrameOf) else other))

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:  # in messages, and what the frame's draws depend on
        return repr(self.name)


class Wrapped(Dataset[Any]):
    """The windows of a `Subset` or `ConcatDataset` with those optional members that all of its parts have.

    Of `class_weights` only a Subset's are kept: the parts of a ConcatDataset may each have their own.
    """

    def __init__(self, given: Any) -> None:
        self.given = given
        inside = given.datasets if isinstance(given, ConcatDataset) else [given.dataset]
        self.parts = [unwrapped(dataset) for dataset in inside]
        for name in METHODS:  # on the instance, and only what is there: others ask with hasattr
            if all(hasattr(part, name) for part in self.parts):
                setattr(self, name, getattr(self, f"_{name}"))
        if len(self.parts) == 1 and hasattr(self.parts[0], "class_weights"):
            self.class_weights = self.parts[0].class_weights

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> Any:
        return self.given[index]

    @property
    def frame_spacing(self) -> float | None:
        """Seconds between the frames of a window, of those parts that know it.

        Raises:
            DataError: they differ.
        """
        known = {part.frame_spacing for part in self.parts if getattr(part, "frame_spacing", None) is not None}
        if len(known) > 1:
            raise DataError(
                f"frame_spacing: the parts of a ConcatDataset differ: {', '.join(map(str, sorted(known)))} s; the "
                "windows of a split need one"
            )
        return next(iter(known), None)

    def _at(self, index: int) -> tuple[int, int]:
        """The part that a window is in, and its index there."""
        if isinstance(self.given, Subset):
            return 0, int(self.given.indices[index])
        ends = self.given.cumulative_sizes
        part = bisect_right(ends, index)
        return part, index - (ends[part - 1] if part else 0)

    def _frame_ids(self, index: int) -> Sequence[Hashable]:
        part, i = self._at(index)
        names: Sequence[Hashable] = self.parts[part].frame_ids(i)
        return names if len(self.parts) == 1 else [FrameOf(name, part) for name in names]

    def _load_frame(self, frame: Any) -> Any:
        return (
            self.parts[0].load_frame(frame) if len(self.parts) == 1 else self.parts[frame.part].load_frame(frame.name)
        )

    def _labels_of(self, index: int) -> Any:
        part, i = self._at(index)
        return self.parts[part].labels_of(i)

    def _where_is(self, index: int) -> str:
        part, i = self._at(index)
        return str(self.parts[part].where_is(i))

    def _content_digest(self) -> str:
        said = [part.content_digest() for part in self.parts]
        said += map(int, self.given.indices) if isinstance(self.given, Subset) else []
        return hashlib.sha256(repr(said).encode()).hexdigest()
