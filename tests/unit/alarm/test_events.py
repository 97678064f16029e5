"""Events and their alarm: runs by hand, and the confirmed alarm of any threshold out of one replay."""

import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simv0.alarm.confirmation import Confirmation
from simv0.alarm.events import Timeline, best, replay, runs, timeline

T = np.array([0.2, 0.0, 0.4, 5.0, 5.2, 0.0, 1.0, 2.0, 4.0])
"""Recording b out of order and with a gap after 0.4 s; a with one window lost after 2 s."""
GROUP = ["b"] * 5 + ["a"] * 4


def line(group: list[str], t: list[float] | np.ndarray) -> Timeline:
    made = timeline(group, np.asarray(t, np.float64))
    assert isinstance(made, Timeline)
    return made


def test_windows_in_order_with_their_hops_gaps_and_seconds() -> None:
    made = line(GROUP, T)
    assert made.names == ["a", "b"]
    assert made.order.tolist() == [5, 6, 7, 8, 1, 0, 2, 3, 4]
    assert made.hop == pytest.approx([1.0, 0.2])
    assert made.follows.tolist() == [False, True, True, True, False, True, True, False, True]
    assert made.seconds == pytest.approx([1.0, 1.0, 2.0, 1.0, 0.2, 0.2, 0.2, 0.2, 0.2])


def test_an_event_is_a_run_of_high_windows_of_one_recording_without_a_gap() -> None:
    made = line(GROUP, T)
    high = np.array([0, 0, 0, 1, 1, 0, 1, 1, 1], bool)  # the last of a, the first of b; b's third, then a gap
    assert runs(made, high).tolist() == [[3, 4], [4, 5], [6, 7], [7, 9]]
    assert runs(made, np.ones(9, bool)).tolist() == [[0, 4], [4, 7], [7, 9]]
    assert runs(made, np.zeros(9, bool)).shape == (0, 2)
    assert best(np.arange(9.0), runs(made, high)).tolist() == [3, 4, 6, 8]


def test_each_recording_begins_anew_and_old_scores_confirm_nothing() -> None:
    made = line(["a", "a", "b", "b", "b", "b"], [0, 1, 0, 1, 9, 10])
    levels = replay(made, np.full(6, 0.7), (2, 3), 0.8)
    assert levels.tolist() == [-math.inf, 0.7, -math.inf, 0.7, 0.7, 0.7]  # raised before the gap: it stays
    late = np.array([0.7, 0.7, 0.1, 0.7, 0.7, 0.1])
    assert replay(made, late, (2, 3), 0.8)[2:] == pytest.approx([-math.inf, 0.1, 0.1, 0.1])
    assert replay(made, late, (2, 3), 0.8, spacing=8 / 3)[2:] == pytest.approx([-math.inf, 0.1, 0.7, 0.7])


@pytest.mark.parametrize(
    ("group", "t", "why"),
    [
        (None, None, "the windows have no group and no t: give each its recording as `group` and the seconds of its"),
        (["a", "a"], None, "the windows have no t: "),
        (None, [0.0, 1.0], "the windows have no group: "),
        (["a", "b"], [0.0, 1.0], "no recording has two windows: "),
        (["a", "b", "a"], [2.0, 1.0, 2.0], "two windows of 'a' end at t = 2.000 s: "),
    ],
)
def test_why_there_is_no_timeline(group: list[str] | None, t: list[float] | None, why: str) -> None:
    made = timeline(group, None if t is None else np.array(t))
    assert isinstance(made, str)
    assert made.startswith(why)


@given(
    scores=st.lists(st.integers(0, 16), min_size=1, max_size=30),
    gaps=st.lists(st.sampled_from([1.0, 1.0, 1.0, 5.0]), min_size=30, max_size=30),
    m=st.integers(1, 5),
    data=st.data(),
)
def test_one_level_says_for_every_threshold_what_the_rule_says(
    scores: list[int], gaps: list[float], m: int, data: st.DataObject
) -> None:
    """Against the rule in its own words, counted at each threshold; sixteenths and halves are exact in floats."""
    n, release = data.draw(st.integers(1, m)), data.draw(st.sampled_from([0.5, 1.0]))
    alarm, t = Confirmation((n, m), release, stale_after=3.0), np.cumsum(gaps)
    levels = [alarm.update(score / 16, float(at)) for score, at in zip(scores, t, strict=False)]
    for threshold in np.arange(33) / 32:
        kept: deque[float] = deque(maxlen=m)
        raised = False
        for i, score in enumerate(scores):
            if i and gaps[i] > 3:
                kept.clear()
            kept.append(score / 16)
            if sum(p >= threshold for p in kept) >= n:
                raised = True
            elif sum(p < release * threshold for p in kept) > m - n:
                raised = False
            assert (levels[i] >= threshold) == raised
