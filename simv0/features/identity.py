"""The identity of a feature file, and whether it matches the config."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from simv0.config.schema import Config
from simv0.data.labels import Labels
from simv0.data.user_class import calling, load_dataset
from simv0.errors import CacheError, SimError
from simv0.runtime.digests import TOLD_BY, settled
from simv0.runtime.file_digests import Record, recorded
from simv0.vision.encoder import Encoder, is_local, load_encoder, portable_name
from simv0.vision.known import KnownEncoder

OF_THE_SPLIT = ("split", "split_file", "N", "content_digest", "labels_digest")
"""Fields in which train and val differ."""

OF_PLACES = {"simv0.datasets.ManifestDataset": ("follow_links",)}
"""Arguments of our own classes that change where files may lie, and no feature."""

MISSING = "(missing)"
UNSAID = {"vision_preprocess.decode": "full"}
"""What fields mean where a file does not hold them."""


def wanted_identity(config: Config, split: str) -> dict[str, Any]:
    """The fields that the config alone determines for `split`: no encoder, frames or dataset needed.

    `split_file`, the digest of a manifest, is among them where the manifest is on this machine.
    """
    model, cache, data = config.model, config.cache, config.data
    source = Path(data.splits[split])
    places = OF_PLACES.get(data.dataset_class_path, ())
    kwargs = {key: value for key, value in data.dataset_kwargs.items() if key not in places}
    wanted: dict[str, Any] = {
        "vision_encoder_name": portable_name(model.vision_encoder_name),
        "vision_pretrained": _file_name(model.vision_pretrained),
        "vision_file": _file_name(model.vision_weights),
        "vision_preprocess.resize_mode": model.vision_resize_mode,
        "vision_preprocess.decode": cache.decode,
        "F": model.F,
        "dtype": cache.dtype,
        "dataset_class_path": data.dataset_class_path,
        "dataset_kwargs": _without_folders(kwargs),
        "split": source.name,
    }
    if source.is_file():
        with source.open("rb") as file:
            wanted["split_file"] = hashlib.file_digest(file, "sha256").hexdigest()
    if cache.precision != "auto":
        wanted["vision_precision"] = cache.precision
    if model.dv is not None:
        wanted["dv"] = model.dv
    return wanted


def full_identity(
    config: Config,
    split: str,
    encoder: Encoder | KnownEncoder,
    labels: Labels,
    class_weights: Mapping[str, list[float]] | None,
    content: str | None,
) -> dict[str, Any]:
    """Every fact that changes what the feature file holds.

    Args:
        config: names of dataset and encoder, F, dtype.
        split: "train" or "val".
        encoder: brings its weights' digest, precision and preprocessing.
        labels: of the split: a dataset that was relabelled needs a new file.
        class_weights: the dataset's own.
        content: the dataset's `content_digest()`, if it has one.
    """
    return {
        **{key: value for key, value in wanted_identity(config, split).items() if "." not in key},
        **encoder.identity,
        "dv": encoder.dv,
        "N": len(labels),
        "content_digest": content,
        "labels_digest": labels_digest(labels, class_weights),
    }


def content_digest(config: Config, split: str, dataset: Any, *, verify: bool = False) -> str | None:
    """The dataset's own `content_digest()`, if it has one; files that have been read before are not read again.

    Args:
        config: `cache.dir` holds the record of what has been read.
        split: its name.
        dataset: of the split.
        verify: read everything.
    """
    if not hasattr(dataset, "content_digest"):
        return None
    path = Path(config.cache.dir) / "known" / f"{split}.digests"
    with calling(f"{split}, content_digest"), recorded(Record(path, f"{split}: reading the files once", verify)):
        digest: str = dataset.content_digest()
        return digest


def compare_identity(stored: Mapping[str, Any], wanted: Mapping[str, Any], path: object) -> None:
    """Refuse features that do not match the config; names are compared only where there is no digest.

    Args:
        stored: the identity in the file.
        wanted: the fields that must agree; `a.b` means field b of a.
        path: of the file, for the message.

    Raises:
        CacheError: naming each field that differs, with both values, and the two ways out.
    """
    refuse_differing(differing(stored, wanted), path)


def differing(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """A line for each field of `wanted` that differs from a stored identity."""
    known = settled(stored, wanted)
    same_content = "split_file" in known and stored.get("content_digest") is not None
    return [
        line
        for field, value in wanted.items()
        if field not in known
        for line in _differences(field, _look_up(stored, field), value, moved=same_content)
    ]


def refuse_differing(lines: list[str], path: object) -> None:
    """Refuse what lies at `path`, if anything differs.

    Raises:
        CacheError: with the ways out.
    """
    if lines:
        raise CacheError(
            f"{path}: does not match the config: {'; '.join(lines)}. "
            "Recreate it with `simv0 cache-vis --overwrite`, or choose another cache.dir"
        )


def differing_features(config: Config, split: str, stored: Mapping[str, Any]) -> list[str]:
    """How stored features differ from those of the config, a line each.

    Where only names differ from those in the file, the digests of what they name are compared, if it is on this
        machine: a renamed encoder and moved data are the same.

    Args:
        config: `data`, `cache` and `model`.
        split: "train" or "val".
        stored: the identity in the file.
    """
    wanted = wanted_identity(config, split)
    lines = differing(stored, wanted)
    digests = _digests_here(config, split, stored, wanted) if lines else {}
    return differing(stored, {**wanted, **digests}) if digests else lines


def _digests_here(config: Config, split: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The digests that tell whether other names mean the same, as far as they can be computed without a network."""
    found: dict[str, Any] = {}
    if any(stored.get(key) != wanted[key] for key in TOLD_BY["vision_weights"]) and is_local(config.model):
        # A bare file does not tell how images are prepared for it: the features do.
        trained = stored if Path(config.model.vision_pretrained or "").is_file() else None
        with contextlib.suppress(SimError):
            encoder = load_encoder(
                config.model, str(stored.get("vision_precision", "fp32")), "cpu", trained, config.cache.decode
            )
            found |= encoder.identity
    names = ("split", "split_file", "dataset_kwargs")
    if stored.get("content_digest") and any(stored.get(key) != wanted.get(key) for key in names):
        with contextlib.suppress(SimError, OSError):
            dataset = load_dataset(config.data, split)
            if hasattr(dataset, "content_digest"):
                found["content_digest"] = content_digest(config, split, dataset)
    return found


