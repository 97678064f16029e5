"""The encoder's identity without the encoder: recorded when it was loaded, good while its files and packages stay."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from simv0.config.schema import Config
from simv0.disk.files import replacing
from simv0.runtime.device import chosen_device
from simv0.runtime.file_digests import fingerprint, is_settled
from simv0.runtime.hub import encoder_files_in_cache
from simv0.vision.encoder import Encoder, resolve_precision
from simv0.vision.files import local_files

PACKAGES = ("simv0", "torch", "open_clip_torch", "timm", "torchvision", "pillow")
"""What a feature depends on besides the encoder's files."""


@dataclass(frozen=True)
class KnownEncoder:
    """What `Encoder` says of itself."""

    identity: dict[str, Any]
    dv: int


def known_encoder(config: Config) -> KnownEncoder | None:
    """The encoder that the config names, if it was recorded and nothing has changed since; None: it must be loaded."""
    with suppress(OSError, ValueError, TypeError, KeyError):  # no record, or a damaged one
        tree = json.loads(_path(config).read_text(encoding="utf-8"))
        if tree["facts"] == facts_of_encoder(config, [Path(file) for file in tree["facts"]["files"]]):
            return KnownEncoder(tree["identity"], tree["dv"])
    return None


def record_encoder(config: Config, encoder: Encoder, facts: dict[str, Any] | None) -> None:
    """Record an encoder, unless it is not certain which files it was loaded from, or the folder is read-only.

    Args:
        config: names the encoder; `cache.dir` holds the record.
        encoder: as it was loaded.
        facts: `facts_of_encoder` before that.
    """
    with suppress(OSError):
        if facts is not None and facts == facts_of_encoder(config):
            _path(config).parent.mkdir(parents=True, exist_ok=True)
            with replacing(_path(config)) as file:
                file.write(json.dumps({"facts": facts, "identity": encoder.identity, "dv": encoder.dv}).encode())


def facts_of_encoder(config: Config, in_cache: Sequence[Path] | None = None) -> dict[str, Any] | None:
    """All that an encoder's identity follows from; None where that is not certain: files that are missing or that were
    touched just now.

    Args:
        config: names the encoder.
        in_cache: its files in the hub's cache, if they are known; a newer version on the hub counts when it has been
            downloaded.
    """
    try:
        files = local_files(config.model) or (encoder_files_in_cache(config.model) if in_cache is None else in_cache)
        stats = {file: file.stat() for file in files}
        versions = {name: version(name) for name in PACKAGES}
    except (OSError, PackageNotFoundError):
        return None
    now = time.time()
    if not files or not all(is_settled(stat, now) for stat in stats.values()):
        return None
    named = config.model.model_dump(include={name for name in type(config.model).model_fields if "vision" in name})
    return {
        "model": named,
        "precision": resolve_precision(config.cache.precision, chosen_device(config)),
        "decode": config.cache.decode,
        "versions": versions,
        "files": {str(file): fingerprint(file, stat).hex() for file, stat in stats.items()},
    }


def _path(config: Config) -> Path:
    return Path(config.cache.dir) / "known" / "encoder.json"
