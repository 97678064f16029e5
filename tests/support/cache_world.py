"""A tiny encoder and small datasets on disk, for the tests of the cache."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from cache.shards import ShardWork
from simv0.config.load import build_config
from simv0.config.schema import Config
from simv0.demo.networks import save_tiny_tower

DV = 24


def write_encoder(folder: Path, seed: int = 0) -> str:
    """An image tower with random weights; returns its config name."""
    save_tiny_tower(folder, seed=seed, dv=DV, image_size=16)
    return f"local-dir:{folder}"


def write_manifest(folder: Path, name: str, windows: int, F: int = 4, stride: int = 1, seed: int = 0) -> Path:
    """Windows over one film of PNG frames, `stride` frames apart."""
    draw = np.random.default_rng(seed)
    (folder / name).mkdir(parents=True)
    for i in range((windows - 1) * stride + F):
        Image.fromarray(draw.integers(0, 256, (18, 24, 3), np.uint8)).save(folder / name / f"{i}.png")
    rows = [
        {
            "sample_id": f"{name}-{i}",
            "frames": [f"{name}/{i * stride + j}.png" for j in range(F)],
            "telemetry": draw.normal(size=8).round(3).tolist(),
            "risk_id": i % 4,
            "reason_id": i % 3,
            "action_id": i % 6,
            "weight": 1.0 + i % 2,
            "group": f"film-{name}",
        }
        for i in range(windows)
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_config(folder: Path, encoder: str, F: int = 4, **cache: Any) -> Config:
    """A config over `folder`/train.jsonl and val.jsonl."""
    tree = {
        "data": {"train_split_path": str(folder / "train.jsonl"), "val_split_path": str(folder / "val.jsonl")},
        "cache": {"dir": str(folder / "cache"), "batch_size": 8, "precision": "fp32", "shard_windows": 5, **cache},
        "model": {"vision_encoder_name": encoder, "vision_pretrained": None, "F": F, "K": 2},
    }
    return build_config(tree, "test")


def make_world(folder: Path, windows: int = 23, **cache: Any) -> Config:
    """Encoder, two manifests and their config."""
    write_manifest(folder, "train", windows)
    write_manifest(folder, "val", 7, seed=1)
    return make_config(folder, write_encoder(folder / "encoder"), **cache)


def fresh(config: Config, folder: Path, **cache: Any) -> Config:
    """The same world, with an empty cache."""
    return config.model_copy(update={"cache": config.cache.model_copy(update={"dir": str(folder / "cache"), **cache})})


def train_file(config: Config) -> Path:
    return Path(config.cache.dir) / "train.h5"


def stop_after(monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    """Let the run die of an error after some shards."""
    finish = ShardWork._finish
    done = []

    def counted(self: ShardWork, *args: Any) -> None:
        if len(done) == shards:
            raise KeyboardInterrupt
        done.append(1)
        finish(self, *args)

    monkeypatch.setattr(ShardWork, "_finish", counted)


class Windows(Dataset[dict[str, Any]]):
    """A plain dataset: frames whole, nothing shared, floats."""

    scale = 1.0

    def __init__(self, split: str, feats: bool = False) -> None:
        self.split, self.feats = split, feats

    def __len__(self) -> int:
        return 9

    def __getitem__(self, i: int) -> dict[str, Any]:
        frames = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(i)) * self.scale
        inputs = {"vis_feats": torch.zeros(3, 5)} if self.feats else {"frames": frames}
        return {**inputs, "telemetry": [0.5] * 8, "risk_id": 0, "reason_id": 0, "action_id": 0}


def plain_config(folder: Path, **kwargs: Any) -> Config:
    config = make_config(folder, write_encoder(folder / "encoder"), F=3)
    data = {"dataset_class_path": f"{__name__}.Windows", "dataset_kwargs": kwargs}
    return config.model_copy(update={"data": config.data.model_copy(update=data)})
