"""TensorBoard holds what the metrics files hold, also after a kill."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from small_world import MakeConfig

import simv0.training.fit
from simv0.config.schema import Config
from simv0.errors import ConfigError
from simv0.training.fit import fit
from simv0.training.rundir import RunDir


@pytest.fixture
def config(make_config: MakeConfig, features: Path) -> Config:
    return make_config(cache={"dir": str(features)}, training={"epochs": 3, "tensorboard": True})


def from_events(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (epoch, value), as TensorBoard shows them."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def from_lines(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    """The same out of the metrics files."""
    found: dict[str, list[tuple[int, float]]] = {}
    for split, path in (("train", run.train_metrics), ("val", run.val_metrics)):
        for row in map(json.loads, path.read_text().splitlines()):
            for key in row.keys() - {"epoch"}:
                if row[key] is not None:
                    found.setdefault(f"{split}/{key}", []).append((row["epoch"], pytest.approx(row[key])))
    return found


def test_the_board_says_what_the_metrics_files_say(config: Config) -> None:
    run = fit(config)
    shown = from_events(run)
    assert shown == from_lines(run)
    assert {"train/loss", "val/composite"} <= shown.keys()
    assert [epoch for epoch, _ in shown["val/composite"]] == [1, 2, 3]


class Killed(Exception):
    pass


def fit_and_die_in_epoch_2(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the metrics of epoch 2 and its checkpoint: a resumed run does epoch 2 again."""
    save = simv0.training.fit.save_checkpoint

    def dies(path: Path, content: Any, **kwargs: Any) -> None:
        if path.name == "last.pt" and content.meta.epoch == 2:
            raise Killed
        save(path, content, **kwargs)

    monkeypatch.setattr(simv0.training.fit, "save_checkpoint", dies)
    with pytest.raises(Killed):
        fit(config)
    monkeypatch.undo()


def test_no_epoch_stands_twice_after_a_resume(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_and_die_in_epoch_2(config, monkeypatch)
    run = fit(config, resume=True)
    assert len(list(run.tensorboard.iterdir())) == 2
    assert from_events(run) == from_lines(run)  # `seconds` would differ, if they were those of the first time


def test_the_board_may_be_switched_on_when_resuming(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    off = config.training.model_copy(update={"tensorboard": False})
    fit_and_die_in_epoch_2(config.model_copy(update={"training": off}), monkeypatch)
    run = RunDir(config.output.output_dir)
    assert not run.tensorboard.exists()
    fit(config, resume=True)
    later = {tag: [row for row in rows if row[0] > 1] for tag, rows in from_lines(run).items()}
    assert from_events(run) == later


def test_a_missing_package_is_one_line_before_training(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError) as error:
        fit(config)
    assert str(error.value) == "training.tensorboard needs tensorboard: pip install 'simv0[tensorboard]'"
    assert not RunDir(config.output.output_dir).val_metrics.exists()
