"""Recordings divided among splits."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simv0.data.division.divide import EVERY, divide

SHARES = {2: [0.8, 0.2], 3: [0.7, 0.2, 0.1]}


def with_totals(classes: list[list[int]]) -> np.ndarray:
    """Windows of each recording: all (one class of a head a window, at least one window), then by class."""
    table = np.array(classes)
    return np.column_stack([table.sum(1) + 1, table])


def missing(split_of: object, windows: np.ndarray, parts: int) -> list[int]:
    """How many classes that occur each part lacks; counting a part without any window as one more."""
    occurring = {c for c in range(windows.shape[1]) if any(row[c] for row in windows)}
    has = [
        {c for row, split in zip(windows, split_of, strict=True) if split == p for c in occurring if row[c]}  # type: ignore[call-overload]
        for p in range(parts)
    ]
    return [len(occurring - found) for found in has]


tables = st.integers(1, 5).flatmap(
    lambda classes: st.lists(
        st.lists(st.sampled_from([0, 0, 1, 7, 300]), min_size=classes, max_size=classes), min_size=3, max_size=6
    )
)


@settings(max_examples=150, deadline=None)
@given(tables, st.sampled_from([2, 3]), st.integers(0, 3))
def test_no_division_of_few_recordings_misses_fewer_classes(classes: list[list[int]], parts: int, seed: int) -> None:
    """By going through all of them; of equal ones, train lacks least, then val."""
    windows = with_totals(classes)
    best = min(
        (sum(lacks), lacks) for d in product(range(parts), repeat=len(windows)) if (lacks := missing(d, windows, parts))
    )
    lacks = missing(divide(windows, SHARES[parts], seed), windows, parts)
    assert (sum(lacks), lacks) == best


@settings(max_examples=8, deadline=None)
@given(st.data(), st.sampled_from([2, 3]), st.integers(18, 60))
def test_where_a_division_has_every_class_everywhere_one_is_found(data: st.DataObject, parts: int, count: int) -> None:
    """Of too many recordings to try all: each class is in one recording of each planted part, and few others."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    assert parts**count > EVERY
    planted = rng.permutation(np.arange(count) % parts)
    classes = (rng.random((count, 12)) < 0.05) * rng.integers(1, 50, (count, 12))
    for column in range(12):
        for part in range(parts):
            classes[rng.choice(np.flatnonzero(planted == part)), column] = rng.integers(1, 50)
    windows = with_totals(classes.tolist())
    assert missing(divide(windows, SHARES[parts]), windows, parts) == [0] * parts


def test_the_most_even_of_the_complete_divisions_is_taken() -> None:
    windows = np.array([[10, 10], [20, 20], [30, 30], [40, 40]])
    assert divide(windows, [0.6, 0.4]).tolist() in ([0, 0, 0, 1], [1, 0, 1, 0])
    assert divide(windows, [0.9, 0.1]).tolist() == [1, 0, 0, 0]


def test_a_huge_recording_goes_to_train() -> None:
    windows = np.array([[10, 5], [10_000, 5_000], [12, 6]])
    assert divide(windows, [0.8, 0.2]).tolist()[1] == 0
    many = np.array([[1_000_000, 5], *[[10, 1]] * 40])
    split_of = divide(many, [0.8, 0.2])
    assert split_of[0] == 0
    assert (split_of == 1).sum() == 9  # of windows val gets too few, of the class its share


def test_a_class_of_one_recording_goes_to_train() -> None:
    for seed in range(5):
        assert divide(np.array([[100, 50, 0], [10, 5, 2], [90, 45, 0], [80, 45, 0]]), [0.6, 0.4], seed)[1] == 0


@pytest.mark.parametrize(("count", "seeds"), [(12, (0, 0, 1, 2, 3)), (100, (0, 0, 1)), (10_000, (0,))])
def test_the_seed_decides_and_the_shares_are_met(count: int, seeds: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    windows = with_totals(rng.integers(1, 100, (count, 4)).tolist())
    found = [divide(windows, [0.7, 0.2, 0.1], seed) for seed in seeds]
    assert (found[0] == found[1 % len(seeds)]).all()
    assert len({split_of.tobytes() for split_of in found}) > (len(seeds) > 1)
    for split_of in found:
        shares = np.array([windows[split_of == part].sum(0) for part in range(3)]) / windows.sum(0)
        off = np.abs(shares - np.array([[0.7], [0.2], [0.1]]))
        assert off[:, 0].max() < 0.05
        assert off.max() < 0.1
