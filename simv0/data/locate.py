"""The files that a manifest names: found beside it, whatever system wrote the names, and nowhere else."""

import os.path
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from simv0.errors import DataError

WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]|\\\\")


class Folder:
    """A manifest's folder, in which files are looked for by name.

    Args:
        root: the folder, resolved.
        follow_links: whether links in it may lead outside.
    """

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root, self.follow_links = root, follow_links
        self._inside = os.path.join(root, "")
        self._real_folders: dict[str, str] = {}
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def locate(self, name: str, where: str) -> str:
        """The file's path, absolute and without links.

        If the name as written is not found, backslashes are tried as slashes, and accents in the other Unicode form
        (NFC, NFD).

        Raises:
            DataError: beginning with `where`: file not found, or it lies outside the folder.
        """
        shown = repr(name) if len(name) <= 200 else f"{name[:200]!r}..."
        for candidate in self._candidates(name):
            try:
                path = self._real(os.path.join(self.root, candidate))
                found = os.path.isfile(path)
            except (OSError, ValueError):  # too long, NUL, lone surrogates
                break
            self._refuse_outside(candidate, path, f"{where}: {shown}")
            if found:
                return path
        if WINDOWS_ROOT.match(name):
            raise DataError(
                f"{where}: {shown} is an absolute path of Windows; write it relative to the manifest, with slashes, "
                "such as 'images/0.jpg'"
            )
        raise DataError(f"{where}: no file {shown} found beside the manifest")

    def _real(self, path: str) -> str:
        """`os.path.realpath`, which looks at every folder of every path anew."""
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or os.path.islink(path):
            return os.path.realpath(path)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return os.path.join(self._real_folders[folder], name)

    def _candidates(self, name: str) -> Iterator[str]:
        yield name
        if not WINDOWS_ROOT.match(name):
            slashed = name.replace("\\", "/")
            if slashed != name:
                yield slashed
            yield from self._composed_otherwise(slashed)

    def _refuse_outside(self, name: str, path: str, said: str) -> None:
        """Links are followed only if allowed; a name that climbs out of the folder is always refused."""
        if path.startswith(self._inside) or path == str(self.root):
            return
        pure = PurePosixPath(name)
        by_link = ".." not in pure.parts and not pure.is_absolute()
        if not (by_link and self.follow_links):
            way = " by a link; if you trust it: data.dataset_kwargs={follow_links: true}" if by_link else ""
            raise DataError(f"{said} leads outside the manifest's folder{way}")

    def _composed_otherwise(self, name: str) -> list[str]:
        """The one file whose name differs only in how accents are composed, if there is exactly one."""
        if name.isascii() or ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            return []
        found = [PurePosixPath()]
        for part in PurePosixPath(name).parts:
            key = unicodedata.normalize("NFC", part)
            found = [folder / same for folder in found for same in self._names(self.root / folder).get(key, [])]
        return [str(path) for path in found] if len(found) == 1 else []

    def _names(self, folder: Path) -> dict[str, list[str]]:
        """The names in a folder, by their composed form."""
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            try:
                for path in folder.iterdir():
                    names.setdefault(unicodedata.normalize("NFC", path.name), []).append(path.name)
            except (OSError, ValueError):  # no folder
                pass
            self._listed[folder] = names
        return self._listed[folder]
