"""One value of a sample in its standard type: converted where its meaning is exact, else refused by name."""

import sys
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from simv0.errors import DataError
from simv0.labels import TELEMETRY


def check_frames(value: Any, where: str, F: int | None = None) -> Tensor:
    """Check frames [F,3,H,W] (or one frame [3,H,W] with `F=None`): uint8, or float 0..1 returned as float32.

    Raises:
        DataError: naming `where`.
    """
    expected = f"[{F},3,H,W]" if F is not None else "[3,H,W]"
    tensor = _as_tensor(value, where, f"uint8 or float {expected}")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise DataError(f"{where}: expected uint8 0..255 or float 0..1, found {describe(tensor)}")
    if F is not None and tensor.ndim == 4 and tensor.shape[1] == 3 and len(tensor) != F:
        raise DataError(f"{where}: expected {F} (model.F), found {len(tensor)}")
    lead = [F] if F is not None else []
    if tensor.ndim != len(lead) + 3 or list(tensor.shape[:-2]) != [*lead, 3] or 0 in tensor.shape:
        turned = tensor.ndim == len(lead) + 3 and tensor.shape[-1] == 3 and tensor.shape[-3] != 3
        axes = ", ".join(map(str, [*range(len(lead)), *(len(lead) + i for i in (2, 0, 1))]))
        remedy = f"; put the channels first: permute({axes}), in numpy transpose({axes})" if turned else ""
        raise DataError(f"{where}: expected {expected}, found {describe(tensor)}{remedy}")
    if tensor.dtype == torch.uint8:
        return tensor
    tensor = tensor.float()
    low, high = tensor.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise DataError(f"{where}: holds NaN or inf")
    if low < 0 or high > 1:
        raise DataError(f"{where}: float frames must lie in 0..1, found {low:.4g}..{high:.4g}; give uint8 for 0..255")
    return tensor


def check_feats(value: Any, where: str, F: int, dv: int | None) -> Tensor:
    """Check features [F,dv]: finite floats.

    Raises:
        DataError: naming `where`.
    """
    expected = f"float [{F},{'dv' if dv is None else dv}]"
    tensor = _as_tensor(value, where, expected)
    good = tensor.is_floating_point() and tensor.ndim == 2 and tensor.shape[0] == F and tensor.shape[1] > 0
    if not good or (dv is not None and tensor.shape[1] != dv):
        raise DataError(f"{where}: expected {expected}, found {describe(tensor)}")
    return _finite(tensor, where)


def check_telemetry(value: Any, where: str) -> Float[Tensor, "8"]:
    """Check telemetry: 8 finite floats, returned as float32 on the CPU.

    Raises:
        DataError: naming `where`.
    """
    expected = f"float [{len(TELEMETRY)}] ({', '.join(TELEMETRY)})"
    tensor = _as_tensor(value, where, expected)
    if not tensor.is_floating_point() or tensor.shape != (len(TELEMETRY),):
        raise DataError(f"{where}: expected {expected}, found {describe(tensor)}")
    tensor = tensor.float().cpu()
    bad = [name for name, good in zip(TELEMETRY, torch.isfinite(tensor).tolist(), strict=True) if not good]
    if bad:
        raise DataError(f"{where}: holds NaN or inf in {', '.join(bad)}")
    return tensor


def check_label(value: Any, where: str, names: tuple[str, ...]) -> int:
    """One label as an int.

    Raises:
        DataError: not a whole number, or out of range.
    """
    value = _plain(value)
    if type(value) is not int:
        numbers = f"0..{len(names) - 1} ({', '.join(names)})"
        raise DataError(f"{where}: expected an int {numbers}, found {type(value).__name__} {value!r:.40}")
    if not 0 <= value < len(names):
        raise DataError(f"{where}: expected 0..{len(names) - 1} ({', '.join(names)}), found {value}")
    return value


