"""Blows at a known moment, by the doors that Python and torch have themselves (a file's write, a module's call), and
flipped bits.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def after_writing(pattern: str, strike: Callable[[int, Path], object]) -> Iterator[None]:
    """Call `strike(n, path)` as soon as the n-th file with a name like `pattern` has been moved to its place."""
    replace, count = os.replace, 0

    def replacing(source: Any, target: Any, **kwargs: Any) -> None:
        nonlocal count
        replace(source, target, **kwargs)
        if fnmatch(Path(target).name, pattern):
            count += 1
            strike(count, Path(target))

    with patch.object(os, "replace", replacing):
        yield


@contextmanager
def while_writing(path: Path, strike: Callable[[int], object]) -> Iterator[None]:
    """Call `strike(n)` as `path` is written for the n-th time: its bytes are there, its name is not."""
    fsync, temporary, count = os.fsync, path.with_name(path.name + ".tmp"), 0

    def flushing(descriptor: int) -> None:
        nonlocal count
        if temporary.exists() and os.path.samestat(os.fstat(descriptor), temporary.stat()):
            count += 1
            strike(count)
        fsync(descriptor)

    with patch.object(os, "fsync", flushing):
        yield


@contextmanager
def while_running(kind: type[nn.Module], strike: Callable[[int, nn.Module], object]) -> Iterator[None]:
    """Call `strike(n, module)` as a module of this class is called for the n-th time."""
    count = 0

    def calling(module: nn.Module, args: Any) -> None:
        nonlocal count
        if isinstance(module, kind):
            count += 1
            strike(count, module)

    hook = register_module_forward_pre_hook(calling)
    try:
        yield
    finally:
        hook.remove()


def flip_bit(path: Path, at: int | None = None) -> None:
    """Damage one byte of a file; by default the one in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)
