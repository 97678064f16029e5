"""A folder of small pictures with a manifest, and the config over it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simv0.config.load import build_config
from simv0.config.schema import Config, DataConfig


def write_manifest(path: Path, n: int, *, seed: int, F: int = 4, weighted: bool = False, **extra: Any) -> Path:
    """n windows of F frames, stride 1, in a folder of small images whose brightness tells the risk.

    `extra` goes into every row; `weighted` windows weigh 1 and 2 in turn.
    """
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
        if weighted:
            row["weight"] = 1 + i % 2
        rows.append(json.dumps({**row, **extra}))
    path.write_text("\n".join(rows) + "\n")
    return path


def make_config(models: Path, manifests: Path, folder: Path, **sections: dict[str, Any]) -> Config:
    """A config over tiny models and manifests, with its cache and its run in `folder`; keywords override sections."""
    tree: dict[str, dict[str, Any]] = {
        "data": {
            "train_split_path": str(manifests / "train.jsonl"),
            "val_split_path": str(manifests / "val.jsonl"),
            "batch_size": 8,
        },
        "cache": {"dir": str(folder / "cache"), "batch_size": 16, "shard_windows": 16, "precision": "fp32"},
        "model": {
            "llm_name_or_path": str(models / "llm"),
            "vision_encoder_name": f"local-dir:{models / 'vision'}",
            "vision_pretrained": None,
            "F": 4,
            "K": 2,
        },
        "training": {"epochs": 2, "amp": False},
        "output": {"output_dir": str(folder / "run")},
    }
    for section, values in sections.items():
        tree.setdefault(section, {}).update(values)
    return build_config(tree, "test")


MakeConfig = Callable[..., Config]


def data(path: str, **kwargs: Any) -> DataConfig:
    return DataConfig(dataset_class_path=path, dataset_kwargs=kwargs, train_split_path="/t", val_split_path="/v")
