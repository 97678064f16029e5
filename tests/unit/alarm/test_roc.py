"""AUROC, average precision and the recall at 5 %: against scikit-learn, by counting pairs, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from simv0.alarm.roc import auroc, average_precision, recall_at_false_alarms


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=2, max_size=40))
def test_they_are_scikit_learns_with_ties_and_weights(rows: list[tuple[int, bool, int]]) -> None:
    p, high, weight = (np.array(column) for column in zip(*rows, strict=True))
    counted = np.repeat(np.arange(len(p)), weight)
    found = auroc(p / 7, high, weight), average_precision(p / 7, high, weight)
    if not high[counted].any():
        assert found == (None, None)
        return
    assert found[1] == pytest.approx(average_precision_score(high[counted], p[counted]), abs=1e-12, rel=0)
    assert average_precision(p[counted] / 7, high[counted]) == pytest.approx(found[1])  # twice is a weight of 2
    if high[counted].all():
        assert found[0] is None
    else:
        assert found[0] == pytest.approx(roc_auc_score(high[counted], p[counted]), abs=1e-12, rel=0)


def test_by_hand() -> None:
    p, high = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert auroc(p, high) == 0.75  # 3 of 4 pairs in the right order
    assert average_precision(p, high) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert auroc(np.full(4, 0.5), high) == average_precision(np.full(4, 0.5), high) == 0.5


def test_recall_at_false_alarms_by_hand() -> None:
    rest = np.arange(40) / 100  # 5 % of 40: two false alarms, 0.39 and 0.38
    p, is_high = np.append(rest, [0.9, 0.375, 0.37, 0.1]), np.arange(44) >= 40
    assert recall_at_false_alarms(p, is_high) == 0.5  # 0.375 is above 0.37, the third; equal is not above
    assert recall_at_false_alarms(p[:40], is_high[:40]) is None
    assert recall_at_false_alarms(np.full(44, 0.25), is_high) == 0
