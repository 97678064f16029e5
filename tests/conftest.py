"""Tiny real models and data that the tests share."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_world import outcome
from PIL import Image

from cache.pipeline import cache_vis
from simv0.config import Config
from simv0.config_file import build_config
from simv0.fit import fit
from simv0.tiny import save_tiny_llm, save_tiny_tower

if "SIMV0_TEST_GPU" not in os.environ:  # `make test-gpu` sets it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests fork, start processes and count threads: on the CPU
torch.set_num_threads(1)  # bit-exact whatever the machine, and faster at these sizes


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `llm/` and `vision/`: dv = 32, d = 64."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_llm(folder / "llm")
    save_tiny_tower(folder / "vision")
    return folder


def write_manifest(path: Path, n: int, *, seed: int, F: int = 4, **extra: Any) -> Path:
    """n windows of F frames, stride 1, in a folder of small images whose brightness tells the risk."""
    rng = np.random.default_rng(seed)
    images = path.parent / f"{path.stem}_images"
    images.mkdir(parents=True, exist_ok=True)
    for i in range(n + F - 1):
        pixels = rng.integers(0, 60, (24, 40, 3)) + 60 * (i // 2 % 4)
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"{i:04d}.png")
    rows = []
    for i in range(n):
        row = {
            "sample_id": f"{path.stem}-{i}",
            "frames": [f"{images.name}/{j:04d}.png" for j in range(i, i + F)],
            "telemetry": [round(float(x), 4) for x in rng.normal(size=8)],
            "risk_id": i // 2 % 4,
            "reason_id": int(rng.integers(4)),
            "action_id": i % 6,
            "group": path.stem,
        }
        rows.append(json.dumps({**row, **extra}))
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="session")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (40 windows) and val.jsonl (20)."""
    folder = tmp_path_factory.mktemp("data")
    write_manifest(folder / "train.jsonl", 40, seed=1)
    write_manifest(folder / "val.jsonl", 20, seed=2)
    return folder


def config_tree(models: Path, manifests: Path, cache: Path) -> dict[str, dict[str, Any]]:
    return {
        "data": {
            "train_split_path": str(manifests / "train.jsonl"),
            "val_split_path": str(manifests / "val.jsonl"),
            "batch_size": 8,
        },
        "cache": {"dir": str(cache), "batch_size": 16, "shard_windows": 16, "precision": "fp32"},
        "model": {
            "llm_name_or_path": str(models / "llm"),
            "vision_encoder_name": f"local-dir:{models / 'vision'}",
            "vision_pretrained": None,
            "F": 4,
            "K": 2,
        },
        "training": {"epochs": 2, "amp": False},
    }


MakeConfig = Callable[..., Config]


@pytest.fixture
def make_config(models: Path, manifests: Path, tmp_path: Path) -> MakeConfig:
    """A config over the tiny models and manifests; sections are overridden by keyword."""

    def make(**sections: dict[str, Any]) -> Config:
        tree = config_tree(models, manifests, tmp_path / "cache")
        tree["output"] = {"output_dir": str(tmp_path / "run")}
        for section, values in sections.items():
            tree.setdefault(section, {}).update(values)
        return build_config(tree, "test")

    return make


@pytest.fixture(scope="session")
def features(models: Path, manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.h5 and val.h5 over `models` and `manifests`; take it as `cache={"dir": str(features)}`."""
    folder = tmp_path_factory.mktemp("features")
    cache_vis(build_config(config_tree(models, manifests, folder), "test"))
    return folder


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """Features from the dataset itself: 3 steps an epoch, 2 epochs, a checkpoint after each step."""
    return make_config(data={"dataset_class_path": "fit_world.VisFeats"}, training={"checkpoint_every_steps": 1})


@pytest.fixture
def unbroken(config: Config, tmp_path: Path) -> tuple[Any, ...]:
    elsewhere = config.output.model_copy(update={"output_dir": str(tmp_path / "unbroken")})
    return outcome(fit(config.model_copy(update={"output": elsewhere})))


@pytest.fixture(scope="session")
def real() -> Path:
    """The real inputs."""
    if "SIMV0_REAL" not in os.environ:
        pytest.skip("SIMV0_REAL is not set: no real inputs on this machine")
    return Path(os.environ["SIMV0_REAL"])
