"""What the LLM earns: paired intervals that know what is shared, and sentences that say no more than they show."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from simv0.baselines.worth import Comparison, Worth, compare, paired, stretches

RNG = np.random.default_rng(0)
IS_HIGH = np.arange(300) % 5 == 0
UNIT = np.arange(300) // 10
GOOD = IS_HIGH + RNG.normal(size=300)
BETTER = IS_HIGH + 0.4 * RNG.normal(size=300)


def test_the_value_is_the_difference_and_turns_with_its_sides() -> None:
    found, back = paired(BETTER, GOOD, IS_HIGH, UNIT), paired(GOOD, BETTER, IS_HIGH, UNIT)
    wanted = average_precision_score(IS_HIGH, BETTER) - average_precision_score(IS_HIGH, GOOD)
    assert found.value == pytest.approx(wanted)
    assert (found.low, found.high) == pytest.approx((-back.high, -back.low))
    assert found.low < found.value < found.high
    assert (found.sign, back.sign) == (1, -1)


def test_what_both_share_cancels() -> None:
    """The same model has no difference in any resample; nearly the same, a narrow one."""
    same = paired(GOOD, GOOD, IS_HIGH, UNIT)
    assert (same.value, same.low, same.high, same.sign) == (0, 0, 0, 0)
    near = paired(GOOD + 0.05 * RNG.normal(size=300), GOOD, IS_HIGH, UNIT)
    other = paired(RNG.permutation(GOOD), GOOD, IS_HIGH, UNIT)
    assert near.high - near.low < 0.3 * (other.high - other.low)


def test_windows_that_repeat_within_a_recording_do_not_narrow_it() -> None:
    """Each window ten times: by recordings the interval stays; by windows it would shrink by the root of ten."""
    once = paired(BETTER[:30], GOOD[:30], IS_HIGH[:30], np.arange(30))
    ten = paired(*(np.repeat(x[:30], 10) for x in (BETTER, GOOD, IS_HIGH)), np.repeat(np.arange(30), 10))
    assert (ten.low, ten.high) == pytest.approx((once.low, once.high))
    assert stretches(300).tolist() == UNIT.tolist()
    assert paired(BETTER, GOOD, IS_HIGH, None) == paired(BETTER, GOOD, IS_HIGH, UNIT)
    assert stretches(4).tolist() == [0, 1, 2, 3]


def test_the_best_simple_model_is_named() -> None:
    found = compare(GOOD, {"poor": -GOOD, "better": BETTER, "chance": np.zeros(300)}, -GOOD, IS_HIGH, UNIT)
    assert found is not None
    assert found.best == "better"
    lost, pays = found.sentences
    assert (
        lost
        == f'The LLM loses: {found.over["better"]} average precision of "high" over the best simple model (better).'
    )
    assert pays.startswith(f"Pretraining pays: {found.pretraining} average precision")
    assert found.plain()["over"]["better"]["value"] == found.over["better"].value
    assert compare(GOOD, {"better": BETTER}, None, np.zeros(300, bool), UNIT) is None
    assert compare(GOOD, {}, None, IS_HIGH, UNIT) is None


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.07, "earns its keep: "), (-0.01, 0.09, "does not earn"), (-0.1, -0.01, "loses: ")],
)
def test_what_is_said_follows_the_interval(low: float, high: float, said: str) -> None:
    worth = Worth((low + high) / 2, low, high)
    (line,) = Comparison({"no LLM": worth}, "no LLM").sentences
    assert line.startswith(f"The LLM {said}")
    assert f"{worth.value:+.3f} ({low:+.3f} to {high:+.3f})" in line
