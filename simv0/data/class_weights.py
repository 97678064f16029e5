"""The weights that a dataset gives its classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from simv0.data.user_class import naming
from simv0.errors import DataError


def class_weights_of(dataset: Any, heads: Mapping[str, tuple[str, ...]]) -> dict[str, list[float]] | None:
    """The dataset's own `class_weights` (head -> one float >= 0 a class), checked; None where it has none.

    Raises:
        DataError: as `check_class_weights`.
    """
    with naming("class_weights"):
        given = getattr(dataset, "class_weights", None)
    return check_class_weights(given, heads)


def check_class_weights(given: Any, heads: Mapping[str, tuple[str, ...]]) -> dict[str, list[float]] | None:
    """Class weights (head -> one float >= 0 a class) as lists of floats; None stays None.

    Raises:
        DataError: no dict, an unknown head, no list of numbers, a wrong length, a negative or non-finite weight, all of
            them zero.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise DataError(f"class_weights: expected a dict of head -> floats, found {type(given).__name__} {given!r:.60}")
    checked = {}
    for head, weights in given.items():
        if head not in heads:
            raise DataError(f"class_weights: unknown head {head!r}; the heads are {', '.join(heads)}")
        expected = f"class_weights: {head}: expected {len(heads[head])} floats"
        try:
            array = np.asarray(weights.tolist() if hasattr(weights, "tolist") else list(weights))
        except (TypeError, ValueError):  # no list, or a ragged one
            raise DataError(f"{expected}, found {weights!r:.60}") from None
        if array.size and (array.ndim != 1 or array.dtype.kind not in "iuf"):
            raise DataError(f"{expected}, found {weights!r:.60}")
        if len(array) != len(heads[head]):
            raise DataError(f"{expected}, found {len(array)}")
        values = [float(weight) for weight in array]
        if not all(0 <= weight <= float(np.finfo(np.float32).max) for weight in values):
            raise DataError(f"class_weights: {head}: expected finite floats >= 0, found {values}")
        if not np.array(values, np.float32).any():
            raise DataError(f"class_weights: {head}: all zero; nothing would be learned")
        checked[head] = values
    return checked
