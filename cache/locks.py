"""Locks between processes that die with their holder: `flock` on a file of their own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simv0.errors import CacheError
from simv0.locks import flock, hold, let_go


class FileLock:
    """An advisory lock named by a path; shared or exclusive. The kernel releases it when its holder dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, *, shared: bool = False, wait: bool = True) -> bool:
        """Take the lock; False if it is held elsewhere and `wait` is false.

        Raises:
            CacheError: the file system has no such locks, or the folder is not writable.
        """
        while True:
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise CacheError(f"{self.path}: cannot be made: {error.strerror}") from None
            try:
                flock(descriptor, shared=shared, wait=wait)
                if self._still_named(descriptor):
                    self._descriptor = descriptor
                    hold(descriptor)
                    return True
            except BlockingIOError:
                os.close(descriptor)
                return False
            except OSError as error:
                os.close(descriptor)
                raise CacheError(
                    f"{self.path}: cannot be locked: {error.strerror}; choose a cache.dir on a file system with flock"
                ) from None
            os.close(descriptor)  # the last holder removed the file meanwhile: lock the new one

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back; `remove` takes its file away too (only what is held exclusively)."""
        if self._descriptor is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        let_go(self._descriptor)
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
