"""Training: what a run leaves, the same twice, refused, and what its data may break."""

import json
import math
import multiprocessing
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_world import VisFeats, lines, moved, outcome
from small_world import MakeConfig

from simv0.config.load import load_config
from simv0.config.schema import Config
from simv0.errors import CacheError, DataError, SimError, TrainingError
from simv0.evaluation.run import evaluate_checkpoint
from simv0.model.build import build_model
from simv0.model.checkpoint import load_checkpoint
from simv0.training.epoch import train_one_epoch
from simv0.training.fit import fit
from simv0.training.recipe import lr_factor, make_optimizer
from simv0.training.rundir import RunDir


@pytest.fixture
def config(make_config: MakeConfig, features: Path) -> Config:
    return make_config(cache={"dir": str(features)})


def test_a_run_leaves_what_the_design_says(config: Config) -> None:
    run = fit(config)
    found = sorted(str(path.relative_to(run.root)) for path in run.root.rglob("*") if path.is_file())
    assert found == [
        ".lock",
        "checkpoints/best.pt",
        "checkpoints/last.prev.pt",
        "checkpoints/last.pt",
        "config_resolved.yaml",
        "export/labels.json",
        "export/sim_v0_infer.py",
        "logs/stdout.log",
        "metrics/train_metrics.jsonl",
        "metrics/val_metrics.jsonl",
    ]
    assert load_config(run.config) == config
    wanted = {
        "epoch", "loss", "risk_loss", "reason_loss", "action_loss", "risk_high_recall", "risk_high_fn_rate",
        "action_accuracy", "risk_macro_f1", "action_macro_f1", "reason_macro_f1", "macro_f1", "composite",
        "data_wait_share", "seconds",
    }  # fmt: skip
    for path in (run.train_metrics, run.val_metrics):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [1, 2]
        assert wanted <= set(rows[0])
        assert all(not isinstance(value, (dict, list)) for value in rows[0].values())
    log = run.log.read_text()
    assert "training " in log
    assert "\nvisual dropout 0.44 (whole windows" in log  # 32 / (32 + 40): what the model was trained with
    assert "composite" in log
    meta = load_checkpoint(run.best).meta
    assert set(meta.provenance) >= {"git", "torch", "transformers"}
    assert meta.encoder is not None
    assert meta.encoder["vision_encoder_name"] == "local-dir:vision"
    assert meta.metrics["composite"] == max(row["composite"] for row in lines(run.val_metrics))


def test_same_seed_same_bits_and_another_seed_others(config: Config, tmp_path: Path) -> None:
    first = outcome(fit(config))
    assert outcome(fit(moved(config, tmp_path / "again"))) == first
    assert outcome(fit(moved(config, tmp_path / "other", seed=1)))[0] != first[0]


