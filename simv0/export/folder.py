"""`simv0 export`: a checkpoint as a folder for a robot or the Hub, which `Predictor.from_pretrained` reads back."""

import json
import logging
import os
from pathlib import Path, PurePath
from typing import Any

from safetensors.torch import save

from simv0.disk.files import DIGESTS, best_of
from simv0.disk.folders import check_target, write_folder
from simv0.errors import CheckpointError
from simv0.export.card import model_card
from simv0.labels import HEADS
from simv0.model.checkpoint import Checkpoint, load_checkpoint
from simv0.model.exported import CARD, CONFIG, FILES, FORMAT, KEPT, LABELS, WEIGHTS, digest_lines
from simv0.training.refusals import run_of
from simv0.training.rundir import RunDir

log = logging.getLogger("simv0")


def export(run: str | Path, to: str | Path, *, overwrite: bool = False) -> Path:
    """Write what a robot or the Hub needs of a run: its weights, its config, a model card.

    Args:
        run: a run's folder, whose best.pt is taken, or a checkpoint.
        to: the folder to make. At any moment it is not there, as it was, or whole.
        overwrite: replace an exported folder.

    Returns:
        The folder.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        ConfigError: something is where the folder is to be.
        SimError: the disk is full or cannot be written.
    """
    ckpt, folder = best_of(Path(run)), Path(os.path.abspath(to))
    check_target(folder, FILES, overwrite, "--to")
    checkpoint = load_checkpoint(ckpt)
    evaluations = _evaluations(ckpt, checkpoint)
    if not evaluations:
        log.warning(
            f"{ckpt}: not evaluated, so the model card has the figures of training only; for all of them run simv0 "
            f"evaluate --ckpt {ckpt}, then export again with --overwrite"
        )
    card = model_card(folder.name, checkpoint, _digests(ckpt), evaluations)
    files = contents(checkpoint)
    write_folder(folder, {**files, CARD: card.encode(), DIGESTS: digest_lines(files)})
    return folder


def contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Name -> bytes of the files that are read back; the same checkpoint gives the same bytes."""
    kept = checkpoint.unlike
    tensors = dict(checkpoint.state)
    if kept is not None:
        tensors |= {KEPT + name: tensor for name, tensor in kept.tensors().items()}
    meta = checkpoint.meta.model_dump()
    config = {
        **FORMAT,
        "meta": {**meta, "config": without_folders(meta["config"])},
        "unlike": kept.facts() if kept is not None else None,
    }
    return {WEIGHTS: save(tensors), CONFIG: _as_json(config), LABELS: _as_json(HEADS)}


def without_folders(config: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A config without what tells of the machine that trained: of every path but those of the frozen networks, which
    are needed to find them, the last name stays; what a dataset class is given goes.
    """
    plain = {section: dict(values) for section, values in config.items()}
    for section, values in plain.items():
        for key, value in values.items():
            if section != "model" and isinstance(value, str) and PurePath(value).is_absolute():
                values[key] = PurePath(value).name or "."
    if "data" in plain:
        plain["data"]["dataset_kwargs"] = {}
    return plain


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _digests(ckpt: Path) -> dict[str, str]:
    """Split -> digest of its labels and features: the run's last.pt knows it."""
    last = ckpt.with_name("last.pt")
    if run_of(ckpt) is None or not last.exists():
        return {}
    try:
        training = load_checkpoint(last).training
    except CheckpointError:  # the card can do without
        return {}
    return {} if training is None else training.digests


def _evaluations(ckpt: Path, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Each metrics.json that `evaluate` has written of this checkpoint, val's first."""
    root = RunDir(run_of(ckpt) or ckpt.parent).evaluation
    found = []
    for path in [root / "metrics.json", *sorted(root.glob("*/metrics.json"))]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            of = (content["source"]["checkpoint"], content["epoch"])
        except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
            continue
        if of == (ckpt.name, checkpoint.meta.epoch):
            found.append(content)
    return found
