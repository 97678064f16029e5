"""Tiny real models and data that the tests share."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_world import outcome
from small_world import MakeConfig, write_manifest
from small_world import make_config as config_over

from cache.pipeline import cache_vis
from simv0.config.schema import Config
from simv0.demo.networks import save_tiny_llm, save_tiny_tower
from simv0.training.fit import fit

if "SIMV0_TEST_GPU" not in os.environ:  # `make test-gpu` sets it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests fork, start processes and count threads: on the CPU
OWN_FEATURES: dict[str, Any] = {
    "data": {"dataset_class_path": "fit_world.VisFeats"},
    "training": {"checkpoint_every_steps": 1},
}
torch.set_num_threads(1)  # bit-exact whatever the machine, and faster at these sizes


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `llm/` and `vision/`: dv = 32, d = 64."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_llm(folder / "llm")
    save_tiny_tower(folder / "vision")
    return folder


@pytest.fixture(scope="session")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (40 windows) and val.jsonl (20)."""
    folder = tmp_path_factory.mktemp("data")
    write_manifest(folder / "train.jsonl", 40, seed=1)
    write_manifest(folder / "val.jsonl", 20, seed=2)
    return folder


@pytest.fixture
def make_config(models: Path, manifests: Path, tmp_path: Path) -> MakeConfig:
    """A config over the tiny models and manifests; sections are overridden by keyword."""
    return partial(config_over, models, manifests, tmp_path)


@pytest.fixture(scope="session")
def features(models: Path, manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.h5 and val.h5 over `models` and `manifests`; take it as `cache={"dir": str(features)}`."""
    config = config_over(models, manifests, tmp_path_factory.mktemp("features"))
    cache_vis(config)
    return Path(config.cache.dir)


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """Features from the dataset itself: 3 steps an epoch, 2 epochs, a checkpoint after each step."""
    return make_config(**OWN_FEATURES)


@pytest.fixture(scope="session")
def unbroken(models: Path, manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The outcome of `config`'s run when nothing disturbs it."""
    return outcome(fit(config_over(models, manifests, tmp_path_factory.mktemp("unbroken"), **OWN_FEATURES)))


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without matplotlib: `evaluate` leaves its page out, whose figures take most of the time."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture(scope="session")
def real() -> Path:
    """The real inputs."""
    if "SIMV0_REAL" not in os.environ:
        pytest.skip("SIMV0_REAL is not set: no real inputs on this machine")
    return Path(os.environ["SIMV0_REAL"])
