"""The torture of training at CI size; `make torture` runs all of it; figures: benchmarks/results/torture_*.md."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torture_files
import torture_train as torture

from simv0.demo.networks import save_tiny_llm
from simv0.llm.load import load_llm
from simv0.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from simv0.model.network import SimV0Model
from simv0.training.rundir import RunDir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torture")


@pytest.fixture(scope="module")
def run(folder: Path) -> RunDir:
    torture.unbroken(folder)
    return RunDir(folder / "unbroken")


def test_random_kills(folder: Path, run: RunDir) -> None:
    assert torture.random_kills(folder, 10, random.Random(0))["kills"] >= 10


def test_resume_with_another_number_of_workers(folder: Path, run: RunDir) -> None:
    assert torture.resume_everywhere(folder, [(0, 2), (2, 0)], every=4) == 6


def test_mutated_checkpoints(run: RunDir) -> None:
    ends = torture_files.mutated_checkpoints(run.last, 400, random.Random(0))
    assert ends["refused"] >= 200


def test_mutated_and_fuzzed_configs(folder: Path, run: RunDir) -> None:
    ends = torture_files.mutated_configs(run.config.read_text(), folder, 200, random.Random(0))
    assert ends["refused"] > 50
    assert torture_files.fuzzed_configs(folder, 300)["refused"] > 100


def test_hostile_pickles(folder: Path) -> None:
    assert len(set(torture_files.hostile_pickles())) >= 50
    assert torture_files.hostile_checkpoints(folder / "hostile.pt") >= 150


def test_full_disk_and_read_only(folder: Path, run: RunDir) -> None:
    assert torture.full_disk(folder, [1, 2, 6])
    assert torture.read_only([1, 6])


@pytest.mark.parametrize(("dv", "d", "limit"), [(128, 64, 1_000_000), (512, 896, 10_000_000)])
def test_best_is_small(run: RunDir, tmp_path: Path, dv: int, d: int, limit: int) -> None:
    """The demo's widths, and those of ViT-B-32 with Qwen2.5-0.5B: what the LLM weighs is not in the file."""
    save_tiny_llm(tmp_path / "llm", d=d, layers=1)
    model = SimV0Model(load_llm(str(tmp_path / "llm")), dv=dv, F=8, K=4, confidence_head=True)
    meta: Any = load_checkpoint(run.best).meta.model_copy(update={"dv": dv, "d": d})
    save_checkpoint(tmp_path / "best.pt", Checkpoint(meta=meta, state=model.trainable_state()))
    trained = sum(model.trainable_parameters().values())
    assert trained * torch.float32.itemsize < (tmp_path / "best.pt").stat().st_size < limit
