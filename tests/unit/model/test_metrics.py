"""Metrics against counts worked out by hand, against scikit-learn, and where no sample tells them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from simv0.data.contract import Batch
from simv0.labels import HEADS
from simv0.model.losses import loss_sums
from simv0.model.metrics import Metrics, Tally, macro_f1, ranking


def tally(**pairs: list[tuple[int, int]]) -> Tally:
    """A tally of (label, prediction) pairs; heads not given are all (0, 0)."""
    n = len(next(iter(pairs.values())))
    logits, batch = {}, {"weight": torch.ones(n)}
    for head, names in HEADS.items():
        labels, predicted = zip(*pairs.get(head, [(0, 0)] * n), strict=True)
        logits[f"{head}_logits"] = torch.nn.functional.one_hot(torch.tensor(predicted), len(names)).float()
        batch[f"{head}_id"] = torch.tensor(labels)
    result = Tally()
    result.add(logits, batch, loss_sums(logits, batch))  # type: ignore[arg-type]
    return result


def test_rates_by_hand() -> None:
    # 4 high: 3 found; 6 others: 2 called high
    risk = [(3, 3)] * 3 + [(3, 0)] + [(0, 0)] * 3 + [(1, 1)] + [(0, 3), (2, 3)]
    metrics = tally(risk=risk).metrics()
    assert metrics["risk_high_recall"] == 0.75
    assert metrics["risk_high_fn_rate"] == 0.25
    assert metrics["risk_high_false_alarm_rate"] == pytest.approx(2 / 6)
    assert metrics["risk_accuracy"] == 0.7
    # F1: none 2*3/(4+4), low 1, med 0, high 2*3/(4+5)
    assert metrics["risk_macro_f1"] == pytest.approx((0.75 + 1 + 0 + 6 / 9) / 4)
    assert metrics["action_macro_f1"] == 1.0  # one class occurs, and it is right
    assert metrics["macro_f1"] == pytest.approx((metrics["risk_macro_f1"] + 1) / 2)
    f1 = metrics["risk_macro_f1"]
    assert metrics["composite"] == pytest.approx(3 / (1 / 0.75 + 1 / f1 + 1))


def test_what_no_sample_tells_is_none_not_zero_or_one() -> None:
    empty = Tally().metrics()
    assert {"loss", "risk_high_recall", "macro_f1", "composite"} <= empty.keys()
    assert set(empty.values()) == {None}
    no_high = tally(risk=[(0, 0), (1, 3)]).metrics()
    assert no_high["risk_high_recall"] is None
    assert no_high["composite"] is None
    assert no_high["risk_high_false_alarm_rate"] == 0.5
    assert tally(risk=[(3, 3)]).metrics()["risk_high_false_alarm_rate"] is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_macro_f1_agrees_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = zip(*pairs, strict=True)
    wanted = f1_score(labels, predicted, average="macro", zero_division=0)
    assert macro_f1(tally(action=pairs).confusion["action"]) == pytest.approx(wanted)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2), st.data())
def test_batches_add_up_to_the_whole(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(pairs) - 1))
    whole = tally(risk=pairs)
    parts = Tally.from_state(tally(risk=pairs[:cut]).state())
    rest = tally(risk=pairs[cut:])
    for head in HEADS:
        parts.confusion[head] += rest.confusion[head]
        parts.losses[head] += rest.losses[head]
    for key, value in whole.metrics().items():
        assert parts.metrics()[key] == pytest.approx(value), key


def test_always_high_does_not_win() -> None:
    labels = [3] * 2 + [0] * 8
    always = tally(risk=[(label, 3) for label in labels]).metrics()
    careful = tally(risk=[(3, 3), (3, 3)] + [(0, 3)] + [(0, 0)] * 7).metrics()
    assert always["risk_high_recall"] == careful["risk_high_recall"] == 1
    for best_metric in ("composite", "risk_high_recall"):
        assert ranking(careful, best_metric) > ranking(always, best_metric)


def test_without_high_the_macro_f1_decides() -> None:
    better: Metrics = {"composite": None, "macro_f1": 0.6}
    worse: Metrics = {"composite": None, "macro_f1": 0.5}
    assert ranking(better, "composite") > ranking(worse, "composite")
    assert ranking({"composite": 0.0, "macro_f1": 0.0}, "composite") > ranking(better, "composite")


def test_losses_are_weighted_over_the_split_not_averaged_over_batches() -> None:
    logits = {f"{head}_logits": torch.zeros(1, len(names)) for head, names in HEADS.items()}
    logits["risk_logits"] = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    sure = {**logits, "risk_logits": torch.tensor([[50.0, 0.0, 0.0, 0.0]])}
    total = Tally()
    for one, weight in ((logits, 1.0), (sure, 3.0)):
        batch: Batch = {"weight": torch.tensor([weight])}
        for head in HEADS:
            batch[f"{head}_id"] = torch.tensor([0])  # type: ignore[literal-required]
        total.add(one, batch, loss_sums(one, batch))
    assert total.metrics()["risk_loss"] == pytest.approx(torch.log(torch.tensor(4.0)).item() / 4)
