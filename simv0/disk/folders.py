"""A folder of a few named files that is written whole, as `files.replacing` writes one file."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from simv0.disk.files import sync_folder, told_plainly, write_atomically
from simv0.errors import ConfigError


def check_target(folder: Path, names: Iterable[str], overwrite: bool, option: str) -> None:
    """Refuse to write a folder where something is, unless it is to be replaced and holds no other files than `names`.

    Raises:
        ConfigError: naming the option and what is in the way.
    """
    if not folder.parent.is_dir():
        raise ConfigError(f"{option}: {folder}: the folder {folder.parent} does not exist; create it first")
    if not os.access(folder.parent, os.W_OK):
        raise ConfigError(f"{option}: {folder}: {folder.parent} cannot be written to")
    if not (folder.exists() or folder.is_symlink()):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ConfigError(f"{option}: {folder}: is a {'link' if folder.is_symlink() else 'file'}; name a new folder")
    if not overwrite:
        raise ConfigError(f"{option}: {folder}: exists; replace it with --overwrite, or name another folder")
    if others := sorted({path.name for path in folder.iterdir()} - set(names)):
        raise ConfigError(
            f"{option}: {folder}: holds {', '.join(others[:3])}, which --overwrite would remove; name another folder"
        )


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder of these files at `folder`, in place of one of files of the same names.

    They are written beside it and renamed into place. Killed at any moment, it leaves the old folder (for the moment
    between two renames under the name `.NAME.replaced`) or the new one, never half of one.

    Raises:
        SimError: the disk is full or the folder cannot be written; the old folder is intact.
    """
    new, old = (folder.with_name(f".{folder.name}.{end}") for end in ("new", "replaced"))
    with told_plainly(folder, "; what was there before is intact"):
        _put_back(old, folder)  # as a run that was killed left it
        for left in (new, old):
            _remove(left, files)
        try:
            new.mkdir()
            for name, data in files.items():
                write_atomically(new / name, data)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            _put_back(old, folder)
            _remove(new, files)
            raise
        sync_folder(folder.parent)
        _remove(old, files)


def _put_back(old: Path, folder: Path) -> None:
    if old.exists() and not folder.exists():
        old.rename(folder)


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Remove a folder of these files; whatever else is in it stays."""
    if folder.is_dir():
        for name in names:
            for path in (folder / name, folder / f"{name}.tmp"):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
