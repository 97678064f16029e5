"""What a run leaves, runs that die on time, and a dataset that brings its features."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strikes import after_writing

from simv0.config.schema import Config
from simv0.model.checkpoint import load_checkpoint
from simv0.training.fit import fit
from simv0.training.rundir import RunDir


def moved(config: Config, root: Path, **training: Any) -> Config:
    changed = {"output": config.output.model_copy(update={"output_dir": str(root)})}
    if training:
        changed["training"] = config.training.model_copy(update=training)  # type: ignore[assignment]
    return config.model_copy(update=changed)


def lines(path: Path) -> list[dict[str, Any]]:
    """JSONL without what the clock says."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "data_wait_share")} for row in rows]


def outcome(run: RunDir) -> tuple[Any, ...]:
    """Everything that must be equal to an unbroken run's, bit for bit: all but paths and versions."""
    last = load_checkpoint(run.last)
    best = load_checkpoint(run.best)

    def bits(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.numpy().tobytes()
        if isinstance(value, dict):
            return {key: bits(item) for key, item in value.items()}
        return [bits(item) for item in value] if isinstance(value, (list, tuple)) else value

    meta = best.meta.model_dump(exclude={"config", "provenance"})
    return (
        bits(last.state),
        bits(last.training and last.training.model_dump()),
        bits(best.state),
        meta,
        lines(run.train_metrics),
        lines(run.val_metrics),
    )


class Killed(Exception):
    pass


def fit_until(config: Config, saves: int, resume: bool = False) -> None:
    """Train, and die without a word once last.pt has been written so many times."""

    def die(count: int, path: Path) -> None:
        if count == saves:
            raise Killed

    with after_writing("last.pt", die), pytest.raises(Killed):
        fit(config, resume=resume)


class VisFeats:
    """A user's dataset that brings its own features."""

    def __init__(self, path: str, poison: int | None = None) -> None:
        rng = np.random.default_rng(len(path))
        self.feats = rng.normal(size=(24, 4, 6)).astype(np.float32)
        self.poison = poison

    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> dict[str, Any]:
        labels = {"risk_id": i % 4, "reason_id": i % 4, "action_id": i % 6}
        weight = 3e38 if i == self.poison else 1.0  # overflows the weighted sum
        telemetry = self.feats[i].ravel()[:8]
        return {"vis_feats": self.feats[i], "telemetry": telemetry, "sample_id": f"w{i}", "weight": weight, **labels}


class OtherRobot(VisFeats):
    """The same windows as another robot sees them: az is constant, gx is not measured, v is ten times as fast."""

    def __init__(self, path: str) -> None:
        super().__init__(path + " of the other robot")

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = super().__getitem__(i)
        telemetry = sample["telemetry"] * np.array([1, 2, 0, 0, 0.5, 1, 10, 1], np.float32)
        return {**sample, "telemetry": telemetry + np.array([0, 1, 9.81, 0, 0, 0, 100, 0], np.float32)}
