"""Class weights by hand, patience, and the benchmark's intervals."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_world import MakeConfig

import benchmarks.quality
from benchmarks.quality import blocks_of, cell
from simv0.errors import ConfigError
from simv0.model.checkpoint import load_checkpoint
from simv0.training.fit import fit
from simv0.training.recipe import class_weights, visual_dropout
from simv0.training.splits import open_split


def test_class_weights_by_hand(make_config: MakeConfig, features: Path) -> None:
    split = open_split(make_config(cache={"dir": str(features)}), "train")
    labels = replace(split.labels, ids={**split.labels.ids, "risk": split.labels.ids["risk"] * 0})
    labels.ids["risk"][:8] = 3  # 32 windows of class 0, 8 of class 3
    split, cpu = replace(split, labels=labels, class_weights=None), torch.device("cpu")
    balanced = class_weights("balanced", split, cpu)
    root = class_weights("sqrt_balanced", split, cpu)
    assert balanced is not None
    assert root is not None
    assert balanced["risk"].tolist() == pytest.approx([0.625, 0, 0, 2.5])  # 20 : 20 in total
    assert root["risk"].tolist() == pytest.approx([5 / 6, 0, 0, 5 / 3])  # 1 : sqrt(32 / 8), 40 in total
    assert torch.equal(class_weights(None, split, cpu)["risk"], root["risk"])  # type: ignore[index]
    assert class_weights("none", split, cpu) is None
    with pytest.raises(ConfigError, match="the dataset has no class_weights; write none, balanced"):
        class_weights("dataset", split, cpu)
    own = replace(split, class_weights={"risk": [1.0, 2.0, 3.0, 4.0]})
    assert class_weights(None, own, cpu)["risk"].tolist() == [1, 2, 3, 4]  # type: ignore[index]


def test_more_is_hidden_the_wider_the_features_and_the_fewer_the_windows(
    make_config: MakeConfig, features: Path
) -> None:
    config = make_config(cache={"dir": str(features)})
    split = open_split(config, "train")  # 40 windows, dv = 32
    assert visual_dropout(config.training, split) == pytest.approx(32 / 72)
    assert visual_dropout(config.training, replace(split, dv=120)) == pytest.approx(0.75)
    assert visual_dropout(make_config(training={"visual_dropout": 0.0}).training, split) == 0


def test_patience_stops_and_resume_does_not_go_on(make_config: MakeConfig, features: Path) -> None:
    """A learning rate of next to nothing: the first epoch stays the best."""
    config = make_config(cache={"dir": str(features)}, training={"epochs": 9, "patience": 2, "lr": 1e-12})
    run = fit(config)
    assert len(run.val_metrics.read_text().splitlines()) == 3
    assert load_checkpoint(run.best).meta.epoch == 1
    before = run.last.read_bytes()
    fit(config, resume=True)
    assert run.last.read_bytes() == before


def test_paired_difference_by_hand() -> None:
    reference = [{"x": 0.5}, {"x": 0.6}, {"x": 0.7}]
    runs = [{"x": 0.4}, {"x": 0.6}, {"x": 0.5}]
    # differences -0.1, 0, -0.2: mean -0.1, sd 0.1, t(2) = 4.30
    assert cell("x", runs, reference) == f"0.500 ± 0.100 (-0.100 ± {4.30 * 0.1 / math.sqrt(3):.3f})"
    assert cell("x", reference, reference) == "0.600 ± 0.100"


def test_blocks_cover_train_and_keep_their_distance(
    make_config: MakeConfig, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks.quality, "GAP", 3)
    split = open_split(make_config(cache={"dir": str(features)}), "train")
    n = len(split.labels)
    number = {sample_id: i for i, sample_id in enumerate(split.labels.sample_id)}
    held_out = []
    for train, dev in blocks_of(split):
        known, new = ([number[sample_id] for sample_id in each.labels.sample_id] for each in (train, dev))
        assert len(known) == sum(i < min(new) - 3 or i > max(new) + 3 for i in range(n))
        assert all(abs(i - j) > 3 for i in known for j in new)
        batch = dev.dataset.__getitems__([0, 1])  # type: ignore[attr-defined]
        assert batch["sample_id"] == dev.labels.sample_id[:2]  # features and labels stay together
        assert batch["risk_id"].tolist() == dev.labels.ids["risk"][:2].tolist()
        held_out += new
    assert held_out == list(range(n))
