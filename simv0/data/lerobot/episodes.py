"""A LeRobot dataset's episodes: which rows and which seconds of a video are theirs, and which of them are wanted.

Many episodes share a Parquet file of rows and an MP4 of each camera; `meta/episodes` says where each begins and ends.
Nothing but these numbers ties them together: they are compared with each other here, with the files in `rows`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from simv0.data.lerobot.files import Info, read_table
from simv0.errors import ConfigError, DataError

AT_MOST = 8
"""Mistakes told at a time."""


@dataclass(frozen=True)
class Episode:
    """Where an episode lies.

    Attributes:
        rows: of the whole dataset (the column `index`).
        data: the Parquet file of its rows.
        video: the camera's, or None where the pictures lie in the rows.
        start, end: seconds within the video.
    """

    number: int
    length: int
    rows: range
    data: Path
    video: Path | None
    start: float
    end: float


def read_episodes(info: Info, camera: str) -> dict[int, Episode]:
    """Every episode as `meta/episodes` has it, by its number; neither rows nor videos have been read.

    Raises:
        DataError: unreadable; lengths and places that contradict each other, by episode.
    """
    folder = info.root / "meta" / "episodes"
    of_video = info.features[camera]["dtype"] == "video"
    columns = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    columns += ["data/chunk_index", "data/file_index"]
    if of_video:
        columns += [f"videos/{camera}/{key}" for key in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    rows = [row for path in sorted(folder.glob("*/*.parquet")) for row in read_table(path, columns).to_pylist()]
    if not rows and not info.episodes:
        raise DataError(f"{info.root}: holds no episodes yet")
    if len({row["episode_index"] for row in rows}) != info.episodes or len(rows) != info.episodes:
        raise DataError(f"{folder}: holds {len(rows)} episodes, but meta/info.json says {info.episodes}")
    episodes = [_episode(info, camera if of_video else None, row) for row in rows]
    refuse(_check_length(info, episode) for episode in episodes)
    refuse(_check_apart(info, *pair) for pair in pairwise(sorted(episodes, key=lambda episode: episode.rows.start)))
    videos = [episode for episode in episodes if episode.video is not None]
    videos.sort(key=lambda episode: (str(episode.video), episode.start))
    refuse(_check_apart_in_video(info, *pair) for pair in pairwise(videos))
    if (frames := sum(episode.length for episode in episodes)) != info.frames:
        raise DataError(f"{folder}: its episodes are {frames} frames long, but meta/info.json says {info.frames}")
    return {episode.number: episode for episode in sorted(episodes, key=lambda episode: episode.number)}


def refuse(found: Iterable[str]) -> None:
    """Raise what checks have found; those that found nothing gave an empty string.

    Raises:
        DataError: a line each, the first few.
    """
    lines = [*islice(filter(None, found), AT_MOST + 1)]
    if lines:
        raise DataError("\n".join([*lines[:AT_MOST], *["(there may be more)"] * (len(lines) > AT_MOST)]))


def _episode(info: Info, camera: str | None, row: Mapping[str, Any]) -> Episode:
    lacking = [key for key, value in row.items() if value is None or value != value]
    if lacking:
        raise DataError(
            f"{info.root}: episode {row['episode_index']}: meta/episodes has no {', '.join(lacking)} for it "
            "(was its recording finished?)"
        )

    def place(template: str, key: str) -> Path:
        chunk, file = int(row[f"{key}/chunk_index"]), int(row[f"{key}/file_index"])
        return info.root / template.format(chunk_index=chunk, file_index=file, video_key=camera)

    start, end = 0.0, 0.0
    if camera is not None:
        start, end = (float(row[f"videos/{camera}/{side}_timestamp"]) for side in ("from", "to"))
    return Episode(
        int(row["episode_index"]),
        int(row["length"]),
        range(int(row["dataset_from_index"]), int(row["dataset_to_index"])),
        place(info.data_path, "data"),
        place(str(info.video_path), f"videos/{camera}") if camera is not None else None,
        start,
        end,
    )


def _check_length(info: Info, episode: Episode) -> str:
    where, rows, fps = f"{info.root}: episode {episode.number}", episode.rows, info.fps
    if episode.length < 1 or rows.start < 0:
        return f"{where}: its length is {episode.length}, from row {rows.start} on; expected at least one frame"
    if rows.stop - rows.start != episode.length:
        return (
            f"{where}: its length is {episode.length}, but dataset_from_index {rows.start} to dataset_to_index "
            f"{rows.stop} are {rows.stop - rows.start} rows"
        )
    lasts = episode.end - episode.start
    if episode.video is not None and not abs(lasts - episode.length / fps) < 0.5 / fps:
        return (
            f"{where}: its {episode.length} frames last {episode.length / fps:.3f} s at {fps:g} frames per second, "
            f"but from_timestamp {episode.start:.3f} to to_timestamp {episode.end:.3f} are {lasts:.3f} s"
        )
    return ""


def _check_apart(info: Info, before: Episode, episode: Episode) -> str:
    if episode.rows.start < before.rows.stop:
        return (
            f"{info.root}: episode {episode.number}: its rows {episode.rows.start} to {episode.rows.stop - 1} overlap "
            f"those of episode {before.number}, {before.rows.start} to {before.rows.stop - 1}"
        )
    return ""


def _check_apart_in_video(info: Info, before: Episode, episode: Episode) -> str:
    if episode.video is not None and episode.video == before.video and episode.start < before.end - 0.5 / info.fps:
        return (
            f"{info.root}: episode {episode.number}: begins at {episode.start:.3f} s of {info.short(episode.video)}, "
            f"within episode {before.number}, which ends there at {before.end:.3f} s"
        )
    return ""


def choose_episodes(info: Info, known: Iterable[int], wanted: Any) -> list[int]:
    """Numbers of the episodes that a user wants, in order.

    Args:
        info: has the splits.
        known: the dataset's episodes.
        wanted: None: all; a split of `meta/info.json`; a text such as `0:40,45`; a list of numbers.

    Raises:
        ConfigError: neither, or there is no such episode.
    """
    known = sorted(known)
    if wanted is None:
        return known
    if isinstance(wanted, str):
        ranges = [_numbers(part, known[-1] + 1) for part in info.splits.get(wanted, wanted).split(",")]
        numbers = [] if None in ranges else [number for part in ranges if part for number in part]
        said = f"numbers such as 0:40,45 or a split of meta/info.json ({', '.join(info.splits) or 'none'})"
    else:
        numbers = list(wanted) if isinstance(wanted, Sequence) else []
        said = "a list of numbers"
    if not numbers or not all(type(number) is int for number in numbers):
        raise ConfigError(f"episodes: expected {said}, found {wanted!r:.60}")
    if strange := sorted(set(numbers) - set(known)):
        raise ConfigError(
            f"episodes: {info.root} has no episode {strange[0]}: it has {len(known)}, {known[0]} to {known[-1]}"
        )
    return sorted(set(numbers))


def _numbers(part: str, end: int) -> range | None:
    """`7`, `0:40` or `40:` of a dataset whose episodes end before `end`; at most one beyond it."""
    found = re.fullmatch(r"(\d{0,9})(:?)(\d{0,9})", part.strip())
    if found is None or not (found[1] or found[2]):
        return None
    first = int(found[1] or 0)
    return range(first, min(int(found[3] or end), max(first, end) + 1) if found[2] else first + 1)
