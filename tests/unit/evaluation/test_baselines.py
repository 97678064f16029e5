"""The baselines against scikit-learn, against counting, and against what their inputs can and cannot tell."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small_world import MakeConfig

from simv0.data.contract import Batch
from simv0.evaluation.baselines import (
    baseline_logits,
    fit_baselines,
    logistic_regression,
    read_inputs,
    recall_at_false_alarms,
    score,
)
from simv0.labels import HEADS
from simv0.training.splits import open_split


def windows(n: int, seed: int) -> Batch:
    """Risk can be read off the telemetry, the action only off the features, the reason off neither."""
    generator = torch.Generator().manual_seed(seed)
    telemetry = torch.randn(n, 8, generator=generator) * torch.logspace(-2, 2, 8)
    feats = torch.randn(n, 4, 12, generator=generator) + 5
    return {
        "vis_feats": feats,
        "telemetry": telemetry,
        "weight": torch.rand(n, generator=generator) + 0.5,
        "risk_id": torch.bucketize(telemetry[:, 3] / telemetry[:, 3].std(), torch.tensor([-0.7, 0.0, 0.7])),
        "action_id": feats.mean(1)[:, :6].argmax(-1),
        "reason_id": torch.randint(0, 3, (n,), generator=generator),
    }


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_logistic_regression_is_scikit_learns(c: float) -> None:
    known = windows(200, 0)
    x = known["telemetry"].double() / torch.logspace(-2, 2, 8).double()
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=2000).fit(x.numpy(), known["risk_id"], known["weight"])
    weight, bias = logistic_regression(x.float(), known["risk_id"], known["weight"], 4, c)
    assert np.allclose(weight, theirs.coef_, atol=2e-4)
    assert np.allclose(bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-4)


def test_the_whole_baseline_is_scikit_learns() -> None:
    known, new = windows(200, 0), windows(100, 1)
    ours = baseline_logits(known, new)["linear, features + telemetry"]["action_logits"].softmax(-1)
    # In float32 scikit-learn itself stops up to 1e-3 away, by how the CPU rounds.
    x, z = (torch.cat([b["vis_feats"].mean(1), b["telemetry"]], 1).double().numpy() for b in (known, new))
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(tol=1e-8, max_iter=2000).fit(
        scaler.transform(x), known["action_id"], known["weight"].numpy()
    )
    assert np.allclose(ours, theirs.predict_proba(scaler.transform(z)), atol=1e-3)


def test_each_baseline_knows_what_its_inputs_tell() -> None:
    known, new = windows(400, 0), windows(400, 1)
    measured = {name: score(logits, new) for name, logits in baseline_logits(known, new).items()}
    counted = known["weight"].new_zeros(4).index_add(0, known["risk_id"], known["weight"]).argmax()
    majority, telemetry, both = measured.values()
    assert majority["risk_accuracy"] == float((new["risk_id"] == counted).double().mean())
    assert majority["risk_high_recall_at_5"] == 0
    assert (telemetry["risk_accuracy"] or 0) > 0.9
    assert (telemetry["action_accuracy"] or 1) < 0.35
    assert (both["action_accuracy"] or 0) > 0.75


def test_a_class_that_train_never_shows_is_not_predicted_and_costs_no_nan() -> None:
    known, new = windows(100, 0), windows(50, 1)
    assert 3 not in known["reason_id"]
    assert 5 in new["action_id"]
    known["action_id"] = known["action_id"].clamp(max=4)
    for name, logits in baseline_logits(known, new).items():
        assert not (logits["action_logits"].argmax(-1) == 5).any(), name
        assert math.isfinite(score(logits, new)["loss"] or 0.0), name


def test_recall_at_false_alarms_by_hand() -> None:
    rest = torch.arange(40) / 100  # 5 % of 40: two false alarms, 0.39 and 0.38
    p, is_high = torch.cat([rest, torch.tensor([0.9, 0.375, 0.37, 0.1])]), torch.arange(44) >= 40
    assert recall_at_false_alarms(p, is_high) == 0.5  # 0.375 is above 0.37, the third; equal is not above
    assert recall_at_false_alarms(p[:40], is_high[:40]) is None


def test_a_split_on_disk(make_config: MakeConfig, features: Path) -> None:
    config = make_config(cache={"dir": str(features)})
    measured = fit_baselines(open_split(config, "train"), open_split(config, "val"))
    assert list(measured) == ["majority class", "linear, telemetry", "linear, features + telemetry"]
    for metrics in measured.values():
        assert all(metrics[f"{head}_macro_f1"] is not None for head in HEADS)


def test_of_a_large_split_some_windows_are_read(make_config: MakeConfig, features: Path) -> None:
    split = open_split(make_config(cache={"dir": str(features)}), "train")
    whole, some = read_inputs(split), read_inputs(split, at_most=4)
    rows = [0, 13, 26, 39]
    assert {key: len(value) for key, value in some.items()} == dict.fromkeys(whole, 4)  # type: ignore[arg-type]
    for key, value in some.items():
        assert torch.equal(value, whole[key][rows])  # type: ignore[literal-required, call-overload, arg-type]
    assert torch.equal(whole["vis_feats"][13, 0], split.dataset[13]["vis_feats"].float().mean(0))
