"""Files that are read here and there: the last few are kept open, and every process opens its own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

OPEN_FILES = 4
"""Kept open at a time."""


@runtime_checkable
class Closes(Protocol):
    """What is kept open."""

    def close(self) -> None:
        """Close the file."""


T = TypeVar("T", bound=Closes)


class OpenFiles(Generic[T]):
    """Path -> what `open_file` makes of it."""

    def __init__(self, open_file: Callable[[Path], T]) -> None:
        self.open_file = open_file
        self._open: dict[Path, T] = {}
        self._process = os.getpid()

    def __getitem__(self, path: Path) -> T:
        if self._process != os.getpid():  # a forked worker shares the parent's file offsets
            self._open, self._process = {}, os.getpid()
        if path not in self._open:
            while len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            self._open[path] = self.open_file(path)
        return self._open[path]

    def __getstate__(self) -> dict[str, Any]:
        """Spawned workers open the files themselves."""
        return {**self.__dict__, "_open": {}}
