"""Resuming a run: which checkpoint, whether it fits, and restoring everything from it."""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from simv0.config.schema import Config
from simv0.disk.files import told_plainly
from simv0.errors import CheckpointError, shown
from simv0.model.checkpoint import Checkpoint, Training, check_fits, check_frozen, load_checkpoint, load_state
from simv0.model.metrics import Tally
from simv0.model.network import SimV0Model
from simv0.runtime.distributed import world_size
from simv0.training.origin import check_begun_from
from simv0.training.refusals import check_same_config
from simv0.training.rundir import RunDir, provenance
from simv0.training.work import Work

log = logging.getLogger("simv0")


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
    since_best: int = 0
    """Finished epochs after that one."""


def find_checkpoint(run: RunDir, config: Config) -> Checkpoint | None:
    """The checkpoint to resume from: last.pt, or last.prev.pt when last.pt is damaged; None when there is none yet.

    Raises:
        CheckpointError: neither can be used.
        ConfigError: the run was started with another config.
    """
    checkpoint = _load_either(run)
    if checkpoint is None:
        return None
    check_same_config(run, checkpoint.meta.config, config)
    check_begun_from(config, checkpoint)
    if checkpoint.meta.epoch > config.training.epochs:
        raise CheckpointError(f"{run.last}: says {checkpoint.meta.epoch} of {config.training.epochs} epochs are done")
    return checkpoint


def _load_either(run: RunDir) -> Checkpoint | None:
    try:
        if run.last.exists():
            return _load_last(run.last)
        if not run.previous.exists():
            return None
        fault = f"{run.last}: is missing"
    except CheckpointError as error:
        fault = str(error)
    try:
        checkpoint = _load_last(run.previous)
    except CheckpointError as error:
        raise CheckpointError(
            f"{fault}; the previous one cannot be used either: {error}; restore a copy, or start over with --overwrite"
        ) from None
    aside = run.last.with_name("last.damaged.pt")
    if run.last.exists():
        with told_plainly(run.last):
            run.last.replace(aside)  # else the next save would keep it as the previous one, and lose the good one
        fault += f" (kept as {aside.name})"
    log.warning(f"DAMAGED CHECKPOINT: {fault}; resuming from {run.previous.name}, one save earlier")
    return checkpoint


def _load_last(path: Path) -> Checkpoint:
    checkpoint = load_checkpoint(path)
    if checkpoint.training is None:
        raise CheckpointError(f"{path}: holds no training state; it is not a last.pt")
    return checkpoint


def restore(checkpoint: Checkpoint, run: RunDir, work: Work) -> Position:
    """Restore everything as it was when the checkpoint was written.

    Raises:
        CheckpointError: the frozen networks, the data or the model are not those of the run.
    """
    meta, state, model = checkpoint.meta, checkpoint.training, work.model
    assert state is not None
    check_frozen("LLM", meta.llm, model.llm.identity_like(meta.llm), run.last)
    if model.encoder is not None:
        check_frozen("vision encoder", checkpoint.meta.encoder, model.encoder.identity, run.last)
    for name, digest in work.digests.items():
        if state.digests.get(name) != digest:
            raise CheckpointError(f"{run.last}: the data of split {name} has changed since the run was started")
    if state.step > work.steps:
        raise CheckpointError(f"{run.last}: says {state.step} of {work.steps} steps of the epoch are done")
    check_fits(state.tally, Tally().state(), "the metrics", run.last)
    _restore_optimizer(state, work.optimizer, work.scaler, run.last)
    load_state(model, checkpoint.state, run.last)
    now = {**provenance(), **numerics(model)}
    before = {"device": now["device"], **meta.provenance}  # older checkpoints do not name it
    changed = [
        f"{key} {shown(str(before.get(key)))} -> {now[key]}"
        for key in now
        if key != "git" and before.get(key) != now[key]
    ]
    if changed:
        log.warning(f"resumed with other versions: {', '.join(changed)}: the weights may differ by rounding")
    return Position(meta.epoch, state.step, Tally.from_state(state.tally), state.best, state.since_best)


def numerics(model: SimV0Model) -> dict[str, str]:
    """How the LLM is computed: another way gives other last bits."""
    return {
        "device": model.task_token.device.type,
        "llm_path": model.llm.path,
        "llm_dtype": str(model.llm.dtype),
        "llm_compiled_for": str(model.llm.compiled_for),
        "processes": str(world_size()),
    }


def _restore_optimizer(
    state: Training, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None, path: Path
) -> None:
    """AdamW's moments, and the loss scale; torch itself takes any shape and fails at the next step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    wanted = {
        f"{number}.{name}": tensor
        for number, p in enumerate(parameters)
        for name, tensor in (("step", torch.tensor(0.0)), ("exp_avg", p), ("exp_avg_sq", p))
    }
    found = {f"{number}.{name}": tensor for number, own in state.optimizer.items() for name, tensor in own.items()}
    if found or scaler is None:  # fp16 skips the first steps until its scale fits
        check_fits(found, wanted, "the optimizer", path)
    if scaler is not None:
        if state.scaler is None or state.scaler.keys() != scaler.state_dict().keys():
            raise CheckpointError(f"{path}: does not fit the loss scaling of fp16")
        scaler.load_state_dict(state.scaler)
    optimizer.load_state_dict({"state": state.optimizer, "param_groups": optimizer.state_dict()["param_groups"]})
