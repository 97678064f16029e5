"""A tiny encoder and small datasets on disk, for the tests of the cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import make_config, write_manifest
from strikes import after_writing
from torch.utils.data import Dataset

from cache.pipeline import cache_vis
from simv0.config.schema import Config
from simv0.demo.networks import save_tiny_tower

DV = 24


def write_encoder(folder: Path, seed: int = 0) -> str:
    """An image tower with random weights; returns its config name."""
    save_tiny_tower(folder, seed=seed, dv=DV, image_size=16)
    return f"local-dir:{folder}"


def config_of(folder: Path, F: int = 4, **cache: Any) -> Config:
    """A config over the encoder and the manifests in `folder`: shards of 5 windows, batches of 8 frames."""
    return make_config(folder, folder, folder, cache={"batch_size": 8, "shard_windows": 5, **cache}, model={"F": F})


def make_world(folder: Path, windows: int = 23, **cache: Any) -> Config:
    """Encoder, two manifests and their config."""
    write_encoder(folder / "vision")
    write_manifest(folder / "train.jsonl", windows, seed=0, weighted=True)
    write_manifest(folder / "val.jsonl", 7, seed=1, weighted=True)
    return config_of(folder, **cache)


def fresh(config: Config, folder: Path, **cache: Any) -> Config:
    """The same world, with an empty cache."""
    return config.model_copy(update={"cache": config.cache.model_copy(update={"dir": str(folder / "cache"), **cache})})


def train_file(config: Config) -> Path:
    return Path(config.cache.dir) / "train.h5"


def cache_until(config: Config, shards: int) -> None:
    """Let `cache_vis` be interrupted once so many shards are recorded."""

    def interrupt(count: int, path: Path) -> None:
        if count == shards:
            raise KeyboardInterrupt

    with after_writing("shard-*.json", interrupt), pytest.raises(KeyboardInterrupt):
        cache_vis(config)


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
    write_encoder(folder / "vision")
    config = config_of(folder, F=3)
    data = {"dataset_class_path": f"{__name__}.Windows", "dataset_kwargs": kwargs}
    return config.model_copy(update={"data": config.data.model_copy(update=data)})
