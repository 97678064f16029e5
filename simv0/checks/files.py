"""What a feature file, a folder of shards or a checkpoint holds: is it complete, are its bytes intact?"""

from pathlib import Path
from typing import Any

import numpy as np

from simv0.alarm.unlike import NOTHING_KEPT
from simv0.data.labels import Labels
from simv0.disk.files import is_exported
from simv0.errors import CacheError
from simv0.features.info import MAGIC
from simv0.features.reader import FeatureFile, read_features
from simv0.features.shards import Parts, parts_of
from simv0.labels import HEADS, TELEMETRY
from simv0.model.checkpoint import load_checkpoint
from simv0.training.refusals import GIVE


def inspect_path(path: Path, verify: bool = False) -> dict[str, Any]:
    """Facts about a feature file, a folder of shards or a checkpoint, in the order in which people ask for them.

    Args:
        path: an .h5 file, a `.parts` folder, finished or not, a .pt file, or an exported folder.
        verify: read all features and check their digests; `damaged` names what is bad.

    Raises:
        CacheError: none of these, or too damaged to be opened.
        CheckpointError: a damaged checkpoint (its digest is always checked).
    """
    if path.suffix == ".pt" or is_exported(path):
        return _inspect_checkpoint(path)
    if path.is_dir():
        return _inspect_parts(Parts(path), verify)
    if not path.exists() and parts_of(path).folder.is_dir():
        return _inspect_parts(parts_of(path), verify)
    if path.suffix != ".h5" and not _begins_as_ours(path):
        what = "neither a feature file nor a checkpoint" if path.exists() else "file not found"
        raise CacheError(f"{path}: {what}; {GIVE}")
    file = read_features(path)
    N = file.info.identity["N"]
    whole = len(file.info.labels) == N
    facts = {"kind": "feature file" if whole else f"shard of {N} windows", "path": str(path), "complete": whole}
    return {**facts, **_contents([file]), **(_verify([file]) if verify else {})}


def _begins_as_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _inspect_checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    meta = checkpoint.meta
    facts: dict[str, Any] = {
        "kind": "checkpoint" if checkpoint.training is None else "checkpoint to resume from",
        "path": str(path),
        "complete": True,
        "epoch": meta.epoch,
        "weights": {name: list(tensor.shape) for name, tensor in checkpoint.state.items()},
        **meta.model_dump(
            include={"dv", "d", "F", "K", "frame_spacing", "confidence_head", "metrics", "llm", "encoder", "alarm"}
        ),
        "unlike": f"this checkpoint {NOTHING_KEPT}" if checkpoint.unlike is None else checkpoint.unlike.facts(),
        "provenance": meta.provenance,
        "config": meta.config,
        "damaged": [],
    }
    if checkpoint.training is not None:
        facts["step"] = checkpoint.training.step
    return facts


def _inspect_parts(parts: Parts, verify: bool) -> dict[str, Any]:
    plan = parts.read_plan()
    if plan is None:
        raise CacheError(f"{parts.folder}: holds no plan.json, so it is not a folder of shards; {GIVE}")
    missing = set(parts.missing(plan))
    files, damaged = [], []
    for shard in sorted(set(range(len(plan))) - missing):
        try:
            files.append(parts.read_shard(shard, plan))
        except CacheError as error:
            damaged.append(str(error))
    facts: dict[str, Any] = {
        "kind": "folder of shards",
        "path": str(parts.folder),
        "complete": not (missing or damaged),
        "shards": f"{len(plan) - len(missing)} of {len(plan)} done",
    }
    facts |= _contents(files) if files else {"identity": plan.identity}
    if verify:
        facts |= _verify(files)
    facts["damaged"] = [*damaged, *facts.get("damaged", [])]
    return facts


def _contents(files: list[FeatureFile]) -> dict[str, Any]:
    first = files[0].info
    labels = Labels.joined([file.info.labels for file in files])
    return {
        "vis_feats": f"{first.identity['dtype']} [{len(labels)},{first.identity['F']},{first.identity['dv']}]",
        "bytes": sum(file.path.stat().st_size for file in files),
        "identity": first.identity,
        "frame_spacing": first.frame_spacing,
        "class_weights": first.class_weights,
        **describe_labels(labels),
    }


def describe_labels(labels: Labels) -> dict[str, Any]:
    """Class counts, telemetry stats, groups and the sum of the weights of some windows."""
    return {
        "windows": len(labels),
        "groups": None if labels.group is None else len(set(labels.group)),
        "labels": {
            head: dict(zip(names, np.bincount(labels.ids[head], minlength=len(names)).tolist(), strict=True))
            for head, names in HEADS.items()
        },
        "telemetry": {
            name: {
                what: round(float(getattr(np, what)(values.astype(np.float64))), 5)
                for what in ("mean", "std", "min", "max")
            }
            for name, values in zip(TELEMETRY, labels.telemetry.T, strict=True)
        },
        "weights": {"sum": float(labels.weight.sum()), "zero": int((labels.weight == 0).sum())},
    }


def _verify(files: list[FeatureFile]) -> dict[str, Any]:
    blocks, damaged = 0, []
    for file in files:
        blocks += len(file.info.block_sha256)
        damaged += [f"{file.path}: {file.describe_block(number)} is damaged" for number in file.bad_blocks()]
    return {"verified": f"{blocks - len(damaged)} of {blocks} blocks of features are good", "damaged": damaged}
