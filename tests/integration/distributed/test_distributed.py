"""One run by several processes: the same as by one, to the rounding of float; resumed by another number of them."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed_world import assert_same_run, train
from fit_world import moved
from ranks import on_ranks
from small_world import MakeConfig

from simv0.config.load import dump_config
from simv0.config.schema import Config
from simv0.errors import ConfigError
from simv0.evaluation.run import evaluate_checkpoint
from simv0.model.build import build_model
from simv0.model.checkpoint import load_checkpoint
from simv0.model.losses import loss_sums, objective
from simv0.runtime.distributed import add_gradients, process_group, rank, share_of, whole_weights, world_size
from simv0.training.fit import fit
from simv0.training.rundir import RunDir
from simv0.training.splits import BatchOrder, open_split, train_batches

pytestmark = pytest.mark.usefixtures("no_report")


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


def test_evaluate_gives_the_same_predictions_in_the_same_order(alone: RunDir, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(alone.root, tmp_path / "evaluated"))

    def outputs() -> tuple[Any, list[Any]]:
        folder = run.root / "evaluation"
        metrics = json.loads((folder / "metrics.json").read_text())
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        return metrics, rows

    evaluate_checkpoint(run.best, baselines=False)
    metrics, rows = outputs()
    (run.root / "evaluation" / "predictions.jsonl").unlink()

    def evaluate() -> None:
        evaluate_checkpoint(run.best, baselines=False)

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
