"""Signals: a run stops in time, and goes on as if nothing had been."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeConfig
from fit_world import outcome

import simv0.fit
import simv0.resume
import simv0.rundir
from simv0.checkpoint import load_checkpoint, save_checkpoint
from simv0.config import Config
from simv0.fit import fit
from simv0.rundir import RunDir
from simv0.stopping import Stopped


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

    monkeypatch.setattr(simv0.fit, "save_checkpoint", interrupted_save)
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

    monkeypatch.setattr(simv0.fit, "save_checkpoint", warned_save)
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
    original, batches = simv0.fit.evaluate, 0

    def evaluate(*args: Any, on_batch: Any, **kwargs: Any) -> Any:
        def count(*seen: Any) -> None:
            nonlocal batches
            batches += 1
            os.kill(os.getpid(), signal.SIGTERM)
            on_batch(*seen)

        return original(*args, on_batch=count, **kwargs)

    monkeypatch.setattr(simv0.fit, "evaluate", evaluate)
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
