"""Training: what a run leaves, the same twice, resumed anywhere, stopped, refused."""

import json
import math
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_world import VisFeats, fit_until, lines, moved, outcome
from small_world import MakeConfig

from simv0.config.load import load_config
from simv0.config.schema import Config
from simv0.errors import CacheError, CheckpointError, ConfigError, DataError, SimError, TrainingError
from simv0.evaluation.run import evaluate_checkpoint
from simv0.model.build import build_model
from simv0.model.checkpoint import load_checkpoint, save_checkpoint
from simv0.training.epoch import train_one_epoch
from simv0.training.fit import fit
from simv0.training.recipe import lr_factor, make_optimizer
from simv0.training.refusals import config_differences
from simv0.training.rundir import RunDir, cut_back
from simv0.training.stopping import Stopped

EPOCHS, STEPS = 2, 5  # 40 windows in batches of 8


@pytest.fixture
def config(make_config: MakeConfig, features: Path) -> Config:
    return make_config(cache={"dir": str(features)})


@pytest.fixture
def unbroken(config: Config, tmp_path: Path) -> tuple[Any, ...]:
    return outcome(fit(moved(config, tmp_path / "unbroken")))


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


def test_same_seed_same_bits_and_another_seed_others(config: Config, tmp_path: Path, unbroken: tuple[Any, ...]) -> None:
    assert outcome(fit(moved(config, tmp_path / "again"))) == unbroken
    assert outcome(fit(moved(config, tmp_path / "other", seed=1)))[0] != unbroken[0]


