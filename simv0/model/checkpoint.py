"""What a .pt holds, how it is saved, and how it is read: nothing in it is trusted before it is checked.

A checkpoint is `torch.save` of tensors and plain values, with a sha256 of its bytes as the comment of the zip file that
it is: plain `torch.load(path, weights_only=True)` reads it, and a flipped bit anywhere is found before anything is
parsed (torch alone loads 399 of 400 such files as good).
"""

import hashlib
import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor

from simv0.alarm.stored import Alarm
from simv0.alarm.unlike import Unlike
from simv0.disk.files import check_checkpoint, is_exported, keep_previous, write_atomically
from simv0.errors import CheckpointError, shown
from simv0.labels import HEADS
from simv0.model.exported import read_exported
from simv0.runtime.digests import settled

FORMAT_VERSION = 1
_PREFIX = b"sha256:"
POSITIVE = ("_std", "unlike.std", "unlike.variance", "unlike.half_range")
"""Tensors, by the ends of their names, that something is divided by."""

Size = Annotated[int, Field(ge=1, le=65_536)]
Frames = Annotated[int, Field(ge=1, le=4096)]


class Meta(BaseModel):
    """Everything in a checkpoint but tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["simv0 checkpoint"] = "simv0 checkpoint"
    format_version: Literal[1] = 1
    dv: Size
    d: Size
    F: Frames
    K: Frames
    frame_spacing: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds between the frames of a training window; None: unknown."""
    confidence_head: bool
    labels: dict[str, list[str]]
    llm: dict[str, JsonValue]
    """Identity of the frozen LLM: name, revision, digest of its weights."""
    encoder: dict[str, JsonValue] | None
    """Identity of the encoder that made the features; None when the dataset brought its own."""
    epoch: int = Field(ge=0)
    """Finished epochs."""
    metrics: dict[str, float | None]
    """The val metrics of that epoch."""
    alarm: Alarm | None = None
    """The alarm chosen on val; None in last.pt."""
    config: dict[str, dict[str, JsonValue]]
    """The resolved config, for reference and for paths; nothing in it is imported or executed."""
    provenance: dict[str, JsonValue]
    """Git hashes and package versions."""


class Training(BaseModel):
    """What a run needs to resume from where `Meta.epoch` epochs and `step` steps were finished."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    step: int = Field(ge=0)
    """Finished steps of the epoch under way."""
    best: tuple[float, float]
    """`ranking` of the best epoch."""
    since_best: int
    """Finished epochs after that one."""
    tally: dict[str, Tensor]
    """`Tally.state` of the epoch under way."""
    optimizer: dict[int, dict[str, Tensor]]
    """AdamW's state of each parameter; its settings come from the config."""
    scaler: dict[str, float] | None
    """fp16's loss scaling."""
    digests: dict[str, str]
    """`split_digest` of each split."""


