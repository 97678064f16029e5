"""The rows of a manifest, written for another folder than its own."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from simv0.data.locate import WINDOWS_ROOT

Row = dict[str, Any]


def moved_to(manifest: Path, folder: Path) -> tuple[Callable[[Row], Row], Path | None]:
    """How a row names its files when it is read in `folder`; and the link that takes, if any.

    A manifest's names never climb out of its folder, so from outside a link must lead to the frames.
    """
    root, there = manifest.resolve().parent, folder.resolve()
    if root == there:
        return lambda row: row, None
    inside = root.is_relative_to(there)
    prefix = root.relative_to(there).as_posix() if inside else root.name or "frames"

    def rename(name: Any) -> Any:
        if not isinstance(name, str) or WINDOWS_ROOT.match(name):
            return name
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                return name  # refused here as there
            name = path.relative_to(root).as_posix()
        return f"{prefix}/{name}"

    def moved(row: Row) -> Row:
        frames = row.get("frames")
        new = {"frames": [rename(name) for name in frames]} if isinstance(frames, list) else {}
        return {**row, **new, **({"video": rename(row["video"])} if "video" in row else {})}

    return moved, None if inside else folder / prefix