def compare_splits(train: Mapping[str, Any], val: Mapping[str, Any], val_path: object) -> None:
    """Refuse a val file that was not made as the train file was.

    Raises:
        CacheError: as `compare_identity`.
    """
    compare_identity(val, {key: value for key, value in train.items() if key not in OF_THE_SPLIT}, val_path)


def labels_digest(labels: Labels, class_weights: Mapping[str, list[float]] | None) -> str:
    """sha256 over everything that is not a feature."""
    digest = hashlib.sha256(json.dumps([labels.sample_id, labels.group, class_weights], sort_keys=True).encode())
    for array in (labels.telemetry, labels.weight, *labels.ids.values()):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _differences(field: str, stored: Any, wanted: Any, *, moved: bool = False) -> list[str]:
    """One text a differing field, mappings taken apart; paths do not count where the content may have `moved`."""
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        return [
            line
            for key in sorted({*stored, *wanted})
            for unsaid in [UNSAID.get(f"{field}.{key}", MISSING)]
            for line in _differences(f"{field}.{key}", stored.get(key, unsaid), wanted.get(key, unsaid), moved=moved)
        ]
    if (
        stored == wanted
        or (stored, wanted) == (MISSING, None)
        or (moved and isinstance(wanted, PathName) and isinstance(stored, str))
    ):
        return []
    return [f"{field} is {_short(stored)} in the file, {_short(wanted)} in the config"]


def _look_up(identity: Mapping[str, Any], field: str) -> Any:
    if field in identity:
        return identity[field]
    value: Any = identity
    for key in field.split("."):
        value = value.get(key, MISSING) if isinstance(value, Mapping) else MISSING
    return UNSAID.get(field, value) if value == MISSING else value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _without_folders(value: Any) -> Any:
    """Reduce absolute paths to their last component: data may move."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PathName(PurePath(value).name)
    return PathName(value) if isinstance(value, str) and "/" in value and Path(value).exists() else value


def _file_name(name: str | None) -> str | None:
    """A file by its last component; anything else as it is."""
    return Path(name).name if name is not None and Path(name).is_file() else name


class PathName(str):
    """Where data is, not what it is."""
