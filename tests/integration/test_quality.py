"""Class weights by hand, patience, and the benchmark of quality: its rows, intervals and held-out parts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import MakeConfig

import benchmarks.quality
from benchmarks.quality import SHOWN, Row, Table, as_json, held_out, line, parsed, rows_of
from benchmarks.variants import VARIANTS, predictions
from simv0.baselines.fit import fit_baselines, predict_all, score
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


def row(*seeds: float, resampled: np.ndarray) -> Row:
    return Row("", np.array(seeds)[:, None], resampled[:, :, None], 0.0)


def test_differences_are_paired_over_seeds_and_windows() -> None:
    """What a resample does to both cancels; what only a seed does stays in the interval."""
    shared = np.random.default_rng(0).normal(size=(300, 1))
    reference = row(0.5, 0.5, resampled=shared + np.array([0.5, 0.5]))
    alike = row(0.6, 0.6, resampled=shared + np.array([0.6, 0.6]))
    assert alike.over(reference)[:, 0] == pytest.approx([0.1, 0.1, 0.1])
    lucky = row(0.5, 0.9, resampled=shared + np.array([0.5, 0.9]))
    assert lucky.over(reference)[:, 0] == pytest.approx([0.2, 0.0, 0.4])  # both draws of the one seed, or of the other
    unpaired = row(0.6, 0.6, resampled=shared[::-1] + np.array([0.6, 0.6]))
    value, low, high = unpaired.over(reference)[:, 0]
    assert value == pytest.approx(0.1)
    assert high - low > 3  # 4 x the root of 2


def test_a_table_of_llms_and_baselines(
    make_config: MakeConfig, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each LLM, its randomised copy and a variant; the baselines behind the reference, as `evaluate` fits them."""
    monkeypatch.setattr(benchmarks.quality, "RESAMPLES", 20)
    config = make_config(cache={"dir": str(features)}, training={"epochs": 1})
    arguments = parsed(
        ["rover", "--randomised", "--seeds", "2", "--variants", "default,K=1", "--folder", str(tmp_path)]
    )
    train, val = open_split(config, "train"), open_split(config, "val")
    table = Table([(train, val)])
    assert table.over == "20 stretches"
    rows = list(rows_of(config, table, arguments))
    names = [each.name for each in rows]
    assert names[:2] == ["llm", "majority class"]
    assert names[-3:] == ["llm, K=1", "llm, randomised", "llm, randomised, K=1"]
    linear = predict_all(fit_baselines(train, config.training, 2, 128), val, 2)["linear, features + telemetry"]
    found = rows[names.index("linear, features + telemetry")]
    assert found.seeds[0].tolist() == found.seeds[1].tolist() == [score(linear, val.labels)[key] for key in SHOWN]
    seed0, seed1 = rows[0].seeds
    assert seed0.tolist() != seed1.tolist()
    assert line(rows[0], rows[0]).count("(") == 0
    assert line(found, rows[0]).count(" to ") == len(SHOWN)
    plain = json.loads(json.dumps(as_json(found, rows[0])))
    wanted = found.seeds.mean(0)[-1] - rows[0].seeds.mean(0)[-1]
    assert plain["over_reference"]["risk_high_average_precision"]["value"] == pytest.approx(wanted)


def test_the_benchmark_trains_as_fit_does(make_config: MakeConfig, features: Path) -> None:
    config = make_config(cache={"dir": str(features)}, training={"seed": 3})
    run = fit(config)
    split = open_split(config, "train"), open_split(config, "val")
    logits = predictions(config, VARIANTS["default"], 3, *split)
    last = json.loads(run.val_metrics.read_text().splitlines()[-1])
    measured = score(logits, split[1].labels)
    assert measured["loss"] == pytest.approx(last["loss"], rel=1e-6)


def test_held_out_stretches_cover_train_and_keep_their_distance(
    make_config: MakeConfig, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks.quality, "GAP", 3)
    split = open_split(make_config(cache={"dir": str(features)}), "train")
    n = len(split.labels)
    number = {sample_id: i for i, sample_id in enumerate(split.labels.sample_id)}
    seen = []
    for train, dev in held_out(split):
        known, new = ([number[sample_id] for sample_id in each.labels.sample_id] for each in (train, dev))
        assert len(known) == sum(i < min(new) - 3 or i > max(new) + 3 for i in range(n))
        assert all(abs(i - j) > 3 for i in known for j in new)
        batch = dev.dataset.__getitems__([0, 1])  # type: ignore[attr-defined]
        assert batch["sample_id"] == dev.labels.sample_id[:2]  # features and labels stay together
        assert batch["risk_id"].tolist() == dev.labels.ids["risk"][:2].tolist()
        seen += new
    assert seen == list(range(n))


def test_recordings_are_held_out_as_a_whole(make_config: MakeConfig, features: Path) -> None:
    split = open_split(make_config(cache={"dir": str(features)}), "train")
    names = [f"r{i // 8}" for i in range(len(split.labels))]
    parts = held_out(replace(split, labels=replace(split.labels, group=names)))
    assert sorted(name for _, new in parts for name in set(new.labels.group or ())) == ["r0", "r1", "r2", "r3", "r4"]
    assert all(set(known.labels.group or ()).isdisjoint(new.labels.group or ()) for known, new in parts)
