"""What `simv0 export` writes, as it is read: a checkpoint in files that hold no code.

model.safetensors  the trained weights and buffers, and what is kept of the train windows (`unlike.*`)
config.json        `Meta`, and the plain values of `Unlike`
labels.json        head -> names
README.md          the model card, which people edit: nothing is read from it
SHA256SUMS         of the first three, as `sha256sum -c` reads it
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from simv0.disk.files import DIGESTS, MAX_BYTES
from simv0.errors import CheckpointError, shown
from simv0.labels import HEADS

FORMAT = {"format": "simv0 export", "format_version": 1}
WEIGHTS, CONFIG, LABELS, CARD = "model.safetensors", "config.json", "labels.json", "README.md"
CHECKED = (WEIGHTS, CONFIG, LABELS)
FILES = (*CHECKED, CARD, DIGESTS)
KEPT = "unlike."


def read_exported(folder: Path) -> dict[str, Any]:
    """The content of an exported folder, as a .pt holds it: digests first; nothing in it is trusted, nothing runs.

    Raises:
        CheckpointError: naming the file that is missing, damaged or foreign.
    """
    data = {name: _read(folder / name) for name in (DIGESTS, *CHECKED)}
    _check_digests(folder, data)
    config, labels = (_parsed(folder / name, data[name]) for name in (CONFIG, LABELS))
    if {key: config.get(key) for key in FORMAT} != FORMAT:
        raise CheckpointError(f"{folder / CONFIG}: is not of a format that this simv0 reads")
    if labels != {head: list(names) for head, names in HEADS.items()}:
        raise CheckpointError(f"{folder / LABELS}: says {shown(repr(labels))}, but this simv0 knows {HEADS}")
    tensors = _tensors(folder / WEIGHTS, data[WEIGHTS])
    kept = {name.removeprefix(KEPT): tensor for name, tensor in tensors.items() if name.startswith(KEPT)}
    facts = config.get("unlike")
    return {
        "meta": config.get("meta"),
        "state": {name: tensor for name, tensor in tensors.items() if not name.startswith(KEPT)},
        "unlike": {**facts, **kept} if isinstance(facts, dict) else None,
    }


def digest_lines(files: dict[str, bytes]) -> bytes:
    """SHA256SUMS of some files."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_BYTES} bytes: not a file of simv0 export")
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: file not found: {path.parent} is not a folder of simv0 export, or not all of it"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _check_digests(folder: Path, data: dict[str, bytes]) -> None:
    lines = data[DIGESTS].decode("utf-8", "replace").splitlines()
    stored = {line[66:]: line[:64] for line in lines if re.fullmatch(r"[0-9a-f]{64}  \S+", line)}
    if list(stored) != list(CHECKED) or len(lines) != len(CHECKED):
        raise CheckpointError(f"{folder / DIGESTS}: damaged: expected the digests of {', '.join(CHECKED)}")
    for name, digest in stored.items():
        if hashlib.sha256(data[name]).hexdigest() != digest:
            raise CheckpointError(
                f"{folder / name}: damaged or changed: its bytes do not match their digest in {DIGESTS}; export or "
                "download it again"
            )


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON: {type(error).__name__}") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return tree


def _tensors(path: Path, data: bytes) -> dict[str, Any]:
    from safetensors.torch import load  # torch: the command refuses without it

    try:
        return dict(load(data))
    except Exception as error:  # whatever a foreign header can make the reader raise
        raise CheckpointError(f"{path}: is not a safetensors file: {type(error).__name__}") from None
