"""The objective against values worked out by hand and against torch."""

import math

import pytest
import torch

from simv0.data.contract import Batch
from simv0.model.losses import loss_sums, objective, weighted_cross_entropy


def batch(weight: list[float], risk: list[int], reason: list[int], action: list[int]) -> Batch:
    return {
        "weight": torch.tensor(weight, dtype=torch.float32),
        "risk_id": torch.tensor(risk),
        "reason_id": torch.tensor(reason),
        "action_id": torch.tensor(action),
    }


def flat_logits(n: int) -> dict[str, torch.Tensor]:
    return {f"{head}_logits": torch.zeros(n, classes) for head, classes in (("risk", 4), ("reason", 4), ("action", 6))}


def test_uniform_predictions_cost_the_log_of_the_classes() -> None:
    parts = objective(loss_sums(flat_logits(3), batch([1, 1, 1], [0, 1, 2], [0, 0, 0], [5, 5, 5])))
    assert parts["risk_loss"].item() == pytest.approx(math.log(4))
    assert parts["action_loss"].item() == pytest.approx(math.log(6))
    assert parts["loss"].item() == pytest.approx(1.5 * math.log(4) + math.log(6))


def test_weights_by_hand() -> None:
    # p = (3/4, 1/4): losses ln(4/3) and ln 4; weights 2*1 and 1*3
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    total, weight = weighted_cross_entropy(
        logits, torch.tensor([0, 1]), torch.tensor([2.0, 1.0]), torch.tensor([1.0, 3.0])
    )
    assert weight.item() == 5
    assert total.item() == pytest.approx(2 * math.log(4 / 3) + 3 * math.log(4))


def test_agrees_with_torch_where_torch_means_the_same() -> None:
    logits, ids = torch.randn(16, 6), torch.randint(0, 6, (16,))
    class_weight = torch.rand(6)
    total, weight = weighted_cross_entropy(logits, ids, torch.ones(16), class_weight)
    assert torch.allclose(total / weight, torch.nn.functional.cross_entropy(logits, ids, class_weight))


def test_a_batch_without_weight_costs_nothing_and_is_finite() -> None:
    logits = {name: tensor.requires_grad_() for name, tensor in flat_logits(2).items()}
    parts = objective(loss_sums(logits, batch([0, 0], [0, 1], [0, 1], [0, 1])))
    assert parts["loss"].item() == 0
    parts["loss"].backward()  # type: ignore[no-untyped-call]
    assert logits["risk_logits"].grad is not None
    assert not logits["risk_logits"].grad.any()


def test_sums_of_parts_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    logits = {name: torch.randn_like(tensor) for name, tensor in flat_logits(10).items()}
    whole = batch([0.5] * 3 + [2.0] * 7, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1], [1] * 10, [i % 6 for i in range(10)])
    parts = [
        loss_sums({k: v[at] for k, v in logits.items()}, {k: v[at] for k, v in whole.items()})  # type: ignore
        for at in (slice(0, 3), slice(3, 10))
    ]
    added = {head: tuple(a + b for a, b in zip(*(part[head] for part in parts), strict=True)) for head in parts[0]}
    assert torch.allclose(objective(added)["loss"], objective(loss_sums(logits, whole))["loss"])  # type: ignore[arg-type]


def test_confidence_learns_whether_risk_and_action_are_both_right() -> None:
    logits = flat_logits(3)
    logits["risk_logits"][:, 1] = 5
    logits["action_logits"][:, 2] = 5
    logits["confidence_logits"] = torch.tensor([0.0, 0.0, math.log(3)])
    # right; action wrong; risk wrong -> targets 1, 0, 0 -> ln 2, ln 2, ln 4
    sums = loss_sums(logits, batch([1, 1, 1], [1, 1, 0], [0, 0, 0], [2, 3, 2]))
    wanted = (2 * math.log(2) + math.log(4)) / 3
    parts = objective(sums, confidence_weight=0.1)
    assert parts["confidence_loss"].item() == pytest.approx(wanted)
    without = objective({head: sums[head] for head in ("risk", "reason", "action")})["loss"]
    assert (parts["loss"] - without).item() == pytest.approx(0.1 * wanted)