def test_training_learns(config: Config, tmp_path: Path) -> None:
    run = fit(moved(config, tmp_path / "r", epochs=12, visual_dropout=0.0))
    losses = [row["risk_loss"] for row in lines(run.train_metrics)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_is_not_lost_to_a_second_one(config: Config) -> None:
    fit(config)
    with pytest.raises(TrainingError, match="already holds a run; use --resume to continue it, --overwrite to replace"):
        fit(config)
    fit(config, overwrite=True)


def test_overwrite_removes_nothing_when_the_new_run_cannot_start(config: Config, make_config: MakeConfig) -> None:
    run = fit(config)
    before = run.best.read_bytes()
    with pytest.raises(CacheError, match="no feature file for split train; run `simv0 cache-vis`"):
        fit(make_config(), overwrite=True)
    assert run.best.read_bytes() == before


def test_one_run_one_owner(config: Config) -> None:
    owner = RunDir(config.output.output_dir)
    owner.claim()
    with pytest.raises(TrainingError, match="another simv0 process is running here"):
        fit(config)
    owner.release()
    fit(config)


@pytest.mark.usefixtures("no_report")
def test_a_dataset_with_features_needs_no_encoder_and_no_cache(make_config: MakeConfig) -> None:
    vision = {"vision_encoder_name": "ViT-B-32", "vision_pretrained": "laion2b_s34b_b79k"}  # not on this machine
    config = make_config(data={"dataset_class_path": "fit_world.VisFeats"}, model=vision)
    run = fit(config)
    checkpoint = load_checkpoint(run.best)
    assert (checkpoint.meta.dv, checkpoint.meta.encoder) == (6, None)
    found, _ = evaluate_checkpoint(run.best, baselines=False)
    assert found.metrics["composite"] == checkpoint.meta.metrics["composite"]


def test_a_non_finite_loss_names_its_samples_and_keeps_the_checkpoint(make_config: MakeConfig) -> None:
    data = {"dataset_class_path": "fit_world.VisFeats", "dataset_kwargs": {"poison": 5}}
    config = make_config(data=data)
    with pytest.raises(
        TrainingError, match=r"^the loss is (nan|inf) on the batch of .*w5.*lower training.lr or inspect"
    ):
        fit(config)


def test_val_without_high_is_said(make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(data={"dataset_class_path": "test_fit.NoHigh"}, training={"epochs": 1})
    run = fit(config)
    assert any('val has no window of risk "high"' in message for message in caplog.messages)
    assert load_checkpoint(run.best).meta.metrics["risk_high_recall"] is None


def test_a_non_finite_gradient_moves_no_weight(models: Path, make_config: MakeConfig) -> None:
    model = build_model(make_config(), 32, None, torch.device("cpu"))
    model.projector.weight.register_hook(lambda grad: grad * float("inf"))
    before = {name: value.clone() for name, value in model.trainable_state().items()}
    batch = {
        "vis_feats": torch.randn(2, 4, 32), "telemetry": torch.randn(2, 8), "weight": torch.ones(2),
        "sample_id": ["a", "b"], "risk_id": torch.tensor([0, 1]), "reason_id": torch.tensor([0, 1]),
        "action_id": torch.tensor([0, 1]),
    }  # fmt: skip
    with pytest.raises(TrainingError, match=r"^the gradient is (nan|inf) on the batch of a, b; lower training.lr"):
        train_one_epoch(model, [batch], make_optimizer(model, make_config().training, 24), None, "cpu")  # type: ignore
    assert all(torch.equal(value, before[name]) for name, value in model.trainable_state().items())


def test_a_batch_that_cannot_be_loaded_ends_no_step_before_it(make_config: MakeConfig) -> None:
    """The next batch is asked for before a step is done: its fault waits, and the step's own goes first."""
    config = make_config()

    def batches(first: float) -> Iterator[Any]:
        for value in (1.0, first):
            yield {
                "vis_feats": torch.full((2, 4, 32), value), "telemetry": torch.ones(2, 8), "weight": torch.ones(2),
                "sample_id": [f"a{value}", "b"], "risk_id": torch.tensor([0, 1]), "reason_id": torch.tensor([0, 1]),
                "action_id": torch.tensor([0, 1]),
            }  # fmt: skip
        raise DataError("train[4]: cannot be read")

    steps = []
    for value, error in (
        (0.5, "train[4]: cannot be read"),
        (math.nan, "the loss is nan on the batch of anan, b; lower"),
    ):
        model = build_model(config, 32, None, torch.device("cpu"))
        done: list[int] = []
        optimizer = make_optimizer(model, config.training, 24)
        with pytest.raises(SimError, match=re.escape(error)):
            train_one_epoch(model, batches(value), optimizer, None, "cpu", after_step=lambda done=done: done.append(1))
        steps.append(len(done))
    assert steps == [2, 1]


def test_an_error_in_a_loaders_worker_is_one_line(make_config: MakeConfig) -> None:
    data = {"dataset_class_path": "test_fit.Broken", "num_workers": 1}
    with pytest.raises(DataError) as error:
        fit(make_config(data=data))
    assert str(error.value) == "train[9]: telemetry: holds NaN or inf in ax, ay, az, gx, gy, gz, v, w"
    assert multiprocessing.active_children() == []  # `error` holds the traceback, and so the loader


class Broken(VisFeats):
    """Breaks the contract only where a worker reads it."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        broken = i == 9 and torch.utils.data.get_worker_info() is not None
        return {**super().__getitem__(i), **({"telemetry": np.full(8, np.nan)} if broken else {})}


class NoHigh(VisFeats):
    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**super().__getitem__(i), "risk_id": i % 3}


def test_one_cycle_rises_for_three_tenths_and_ends_near_zero() -> None:
    factors = [lr_factor(step, 10) for step in range(10)]
    rise = [(1 - math.sqrt(0.75)) / 2, 0.5, (1 + math.sqrt(0.75)) / 2]  # cosine at 30, 90 and 150 degrees
    assert factors[:3] == pytest.approx(rise)
    fall = factors[3:]
    assert fall == sorted(fall, reverse=True)
    assert [1 - factor for factor in fall] == pytest.approx(fall[::-1])  # point-symmetric about 0.5
    assert fall[-1] == pytest.approx(0.01254, abs=1e-5)  # half a step before zero: (1 - cos(90/7 degrees)) / 2
