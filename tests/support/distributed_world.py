"""One run by several processes, and what it must have in common with that of one."""

from typing import Any

import pytest
import torch
from fit_world import lines

from simv0.config.schema import Config
from simv0.model.checkpoint import load_checkpoint
from simv0.training.fit import fit
from simv0.training.rundir import RunDir


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
