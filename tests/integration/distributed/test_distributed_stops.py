"""Several processes: one that is killed, signalled or wrong stops them all, and the run goes on from there."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from distributed_world import assert_same_run, train
from fit_world import moved
from ranks import on_ranks
from small_world import MakeConfig
from strikes import while_running, while_writing
from torch import Tensor, nn

from simv0.config.schema import Config
from simv0.errors import TrainingError
from simv0.evaluation.run import evaluate_checkpoint
from simv0.model.checkpoint import load_checkpoint
from simv0.model.network import SimV0Model
from simv0.runtime.distributed import rank
from simv0.training.fit import fit
from simv0.training.rundir import RunDir


def die(config: Config, doomed: int, stage: str, at: int) -> None:
    """Train until one process kills itself: in its `at`-th training step, val batch or write of last.pt."""
    calls = 0

    def strike(n: int) -> None:
        if n == at and rank() == doomed:
            os.kill(os.getpid(), signal.SIGKILL)

    def step(count: int, model: nn.Module) -> None:
        nonlocal calls
        calls += model.training == (stage == "step")
        strike(calls)

    last = RunDir(config.output.output_dir).last
    with while_writing(last, strike) if stage == "save" else while_running(SimV0Model, step):
        fit(config, resume=True)


@pytest.mark.parametrize(
    ("stage", "at", "doomed", "first", "then"),
    [("step", 2, 1, 2, 4), ("step", 6, 0, 4, 1), ("val", 1, 3, 4, 2), ("save", 3, 0, 2, 1), ("save", 5, 0, 2, 4)],
)
def test_killed_in_any_stage_it_stops_and_resumes_with_another_number(
    config: Config, tmp_path: Path, alone: RunDir, stage: str, at: int, doomed: int, first: int, then: int
) -> None:
    said = tmp_path / "said"
    codes = on_ranks(first, partial(die, config, doomed, stage, at), said)
    assert codes[doomed] == -signal.SIGKILL
    assert [code for number, code in enumerate(codes) if number != doomed] == [1] * (first - 1)
    assert "another of the" in said.read_text()
    assert on_ranks(then, partial(train, config, resume=True)) == [0] * then
    assert_same_run(RunDir(config.output.output_dir), alone)


def test_the_launchers_sigterm_does_not_cut_the_message_off(config: Config, tmp_path: Path) -> None:
    """torchrun sends it to the others at once when it finds one dead."""

    def warned() -> None:
        try:
            die(config, 1, "step", 2)
        except TrainingError:
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    said = tmp_path / "said"
    assert on_ranks(2, warned, said) == [1, -signal.SIGKILL]
    assert "another of the 2 processes exited" in said.read_text()


def send_to_second() -> None:
    if rank() == 1:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_to_one_process_stops_all_with_a_checkpoint(config: Config, tmp_path: Path, alone: RunDir) -> None:
    def stopped() -> None:
        with while_running(SimV0Model, lambda count, _: count == 2 and send_to_second()):
            fit(config)

    said = tmp_path / "said"
    assert on_ranks(2, stopped, said) == [130, 130]
    assert "in epoch 1 after step 2 of 4; the checkpoint is written" in said.read_text()
    state = load_checkpoint(RunDir(config.output.output_dir).last).training
    assert state is not None
    assert state.step == 2
    assert int(state.tally["confusion.risk"].sum()) == 26  # both processes' windows
    fit(config, resume=True)
    assert_same_run(RunDir(config.output.output_dir), alone)


def as_they_agree_to_go_on() -> AbstractContextManager[Any]:
    flags, all_reduce = 0, dist.all_reduce

    def agreeing(tensor: Tensor, *args: Any) -> Any:
        nonlocal flags
        flags += tensor.shape == () and tensor.dtype == torch.int64
        if flags == 2:  # twice a step: before its checkpoint and after
            send_to_second()
        return all_reduce(tensor, *args)

    return patch.object(dist, "all_reduce", agreeing)


@contextmanager
def as_the_first_one_saves() -> Iterator[None]:
    steps, broadcast = 0, dist.broadcast_object_list

    def step(count: int, model: nn.Module) -> None:
        nonlocal steps
        steps = count

    def waiting(*args: Any) -> None:
        if steps == 1:
            send_to_second()
        broadcast(*args)

    with while_running(SimV0Model, step), patch.object(dist, "broadcast_object_list", waiting):
        yield


def in_validation() -> AbstractContextManager[Any]:
    return while_running(SimV0Model, lambda _, model: not model.training and send_to_second())


@pytest.mark.parametrize(
    ("when", "step"), [(as_they_agree_to_go_on, 2), (as_the_first_one_saves, 1), (in_validation, 4)]
)
def test_whenever_the_signal_comes_all_stop_at_one_step(
    config: Config, tmp_path: Path, alone: RunDir, when: Callable[[], AbstractContextManager[Any]], step: int
) -> None:
    """A process that stopped by what it alone knows would leave the others in another message."""

    def stopped() -> None:
        with when():
            fit(config)

    said = tmp_path / "said"
    assert on_ranks(2, stopped, said) == [130, 130]
    assert f"in epoch 1 after step {step} of 4; the checkpoint is written" in said.read_text()
    fit(config, resume=True)
    assert_same_run(RunDir(config.output.output_dir), alone)


def test_processes_with_other_data_or_settings_are_found(
    make_config: MakeConfig, config: Config, alone: RunDir, tmp_path: Path
) -> None:
    """On another machine a file may be an older one, and the config another: wrong weights, or waiting for ever."""
    own = {"dataset_class_path": "fit_world.VisFeats"}
    smaller = config.model_copy(update={"data": config.data.model_copy(update={"batch_size": 12})})
    cases: list[tuple[Config, Config, str]] = [
        (make_config(data=own), make_config(data={**own, "val_split_path": "train"}), "val split"),
        (config, moved(config, tmp_path / "run", lr=1.0), "training"),
        (config, smaller, "data.batch_size"),
    ]
    for first, second, differing in cases:
        said = tmp_path / "said"
        said.unlink(missing_ok=True)
        assert on_ranks(2, lambda: fit(second if os.environ["RANK"] == "1" else first), said) == [1, 1]  # noqa: B023
        assert re.search(rf"^1: process 1 .* differs from rank 0 in: {differing};", said.read_text(), re.M)

    def evaluate() -> None:
        evaluate_checkpoint(alone.best if os.environ["RANK"] == "0" else alone.last, baselines=False)

    said = tmp_path / "said of checkpoints"
    assert on_ranks(2, evaluate, said) == [1, 1]
    assert "differs from rank 0 in: checkpoint;" in said.read_text()


def test_what_fails_in_one_process_ends_the_others(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(data={"dataset_class_path": "fit_world.VisFeats", "dataset_kwargs": {"poison": 5}})
    said = tmp_path / "said"
    assert on_ranks(2, partial(train, config), said) == [1, 1]
    words = sorted(said.read_text().splitlines(), key=lambda line: "another of" in line)
    assert len(words) == 2
    assert re.search(r"\d: the loss is (nan|inf) on the batch of .*w5", words[0])
    assert "another of the 2 processes exited" in words[1]


def test_world_size_without_a_launcher(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some schedulers export it for everybody."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        TrainingError, match=r"the 2 processes of WORLD_SIZE failed to connect \(.*RANK expected.*\): start"
    ):
        fit(config)
