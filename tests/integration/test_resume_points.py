"""Going on with a run: from every place where it can be left, with what may change and what may not."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_world import Killed, fit_until, moved, outcome
from small_world import MakeConfig
from small_world import make_config as config_over
from strikes import after_writing, while_running
from torch import nn

from simv0.config.load import load_config
from simv0.config.schema import Config
from simv0.errors import ConfigError
from simv0.model.checkpoint import load_checkpoint
from simv0.model.network import SimV0Model
from simv0.training.fit import fit
from simv0.training.refusals import config_differences
from simv0.training.rundir import RunDir, cut_back
from simv0.training.stopping import Stopped

EPOCHS, STEPS, VAL_BATCHES = 2, 5, 1  # 40 windows in batches of 8; 20 in batches of 64


@pytest.fixture
def config(make_config: MakeConfig, features: Path) -> Config:
    return make_config(cache={"dir": str(features)})


@pytest.fixture(scope="module")
def unbroken(
    models: Path, manifests: Path, features: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, ...]:
    """The outcome of `config`'s run when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("unbroken")
    return outcome(fit(config_over(models, manifests, folder, cache={"dir": str(features)})))


@pytest.mark.parametrize("saves", range(1, EPOCHS * (STEPS + 1) + 1))
def test_resumed_from_every_save_it_ends_the_same(
    config: Config, tmp_path: Path, unbroken: tuple[Any, ...], saves: int
) -> None:
    """last.pt is written after every step and after every epoch: 12 places to die."""
    each_step = moved(config, tmp_path / "broken", checkpoint_every_steps=1)
    fit_until(each_step, saves)
    assert outcome(fit(each_step, resume=True)) == unbroken


def test_raw_frames_resume_with_another_number_of_workers(make_config: MakeConfig, tmp_path: Path) -> None:
    def raw(root: str, workers: int) -> Config:
        return make_config(
            model={"use_cached_vis_feats": False},
            data={"num_workers": workers, "batch_size": 8},
            training={"epochs": 1, "checkpoint_every_steps": 1},
            output={"output_dir": str(tmp_path / root)},
        )

    whole = outcome(fit(raw("whole", 0)))
    fit_until(raw("broken", 2), 3)
    assert outcome(fit(raw("broken", 0), resume=True)) == whole


def test_a_finished_run_says_so_and_changes_nothing(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    run = fit(config)
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    caplog.set_level("INFO", "simv0")
    fit(config, resume=True)
    assert {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()} == before
    assert "this run is finished (2 epochs); nothing to do" in caplog.messages[-1]


def test_resume_without_a_checkpoint_begins(config: Config, unbroken: tuple[Any, ...]) -> None:
    assert outcome(fit(config, resume=True)) == unbroken


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_a_batch_border_and_resume_ends_the_same(
    config: Config, unbroken: tuple[Any, ...], number: signal.Signals
) -> None:
    def send(count: int, model: nn.Module) -> None:
        if count == STEPS + VAL_BATCHES + 2:  # in the second step of epoch 2
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with while_running(SimV0Model, send), pytest.raises(Stopped) as error:
        fit(config)
    assert f"stopped by {number.name} in epoch 2 after step 2 of 5" in str(error.value)
    assert "continue with --resume" in str(error.value)
    assert signal.getsignal(number) == before
    assert outcome(fit(config, resume=True)) == unbroken


def test_resume_writes_the_operational_keys_of_now(config: Config) -> None:
    fit_until(config, 1)
    changed = config.data.model_copy(update={"num_workers": 1})
    run = fit(config.model_copy(update={"data": changed}), resume=True)
    assert load_config(run.config).data.num_workers == 1


def test_kept_epochs_are_what_last_was(config: Config, tmp_path: Path) -> None:
    """Killed between epoch_001.pt and last.pt, the epoch is trained again and its file written anew."""
    kept, broken = (moved(config, tmp_path / name, keep_epochs=True) for name in ("whole", "broken"))
    whole = fit(kept)

    def die(count: int, path: Path) -> None:
        raise Killed

    with after_writing("epoch_001.pt", die), pytest.raises(Killed):
        fit(broken)
    assert not RunDir(tmp_path / "broken").last.exists()
    resumed = fit(broken, resume=True)
    for run in (whole, resumed):
        assert [path.name for path in sorted(run.last.parent.glob("epoch_*"))] == ["epoch_001.pt", "epoch_002.pt"]
        assert run.kept(2).read_bytes() == run.last.read_bytes()
    one, other = (load_checkpoint(run.kept(1)) for run in (whole, resumed))
    assert one.meta.epoch == 1
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(weight, other.state[name]) for name, weight in one.state.items())
    (tmp_path / "whole/checkpoints/last.pt").write_bytes(whole.kept(1).read_bytes())
    assert outcome(fit(kept, resume=True)) == outcome(resumed)


def test_cut_back_keeps_whole_lines_of_finished_epochs(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"epoch": 1, "loss": 2}\n{"epoch": 2}\n{"epoch": 3}\n{"epo')
    cut_back(path, 2)
    assert path.read_text() == '{"epoch": 1, "loss": 2}\n{"epoch": 2}\n'
