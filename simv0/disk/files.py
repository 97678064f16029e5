"""Files that are written atomically."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from simv0.errors import CacheError, CheckpointError, ConfigError, SimError

DIGESTS = "SHA256SUMS"
"""File that makes a folder one of `simv0 export`: it is written last."""
MAX_BYTES = 1 << 31
"""Larger checkpoints are refused unread: the widest model that is trained here takes a tenth of it."""


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """Write `path` under a temporary name; on success flush it to disk and rename it, on failure remove it.

    After the `with` block the file and its name survive a power cut; before, `path` is what it was.

    Args:
        path: the name that only ever holds a whole file.
        temporary: where to write meanwhile, on the same file system; `path` + ".tmp" if not given.

    Raises:
        OSError: disk full, no permission, a failing disk.
    """
    temporary = temporary or path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to disk: without it a power cut can undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`; at any moment, also across a power cut, `path` holds the old bytes or the new ones.

    Raises:
        SimError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    with told_plainly(path, "; what was there before is intact"), replacing(path) as file:
        file.write(data)


def keep_previous(path: Path, previous: Path) -> None:
    """Let `previous` also name what `path` names now, so that `path` can be replaced; `path` is never missing.

    Raises:
        SimError: as `write_atomically`.
    """
    if not path.exists():
        return
    link = previous.with_name(previous.name + ".tmp")
    with told_plainly(previous, "; what was there before is intact"):
        link.unlink(missing_ok=True)
        try:
            link.hardlink_to(path)
        except OSError:  # a file system without hard links
            write_atomically(previous, path.read_bytes())
        else:
            link.replace(previous)
            link.unlink(missing_ok=True)  # renaming does nothing where both already name one file


def check_out(out: Path, inputs: Mapping[str, Path | None]) -> None:
    """Refuse an output that would replace what a command reads, or whose folder is missing; before any work is done.

    Args:
        out: what `--out` says.
        inputs: option -> the path it names, if any.

    Raises:
        ConfigError: naming the option.
    """
    if not out.parent.is_dir():
        raise ConfigError(f"--out: {out}: the folder {out.parent} does not exist; create it first")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise ConfigError(f"--out: {out}: {'is a folder' if out.is_dir() else f'{out.parent} cannot be written to'}")
    for option, path in inputs.items():
        if path is not None and path.exists() and out.exists() and out.samefile(path):
            raise ConfigError(f"--out: {out} is what {option} reads and would be lost; give another name")


def check_room(folder: Path, need: int, key: str, what: str) -> int:
    """Free bytes where `folder` is or will be.

    Args:
        folder: what the config names by `key`.
        need: bytes that will be written there.
        key: section.key.
        what: what needs them, such as "the features need".

    Raises:
        CacheError: it cannot be made or written, or less than `need` is free.
    """
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise CacheError(f"{key}: {folder} cannot be written: {there} is {'read-only' if there.is_dir() else 'a file'}")
    free = shutil.disk_usage(there).free
    if need > free:
        raise CacheError(
            f"{key}: {folder}: {what} {need / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; free some space, or choose "
            f"another {key}"
        )
    return free


def best_of(path: Path) -> Path:
    """The best.pt of a run's folder; any other path as it is.

    Raises:
        CheckpointError: as `check_checkpoint`.
    """
    best = path / "checkpoints" / "best.pt"
    chosen = best if best.is_file() else path
    check_checkpoint(chosen)
    return chosen


def is_exported(path: Path) -> bool:
    """Whether a path is a folder of `simv0 export`, or what is left of one."""
    return any((path / name).is_file() for name in (DIGESTS, "model.safetensors"))


def check_checkpoint(path: Path) -> None:
    """Refuse a path that leads to no checkpoint.

    Raises:
        CheckpointError: missing, a folder that is not exported, too large.
    """
    try:
        if is_exported(path):
            return
        if path.is_dir():
            inside = path / "checkpoints" / "best.pt"
            there = inside if inside.exists() else path / "best.pt"
            hint = f"did you mean {there}?" if there.exists() else "name a .pt such as checkpoints/best.pt"
            raise CheckpointError(f"{path}: is a folder, not a checkpoint; {hint}")
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: is not a file; name a .pt such as checkpoints/best.pt")
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path}: not a simv0 checkpoint: larger than {MAX_BYTES} bytes")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: checkpoint not found") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


@contextmanager
def told_plainly(path: Path, then: str = "") -> Iterator[None]:
    """Turn an OSError into a one-line error about `path`, ending in `then`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise SimError(f"{path}: cannot be written: {reason}{then}") from error
