"""One run by several processes: the same as by one, to the rounding of float; resumed by another number of them."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fit_world import lines, moved
from ranks import on_ranks
from small_world import MakeConfig

import simv0.training.epoch
import simv0.training.fit
from simv0.config.load import dump_config
from simv0.config.schema import Config
from simv0.errors import ConfigError, TrainingError
from simv0.evaluation.run import evaluate_checkpoint
from simv0.model.build import build_model
from simv0.model.checkpoint import load_checkpoint
from simv0.model.losses import loss_sums, objective
from simv0.runtime.distributed import add_gradients, process_group, rank, share_of, whole_weights, world_size
from simv0.training.fit import fit
from simv0.training.rundir import RunDir
from simv0.training.splits import BatchOrder, open_split, train_batches


@pytest.fixture
def config(make_config: MakeConfig, features: Path) -> Config:
    """40 windows in batches of 13, so that the last batch is one window: most processes have none of it."""
    return make_config(
        cache={"dir": str(features)},
        data={"batch_size": 13},
        training={"checkpoint_every_steps": 1, "class_weights": "balanced"},
        model={"confidence_head": True},
        evaluation={"batch_size": 7},
    )


@pytest.fixture
def alone(config: Config, tmp_path: Path) -> RunDir:
    """The run of one process."""
    return fit(moved(config, tmp_path / "alone"))


def assert_same_run(run: RunDir, alone: RunDir) -> None:
    """Equal counts and order, floats to rounding."""
    for mine, theirs in ((run.train_metrics, alone.train_metrics), (run.val_metrics, alone.val_metrics)):
        for row, wanted in zip(lines(mine), lines(theirs), strict=True):
            assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    for name in ("best", "last"):
        mine, theirs = load_checkpoint(getattr(run, name)), load_checkpoint(getattr(alone, name))  # type: ignore[assignment]
        assert mine.meta.epoch == theirs.meta.epoch  # type: ignore[attr-defined]
        for key, tensor in theirs.state.items():  # type: ignore[attr-defined]
            torch.testing.assert_close(mine.state[key], tensor, rtol=1e-3, atol=1e-5, msg=key)  # type: ignore[attr-defined]


def train(config: Config, **how: Any) -> None:
    fit(config, **how)


@pytest.mark.parametrize("n", [2, 4])
def test_several_processes_train_as_one_does(config: Config, tmp_path: Path, alone: RunDir, n: int) -> None:
    several = moved(config, tmp_path / "several")
    assert on_ranks(n, partial(train, several)) == [0] * n
    run = RunDir(several.output.output_dir)
    assert_same_run(run, alone)
    assert load_checkpoint(run.last).meta.provenance["processes"] == str(n)
    found = sorted(path.relative_to(run.root) for path in run.root.rglob("*"))
    assert found == sorted(path.relative_to(alone.root) for path in alone.root.rglob("*"))
    said = run.log.read_text()
    assert len(re.findall("^    2 ", said, re.M)) == 1  # the row of epoch 2, once


def die(config: Config, doomed: int, stage: str, at: int) -> None:
    """Train until one process kills itself: in its `at`-th training step, val batch or save of a checkpoint."""
    function = {"step": "loss_sums", "val": "loss_sums", "save": "save_checkpoint"}[stage]
    module = simv0.training.fit if stage == "save" else simv0.training.epoch
    original, calls = getattr(module, function), 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += stage == "save" or torch.is_grad_enabled() == (stage == "step")
        if calls == at and rank() == doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(module, function, dying)
    fit(config, resume=True)


@pytest.mark.parametrize(
    ("stage", "at", "doomed", "first", "then"),
    [("step", 2, 1, 2, 4), ("step", 6, 0, 4, 1), ("val", 1, 3, 4, 2), ("save", 3, 0, 2, 1), ("save", 6, 0, 2, 4)],
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


def test_a_signal_to_one_process_stops_all_with_a_checkpoint(config: Config, tmp_path: Path, alone: RunDir) -> None:
    def stopped() -> None:
        original, calls = simv0.training.epoch.loss_sums, 0

        def signalled(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2 and rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **kwargs)

        simv0.training.epoch.loss_sums = signalled  # type: ignore[attr-defined]
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


@pytest.mark.parametrize(
    ("where", "call", "step"), [("any_rank", 2, 2), ("broadcast_from_rank0", 3, 1), ("evaluate", 1, 4)]
)
def test_whenever_the_signal_comes_all_stop_at_one_step(
    config: Config, tmp_path: Path, alone: RunDir, where: str, call: int, step: int
) -> None:
    """To one process as they agree to go on, as the first one saves step 1 (its third turn), in validation: a process
    that stopped by what it alone knows would leave the others in another message.
    """

    def stopped() -> None:
        original, calls = getattr(simv0.training.fit, where), 0

        def signalled(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **kwargs)

        setattr(simv0.training.fit, where, signalled)
        fit(config)

    said = tmp_path / "said"
    assert on_ranks(2, stopped, said) == [130, 130]
    assert f"in epoch 1 after step {step} of 4; the checkpoint is written" in said.read_text()
    fit(config, resume=True)
    assert_same_run(RunDir(config.output.output_dir), alone)


def test_sharded_llm_trains_as_a_whole_one(config: Config, tmp_path: Path, alone: RunDir) -> None:
    def sharded() -> None:
        with process_group():
            fit(split)
            llm = build_model(split, 32, None, torch.device("cpu")).llm
            llm(torch.randn(2, 4, llm.d, requires_grad=True)).sum().backward()  # whole while it runs, not after
            held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in llm.parameters())
            whole = sum(p.numel() for p in llm.parameters())
            assert held < 0.51 * whole
            assert llm.sharded

    split = moved(config, tmp_path / "sharded", shard_llm=True)
    assert on_ranks(2, sharded) == [0, 0]
    assert_same_run(RunDir(split.output.output_dir), alone)


def test_sharding_excludes_compiling(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="training.shard_llm and training.compile: on exclude each other"):
        make_config(training={"shard_llm": True, "compile": "on"})


def test_evaluate_gives_the_same_predictions_in_the_same_order(alone: RunDir) -> None:
    def outputs() -> tuple[Any, list[Any]]:
        folder = alone.root / "evaluation"
        metrics = json.loads((folder / "metrics.json").read_text())
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        return metrics, rows

    evaluate_checkpoint(alone.best, baselines=False)
    metrics, rows = outputs()
    (alone.root / "evaluation" / "predictions.jsonl").unlink()

    def evaluate() -> None:
        evaluate_checkpoint(alone.best, baselines=False)

    assert on_ranks(4, evaluate) == [0] * 4
    again, rows_again = outputs()
    for name in ("risk_macro_f1", "action_macro_f1", "risk_high_recall", "alarm_recall", "windows", "baselines"):
        assert again[name] == metrics[name]
    assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert [row["sample_id"] for row in rows_again] == [row["sample_id"] for row in rows]
    for row, wanted in zip(rows_again, rows, strict=True):
        for head in ("risk", "reason", "action"):
            assert row["probs"][head] == pytest.approx(wanted["probs"][head], abs=1e-5)


def test_gradients_of_the_shares_add_up_to_the_gradient_of_the_batch(config: Config, tmp_path: Path) -> None:
    """The second way: one process, the whole batch, torch alone. What training hides is drawn for the whole batch."""
    parts, class_weights = tmp_path / "parts", {"risk": torch.tensor([1.0, 5.0, 0.2, 9.0])}
    parts.mkdir()

    def share() -> None:
        with process_group():
            batch = next(iter(train_batches(config, open_split(config, "train"))))
            model = build_model(config, 32, None, torch.device("cpu"))
            torch.manual_seed(5)
            objective(whole_weights(loss_sums(model(batch), batch, class_weights)))["loss"].backward()
            trained = [p for p in model.parameters() if p.requires_grad]
            add_gradients(trained)
            torch.save((batch["share"], [p.grad for p in trained]), parts / f"{rank()}")

    assert on_ranks(4, share) == [0] * 4
    saved = [torch.load(parts / f"{r}") for r in range(4)]
    assert [part for part, _ in saved] == [(0, 3, 13), (3, 6, 13), (6, 9, 13), (9, 13, 13)]
    batch = next(iter(train_batches(config, open_split(config, "train"))))
    model = build_model(config, 32, None, torch.device("cpu"))
    torch.manual_seed(5)
    objective(loss_sums(model(batch), batch, class_weights))["loss"].backward()
    wanted = [p.grad for p in model.parameters() if p.requires_grad]
    for _, gradients in saved:
        for mine, theirs in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_one_process_has_no_group_and_no_shares(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group():
        assert not dist.is_initialized()
        assert (rank(), world_size(), share_of(5)) == (0, 1, (0, 5))
        assert "share" not in next(iter(train_batches(config, open_split(config, "train"))))
    assert list(BatchOrder(5, 2)) == [[0, 1], [2, 3], [4]]


def test_world_size_without_a_launcher(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some schedulers export it for everybody."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        TrainingError, match=r"the 2 processes of WORLD_SIZE failed to connect \(.*RANK expected.*\): start"
    ):
        fit(config)


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


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    """Two real torchrun processes of the command line."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "cli", *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_torchrun_trains_and_says_an_error_once(config: Config, tmp_path: Path, alone: RunDir) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    done = torchrun("train", "--config", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best checkpoint:") == 1
    assert_same_run(RunDir(config.output.output_dir), alone)
    refused = torchrun("train", "--config", str(path))  # by the first process alone
    assert refused.returncode == 1
    errors = re.findall("^error: .*", refused.stderr, re.M)
    assert len(errors) == 1
    assert "already holds a run; use --resume" in errors[0]
    wrong = torchrun("train", "--config", str(path), "--set", "training.epocs=3")  # by every process
    assert wrong.returncode == 1
    errors = re.findall("^error: .*", wrong.stderr, re.M)
    assert len(errors) == 1
    assert "epocs" in errors[0]


def test_what_fails_in_one_process_ends_the_others(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(data={"dataset_class_path": "fit_world.VisFeats", "dataset_kwargs": {"poison": 5}})
    said = tmp_path / "said"
    assert on_ranks(2, partial(train, config), said) == [1, 1]
    words = sorted(said.read_text().splitlines(), key=lambda line: "another of" in line)
    assert len(words) == 2
    assert re.search(r"\d: the loss is (nan|inf) on the batch of .*w5", words[0])
    assert "another of the 2 processes exited" in words[1]
