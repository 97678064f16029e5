"""A split as the user's class gives it, opened once for all who read it: cache-vis, train, evaluate and check."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from simv0.config.schema import DataConfig
from simv0.data.class_weights import class_weights_of
from simv0.data.spacing import split_spacing
from simv0.data.user_class import load_dataset, windows_in
from simv0.errors import RAISED, ConfigError
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


def check_decode(decode: str, dataset: Any) -> None:
    """Refuse `cache.decode: scaled` for a dataset that decodes its own pictures.

    Raises:
        ConfigError: naming its class.
    """
    if decode == "scaled" and not hasattr(dataset, "smallest"):
        given = type(getattr(dataset, "given", dataset))  # what a user has wrapped
        name = f"{given.__module__}.{given.__qualname__}"
        raise ConfigError(f"cache.decode: scaled is for manifests of pictures; {name} decodes its own: write full")


def scale_pictures(dataset: Any, smallest: int | None) -> None:
    """Let a dataset decode JPEGs at a smaller scale, down to a shorter side of `smallest`; None: in full.

    Raises:
        ConfigError: it cannot.
    """
    if smallest is not None:
        check_decode("scaled", dataset)
        dataset.smallest = smallest


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
