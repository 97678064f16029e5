"""Going on with a run: which checkpoint, whether it fits, and putting everything back as it was."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from simv0.checkpoint import Checkpoint, check_frozen, load_checkpoint, load_state
from simv0.config import Config
from simv0.errors import CheckpointError, ConfigError
from simv0.metrics import Tally
from simv0.model import SimV0Model
from simv0.rundir import RunDir, cut_back

log = logging.getLogger("simv0")

OPERATIONAL = ("data.num_workers", "cache.", "evaluation.batch_size", "output.", "training.checkpoint_every_steps")
"""Keys that may change on resume: they change no result (what the cache holds is compared by its digests)."""


@dataclass
class Position:
    """How far a run has come."""

    epoch: int = 0
    """The epoch under way, from 0; equal to `training.epochs` when the run is finished."""
    step: int = 0
    """Finished steps of that epoch."""
    tally: Tally = field(default_factory=Tally)
    """What those steps counted."""
    best: tuple[float, float] = (-math.inf, -math.inf)
    """`ranking` of the best epoch."""


def find_checkpoint(run: RunDir, config: Config) -> Checkpoint | None:
    """The checkpoint to go on from: last.pt, or last.prev.pt when last.pt is damaged; None when there is none yet.

    Raises:
        CheckpointError: both are damaged.
        ConfigError: the run was begun with another config.
    """
    checkpoint = None
    for path in (run.last, run.previous):
        if not path.exists():
            continue
        try:
            checkpoint = load_checkpoint(path)
            break
        except CheckpointError as error:
            if path == run.previous or not run.previous.exists():
                raise
            log.warning(f"DAMAGED CHECKPOINT: {error}; going on from {run.previous.name}, one save earlier")
    if checkpoint is None:
        return None
    if checkpoint.training is None:
        raise CheckpointError(f"{run.last}: holds no training state; it is not a last.pt")
    differing = config_differences(checkpoint.meta.config, config.model_dump())
    if differing:
        raise ConfigError(
            f"{run.root}: the run was begun with another config: {'; '.join(differing)}; "
            "give the same values, or another output.output_dir"
        )
    return checkpoint


def config_differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """`section.key: stored X, now Y` for every differing key but the operational ones."""
    differing = []
    for section in sorted(stored.keys() | wanted.keys()):
        before, now = stored.get(section) or {}, wanted.get(section) or {}
        for key in sorted(before.keys() | now.keys()):
            name = f"{section}.{key}"
            if before.get(key) != now.get(key) and not name.startswith(OPERATIONAL):
                differing.append(f"{name}: begun with {before.get(key)!r}, now {now.get(key)!r}")
    return differing


def restore(
    checkpoint: Checkpoint,
    run: RunDir,
    model: SimV0Model,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    digests: dict[str, str],
) -> Position:
    """Put everything back where the checkpoint was written, the metrics files too."""
    state = checkpoint.training
    assert state is not None
    check_frozen("LLM", checkpoint.meta.llm, model.llm.identity, run.last)
    if model.encoder is not None:
        check_frozen("vision encoder", checkpoint.meta.encoder, model.encoder.identity, run.last)
    for name, digest in digests.items():
        if state["digests"][name] != digest:
            raise CheckpointError(f"{run.last}: the data of split {name} has changed since the run was begun")
    load_state(model, checkpoint.state, run.last)
    optimizer.load_state_dict(state["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])
    for path in (run.train_metrics, run.val_metrics):
        cut_back(path, state["epoch"])
    first, second = state["best"]
    return Position(state["epoch"], state["step"], Tally.from_state(state["tally"]), (first, second))
