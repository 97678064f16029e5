"""The rows and labels of a LeRobot dataset's episodes; rows and videos are compared with what `meta/episodes` says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from simv0.data.contract import LABEL_KEYS
from simv0.data.lerobot.episodes import Episode, refuse
from simv0.data.lerobot.files import Info, numbers, read_table
from simv0.data.recordings.video import VideoReader
from simv0.errors import DataError
from simv0.labels import TELEMETRY

TOLERANCE = 1e-4
"""Seconds by which LeRobot lets a frame's time differ from what its number says."""
PLACES = ("episode_index", "frame_index", "index", "timestamp")
"""Columns that say where a row belongs."""
KEYS = (*LABEL_KEYS, "weight")
"""Of the contract, that columns may give."""


@dataclass(frozen=True)
class Rows:
    """What was measured in an episode of n frames.

    Attributes:
        first: place of its first row in the file.
        seconds: since the episode's beginning.
        labels: key of the contract -> one value a frame, where columns of the data give them.
    """

    first: int
    seconds: Float[np.ndarray, " n"]
    telemetry: Float[np.ndarray, "n 8"]
    labels: Mapping[str, list[Any]]


def read_rows(
    info: Info, episodes: Sequence[Episode], telemetry: Mapping[str, str], labels: Mapping[str, str]
) -> dict[int, Rows]:
    """Read and check the rows of some episodes, each file once.

    Args:
        info: of the dataset.
        episodes: which.
        telemetry: a number's name -> the channel that it is; other channels are 0.
        labels: key of the contract -> column.

    Raises:
        ConfigError: no such number.
        DataError: unreadable; a label of several numbers; rows that are missing, another episode's, or out of time, by
            episode.
    """
    places = {TELEMETRY.index(channel): info.position(number) for number, channel in telemetry.items()}
    columns = dict.fromkeys([*PLACES, *(feature for feature, _ in places.values()), *labels.values()])
    found = {}
    for path in dict.fromkeys(episode.data for episode in episodes):
        of_file = [episode for episode in episodes if episode.data == path]
        try:
            table = read_table(path, list(columns))
            arrays = {column: numbers(table, column) for column in columns}
            for feature in {feature for feature, _ in places.values()}:
                _check_width(info, feature, arrays[feature])
            for key, column in labels.items():
                _check_label(key, column, arrays[column])
        except DataError as error:
            raise DataError(f"{info.root}: episode {of_file[0].number}: {error}") from None
        refuse(_check_rows(info, episode, arrays) for episode in of_file)
        for episode in of_file:
            first = int(np.flatnonzero(arrays["index"] == episode.rows.start)[0])
            here = slice(first, first + episode.length)
            measured = np.zeros((episode.length, len(TELEMETRY)), np.float32)
            for channel, (feature, place) in places.items():
                measured[:, channel] = arrays[feature][here, place]
            given = {key: arrays[column][here, 0].tolist() for key, column in labels.items()}
            found[episode.number] = Rows(first, arrays["timestamp"][here, 0].astype(np.float64), measured, given)
    return found


def _check_width(info: Info, feature: str, values: np.ndarray) -> None:
    if len(values) and values.shape[1] != len(info.names(feature)):
        raise DataError(
            f"{feature}: its rows hold {values.shape[1]} numbers, but meta/info.json says {len(info.names(feature))}"
        )


def _check_label(key: str, column: str, values: np.ndarray) -> None:
    if values.shape[1] != 1:
        raise DataError(
            f"{column}: holds {values.shape[1]} numbers a frame, but {key} is one; name a column of one number, or "
            "write the labels to labels.parquet"
        )


