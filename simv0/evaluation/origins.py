"""Where an evaluation's figures come from: the facts that the report names, and what its windows share with train."""

import datetime
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from simv0.alarm.stored import Alarm
from simv0.config.schema import Config
from simv0.data.labels import Labels, find_leakage, leak, read_labels, same_telemetry
from simv0.data.user_class import load_dataset
from simv0.errors import SimError
from simv0.features.identity import labels_digest
from simv0.labels import HIGH
from simv0.model.checkpoint import Meta
from simv0.training.rundir import provenance
from simv0.training.splits import Split, open_split

COMPARED = 200_000
"""Windows of both splits whose frames are compared by name; more would take minutes (cache-vis has compared them)."""
COPIED = 0.1
"""Share of windows with a telemetry of the train split, to the last bit, that no chance explains."""


def origin_facts(
    ckpt: Path, run: Path | None, meta: Meta, config: Config, source: Split, data: str | None
) -> dict[str, str]:
    """Run, data, networks, versions, date and command of an evaluation, for display."""
    groups, trained = source.labels.group, meta.provenance
    here = provenance()
    high = int((source.labels.ids["risk"] == HIGH).sum())
    features = getattr(source.dataset, "path", None) if source.identity is not None else None
    recordings = "recordings unknown (no `group`)" if groups is None else f"{len(set(groups))} recordings"
    return {
        "run": str(run.resolve()) if run else f"none; a checkpoint in {ckpt.resolve().parent}",
        "checkpoint": f"{ckpt.name}, epoch {meta.epoch} of {config.training.epochs}",
        "evaluated on": data or f"{source.name}: {config.data.splits[source.name]}",
        **({} if features is None else {"features": str(features)}),
        "windows": f"{len(source.labels):,}, {high:,} of them high; {recordings}",
        "trained on": str(meta.config.get("data", {}).get("train_split_path", "unknown")),
        "vision encoder": _named(
            meta.encoder, "vision_encoder_name", "vision_pretrained", "vision_precision", none="the dataset's own"
        ),
        "LLM": _named(meta.llm, "llm_name", "llm_revision", none="unknown"),
        "simv0": _version(here) + ("" if _version(here) == _version(trained) else f"; trained by {_version(trained)}"),
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "command": shlex.join([_program(), *sys.argv[1:]]),
    }


def _named(identity: Any, *keys: str, none: str) -> str:
    return none if identity is None else ", ".join(str(identity[key]) for key in keys if identity.get(key) is not None)


def _version(provenance: Any) -> str:
    git = provenance.get("simv0_git")
    return f"{provenance.get('simv0', 'unknown')}{f' ({git[:10]})' if git else ''}"


def _program() -> str:
    """How this process was started, as people type it."""
    path = Path(sys.argv[0])
    return f"python -m {path.parent.name}" if path.name == "__main__.py" else path.name


def leakage_of(meta: Meta, config: Config, source: Split, data: str | None) -> tuple[list[str], list[str]]:
    """What the windows share with those that the checkpoint was trained on, and notes about what cannot be known."""
    if data is None and source.name == "train":
        return ["TRAINED ON: the checkpoint was trained on these windows: the figures measure memorisation."], []
    notes = []
    chosen = [] if meta.alarm is None else _chosen_on(source.name, meta.alarm)
    if chosen and data in (None, config.data.splits.get(source.name)):
        notes.append(f"{' and '.join(chosen)} chosen on this split: expect lower figures on new recordings.")
    try:
        found, unknown = _compare(_as_trained(config, meta), source, data)
    except Exception as error:  # of the user's class, which the evaluation itself can do without
        return [], [*notes, f"Not compared with the train split: {str(error) or type(error).__name__}"]
    return found, notes + unknown


def _chosen_on(split: str, alarm: Alarm) -> list[str]:
    """What a split has chosen, as the beginning of a sentence."""
    epoch = ["Best epoch"] if split == "val" else []
    if split == alarm.split:
        return ["Best epoch", "alarm threshold were"] if epoch else ["Temperatures", "alarm threshold were"]
    return ["Best epoch was"] if epoch else []


def _as_trained(config: Config, meta: Meta) -> Config:
    """The config with the train split that the checkpoint was trained on, if it is still there."""
    path = meta.config.get("data", {}).get("train_split_path")
    if not isinstance(path, str) or not Path(path).exists():
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"train_split_path": path})})


def _compare(config: Config, source: Split, data: str | None) -> tuple[list[str], list[str]]:
    name = source.name if data is None else Path(data).name
    train = _dataset(config, "train")
    labels = _train_labels(config, train)
    if train is None and labels is None:
        return [], ["The train split is not available: whether it shares recordings with these windows is unknown."]
    if labels is not None and labels_digest(labels, None) == labels_digest(source.labels, None):
        return [f"LEAKAGE: train and {name} are the same windows: the figures measure memorisation."], []
    other = getattr(source.dataset, "dataset", None)
    if other is None and data is None:
        other = _dataset(config, source.name)
    if train is None or other is None or len(train) + len(other) > COMPARED:
        train = other = None
    groups = None if labels is None else labels.group
    found = find_leakage(train, other, groups, source.labels.group, names=("train", name))
    if not found and labels is not None:
        found = copies(labels, source.labels, name)
    if found or (groups is not None and source.labels.group is not None):
        return found, []
    return [], ["Without a `group` for each window, recordings shared with train cannot be ruled out."]


def _train_labels(config: Config, dataset: Any) -> Labels | None:
    """The train split's labels, where they need no reading of frames."""
    unread = config.model_copy(update={"cache": config.cache.model_copy(update={"in_memory": "never"})})
    with suppress(SimError):  # no feature file, or one of other data
        return open_split(unread, "train").labels
    return read_labels(dataset, "train", config.model.F) if hasattr(dataset, "labels_of") else None


def _dataset(config: Config, name: str) -> Any:
    """A split's dataset; None where only its features are here."""
    try:
        return load_dataset(config.data, name)
    except Exception:  # of the user's class
        return None


def copies(train: Labels, labels: Labels, name: str) -> list[str]:
    """Windows whose eight numbers are in train too, once: copies under another name. Numbers that train itself repeats,
    like those of a robot that measures next to nothing, show none.
    """
    _, kind, count = np.unique(train.telemetry, axis=0, return_inverse=True, return_counts=True)
    pairs = [pair for pair in same_telemetry(train, labels) if count[kind.reshape(-1)[pair[1]]] == 1]
    if len({original for _, original in pairs}) < 2 or len(pairs) < COPIED * len(labels):
        return []
    first = labels.sample_id[pairs[0][0]]
    what = f"{len(pairs)} of {len(labels)} windows of {name} have exactly the telemetry of a train window"
    return [leak(f"{what} (first: {first!r})", name)]