def check_weight(value: Any, where: str) -> float:
    """A weight as a float.

    Raises:
        DataError: not a number, negative, or not finite in float32.
    """
    value = _plain(value)
    if type(value) not in (int, float):
        raise DataError(f"{where}: expected a float >= 0, found {type(value).__name__} {value!r:.60}")
    if not 0 <= value <= torch.finfo(torch.float32).max:
        raise DataError(f"{where}: expected a finite float32 >= 0, found {value!s:.60}")
    return float(value)


def check_seconds(value: Any, where: str) -> float:
    """A moment as a float.

    Raises:
        DataError: not a number, or not finite.
    """
    value = _plain(value)
    if type(value) not in (int, float) or not -sys.float_info.max <= value <= sys.float_info.max:
        raise DataError(f"{where}: expected finite seconds, found {type(value).__name__} {value!r:.60}")
    return float(value)


def check_text(value: Any, where: str) -> str:
    """A text as a plain str.

    Raises:
        DataError: not a text, empty, or one that no file can hold.
    """
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: expected a string, found {type(value).__name__} {value!r}")
    if "\0" in value or (not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise DataError(f"{where}: expected a string without NUL or lone surrogates, found {value!r}")
    return str(value)


def _plain(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own."""
    return value.item() if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0 else value


def _as_tensor(value: Any, where: str, expected: str) -> Tensor:
    """What a class yields as a tensor that torch can work on; shares memory where it may."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise DataError(f"{where}: expected {expected}, found a tensor of layout {value.layout}")
        return value.detach()
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, Tensor) for item in value):
        shapes = {tuple(item.shape) for item in value}
        if len(shapes) > 1 or len({item.dtype for item in value}) > 1:
            raise DataError(f"{where}: expected {expected}, found a list of {', '.join(sorted(map(describe, value)))}")
        return torch.stack([item.detach() for item in value])
    if np.ma.is_masked(value):
        raise DataError(
            f"{where}: expected {expected}, found a masked array with {int(np.ma.getmaskarray(value).sum())} masked"
        )
    try:
        array = np.asarray(value)
        if array.dtype == object:  # such as a row of a table with columns of several types
            array = np.asarray(array.tolist())
    except (TypeError, ValueError) as error:
        ragged = isinstance(value, (list, tuple)) and "inhomogeneous" in str(error)
        found = "a list whose items differ in shape" if ragged else type(value).__name__
        raise DataError(f"{where}: expected {expected}, found {found}") from None
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 8 * (1 + (array.dtype.kind == "c")):
        raise DataError(f"{where}: expected {expected}, found {_describe_odd(value, array)}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # messages and files may be big-endian
    # A copy where numpy's own memory is read-only (a memmap, a frozen array), of which torch would warn, or where
    # its steps run backwards (a view such as frame[..., ::-1]) or are no whole items (a field of a record):
    # torch cannot.
    steps_forward = all(step >= 0 and step % array.itemsize == 0 for step in array.strides)
    return torch.from_numpy(array if array.flags.writeable and steps_forward else array.copy())


def _describe_odd(value: Any, array: np.ndarray) -> str:
    """An array that is no array of numbers."""
    if array.dtype != object and not array.ndim:
        return type(value).__name__
    kinds = sorted({type(item).__name__ for item in array.flat if not isinstance(item, (int, float))})
    name = {"U": "text", "S": "bytes", "O": "object"}.get(array.dtype.kind, str(array.dtype))
    of = f" of {', '.join(kinds[:3])}" if array.dtype == object and array.ndim and kinds else ""
    return f"{name} [{','.join(map(str, array.shape))}]{of}" if array.ndim else type(value).__name__


def _finite(tensor: Tensor, where: str) -> Tensor:
    if not torch.isfinite(tensor).all():
        bad = (~torch.isfinite(tensor)).nonzero()[0].tolist()
        raise DataError(f"{where}: holds NaN or inf, first at {bad}")
    return tensor


def describe(tensor: Tensor) -> str:
    """Type and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} [{','.join(map(str, tensor.shape))}]"