def _check_rows(info: Info, episode: Episode, arrays: Mapping[str, np.ndarray]) -> str:
    where, n = f"{info.root}: episode {episode.number}", episode.length
    owner, number, index, seconds = (arrays[column][:, 0] for column in PLACES)
    rows = episode.rows
    strangers = owner[(index >= rows.start) & (index < rows.stop) & (owner != episode.number)]
    if len(strangers):
        return (
            f"{where}: {len(strangers)} of its rows, {rows.start} to {rows.stop - 1}, are of episode {strangers[0]} in "
            f"{info.short(episode.data)}"
        )
    own = np.flatnonzero(owner == episode.number)
    if len(own) != n:
        return f"{where}: {info.short(episode.data)} holds {len(own)} rows of it; expected {n}, its length"
    if not np.array_equal(index[own], np.arange(rows.start, rows.stop)) or own[-1] - own[0] != n - 1:
        return (
            f"{where}: its rows in {info.short(episode.data)} have the index {index[own[0]]} to {index[own[-1]]}; "
            f"expected {rows.start} to {rows.stop - 1}, in order and together"
        )
    if not np.array_equal(number[own], np.arange(n)):
        return f"{where}: its rows in {info.short(episode.data)} do not count frame_index from 0 to {n - 1}"
    due = np.arange(n) / info.fps
    late = np.flatnonzero(~(np.abs(seconds[own] - due) <= TOLERANCE + np.spacing(due.astype(np.float32))))
    if len(late):
        at = int(late[0])
        return (
            f"{where}: frame {at} has the timestamp {seconds[own][at]:.4f} s; expected {due[at]:.4f} s at {info.fps:g} "
            "frames per second"
        )
    return ""


def check_videos(info: Info, episodes: Sequence[Episode]) -> None:
    """Check that the videos of some episodes are there, at the dataset's rate, and long enough; nothing is decoded.

    Raises:
        ConfigError: PyAV is not installed.
        DataError: by episode.
    """
    refuse(_missing(info, episodes))
    for path in dict.fromkeys(episode.video for episode in episodes if episode.video is not None):
        of_file = [episode for episode in episodes if episode.video == path]
        try:
            reader = VideoReader(path)
        except DataError as error:
            raise DataError(f"{info.root}: episode {of_file[0].number}: {error}") from None
        frames, seconds = reader.extent()
        interval = reader.interval()
        reader.close()
        if frames != 1 and abs(interval * info.fps - 1) > 0.01:
            raise DataError(
                f"{info.root}: episode {of_file[0].number}: {info.short(path)} has {1 / interval:.4g} frames per "
                f"second, but meta/info.json says {info.fps:g}"
            )
        ends = (frames or 0) / info.fps or seconds or 0.0
        refuse(
            f"{info.root}: episode {episode.number}: lies at {episode.start:.3f} to {episode.end:.3f} s of "
            f"{info.short(path)}, which ends at {ends:.3f} s"
            for episode in of_file
            if episode.end > ends + 0.5 / info.fps
        )


def _missing(info: Info, episodes: Sequence[Episode]) -> Iterator[str]:
    for episode in episodes:
        if episode.video is not None and not episode.video.is_file():
            yield f"{info.root}: episode {episode.number}: video not found: {info.short(episode.video)}"


def read_labels_beside(path: Path, episodes: Mapping[int, Episode]) -> dict[int, dict[int, dict[str, Any]]]:
    """A table of labels by `episode_index` and `frame_index`: episode -> frame -> keys of the contract.

    Raises:
        DataError: unreadable, columns missing, a frame twice or that the dataset lacks.
    """
    table = read_table(path, ["episode_index", "frame_index", *LABEL_KEYS], also=["weight"])
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for i, row in enumerate(table.to_pylist()):
        episode, frame = row.pop("episode_index"), row.pop("frame_index")
        length = episodes[episode].length if episode in episodes else 0
        if type(frame) is not int or not 0 <= frame < length:
            has = f"which has {length} frames" if length else "which the dataset does not have"
            raise DataError(f"{path}: row {i}: labels frame {frame} of episode {episode}, {has}")
        if frame in found.setdefault(episode, {}):
            raise DataError(f"{path}: row {i}: labels frame {frame} of episode {episode} again")
        found[episode][frame] = row
    return found
