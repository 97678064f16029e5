"""What a .pt holds, how it is saved, and how it is read: nothing of it is believed before it is checked.

A checkpoint is `torch.save` of tensors and plain values, with a sha256 of its bytes as the comment of the zip file that
it is: plain `torch.load(path, weights_only=True)` reads it, and a flipped bit anywhere is found before anything is
parsed (torch alone loads 399 of 400 such files as good).
"""

import hashlib
import io
import pickle
import struct
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from torch import Tensor

from simv0.alarm import Alarm
from simv0.errors import CheckpointError
from simv0.files import keep_previous, write_atomically
from simv0.labels import HEADS

FORMAT_VERSION = 1
_PREFIX = b"sha256:"


class Meta(BaseModel):
    """Everything in a checkpoint but tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["simv0 checkpoint"] = "simv0 checkpoint"
    format_version: Literal[1] = 1
    dv: int
    d: int
    F: int
    K: int
    confidence_head: bool
    labels: dict[str, list[str]]
    llm: dict[str, JsonValue]
    """Identity of the frozen LLM: name, revision, digest of its weights."""
    encoder: dict[str, JsonValue] | None
    """Identity of the encoder that made the features; None when the dataset brought its own."""
    epoch: int
    """Finished epochs."""
    metrics: dict[str, float | None]
    """The val metrics of that epoch."""
    alarm: Alarm | None = None
    """The alarm chosen on val; None in last.pt."""
    config: dict[str, JsonValue]
    """The resolved config, for reference and for paths; nothing in it is imported or executed."""
    provenance: dict[str, JsonValue]
    """Git hash and package versions."""


class Checkpoint(BaseModel):
    """A checkpoint in memory."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    meta: Meta
    state: dict[str, Tensor]
    """`SimV0Model.trainable_state`."""
    training: dict[str, Any] | None = None
    """Only in last.pt: optimizer, scaler, position."""


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, previous: Path | None = None) -> None:
    """Save atomically; what `path` held before is kept as `previous`, if given.

    Raises:
        SimError: the disk is full or read-only; the file that was there is untouched.
    """
    buffer = io.BytesIO()
    torch.save(
        {"meta": checkpoint.meta.model_dump(), "state": checkpoint.state, "training": checkpoint.training}, buffer
    )
    data = seal(buffer.getvalue())
    if previous is not None:
        keep_previous(path, previous)
    write_atomically(path, data)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint: digest first, then `weights_only=True`, then every field.

    Raises:
        CheckpointError: not a checkpoint of ours, damaged, of another format version, or holding non-finite weights.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    check_seal(data, path)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: refused: it holds more than tensors and plain values") from None
    except Exception as error:  # a sealed file that torch cannot parse was not written by simv0
        raise CheckpointError(f"{path}: not a simv0 checkpoint: {type(error).__name__}") from None
    try:
        checkpoint = Checkpoint.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        found = f", found {first['input']!r:.60}" if first["type"] != "missing" else ""
        raise CheckpointError(
            f"{path}: not a checkpoint that this simv0 reads: {where}: {first['msg']}{found}"
        ) from None
    if checkpoint.meta.labels != {head: list(names) for head, names in HEADS.items()}:
        raise CheckpointError(f"{path}: its labels are {checkpoint.meta.labels}, but this simv0 knows {HEADS}")
    for name, tensor in checkpoint.state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds NaN or inf")
    return checkpoint


def load_state(model: torch.nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Copy checked weights into `model`: its `trainable_state`, name by name.

    Raises:
        CheckpointError: names, shapes or types that differ from the model's; nothing is copied then.
    """
    wanted: dict[str, Tensor] = model.trainable_state()  # type: ignore[operator]
    for what, names in (("lacks", wanted.keys() - state.keys()), ("has the unknown", state.keys() - wanted.keys())):
        if names:
            raise CheckpointError(f"{path}: does not fit the model: it {what} {', '.join(sorted(names))}")
    for name, tensor in wanted.items():
        found = state[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CheckpointError(
                f"{path}: does not fit the model: {name}: expected {tensor.dtype} {list(tensor.shape)}, "
                f"found {found.dtype} {list(found.shape)}"
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(state[name])


def check_frozen(kind: str, stored: dict[str, Any] | None, present: dict[str, Any], path: str | Path) -> None:
    """Refuse a frozen network that is not the one trained with.

    Raises:
        CheckpointError: naming every field that differs.
    """
    if stored is None:
        raise CheckpointError(f"{path}: was trained on features of unknown origin; it cannot take frames")
    differing = [
        f"{key}: trained with {stored.get(key)!r}, found {present.get(key)!r}"
        for key in present
        if stored.get(key) != present.get(key)
    ]
    if differing:
        raise CheckpointError(f"{path}: belongs to another {kind}: {'; '.join(differing)}")


def seal(data: bytes) -> bytes:
    """Append sha256(data without its empty zip comment) as the zip's comment."""
    body = data[:-2]  # a zip ends with the length of its comment
    comment = _PREFIX + hashlib.sha256(body).hexdigest().encode()
    return body + struct.pack("<H", len(comment)) + comment


def check_seal(data: bytes, path: Path) -> None:
    """Compare the digest that `seal` appended.

    Raises:
        CheckpointError: there is none, or it differs.
    """
    length = len(_PREFIX) + 64
    body, size, comment = data[: -length - 2], data[-length - 2 : -length], data[-length:]
    if not comment.startswith(_PREFIX) or size != struct.pack("<H", length):
        raise CheckpointError(f"{path}: not a simv0 checkpoint, or cut short: its digest is missing")
    if comment != _PREFIX + hashlib.sha256(body).hexdigest().encode():
        raise CheckpointError(f"{path}: damaged: its bytes do not match their digest")
