"""A manifest divided into train, val and, if wanted, calibration, so that no recording is in two of them."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from simv0.data.division.divide import divide
from simv0.data.division.moved_rows import Row, moved_to
from simv0.data.jsonl import read_jsonl
from simv0.disk.files import told_plainly, write_atomically
from simv0.errors import ConfigError, DataError, Mistakes
from simv0.labels import HEADS

PARTS = ("train", "val", "calibration")
FAR = 0.02
"""A share that differs by more from the one asked for is told."""


@dataclass(frozen=True)
class Part:
    """One of the manifests that were written.

    Attributes:
        asked: its share of the windows, as asked for.
        share: its share of the windows.
        classes: (head, class) -> windows, for every class that occurs in the whole.
    """

    name: str
    path: Path
    asked: float
    share: float
    recordings: list[str]
    windows: int
    classes: dict[tuple[str, str], int]


@dataclass(frozen=True)
class Division:
    """What was written, and what could not be done, a line each.

    Attributes:
        link: the link through which the parts find their frames, where they lie outside the parts' folder.
    """

    parts: list[Part]
    problems: list[str]
    link: Path | None


def split_manifest(
    manifest: Path,
    *,
    by: str = "group",
    val: float = 0.2,
    calibration: float | None = None,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
) -> Division:
    """Write `NAME_train.jsonl`, `NAME_val.jsonl` (and `NAME_calibration.jsonl`) for NAME.jsonl; `divide` says how.

    The rows keep their order. In another folder than the manifest's their frames are found through a link to that.

    Args:
        manifest: the windows, labelled.
        by: the key whose value names a row's recording.
        val: share of the windows.
        calibration: the same; None: no such part.
        seed: same seed, same division, whatever the order of the rows.
        out: the folder to write to, made if need be; the manifest's if not given.
        overwrite: whether earlier parts may be replaced.

    Raises:
        ConfigError: shares that cannot be; a file that is there already.
        DataError: rows without recording or labels, fewer recordings than parts.
    """
    shares = _shares(val, calibration)
    folder = out if out is not None else manifest.parent
    paths = {name: folder / f"{manifest.stem}_{name}.jsonl" for name in PARTS}
    _check_places(paths, manifest, overwrite)
    rows = read_jsonl(manifest)
    recordings = _recordings(rows, by, manifest)
    if len(recordings) < len(shares):
        raise DataError(_too_few(manifest, by, list(recordings), len(shares)))
    occurring, windows = _count(rows, list(recordings.values()), manifest)
    split_of = divide(windows, list(shares.values()), seed)
    moved, link = moved_to(manifest, folder)

    _make_room(folder, paths, link, manifest)
    parts = []
    for number, (name, asked) in enumerate(shares.items()):
        mine = np.flatnonzero(split_of == number)
        names = list(recordings)
        lines = sorted(line for i in mine for line in recordings[names[i]])
        text = "".join(json.dumps(moved(rows[line])) + "\n" for line in lines)
        write_atomically(paths[name], text.encode())
        classes = dict(zip(occurring, windows[mine].sum(0)[1:].tolist(), strict=True))
        share = len(lines) / len(rows)
        parts.append(Part(name, paths[name], asked, share, [names[i] for i in mine], len(lines), classes))
    problems = [*_missing(parts, recordings, windows, occurring), *_uneven(parts, recordings), *_alone(parts)]
    problems += _torn(rows, parts, by)
    return Division(parts, problems, link)


def _shares(val: float, calibration: float | None) -> dict[str, float]:
    """Share of the windows by the part's name."""
    asked = {"val": val} | ({} if calibration is None else {"calibration": calibration})
    for name, share in asked.items():
        if not 0 < share < 1:  # NaN is not either
            raise ConfigError(f"--{name}: expected a share above 0 and below 1, such as 0.2, found {share:g}")
    left = round(1 - sum(asked.values()), 9)
    if left <= 0:
        raise ConfigError(f"--val {val:g} and --calibration {calibration:g} leave nothing for train; lower them")
    return {"train": left, **asked}


def _check_places(paths: Mapping[str, Path], manifest: Path, overwrite: bool) -> None:
    """Refuse to replace anything unasked. An old calibration part counts, also where none is wanted: it would share
    recordings with the new train.
    """
    there = [path for path in paths.values() if path.exists()]
    if any(path.samefile(manifest) for path in there if manifest.exists()):
        raise ConfigError(f"{manifest}: would be replaced by a part of itself; choose another --out")
    if there and not overwrite:
        raise ConfigError(
            f"{', '.join(map(str, there))}: there already; --overwrite removes the earlier division, or choose "
            "another --out"
        )


def _recordings(rows: list[Row], by: str, manifest: Path) -> dict[str, list[int]]:
    """Recording -> the indices of its rows, recordings in the order of their names."""
    found: dict[str, list[int]] = {}
    without = []
    for i, row in enumerate(rows):
        name = row.get(by)
        if name is None:
            without.append(i)
        elif type(name) is int or (isinstance(name, str) and name):
            found.setdefault(str(name), []).append(i)
        else:
            raise DataError(f"{manifest}:{i + 1}: {by}: expected a recording's name, found {name!r:.60}")
    if not rows:
        raise DataError(f"{manifest}: the manifest is empty")
    if not found:
        raise DataError(
            f"{manifest}: no row has {by!r}, so nothing says which windows are of one recording, and rows cannot be "
            f"divided without it; write the recording's name in {by!r}, or name another key with --by; found the keys "
            f"{', '.join(rows[0])}"
        )
    if without:
        raise DataError(
            f"{manifest}:{without[0] + 1}: {by} is missing, as in {len(without)} of {len(rows)} rows; they may be of "
            "any recording and cannot be divided: set it on all rows, or remove those"
        )
    return dict(sorted(found.items()))


