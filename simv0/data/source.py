"""A split as the user's class gives it, opened once for all who read it: cache-vis, train, evaluate and check."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from simv0.config.schema import DataConfig
from simv0.data.class_weights import class_weights_of
from simv0.data.spacing import split_spacing
from simv0.data.user_class import load_dataset, windows_in
from simv0.errors import RAISED
from simv0.labels import HEADS


@dataclass(frozen=True)
class Source:
    """A split's dataset, and what it says of all its windows; none of them has been read.

    Attributes:
        class_weights: the dataset's own, or None.
        frame_spacing: seconds between the frames of a window; None: unknown.
    """

    name: str
    dataset: Any
    windows: int
    class_weights: dict[str, list[float]] | None
    frame_spacing: float | None


def open_source(data: DataConfig, name: str, errors: AbstractContextManager[None] = RAISED) -> Source:
    """Build the user's dataset of a split and ask what it says of itself.

    Raises:
        ConfigError: no such class, or it refuses its arguments.
        DataError: an empty split.
        ConfigError, DataError: through `errors`: class weights or a spacing that cannot be.
    """
    dataset = load_dataset(data, name)
    windows, weights, spacing = windows_in(dataset, name), None, None
    with errors:
        weights = class_weights_of(dataset, HEADS)
    with errors:
        spacing = split_spacing(data, getattr(dataset, "frame_spacing", None), name)
    return Source(name, dataset, windows, weights, spacing)
