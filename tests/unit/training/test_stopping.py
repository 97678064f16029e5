"""Signals: a run stops in time, and goes on as if nothing had been."""

import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fit_world import VisFeats, moved, outcome
from ranks import on_ranks
from small_world import MakeConfig
from torch.utils.data import get_worker_info
from typer.testing import CliRunner

import simv0.training.fit
import simv0.training.resume
import simv0.training.rundir
from cli.main import app
from simv0.config.load import dump_config
from simv0.config.schema import Config
from simv0.model.checkpoint import load_checkpoint, save_checkpoint
from simv0.runtime.distributed import first_to_fail
from simv0.training.fit import fit
from simv0.training.rundir import RunDir
from simv0.training.splits import open_split
from simv0.training.stopping import Stopped


def test_a_second_interrupt_stops_at_once_and_leaves_a_checkpoint(
    config: Config, unbroken: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(config.output.output_dir)
    saves = 0

    def interrupted_save(path: Path, content: Any, **kwargs: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 2:  # once before, once within: the second one lands in the middle of a save
            os.kill(os.getpid(), signal.SIGINT)
            original = os.fsync
            monkeypatch.setattr("os.fsync", lambda fd: os.kill(os.getpid(), signal.SIGINT) or original(fd))
        save_checkpoint(path, content, **kwargs)

    monkeypatch.setattr(simv0.training.fit, "save_checkpoint", interrupted_save)
    with pytest.raises(KeyboardInterrupt):
        fit(config)
    monkeypatch.undo()
    assert load_checkpoint(run.last).training is not None
    assert not list(run.root.rglob("*.tmp"))
    assert outcome(fit(config, resume=True)) == unbroken


def test_sigterm_while_saving_finishes_the_save_and_stops(
    config: Config, unbroken: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(config.output.output_dir)

    def warned_save(path: Path, content: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save_checkpoint(path, content, **kwargs)

    monkeypatch.setattr(simv0.training.fit, "save_checkpoint", warned_save)
    with pytest.raises(Stopped, match="stopped by SIGTERM in epoch 1 after step 1 of 3"):
        fit(config)
    monkeypatch.undo()
    training = load_checkpoint(run.last).training
    assert training is not None
    assert training.step == 1
    assert outcome(fit(config, resume=True)) == unbroken


def test_a_signal_in_validation_does_not_wait_for_its_end(
    config: Config, unbroken: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(config.output.output_dir)
    interrupting = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"batch_size": 4})})
    original, batches = simv0.training.fit.evaluate, 0

    def evaluate(*args: Any, on_batch: Any, **kwargs: Any) -> Any:
        def count(*seen: Any) -> None:
            nonlocal batches
            batches += 1
            os.kill(os.getpid(), signal.SIGTERM)
            on_batch(*seen)

        return original(*args, on_batch=count, **kwargs)

    monkeypatch.setattr(simv0.training.fit, "evaluate", evaluate)
    with pytest.raises(Stopped, match="SIGTERM in epoch 1 after step 3 of 3"):
        fit(interrupting)
    monkeypatch.undo()
    assert batches == 1
    assert outcome(fit(config, resume=True)) == unbroken
    assert not list(run.root.rglob("*.tmp"))


def test_a_signal_to_the_whole_group_leaves_the_workers_alone(
    config: Config, make_config: MakeConfig, unbroken: tuple[Any, ...]
) -> None:
    """Ctrl-C in a terminal, and a cluster's SIGTERM, reach the loader's workers too."""
    run = RunDir(config.output.output_dir)
    with_workers = make_config(data={"dataset_class_path": "fit_world.VisFeats", "num_workers": 2})
    child = os.fork()
    if child == 0:
        os.setsid()
        logging.disable()
        try:
            fit(with_workers)
        except Stopped:
            os._exit(130)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 20
    while not run.last.exists() and os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert outcome(fit(config, resume=True)) == unbroken


@pytest.mark.parametrize("loading", [False, True])
def test_a_killed_torchrun_stops_its_processes(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loading: bool
) -> None:
    """It cannot tell them: else they train on, and hold the run's folder, without anyone's knowledge."""

    def outlive_torchrun(*args: Any) -> Any:
        (tmp_path / "loading").touch()
        wait_until(lambda: os.getppid() != torchrun)
        return open_split(*args)

    if loading:
        monkeypatch.setattr(simv0.training.fit, "open_split", outlive_torchrun)
    config, said = moved(config, tmp_path / "run", epochs=500), tmp_path / "said"
    launcher = os.fork()
    if launcher == 0:
        torchrun = os.getpid()
        logging.disable()
        on_ranks(2, lambda: fit(config) and None, said)
        os._exit(0)
    run = RunDir(config.output.output_dir)
    wait_until((tmp_path / "loading" if loading else run.last).exists)
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    wait_until(lambda: said.exists() and said.read_text().count("\n") == 2)
    assert said.read_text().count("stopped by the end of torchrun in epoch ") == 2
    assert load_checkpoint(run.last).training is not None


def test_who_failed_first_is_not_asked_of_a_torchrun_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Torch would try for 20 s, and print a page of its insides."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    start = time.monotonic()
    assert first_to_fail()
    assert time.monotonic() - start < 5
    assert capfd.readouterr() == ("", "")


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Dies(VisFeats):
    """One of its processes is killed, as by a machine that has run out of memory."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 7 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_worker_is_one_line(make_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(make_config(data={"dataset_class_path": "test_stopping.Dies", "num_workers": 2})))
    found = CliRunner().invoke(app, ["train", "--config", str(path)])
    assert found.exit_code == 1
    *warnings, error = found.stderr.splitlines()
    assert not any(line.startswith("error") for line in warnings)
    assert re.fullmatch(
        r"error: a data-loading worker died \(DataLoader worker \(pid.* \d+\).*\): out of memory\? Lower "
        r"data.num_workers, and restart \(train: with --resume\)",
        error,
    )
