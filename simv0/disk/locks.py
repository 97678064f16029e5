"""Locks between processes that end with their holder: `flock` on a descriptor which no forked child keeps."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simv0.errors import ConfigError, SimError

_held: set[int] = set()


def check_platform() -> None:
    """Refuse a system without `flock`.

    Raises:
        ConfigError: it is Windows.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise ConfigError("simv0 needs Linux or macOS (there is no fcntl here); on Windows, use WSL2") from None


def _forget() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)


class NoLocksError(SimError):
    """The file system does not support locks."""


class FileLock:
    """An advisory lock named by a path; shared or exclusive. The kernel releases it when its holder dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, *, shared: bool = False, wait: bool = True) -> bool:
        """Take the lock; False if it is held elsewhere and `wait` is false.

        Raises:
            NoLocksError: the file system does not support locks.
            SimError: the folder is missing or not writable.
            ConfigError: the operating system has no locks (Windows).
        """
        check_platform()
        import fcntl

        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while True:
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise SimError(f"{self.path}: cannot be created: {error.strerror}") from None
            try:
                fcntl.flock(descriptor, how)
                if self._still_named(descriptor):
                    self._descriptor = descriptor
                    _held.add(descriptor)  # a loader's worker may outlive a killed parent: forked, it closes it
                    return True
            except BlockingIOError:
                os.close(descriptor)
                return False
            except OSError as error:
                os.close(descriptor)
                raise NoLocksError(
                    f"{self.path}: cannot be locked: {error.strerror}; choose a cache.dir on a file system with flock"
                ) from error
            os.close(descriptor)  # the last holder removed the file meanwhile: lock the new one

    def release(self, *, remove: bool = False) -> None:
        """Release the lock; `remove` also deletes its file (for an exclusive lock only)."""
        if self._descriptor is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        _held.discard(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None

    @contextmanager
    def held(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the lock for a `with` block, waiting for it."""
        self.acquire(shared=shared)
        try:
            yield
        finally:
            self.release()

    def _still_named(self, descriptor: int) -> bool:
        try:
            named, locked = os.stat(self.path), os.fstat(descriptor)
        except FileNotFoundError:
            return False
        return (named.st_ino, named.st_dev) == (locked.st_ino, locked.st_dev)
