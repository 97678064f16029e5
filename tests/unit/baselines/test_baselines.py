"""The baselines against scikit-learn, against counting, and against what their inputs can and cannot tell."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from small_world import MakeConfig

import simv0.baselines.fit
from simv0.baselines.fit import fit_baselines, joined, part, predict_all, score, windows
from simv0.baselines.linear import CS, Linear, choose_c, components, folds, logistic_regression
from simv0.baselines.networks import LEAST_STEPS, STEPS, affordable_steps, train_without_llm
from simv0.baselines.trees import Trees
from simv0.config.schema import TrainingConfig
from simv0.data.labels import Labels
from simv0.labels import HEADS
from simv0.training.splits import Split, open_split

K = 2
RECIPE = TrainingConfig(
    class_weights="none",
    visual_dropout=0.0,
    epochs=15,
    lr=1e-2,
    lr_scale={"projector": 2.0, "telemetry_mlp": 1.0, "task_token": 1.0, "heads": 1.0},
)
NAMES = [
    "majority class",
    "linear, telemetry",
    "linear, features + telemetry",
    "boosted trees",
    "no LLM",
    "small transformer",
]


class Windows(torch.utils.data.Dataset[Any]):
    """Risk can be read off the telemetry, the action only off the features, the reason off neither."""

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        telemetry = torch.randn(n, 8, generator=generator) * torch.logspace(-2, 2, 8)
        feats = torch.randn(n, 4, 12, generator=generator) + 5
        self.batch: dict[str, Any] = {
            "vis_feats": feats,
            "telemetry": telemetry,
            "weight": torch.rand(n, generator=generator) + 0.5,
            "risk_id": torch.bucketize(telemetry[:, 3] / telemetry[:, 3].std(), torch.tensor([-0.7, 0.0, 0.7])),
            "action_id": feats.mean(1)[:, :6].argmax(-1),
            "reason_id": torch.randint(0, 3, (n,), generator=generator),
            "sample_id": [f"w{i}" for i in range(n)],
        }

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        return [{key: value[row] for key, value in self.batch.items()} for row in rows]


def split(n: int, seed: int) -> Split:
    dataset = Windows(n, seed)
    ids = {head: dataset.batch[f"{head}_id"].numpy() for head in HEADS}
    labels = Labels(
        dataset.batch["telemetry"].numpy(), ids, dataset.batch["weight"].numpy(), dataset.batch["sample_id"], None
    )
    return Split("train", dataset, labels, None, 12, {})


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    return fit_baselines(split(400, 0), RECIPE, K, 32)


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_logistic_regression_is_scikit_learns(c: float) -> None:
    known = split(200, 0).labels
    x, ids = known.telemetry.astype(np.float64) / np.logspace(-2, 2, 8), known.ids["risk"]
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=2000).fit(x, ids, known.weight)
    weight, bias = logistic_regression(
        torch.from_numpy(x).float(), torch.from_numpy(ids), torch.from_numpy(known.weight), 4, c
    )
    assert np.allclose(weight, theirs.coef_, atol=2e-4)
    assert np.allclose(bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-4)


def test_each_knows_what_its_inputs_tell(fitted: dict[str, Any]) -> None:
    train, new = split(400, 0).labels, split(400, 1)
    measured = {name: score(logits, new.labels) for name, logits in predict_all(fitted, new, K).items()}
    assert list(measured) == NAMES
    counted = np.bincount(train.ids["risk"], train.weight).argmax()
    majority, telemetry, *both = measured.values()
    assert majority["risk_accuracy"] == float((new.labels.ids["risk"] == counted).mean())
    assert majority["risk_high_recall_at_5"] == 0
    assert majority["risk_high_auroc"] == 0.5
    assert (telemetry["risk_accuracy"] or 0) > 0.9
    assert (telemetry["action_accuracy"] or 1) < 0.35
    for metrics in both:
        assert (metrics["risk_high_average_precision"] or 0) > 0.9
        assert (metrics["action_accuracy"] or 0) > 0.25  # chance is a sixth


def test_they_are_deterministic_and_leave_the_random_numbers_alone() -> None:
    train, recipe, drawn, found = split(60, 0), TrainingConfig(epochs=1), [], []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(predict_all(fit_baselines(train, recipe, K, 8), train, K))
        drawn.append(torch.rand(1))
    torch.manual_seed(7)
    assert drawn == [torch.rand(1)] * 2
    for name, logits in found[0].items():
        for head in HEADS:
            assert np.array_equal(logits[head], found[1][name][head]), name


def test_class_weights_count_but_for_the_majority() -> None:
    """One class in ten windows: balanced weights call it more often."""
    train, new = split(150, 0), split(150, 1)
    rare = np.where(np.arange(150) % 10 == 0, 3, 0)
    train.dataset.batch["reason_id"] = torch.from_numpy(rare)  # type: ignore[attr-defined]
    train = replace(train, labels=replace(train.labels, ids={**train.labels.ids, "reason": rare}))
    called = {}
    for mode in ("none", "balanced"):
        logits = predict_all(fit_baselines(train, TrainingConfig(class_weights=mode, epochs=1), K, 8), new, K)
        called[mode] = {name: (some["reason"].argmax(1) == 3).mean() for name, some in logits.items()}
    assert called["balanced"]["majority class"] == 0
    for name in ("linear, telemetry", "linear, features + telemetry", "boosted trees"):
        assert called["balanced"][name] > called["none"][name], name


def test_a_class_that_train_never_shows_is_not_predicted_and_costs_no_nan() -> None:
    train, new = split(100, 0), split(50, 1)
    fewer = train.labels.ids["action"].clip(max=4)
    alike = np.zeros(100, int)
    train.dataset.batch |= {"action_id": torch.from_numpy(fewer), "reason_id": torch.from_numpy(alike)}  # type: ignore[attr-defined]
    ids = {**train.labels.ids, "action": fewer, "reason": alike}
    train = replace(train, labels=replace(train.labels, ids=ids))
    assert 5 in new.labels.ids["action"]
    for name, logits in predict_all(fit_baselines(train, TrainingConfig(epochs=4), K, 8), new, K).items():
        assert not (logits["action"].argmax(-1) == 5).any(), name
        assert not logits["reason"].argmax(-1).any(), name
        loss = score(logits, new.labels)["loss"]
        assert loss is not None
        assert math.isfinite(loss), name


def test_folds_keep_recordings_whole_and_even() -> None:
    group = [*"a" * 50, *"b" * 30, *"c" * 20, *"d" * 10, *"e" * 9, "f"]
    found = folds(group, 120)
    assert [set(found[np.array(group) == name].tolist()) for name in "abcdef"] == [{0}, {1}, {2}, {3}, {3}, {3}]
    assert folds(["a", "b", "a"], 3).tolist() == [0, 1, 0]
    for nothing in (None, ["one"] * 8):
        assert folds(nothing, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_c_is_chosen_on_other_recordings() -> None:
    """A feature that tells the class in each recording, but another way round in the next: only left-out recordings
    show that it is worth nothing.
    """
    rng = np.random.default_rng(0)
    recording = np.repeat(np.arange(4), 60)
    ids = rng.integers(0, 2, 240)
    x = torch.from_numpy((2 * ids - 1) * np.eye(4)[recording].T).float().T + 0.1 * torch.randn(240, 4)
    turned = x.clone()
    turned[recording % 2 == 1] *= -1
    nothing = np.zeros((240, 8), np.float32)
    labels = Labels(
        nothing, dict.fromkeys(HEADS, ids), np.ones(240, np.float32), [""] * 240, [str(r) for r in recording]
    )
    targets = {head: (torch.from_numpy(ids), torch.ones(240)) for head in HEADS}
    one = turned.sum(1, keepdim=True)
    assert choose_c(one, targets, labels) == dict.fromkeys(HEADS, CS[0])
    same = (x * 1.0).sum(1, keepdim=True)
    assert min(choose_c(same, targets, labels).values()) > CS[0]


def test_a_thousand_features_do_not_drown_the_telemetry() -> None:
    """Wide noise beside one channel that tells the risk: blocks of inputs count alike."""
    generator = torch.Generator().manual_seed(0)
    noise, telemetry = torch.randn(400, 1000, generator=generator), torch.randn(400, 8, generator=generator)
    ids = (telemetry[:, 2] > 0).long()
    targets = {head: (ids[:200], torch.ones(200)) for head in HEADS}
    alike = Labels(telemetry[:200].numpy(), {}, np.ones(200, np.float32), [""] * 200, None)
    linear = Linear([noise[:200], telemetry[:200]], targets, alike)
    found = linear([noise[200:], telemetry[200:]])["risk_logits"].argmax(1)
    assert (found == ids[200:]).float().mean() > 0.85


@pytest.mark.parametrize("shape", [(50, 20), (20, 50)])
def test_components_are_those_of_an_svd(shape: tuple[int, int]) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(0)
    found, (_, _, theirs) = components(x, 5), torch.linalg.svd(x.double(), full_matrices=False)
    assert torch.allclose((found.double().T @ theirs[:5].T).abs(), torch.eye(5).double(), atol=1e-4)


def test_trees_that_have_nothing_to_tell_apart() -> None:
    ids, weight = torch.tensor([1, 1, 2]), torch.tensor([1.0, 1.0, 0.0])
    trees = Trees(torch.randn(3, 4), torch.randn(3, 8), dict.fromkeys(HEADS, (ids, weight)))
    assert trees(torch.randn(2, 4), torch.randn(2, 8))["risk_logits"].argmax(1).tolist() == [1, 1]


def test_a_split_on_disk(make_config: MakeConfig, features: Path) -> None:
    config = make_config(cache={"dir": str(features)})
    train, val = open_split(config, "train"), open_split(config, "val")
    logits = predict_all(fit_baselines(train, config.training, K, 64), val, K)
    for name in NAMES:
        metrics = score(logits[name], val.labels)
        assert all(metrics[f"{head}_macro_f1"] is not None for head in HEADS)


def test_windows_are_read_as_segment_means(make_config: MakeConfig, features: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(simv0.baselines.fit, "AT_ONCE", 3)
    whole = open_split(make_config(cache={"dir": str(features)}), "train")
    some = part(whole, [0, 13, 26, 39])
    batch = joined(windows(some, K))
    first = whole.dataset[13]
    assert torch.allclose(batch["vis_feats"][1], first["vis_feats"].float().view(2, 2, -1).mean(1), atol=1e-6)
    assert torch.equal(batch["telemetry"][1], first["telemetry"])
    assert batch["risk_id"].tolist() == [whole.labels.ids["risk"][row] for row in (0, 13, 26, 39)]
    assert some.labels.group == [whole.labels.group[row] for row in (0, 13, 26, 39)]  # type: ignore[index]


def test_without_scikit_learn_the_others_are_fitted(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)  # import fails
    assert list(fit_baselines(split(40, 0), TrainingConfig(epochs=1), K, 8)) == [
        n for n in NAMES if n != "boosted trees"
    ]
    assert sys.modules["sklearn"]


def test_networks_take_no_more_steps_than_a_quarter_of_the_training_allows() -> None:
    recipe = TrainingConfig(epochs=10)
    assert affordable_steps(recipe, 6400, 135_000_000) == 1000  # the recipe's own
    assert affordable_steps(recipe, 6400, 2_500_000) == 500
    assert affordable_steps(recipe, 6400, 260_000) == LEAST_STEPS
    assert affordable_steps(recipe, 640_000, 135_000_000) == STEPS
    train = split(100, 0)
    known = joined(windows(train, K))
    one, two = (train_without_llm(known, train, TrainingConfig(epochs=epochs), 8, 2) for epochs in (1, 9))
    assert torch.equal(one.task_token, two.task_token)  # 2 steps are an epoch
    assert not torch.equal(one.task_token, train_without_llm(known, train, TrainingConfig(epochs=2), 8).task_token)