def test_training_learns(config: Config, tmp_path: Path) -> None:
    run = fit(moved(config, tmp_path / "r", epochs=12, visual_dropout=0.0))
    losses = [row["risk_loss"] for row in lines(run.train_metrics)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("saves", range(1, EPOCHS * (STEPS + 1) + 1))
def test_resumed_from_every_save_it_ends_the_same(
    config: Config, tmp_path: Path, unbroken: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    """last.pt is written after every step and after every epoch: 12 places to die."""
    each_step = moved(config, tmp_path / "broken", checkpoint_every_steps=1)
    fit_until(each_step, saves, monkeypatch)
    assert outcome(fit(each_step, resume=True)) == unbroken


def test_raw_frames_resume_with_another_number_of_workers(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raw(root: str, workers: int) -> Config:
        return make_config(
            model={"use_cached_vis_feats": False},
            data={"num_workers": workers, "batch_size": 8},
            training={"epochs": 1, "checkpoint_every_steps": 1},
            output={"output_dir": str(tmp_path / root)},
        )

    whole = outcome(fit(raw("whole", 0)))
    fit_until(raw("broken", 2), 3, monkeypatch)
    assert outcome(fit(raw("broken", 0), resume=True)) == whole


def test_a_damaged_last_is_said_and_the_previous_one_used(
    config: Config,
    tmp_path: Path,
    unbroken: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = moved(config, tmp_path / "broken", checkpoint_every_steps=1)
    fit_until(broken, 4, monkeypatch)
    last = tmp_path / "broken/checkpoints/last.pt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    assert outcome(fit(broken, resume=True)) == unbroken
    assert any("DAMAGED CHECKPOINT" in message and "last.prev.pt" in message for message in caplog.messages)


def test_a_finished_run_says_so_and_changes_nothing(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    run = fit(config)
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    caplog.set_level("INFO", "simv0")
    fit(config, resume=True)
    assert {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()} == before
    assert "this run is finished (2 epochs); nothing to do" in caplog.messages[-1]


def test_resume_without_a_checkpoint_begins(config: Config, unbroken: tuple[Any, ...]) -> None:
    assert outcome(fit(config, resume=True)) == unbroken


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


def test_another_config_is_refused_on_resume_by_key(config: Config) -> None:
    fit(config)
    with pytest.raises(ConfigError) as error:
        fit(moved(config, Path(config.output.output_dir), lr=5e-4, epochs=3), resume=True)
    assert "training.epochs: started with 2, now 3; training.lr: started with 0.001, now 0.0005" in str(error.value)
    operational = {
        "data": {"num_workers": 2},
        "training": {"checkpoint_every_steps": 5},
        "cache": {"in_memory": "never"},
    }
    plain: dict[str, Any] = {"data": {"num_workers": 0}, "training": {}, "cache": {"in_memory": "auto"}}
    assert config_differences(plain, operational) == []


def test_changed_data_are_refused_on_resume(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_config = moved(config, tmp_path / "r", checkpoint_every_steps=1)
    fit_until(run_config, 2, monkeypatch)
    content = load_checkpoint(tmp_path / "r/checkpoints/last.pt")
    assert content.training is not None
    content.training.digests["val"] = "0"
    save_checkpoint(tmp_path / "r/checkpoints/last.pt", content)
    with pytest.raises(CheckpointError, match=r"last.pt: the data of split val has changed since the run was started"):
        fit(run_config, resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_a_batch_border_and_resume_ends_the_same(
    config: Config, tmp_path: Path, unbroken: tuple[Any, ...], number: signal.Signals
) -> None:
    run_config = moved(config, tmp_path / "stopped")
    last = tmp_path / "stopped/checkpoints/last.pt"

    def send() -> None:
        deadline = time.monotonic() + 60
        while not last.exists():  # after the first epoch
            if time.monotonic() > deadline:
                return  # a signal now would end pytest
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as error:
        fit(run_config)
    thread.join()
    assert f"stopped by {number.name} in epoch 2 after step" in str(error.value)
    assert "continue with --resume" in str(error.value)
    assert signal.getsignal(number) == before
    assert outcome(fit(run_config, resume=True)) == unbroken


def test_one_run_one_owner(config: Config) -> None:
    owner = RunDir(config.output.output_dir)
    owner.claim()
    with pytest.raises(TrainingError, match="another simv0 process is running here"):
        fit(config)
    owner.release()
    fit(config)


def test_a_dataset_with_features_needs_no_encoder_and_no_cache(make_config: MakeConfig) -> None:
    vision = {"vision_encoder_name": "ViT-B-32", "vision_pretrained": "laion2b_s34b_b79k"}  # not on this machine
    config = make_config(data={"dataset_class_path": "fit_world.VisFeats"}, model=vision)
    run = fit(config)
    checkpoint = load_checkpoint(run.best)
    assert (checkpoint.meta.dv, checkpoint.meta.encoder) == (6, None)
    found, _ = evaluate_checkpoint(run.best)
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
        train_one_epoch(model, [batch], make_optimizer(model, make_config().training), None, "cpu")  # type: ignore
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
        optimizer = make_optimizer(model, config.training)
        with pytest.raises(SimError, match=re.escape(error)):
            train_one_epoch(model, batches(value), optimizer, None, "cpu", after_step=lambda done=done: done.append(1))
        steps.append(len(done))
    assert steps == [2, 1]


def test_resume_writes_the_operational_keys_of_now(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_until(config, 1, monkeypatch)
    changed = config.data.model_copy(update={"num_workers": 1})
    run = fit(config.model_copy(update={"data": changed}), resume=True)
    assert load_config(run.config).data.num_workers == 1


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
    factors = [lr_factor(step, 100) for step in range(100)]
    assert factors[0] < 0.01
    assert max(factors) == pytest.approx(1, abs=0.01)
    assert factors.index(max(factors)) in (29, 30)
    assert factors[-1] < 0.001


def test_cut_back_keeps_whole_lines_of_finished_epochs(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"epoch": 1, "loss": 2}\n{"epoch": 2}\n{"epoch": 3}\n{"epo')
    cut_back(path, 2)
    assert path.read_text() == '{"epoch": 1, "loss": 2}\n{"epoch": 2}\n'