class Checkpoint(BaseModel):
    """A checkpoint in memory."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    meta: Meta
    state: dict[str, Tensor]
    """`SimV0Model.trainable_state`."""
    unlike: Unlike | None = None
    """What the train windows looked like; None in last.pt, in files of an older simv0, and of few windows."""
    training: Training | None = None
    """Only in last.pt."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the file by its place."""
        named = dict(self.state)
        if self.unlike is not None:
            named |= {f"unlike.{name}": tensor for name, tensor in self.unlike.tensors().items()}
        if self.training is not None:
            named |= {f"tally.{name}": tensor for name, tensor in self.training.tally.items()}
            for number, state in self.training.optimizer.items():
                named |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
        return named


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, previous: Path | None = None) -> None:
    """Save atomically; what `path` held before is kept as `previous`, if given.

    Raises:
        SimError: the disk is full or read-only; the file that was there is untouched.
    """
    buffer, training, unlike = io.BytesIO(), checkpoint.training, checkpoint.unlike
    content = {
        "meta": checkpoint.meta.model_dump(),
        "state": checkpoint.state,
        "training": training.model_dump() if training is not None else None,
        "unlike": unlike.model_dump() if unlike is not None else None,
    }
    torch.save(content, buffer)
    data = seal(buffer.getvalue())
    if previous is not None:
        keep_previous(path, previous)
    write_atomically(path, data)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint: digest first, then `weights_only=True`, then every field.

    Args:
        path: a .pt, or a folder of `simv0 export`.

    Raises:
        CheckpointError: not a checkpoint of ours, damaged, of another format version, or holding non-finite weights.
    """
    path = Path(path)
    if is_exported(path):
        content = read_exported(path)
    else:
        data = _read(path)
        check_seal(data, path)
        content = _parse(data, path)
    try:
        checkpoint = Checkpoint.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = shown(".".join(map(str, first["loc"]))) or "content"
        found = f", found {_plainly(first['input'])}" if first["type"] != "missing" else ""
        raise CheckpointError(f"{path}: not a checkpoint this simv0 can read: {where}: {first['msg']}{found}") from None
    if checkpoint.meta.labels != {head: list(names) for head, names in HEADS.items()}:
        labels = shown(repr(checkpoint.meta.labels))
        raise CheckpointError(f"{path}: its labels are {labels}, but this simv0 knows {HEADS}")
    wide, dv = checkpoint.unlike and checkpoint.unlike.mean.numel(), checkpoint.meta.dv
    if wide not in (None, dv):
        raise CheckpointError(f"{path}: its summary is of features {wide} wide, but it takes features of width {dv}")
    for name, tensor in checkpoint.tensors().items():
        _check_values(shown(name), tensor, path)
    return checkpoint


def _read(path: Path) -> bytes:
    check_checkpoint(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(data: bytes, path: Path) -> Any:
    """Unpickle tensors and plain values, nothing else, and nothing that grows on the way."""
    try:
        entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
        if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > len(data):
            raise CheckpointError(f"{path}: refused: it unpacks to more than its size")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on foreign pickles
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: refused: it holds more than tensors and plain values") from None
    except Exception as error:  # a sealed file that torch cannot parse was not written by simv0
        raise CheckpointError(f"{path}: not a simv0 checkpoint: {type(error).__name__}") from None


def _check_values(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse tensors that are more than numbers in a row, and numbers that no training leaves."""
    dense = type(tensor) is Tensor and tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not dense or tensor.dtype not in (torch.float32, torch.float64, torch.int64) or not tensor.is_contiguous():
        raise CheckpointError(f"{path}: refused: {name} is not a plain tensor")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{path}: {name} holds NaN or inf")
    if name.endswith(POSITIVE) and not (tensor > 0).all():
        raise CheckpointError(f"{path}: {name} must be positive")


def _plainly(value: Any) -> str:
    """A value for a message; of what can be huge or clever only the type."""
    return shown(repr(value))[:60] if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__


def load_state(model: torch.nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Copy checked weights into `model`: its `trainable_state`, name by name.

    Raises:
        CheckpointError: names, shapes or types that differ from the model's; nothing is copied then.
    """
    wanted: dict[str, Tensor] = model.trainable_state()  # type: ignore[operator]
    check_fits(state, wanted, "the model", path)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(state[name])


def check_fits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str, path: str | Path) -> None:
    """Compare names, shapes and types.

    Raises:
        CheckpointError: naming the first that differs.
    """
    for fault, names in (("lacks", wanted.keys() - state.keys()), ("has the unknown", state.keys() - wanted.keys())):
        if names:
            raise CheckpointError(f"{path}: does not fit {what}: it {fault} {shown(', '.join(sorted(names)))}")
    for name, tensor in wanted.items():
        found = state[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CheckpointError(
                f"{path}: does not fit {what}: {name}: expected {tensor.dtype} {list(tensor.shape)}, "
                f"found {found.dtype} {list(found.shape)}"
            )


def check_frozen(kind: str, stored: dict[str, Any] | None, present: dict[str, Any], path: str | Path) -> None:
    """Refuse a frozen network that is not the one trained with; names are compared only where there is no digest.

    Raises:
        CheckpointError: naming every field that differs.
    """
    if stored is None:
        raise CheckpointError(f"{path}: was trained on features of unknown origin; it cannot take frames")
    known = settled(stored, present)
    differing = [
        f"{key}: trained with {shown(repr(stored.get(key)))}, found {present.get(key)!r}"
        for key in dict.fromkeys([*present, *(stored.keys() & {"vision_quick_gelu"})])
        if key not in known and stored.get(key) != present.get(key)
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
