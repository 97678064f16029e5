"""Going on with a run that was hurt: every state that a kill, a full disk or a careless hand can leave."""

import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_world import fit_until, lines, outcome
from small_world import MakeConfig
from strikes import flip_bit

from simv0.config.schema import Config
from simv0.errors import CheckpointError, SimError
from simv0.model.checkpoint import Training, load_checkpoint, save_checkpoint, seal
from simv0.predict import config_of
from simv0.training.fit import fit
from simv0.training.rundir import RunDir


def refusal(config: Config) -> str:
    with pytest.raises(SimError) as error:
        fit(config, resume=True)
    assert "\n" not in str(error.value)
    return str(error.value)


def change(path: Path, **changes: Any) -> None:
    """Write another `training` part into a checkpoint."""
    content = load_checkpoint(path)
    assert content.training is not None
    training = Training.model_construct(**{**dict(content.training), **changes})
    save_checkpoint(path, content.model_copy(update={"training": training}))


def test_a_damaged_last_is_said_and_never_replaces_the_good_previous_one(
    config: Config, unbroken: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed again before the first save of the resumed run is whole, there is still a good checkpoint."""
    run = RunDir(config.output.output_dir)
    fit_until(config, 3)
    flip_bit(run.last)

    def die(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(SimError, match="No space left on device"):
        fit(config, resume=True)
    monkeypatch.undo()
    assert any("DAMAGED CHECKPOINT" in message and "last.prev.pt" in message for message in caplog.messages)
    assert load_checkpoint(run.previous).training is not None
    assert outcome(fit(config, resume=True)) == unbroken


def test_a_missing_last_is_said_and_the_previous_one_used(
    config: Config, unbroken: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(config.output.output_dir)
    fit_until(config, 4)
    run.last.unlink()
    assert outcome(fit(config, resume=True)) == unbroken
    assert any("last.pt: is missing; resuming from last.prev.pt, one save earlier" in text for text in caplog.messages)


def test_two_damaged_checkpoints_are_one_line(config: Config) -> None:
    run = fit(config)
    flip_bit(run.last)
    flip_bit(run.previous)
    assert refusal(config).endswith(
        f"{run.previous}: damaged: its bytes do not match their digest; restore a copy, or start over with --overwrite"
    )
    fit(config, overwrite=True)


def test_best_given_as_last_is_refused(config: Config) -> None:
    run = fit(config)
    shutil.copy(run.best, run.last)
    run.previous.unlink()
    assert "last.pt: holds no training state; it is not a last.pt" in refusal(config)


def test_a_torn_or_lost_metrics_file_is_mended_or_said(
    config: Config, unbroken: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(config.output.output_dir)
    fit_until(config, 5)  # in epoch 2
    run.train_metrics.write_bytes(run.train_metrics.read_bytes() + b'{"epoch": 2, "lo')
    run.val_metrics.write_bytes(run.val_metrics.read_bytes() + b'{"epoch": "2"}\n{"epoch": 2}\n[]\n\xff\n')
    assert outcome(fit(config, resume=True)) == unbroken
    shutil.rmtree(run.root)
    fit_until(config, 5)
    run.val_metrics.unlink()
    fit(config, resume=True)
    assert any("val_metrics.jsonl: holds 0 lines for 1 finished epochs" in text for text in caplog.messages)
    assert [row["epoch"] for row in lines(run.val_metrics)] == [2]


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, "training.step: Input should be greater than or equal to 0, found -1"),
        ({"step": 4}, "says 4 of 3 steps of the epoch are done"),
        ({"best": (1.0,)}, "training.best.1: Field required"),
        ({"tally": {}}, "does not fit the metrics: it lacks confusion.action"),
        ({"digests": {}}, "the data of split train has changed since the run was started"),
        ({"optimizer": {}}, "does not fit the optimizer: it lacks 0.exp_avg"),
        ({"optimizer": {"x": {}}}, "training.optimizer.x.[key]: Input should be a valid integer"),
        ({"optimizer": {0: {"exp_avg": [1]}}}, "training.optimizer.0.exp_avg: Input should be an instance of Tensor"),
        ({"optimizer": {0: {"exp_avg": torch.tensor(float("inf"))}}}, "optimizer.0.exp_avg holds NaN or inf"),
        ({"epoch": 1}, "training.epoch: Extra inputs are not permitted"),
    ],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_malformed_training_part_is_one_line(config: Config, changes: dict[str, Any], message: str) -> None:
    run = RunDir(config.output.output_dir)
    fit_until(config, 2)
    content = torch.load(run.last, weights_only=True)
    content["training"] |= changes
    buffer = io.BytesIO()
    torch.save(content, buffer)
    run.last.write_bytes(seal(buffer.getvalue()))
    run.previous.unlink()
    metrics = run.val_metrics.read_bytes()
    assert message in refusal(config)
    assert run.val_metrics.read_bytes() == metrics


def test_optimizer_moments_of_another_shape_are_refused(config: Config) -> None:
    """Torch itself takes them and fails, or not, at the next step."""
    run = RunDir(config.output.output_dir)
    fit_until(config, 2)
    training = load_checkpoint(run.last).training
    assert training is not None
    training.optimizer[0]["exp_avg"] = zeros(1, 6)
    change(run.last, optimizer=training.optimizer)
    assert "does not fit the optimizer: 0.exp_avg: expected torch.float32 [64, 6], found torch.float32 [1, 6]" in (
        refusal(config)
    )


def test_other_package_versions_are_said(
    config: Config, unbroken: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(config.output.output_dir)
    fit_until(config, 2)
    content = load_checkpoint(run.last)
    now = content.meta.provenance["torch"]
    meta = content.meta.model_copy(update={"provenance": {**content.meta.provenance, "torch": "2.10.0"}})
    save_checkpoint(run.last, content.model_copy(update={"meta": meta}))
    fit(config, resume=True)
    assert f"resumed with other versions: torch 2.10.0 -> {now}: the weights may differ by rounding" in (
        caplog.messages
    )


def test_the_config_inside_a_checkpoint_reaches_no_code_and_no_environment(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    run = fit(config)
    content = load_checkpoint(run.best)
    tree = json.loads(json.dumps(content.meta.config))
    tree["model"] |= {"trust_remote_code": True, "llm_name_or_path": "evil/${SECRET}"}
    tree["data"] |= {"dataset_class_path": "os.system", "dataset_kwargs": {"a": 1}}
    hostile = content.model_copy(update={"meta": content.meta.model_copy(update={"config": tree})})
    read = config_of(hostile, run.best)
    assert read.model.trust_remote_code is False
    assert read.model.llm_name_or_path == "evil/${SECRET}"
    assert (read.data.dataset_class_path, read.data.dataset_kwargs) == ("simv0.datasets.ManifestDataset", {})


@pytest.mark.parametrize("section", ["data", "cache", "model", "training", "evaluation", "output", "gone"])
def test_a_key_that_is_gone_stops_a_resume_but_no_prediction(
    config: Config, section: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(config.output.output_dir)
    fit_until(config, 2)
    content = load_checkpoint(run.last)
    tree = {**content.meta.config, section: {**content.meta.config.get(section, {}), "smoothing": 0.1}}
    old = content.model_copy(update={"meta": content.meta.model_copy(update={"config": tree})})
    with caplog.at_level(logging.INFO, "simv0"):
        read = config_of(old, run.last)
    assert caplog.messages[-1] == f"{run.last}: keys unknown to this simv0 are ignored: {section}.smoothing"
    assert (read.training.amp, read.model) == (False, config.model)  # the default would be true
    if section in ("cache", "output"):
        return
    save_checkpoint(run.last, old)
    with pytest.raises(SimError) as error:
        fit(config, resume=True)
    assert str(error.value) == (
        f"{run.root}: the run was started by another version of simv0 and cannot be resumed by this one: "
        f"{section}.smoothing: started with 0.1, now unknown to this simv0; its checkpoints still work for "
        "prediction; train again in another output.output_dir"
    )


def test_a_run_goes_on_after_its_data_and_models_have_moved(
    make_config: MakeConfig,
    features: Path,
    models: Path,
    manifests: Path,
    tmp_path: Path,
) -> None:
    config = make_config(cache={"dir": str(features)}, training={"checkpoint_every_steps": 1})
    elsewhere = config.output.model_copy(update={"output_dir": str(tmp_path / "unbroken")})
    unbroken = outcome(fit(config.model_copy(update={"output": elsewhere})))
    fit_until(config, 3)
    moved, tower = tmp_path / "moved", Path(config.model.vision_encoder_name.removeprefix("local-dir:"))
    shutil.copytree(config.model.llm_name_or_path, moved / "another_llm")
    shutil.copytree(tower, moved / "another_tower")
    shutil.copytree(Path(config.data.train_split_path).parent, moved / "films")
    model = {
        "llm_name_or_path": str(moved / "another_llm"),
        "vision_encoder_name": f"local-dir:{moved / 'another_tower'}",
    }
    data = {f"{split}_split_path": str(moved / "films" / f"{split}.jsonl") for split in ("train", "val")}
    there = make_config(cache={"dir": str(features)}, training={"checkpoint_every_steps": 1}, model=model, data=data)
    assert outcome(fit(there, resume=True))[:3] == unbroken[:3]  # all but the names


def test_a_projector_that_its_metadata_belie_is_refused_before_it_is_built(config: Config) -> None:
    from simv0.predict import load_model

    run = fit(config)
    content = load_checkpoint(run.best)
    lying = content.model_copy(update={"meta": content.meta.model_copy(update={"dv": 60_000})})
    with pytest.raises(CheckpointError, match="its projector is not 60000 -> 64 as its metadata say"):
        load_model(lying, run.best, config)
