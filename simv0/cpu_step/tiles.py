"""The inner loop of a robot's step, made by LLVM for the CPU at hand: a handful of fp32 vectors times fp16 weights.

A product of 6 rows does 6 operations for every byte of weights, about what a core does while memory delivers one: so
each weight is read once, widened in a register and multiplied by all rows there, and memory is asked ahead of time.
The accumulators (6 rows x 16 outputs in fp32) fill 12 of AVX2's 16 registers: the shape of BLIS's kernel for it
(Van Zee & van de Geijn 2015). Vectors are LLVM's, so wider or narrower units are its business.

What numba keeps compiled is good until this file or `loop.py` changes.
"""

import functools
import hashlib
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt16
from llvmlite import binding, ir
from numba import extending, njit, types
from numba.core import cgutils
from numba.core.caching import IndexDataCacheFile
from torch import Tensor

# What an intrinsic is called with is not what it is defined with.
intrinsic: Any = extending.intrinsic
function_of: Any = cgutils.get_or_insert_function

log = logging.getLogger("simv0")

LANES = 16
"""Outputs of one tile."""

ROWS = 6
"""The most vectors of one tile."""

_AHEAD = 2048
"""Bytes of weights asked for ahead of their use, also across the pages that the hardware does not look beyond."""

_F32, _I32, _I64, _BYTES = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
_WIDE, _HALF = ir.VectorType(_F32, LANES), ir.VectorType(ir.HalfType(), LANES)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, kept on disk for the next start where that can be; it runs beside Python. NaN stays NaN."""
    plain = inspect.unwrap(function)  # without a run-time type checker around it
    how: Any = {"nogil": True, "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
    made: Any
    try:
        made = njit(cache=True, **how)(plain)
        # Under a name of its own: numba looks at the function's own file only, and unpickles what is kept before that.
        kept = made._cache
        name = f"{kept._impl.filename_base}-{_sources()[:16]}"
        kept._cache_file = IndexDataCacheFile(kept._cache_path, name, _sources())  # type: ignore[no-untyped-call]
    except RuntimeError:  # no folder that can be written, neither here nor at home
        _say_unkept()
        made = njit(**how)(plain)
    except (AttributeError, TypeError):  # another numba keeps its files elsewhere
        made = njit(**how)(plain)
    return made  # type: ignore[no-any-return]


@functools.cache
def _sources() -> str:
    """Digest of all that is compiled together."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in ("tiles.py", "loop.py"))).hexdigest()


@functools.cache
def _say_unkept() -> None:
    log.info("the compiled step is compiled at every start: no folder to keep it in; set NUMBA_CACHE_DIR to one")


def can_widen() -> bool:
    """Whether this CPU turns fp16 into fp32 and multiplies and adds in one instruction each."""
    features = binding.get_host_cpu_features()
    return binding.get_default_triple().startswith("aarch64") or bool(features.get("f16c") and features.get("fma"))


def pack(weight: Float[Tensor, "n k"]) -> UInt16[np.ndarray, "n/16 k 16"]:
    """A weight in fp16 as tiles read it: 16 outputs side by side, one input after the other."""
    n, k = weight.shape
    blocks = weight.detach().to(torch.float16).view(n // LANES, LANES, k).transpose(1, 2)
    return blocks.contiguous().view(torch.uint16).numpy()


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _tile(typing: Any, rows: Any, x: Any, weight: Any, out: Any, depth: Any) -> Any:
    """Addresses of x [depth,rows], weight [depth,16] in fp16 and out [rows,16]; depth is even."""
    count = rows.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, x, weight, out, depth = args
        fma = function_of(builder.module, ir.FunctionType(_WIDE, (_WIDE,) * 3), f"llvm.fma.v{LANES}f32")
        prefetch = function_of(
            builder.module, ir.FunctionType(ir.VoidType(), (_BYTES, _I32, _I32, _I32)), "llvm.prefetch.p0"
        )

        def at(address: Any, index: Any, size: int, plus: int, kind: Any) -> Any:
            offset = builder.add(builder.mul(index, _I64(size)), _I64(plus))
            return builder.inttoptr(builder.add(address, offset), kind)

        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(_I64)
        sums = [builder.phi(_WIDE) for _ in range(count)]
        ahead = at(weight, k, 2 * LANES, _AHEAD, _BYTES)  # one cache line: both weights of a turn
        builder.call(prefetch, [ahead, _I32(0), _I32(3), _I32(1)])
        added = sums
        for turn in range(2):
            # numpy promises no more than 16 bytes of alignment; more than 2 gains nothing
            half = builder.load(at(weight, k, 2 * LANES, 2 * LANES * turn, _HALF.as_pointer()), align=2)
            wide = builder.fpext(half, _WIDE)
            values = [
                builder.load(at(x, k, 4 * count, 4 * (count * turn + row), _F32.as_pointer())) for row in range(count)
            ]
            added = [builder.call(fma, [wide, _spread(builder, v), s]) for v, s in zip(values, added, strict=True)]
        following = builder.add(k, _I64(2))
        for phi, first, then in [(k, _I64(0), following), *zip(sums, [_WIDE(None)] * count, added, strict=True)]:
            phi.add_incoming(first, before)
            phi.add_incoming(then, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        for row, value in enumerate(added):
            builder.store(value, at(out, _I64(row), 4 * LANES, 0, _WIDE.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(rows, types.uintp, types.uintp, types.uintp, types.intp), emit


def _spread(builder: Any, value: Any) -> Any:
    """A vector filled with one number."""
    vector = builder.insert_element(_WIDE(ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(vector, _WIDE(ir.Undefined), ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


@compiled
def tile(rows: int, x: int, weight: int, out: int, depth: int) -> None:
    """One product by addresses: out [rows,16] = x [depth,rows] by weight [depth,16] in fp16; depth is even."""
    if rows == 6:
        _tile(6, x, weight, out, depth)
    elif rows == 5:
        _tile(5, x, weight, out, depth)
    elif rows == 4:
        _tile(4, x, weight, out, depth)
    elif rows == 3:
        _tile(3, x, weight, out, depth)
    elif rows == 2:
        _tile(2, x, weight, out, depth)
    else:
        _tile(1, x, weight, out, depth)


@intrinsic  # type: ignore[untyped-decorator]
def fetch_add(typing: Any, address: Any, amount: Any) -> Any:
    """Add to the int64 at an address, atomically; returns what it was."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.uintp, types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def nap(typing: Any, microseconds: Any) -> Any:
    """Leave the core to others for at least so long (POSIX `usleep`)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        usleep = function_of(builder.module, ir.FunctionType(_I32, [_I32]), "usleep")
        return builder.sext(builder.call(usleep, [builder.trunc(args[0], _I32)]), _I64)

    return types.int64(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator]
def read(typing: Any, address: Any) -> Any:
    """The int64 at an address, after all that was written before it."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], _I64.as_pointer()), "acquire", 8)

    return types.int64(types.uintp), emit
