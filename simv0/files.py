"""Files that are whole or not there: written to a temporary name, synced, renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from simv0.errors import SimError


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`; at any moment, also across a power cut, `path` holds the old bytes or the new ones.

    Raises:
        SimError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp.{os.getpid()}")
    with told_plainly(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def keep_previous(path: Path, previous: Path) -> None:
    """Let `previous` also name what `path` names now, so that `path` can be replaced; `path` is never missing.

    Raises:
        SimError: as `write_atomically`.
    """
    if not path.exists():
        return
    link = previous.with_name(f".{previous.name}.tmp.{os.getpid()}")
    with told_plainly(previous):
        link.unlink(missing_ok=True)
        try:
            link.hardlink_to(path)
        except OSError:  # a file system without hard links
            write_atomically(previous, path.read_bytes())
        else:
            link.replace(previous)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def told_plainly(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line about `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise SimError(f"{path}: cannot be written: {reason}; what was there before is intact") from error
