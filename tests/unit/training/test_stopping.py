"""Signals: a run stops in time, and goes on as if nothing had been."""

import logging
import os
import re
import select
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from commands import run
from fit_world import VisFeats, outcome
from ranks import on_ranks, wait_for
from small_world import MakeConfig
from strikes import while_running, while_writing
from torch import nn
from torch.utils.data import get_worker_info

from simv0.config.load import dump_config
from simv0.config.schema import Config
from simv0.model.checkpoint import load_checkpoint
from simv0.model.network import SimV0Model
from simv0.runtime.distributed import first_to_fail
from simv0.training.fit import fit
from simv0.training.rundir import RunDir
from simv0.training.stopping import Stopped


def test_a_second_interrupt_stops_at_once_and_leaves_a_checkpoint(config: Config, unbroken: tuple[Any, ...]) -> None:
    run = RunDir(config.output.output_dir)

    def interrupt_twice(count: int) -> None:
        if count == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with while_writing(run.last, interrupt_twice), pytest.raises(KeyboardInterrupt):
        fit(config)
    training = load_checkpoint(run.last).training
    assert training is not None
    assert training.step == 1  # the save that was cut off left the one before
    assert not list(run.root.rglob("*.tmp"))
    assert outcome(fit(config, resume=True)) == unbroken


def test_sigterm_while_saving_finishes_the_save_and_stops(config: Config, unbroken: tuple[Any, ...]) -> None:
    run = RunDir(config.output.output_dir)
    with (
        while_writing(run.last, lambda count: count == 1 and signal.raise_signal(signal.SIGTERM)),
        pytest.raises(Stopped, match="stopped by SIGTERM in epoch 1 after step 1 of 3"),
    ):
        fit(config)
    training = load_checkpoint(run.last).training
    assert training is not None
    assert training.step == 1
    assert outcome(fit(config, resume=True)) == unbroken


def test_a_signal_in_validation_does_not_wait_for_its_end(config: Config, unbroken: tuple[Any, ...]) -> None:
    run = RunDir(config.output.output_dir)
    interrupting = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"batch_size": 4})})
    batches = []

    def interrupt(count: int, model: nn.Module) -> None:
        if not model.training:
            batches.append(count)
            signal.raise_signal(signal.SIGTERM)

    with (
        while_running(SimV0Model, interrupt),
        pytest.raises(Stopped, match="SIGTERM in epoch 1 after step 3 of 3"),
    ):
        fit(interrupting)
    assert batches == [4]  # the first of 6
    assert outcome(fit(config, resume=True)) == unbroken
    assert not list(run.root.rglob("*.tmp"))


def test_a_signal_to_the_whole_group_leaves_the_workers_alone(
    config: Config, make_config: MakeConfig, unbroken: tuple[Any, ...]
) -> None:
    """Ctrl-C in a terminal, and a cluster's SIGTERM, reach the loader's workers too."""
    with_workers = make_config(data={"dataset_class_path": "fit_world.VisFeats", "num_workers": 2})
    child = os.fork()
    if child == 0:
        os.setsid()
        logging.disable()
        try:
            with while_running(SimV0Model, lambda count, _: count == 2 and os.killpg(0, signal.SIGTERM)):
                fit(with_workers)
        except Stopped:
            os._exit(130)
        finally:
            os._exit(1)
    assert wait_for([child]) == [130]
    assert outcome(fit(config, resume=True)) == unbroken


class Orphaned(VisFeats):
    """Kills torchrun while it is being built."""

    torchrun = 0

    def __init__(self, path: str) -> None:
        kill_torchrun()
        super().__init__(path)


def kill_torchrun() -> None:
    if os.environ["RANK"] == "0" and os.getppid() == Orphaned.torchrun:
        os.kill(Orphaned.torchrun, signal.SIGKILL)
    while os.getppid() == Orphaned.torchrun:
        os.sched_yield()  # the kernel gives orphans another parent in its own time


@pytest.mark.parametrize("loading", [False, True])
def test_a_killed_torchrun_stops_its_processes(make_config: MakeConfig, tmp_path: Path, loading: bool) -> None:
    """It cannot tell them: else they train on, and hold the run's folder, without anyone's knowledge."""
    data = {"dataset_class_path": "test_stopping.Orphaned" if loading else "fit_world.VisFeats"}
    config = make_config(data=data, training={"checkpoint_every_steps": 1, "epochs": 500})
    said, (ended, alive) = tmp_path / "said", os.pipe()

    def train() -> None:
        with while_running(SimV0Model, lambda count, _: count == 5 and kill_torchrun()):
            fit(config)

    launcher = os.fork()
    if launcher == 0:
        Orphaned.torchrun = os.getpid()
        logging.disable()
        on_ranks(2, train, said)
        os._exit(0)
    os.close(alive)
    os.waitpid(launcher, 0)
    assert select.select([ended], [], [], 60)[0], "they train on"  # its end is closed by the last of them
    os.close(ended)
    assert said.read_text().count("stopped by the end of torchrun in epoch ") == 2
    assert load_checkpoint(RunDir(config.output.output_dir).last).training is not None


def test_who_failed_first_is_not_asked_of_a_torchrun_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Torch would try for 20 s, and print a page of its insides."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert first_to_fail()
    assert capfd.readouterr() == ("", "")


class Dies(VisFeats):
    """One of its processes is killed, as by a machine that has run out of memory."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 7 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_worker_is_one_line(make_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(make_config(data={"dataset_class_path": "test_stopping.Dies", "num_workers": 2})))
    found = run("train", "--config", path)
    assert found.exit_code == 1
    *warnings, error = found.stderr.splitlines()
    assert not any(line.startswith("error") for line in warnings)
    assert re.fullmatch(
        r"error: a data-loading worker died \(DataLoader worker \(pid.* \d+\).*\): out of memory\? Lower "
        r"data.num_workers, and restart \(train: with --resume\)",
        error,
    )