def _too_few(manifest: Path, by: str, names: list[str], parts: int) -> str:
    have = f"one recording only ({names[0]!r})" if len(names) == 1 else f"{len(names)} recordings only"
    return (
        f"{manifest}: {by}: {have}, for {parts} parts; windows of one recording in two parts would be leakage: "
        f"record more, or give stretches of a long recording that lie apart in time names of their own in {by!r}"
    )


def _count(
    rows: list[Row], recordings: list[list[int]], manifest: Path
) -> tuple[list[tuple[str, str]], Int[np.ndarray, "R C"]]:
    """The classes that occur, as (head, class), and the windows of each recording: all, then of each of them."""
    columns = {(head, name): i for i, (head, name) in enumerate((h, n) for h in HEADS for n in HEADS[h])}
    counts = np.zeros((len(recordings), 1 + len(columns)), np.int64)
    mistakes = Mistakes()
    for r, lines in enumerate(recordings):
        counts[r, 0] = len(lines)
        for line in lines:
            with mistakes:
                for head, names in HEADS.items():
                    counts[r, 1 + columns[head, _class_of(rows[line], head, names, f"{manifest}:{line + 1}")]] += 1
    mistakes.tell()
    used = [key for key, i in columns.items() if counts[:, 1 + i].any()]
    return used, counts[:, [0, *(1 + columns[key] for key in used)]]


def _class_of(row: Row, head: str, names: tuple[str, ...], where: str) -> str:
    value = row.get(f"{head}_id", "nothing")
    if type(value) is not int or not 0 <= value < len(names):
        raise DataError(f"{where}: {head}_id: expected 0..{len(names) - 1} ({', '.join(names)}), found {value!s:.40}")
    return names[value]


def _make_room(folder: Path, paths: Mapping[str, Path], link: Path | None, manifest: Path) -> None:
    """Make the folder and the link, and remove the parts of an earlier division, so that none is ever beside new ones.

    Raises:
        ConfigError: something else has the link's name.
        SimError: the folder cannot be written.
    """
    root = manifest.resolve().parent
    with told_plainly(folder, "; choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        if link is not None and os.path.lexists(link) and link.resolve() != root:
            raise ConfigError(f"{link}: is in the way of a link to {root}, where the frames lie; choose another --out")
        for path in paths.values():
            path.unlink(missing_ok=True)
        if link is not None and not os.path.lexists(link):
            link.symlink_to(root, target_is_directory=True)


def _missing(
    parts: list[Part],
    recordings: Mapping[str, list[int]],
    windows: Int[np.ndarray, "R C"],
    occurring: list[tuple[str, str]],
) -> list[str]:
    """A line for each class that a part lacks, and why."""
    lines = []
    for column, (head, name) in enumerate(occurring, 1):
        lacking = [part.name for part in parts if not part.classes[head, name]]
        having = [recording for recording, row in zip(recordings, windows, strict=True) if row[column]]
        if not lacking:
            continue
        count = "one recording has it" if len(having) == 1 else f"{len(having)} recordings have it"
        why = f"only {count} ({', '.join(map(repr, having))})"
        if len(having) >= len(parts):
            why = f"{len(having)} recordings have it, but no division was found that has every class everywhere"
        lines.append(f"{head} {name}: none in {' and '.join(lacking)}: {why}")
    return lines


def _uneven(parts: list[Part], recordings: Mapping[str, list[int]]) -> list[str]:
    """A line for the shares that are not those asked for, if any."""
    off = [part for part in parts if abs(part.share - part.asked) > FAR]
    if not off:
        return []
    largest = max(recordings, key=lambda name: len(recordings[name]))
    total = math.fsum(map(len, recordings.values()))
    came = ", ".join(f"{part.name} {part.share:.1%} for {part.asked:.1%}" for part in off)
    return [
        f"shares of the windows that differ from those asked for: {came}; there are {len(recordings)} recordings, and "
        f"the longest ({largest!r}) has {len(recordings[largest]) / total:.1%}"
    ]


def _alone(parts: list[Part]) -> list[str]:
    """A line for each part that judges by one recording."""
    return [
        f"{part.name}: one recording only ({part.recordings[0]!r}): how recordings differ cannot be told from it; "
        "another --seed or share may give it more"
        for part in parts[1:]
        if len(part.recordings) == 1
    ]


def _torn(rows: list[Row], parts: list[Part], by: str) -> list[str]:
    """A line if recordings (`group`) are in two parts, because another key was divided by."""
    at = {name: part.name for part in parts for name in part.recordings}
    found: dict[str, set[str]] = {}
    for row in rows if by != "group" else ():
        if isinstance(row.get("group"), str):
            found.setdefault(row["group"], set()).add(at[str(row[by])])
    torn = [group for group, places in found.items() if len(places) > 1]
    return [f"{len(torn)} groups are in two parts (first: {torn[0]!r}), divided by {by}: LEAKAGE"] if torn else []
