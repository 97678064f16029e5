"""TensorBoard holds what the metrics files hold, also after a kill."""

import json
import sys
from pathlib import Path

import pytest
from small_world import MakeConfig

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


def test_no_epoch_stands_twice_after_a_resume(config: Config) -> None:
    """Without the checkpoint of epoch 3 it is done again, as after a kill between its metrics and its checkpoint."""
    run = fit(config)
    run.last.unlink()
    fit(config, resume=True)
    assert len(list(run.tensorboard.iterdir())) == 2
    assert from_events(run) == from_lines(run)  # `seconds` would differ, if they were those of the first time


def test_the_board_may_be_switched_on_when_resuming(config: Config) -> None:
    off = config.training.model_copy(update={"tensorboard": False})
    run = fit(config.model_copy(update={"training": off}))
    assert not run.tensorboard.exists()
    run.last.unlink()
    fit(config, resume=True)
    later = {tag: [row for row in rows if row[0] == 3] for tag, rows in from_lines(run).items()}
    assert from_events(run) == later


def test_a_missing_package_is_one_line_before_training(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # import fails
    with pytest.raises(ConfigError) as error:
        fit(config)
    assert str(error.value) == "training.tensorboard needs tensorboard: pip install 'simv0[tensorboard]'"
    assert not RunDir(config.output.output_dir).val_metrics.exists()
