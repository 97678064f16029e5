"""What can be promised: the test against scipy, MAPIE and a definition by hand, and promises that are kept."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.alarm import SETTINGS, VOID, hostile, simulate
from simv0.alarm.hazards import choose_threshold
from simv0.alarm.promise import carried, highest_threshold, p_value, units_needed
from simv0.config.schema import EvaluationConfig

LONG = ("150 x 50, alike", "150 x 50, alike: events")
"""Two others are as long and harder."""


def ones(n: int, k: int = 0) -> np.ndarray:
    """n units, the first k of them missed."""
    return (np.arange(n) < k).astype(int)


@pytest.mark.parametrize(
    ("n", "k", "recall"),
    [(1, 0, 0.1), (3, 1, 0.5), (45, 0, 0.95), (100, 2, 0.95), (1000, 40, 0.95), (10, 10, 0.5), (50_000, 2400, 0.95)],
)
def test_with_units_of_one_window_the_test_is_the_exact_binomial(n: int, k: int, recall: float) -> None:
    found = p_value(ones(n, k), ones(n, n), recall)
    assert found == pytest.approx(binom.cdf(k, n, 1 - recall), rel=1e-9)


def test_without_a_miss_the_p_value_is_that_of_the_all_in_bet() -> None:
    of = np.array([3, 9, 1, 10, 4])
    by_hand = math.prod(1 / (1 + 0.2 / 0.8 * n / 10) for n in of)
    assert p_value(0 * of, of, 0.8) == pytest.approx(by_hand, rel=1e-9)


def test_the_p_value_is_the_share_of_random_weights_with_too_many_misses() -> None:
    """The definition, drawn: recordings and one more, as large as the largest and lost, weighted by exponentials."""
    rng = np.random.default_rng(0)
    of = rng.integers(1, 30, 25)
    missed = rng.binomial(of, 0.05)
    weights = rng.exponential(size=(200_000, 26))
    lost, size = weights @ [*missed, of.max()], weights @ [*of, of.max()]
    assert p_value(missed, of, 0.8) == pytest.approx((lost / size > 0.2).mean(), abs=0.003)


def test_what_units_carry_and_need_by_hand() -> None:
    assert carried(ones(12, 12), 0.9) == pytest.approx(0.1 ** (1 / 12))  # 0.825
    assert carried(7 * ones(12, 12), 0.9) == pytest.approx(0.1 ** (1 / 12))
    assert carried(ones(1, 1), 0.9) == pytest.approx(0.1)
    assert units_needed(ones(12, 12), 0.95, 0.9) == 45  # 0.95 ** 45 = 0.0994, 0.95 ** 44 = 0.105
    assert (carried(ones(45, 45), 0.9) > 0.95) > (carried(ones(44, 44), 0.9) > 0.95)
    assert carried(np.array([1, 1, 1, 100]), 0.9) < 0.13  # one recording outweighs the rest


def test_the_highest_threshold_is_the_last_that_holds() -> None:
    rng = np.random.default_rng(1)
    for recall in (0.6, 0.8, 0.9):
        unit, scores = rng.integers(0, 40, 300), rng.random(300) ** 0.5
        of = np.bincount(unit)
        missed = lambda threshold: np.bincount(unit[scores < threshold], minlength=40)  # noqa: E731, B023
        holds = [threshold for threshold in np.sort(scores) if p_value(missed(threshold), of, recall) <= 0.1]
        assert highest_threshold(np.sort(scores), missed, of, recall, 0.9) == max(holds)
    assert highest_threshold(np.array([0.5]), lambda _: np.array([3]), np.array([3]), 0.9, 0.9) is None


def test_on_independent_windows_the_threshold_is_that_of_mapie() -> None:
    """Its p-value is the lesser of Hoeffding's and the binomial one, which never is the greater: the same test."""
    control = pytest.importorskip("mapie.risk_control", reason="mapie is not installed: pip install 'simv0[dev]'")
    rng = np.random.default_rng(2)
    for confidence, n in ((0.9, 400), (0.8, 900), (0.95, 1500)):
        is_high = rng.random(n) < 0.3
        p_high = 1 / (1 + np.exp(rng.normal(size=n) - 2 * is_high + 1)).round(3)
        wanted = EvaluationConfig(confidence=confidence)
        ours, promise, _, _ = choose_threshold(p_high, is_high, None, None, wanted)
        assert promise.recall == 0.95
        theirs = control.BinaryClassificationController(
            predict_function=lambda p: np.stack([1 - p, p], axis=1),
            risk="recall",
            target_level=0.95,
            confidence_level=confidence,
            list_predict_params=np.unique(p_high),
            fwer_method="fixed_sequence",
        ).calibrate(p_high, is_high.astype(int))
        highest = np.max(theirs.valid_predict_params)
        assert ((p_high >= ours) == (p_high >= highest)).all()


def test_no_population_of_three_kinds_of_recordings_breaks_the_promise_more_often() -> None:
    """Exactly at the edge, all draws summed up: no error of a simulation."""
    assert hostile(30, 0.9)["kept_share"] >= 0.9


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name not in (*VOID, *LONG)])
def test_alarms_keep_what_they_promise(setting: str) -> None:
    """Few draws here, many in benchmarks/alarm.py: three standard errors below the confidence would be a fault."""
    row = simulate(setting, draws=25, confidence=0.9, population=300)
    assert row["kept_share"] >= 0.9 - 3 * math.sqrt(0.9 * 0.1 / 25)
    assert row["naive_kept_share"] < 0.9
