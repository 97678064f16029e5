"""A LeRobot v3 dataset as windows: pictures of one camera, telemetry out of its numbers, labels in or beside it."""

import hashlib
import json
import logging
import statistics
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from simv0.arguments import is_number, require
from simv0.data.contract import LABEL_KEYS
from simv0.data.lerobot.episodes import choose_episodes, read_episodes
from simv0.data.lerobot.files import PictureTable, read_info
from simv0.data.lerobot.rows import KEYS, TOLERANCE, check_videos, read_labels_beside, read_rows
from simv0.data.recordings.open_files import OpenFiles
from simv0.data.recordings.window_reader import WindowReader
from simv0.errors import ConfigError, DataError
from simv0.labels import TELEMETRY
from simv0.runtime.file_digests import sha256_of_files

log = logging.getLogger("simv0")

LABELS = "labels.parquet"
"""Beside `meta`, `data` and `videos`: labels of frames, by episode_index and frame_index."""


class LeRobotWindows(Dataset[dict[str, Any]]):
    """Windows that end at labelled frames of a LeRobot v3 dataset on disk (one that is not on disk: `hf download`).

    Each episode is a recording (`group`), a window ends `hop` frames after the one before, and begins where the episode
    has all of its frames.

    Args:
        root: the dataset's folder; `root#episodes` chooses among its episodes, for splits in a config.
        delta: seconds of a window's frames, counted from its last, as LeRobot's `delta_timestamps`: [-0.4, -0.2, 0.0].
        telemetry: name of a number in `observation.state` (or `feature/name`) -> the channel that it is, such as
            {"wheels.v": "v"}; the other channels are 0.
        camera: `observation.images.front`, or `front`; not needed where there is only one.
        labels: key -> column of the data ({"risk_id": "next.risk"}), or a Parquet table beside them with the columns
            episode_index, frame_index, risk_id, reason_id, action_id and, if wanted, weight, of the frames that are
            labelled. By default `labels.parquet` in `root`, else the columns of the same names as the keys.
        hop: frames between the ends of windows, at least.
        episodes: as after `#`: `train` (a split of meta/info.json), `0:40,45`; or a list of numbers.

    Raises:
        ConfigError: an argument; PyAV or pyarrow is not installed.
        DataError: no such dataset, or one that contradicts itself: the episode and the reason.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        delta: Any,
        telemetry: Any,
        camera: Any = None,
        labels: Any = None,
        hop: Any = 1,
        episodes: Any = None,
    ) -> None:
        folder, _, part = str(root).partition("#") if not Path(root).is_dir() else (str(root), "", "")
        require(not (part and episodes is not None), "episodes", f"none beside {root}", episodes)
        require(type(hop) is int and hop > 0, "hop", "a number of frames > 0", hop)
        require(
            _are_channels(telemetry), "telemetry", f"names -> different channels ({', '.join(TELEMETRY)})", telemetry
        )
        self.root = Path(folder).resolve()
        info = read_info(self.root)
        self.camera, self.fps = info.camera(camera), info.fps
        self.shifts = _shifts(delta, info.fps)
        self.frame_spacing = round(statistics.median(b - a for a, b in pairwise(delta)), 6) if len(delta) > 1 else None
        known = read_episodes(info, self.camera)
        self.episodes = {number: known[number] for number in choose_episodes(info, known, part or episodes)}
        chosen = list(self.episodes.values())
        check_videos(info, chosen)
        columns, table = _where_labels_are(labels, info.features, self.root)
        self.rows = read_rows(info, chosen, telemetry, columns)
        self._labelled = None if table is None else read_labels_beside(table, known)
        if table is None and (unlabelled := [key for key in LABEL_KEYS if key not in columns]):
            log.warning(
                f"{self.root}: nothing gives {', '.join(unlabelled)}: enough to predict, not to train; write a "
                f"{LABELS}, or name columns as data.dataset_kwargs.labels"
            )
        self.windows: list[tuple[int, int]] = [
            (number, frame) for number in self.episodes for frame in self._ends(number, hop)
        ]
        if not self.windows:
            longest = max(episode.length for episode in chosen)
            raise DataError(
                f"{root}: holds no window: its longest episode has {longest} frames, a window takes "
                f"{1 - self.shifts[0]}{' and ends at a labelled frame' if table else ''}"
            )
        self._videos = OpenFiles(WindowReader)
        self._pictures = OpenFiles(partial(PictureTable, column=self.camera))

    def _ends(self, number: int, hop: int) -> Iterator[int]:
        """The frames at which windows of an episode end."""
        frames = (
            range(self.episodes[number].length) if self._labelled is None else sorted(self._labelled.get(number, {}))
        )
        next_one = -self.shifts[0]
        for frame in frames:
            if frame >= next_one:
                yield frame
                next_one = frame + hop

    def __len__(self) -> int:
        return len(self.windows)

    def where_is(self, index: int) -> str:
        """The window's place for messages."""
        number, frame = self.windows[index]
        return f"{self.root}, episode {number}, frame {frame}"  # without ": ", which ends a place in messages

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, frame = self.windows[index]
        pictures = self._load(number, [frame + shift for shift in self.shifts], apart=True)
        frames = torch.stack([picture.permute(1, 2, 0) for picture in pictures]).permute(0, 3, 1, 2)  # as they lie
        return {**self.labels_of(index), "frames": frames}

    def frame_ids(self, index: int) -> list[Hashable]:
        """The window's frames: (folder, episode, frame)."""
        number, frame = self.windows[index]
        return [(str(self.root), number, frame + shift) for shift in self.shifts]

    def load_frame(self, frame_id: Hashable) -> UInt8[Tensor, "3 H W"]:
        """One frame, RGB; a video is best read forwards."""
        _, number, frame = cast(tuple[str, int, int], frame_id)
        return self._load(number, [frame], apart=False)[0]

    def _load(self, number: int, frames: list[int], apart: bool) -> list[UInt8[Tensor, "3 H W"]]:
        episode, rows = self.episodes[number], self.rows[number]
        if episode.video is None:
            return [self._pictures[episode.data].picture(rows.first + frame) for frame in frames]
        video, within = self._videos[episode.video], 0.5 / self.fps
        times = [episode.start + float(rows.seconds[frame]) for frame in frames]
        return video.frames_at(times, within) if apart else [video.frame_at(t, within) for t in times]

    def labels_of(self, index: int) -> dict[str, Any]:
        """Everything but the frames."""
        number, frame = self.windows[index]
        rows = self.rows[number]
        labels = {key: column[frame] for key, column in rows.labels.items()}
        if self._labelled is not None:
            labels = self._labelled[number][frame]
        return {
            "sample_id": f"{self.root.name}/{number:06d}-{frame:06d}",  # datasets may be concatenated
            "group": f"{self.root.name}/episode-{number:06d}",
            "t": float(rows.seconds[frame]),
            "telemetry": rows.telemetry[frame],
            **labels,
        }

    def content_digest(self) -> str:
        """sha256 over which seconds of which pictures are read, and the bytes of their files."""
        places = [(e.number, e.length, e.start, self.rows[e.number].first) for e in self.episodes.values()]
        digest = hashlib.sha256(json.dumps([self.fps, places]).encode())
        files = dict.fromkeys(episode.video or episode.data for episode in self.episodes.values())
        for read in sha256_of_files(list(files)):
            digest.update(read)
        return digest.hexdigest()


def _are_channels(telemetry: Any) -> bool:
    if not isinstance(telemetry, Mapping) or not all(isinstance(name, str) for name in telemetry):
        return False
    channels = list(telemetry.values())
    return all(channel in TELEMETRY for channel in channels) and len(set(channels)) == len(channels)


def _shifts(delta: Any, fps: float) -> list[int]:
    """The frames of a window, counted from its last.

    Raises:
        ConfigError: no ascending seconds that end in 0, or none of the dataset's frames.
    """
    good = isinstance(delta, Sequence) and len(delta) > 0 and all(is_number(t) and -1e5 < t <= 0 for t in delta)
    good = good and delta[-1] == 0 and all(a < b for a, b in pairwise(delta))
    require(good, "delta", "seconds up to the last frame, such as [-0.4, -0.2, 0.0]", delta)
    shifts = [round(t * fps) for t in delta]
    for t, shift in zip(delta, shifts, strict=True):
        if abs(shift / fps - t) > TOLERANCE:
            raise ConfigError(
                f"delta: {t:g} s is between two frames, which are 1/{fps:g} s apart; the nearest is {shift / fps:.4f}"
            )
    return shifts


def _where_labels_are(labels: Any, features: Mapping[str, Any], root: Path) -> tuple[dict[str, str], Path | None]:
    """Key -> column of the data, or the table beside it.

    Raises:
        ConfigError: neither a path nor known keys and columns.
    """
    if labels is None:
        beside = root / LABELS
        return ({}, beside) if beside.is_file() else ({key: key for key in KEYS if key in features}, None)
    if isinstance(labels, str):
        return {}, root / labels
    require(isinstance(labels, Mapping), "labels", "a path, or key -> column", labels)
    for key, column in labels.items():
        require(key in KEYS, "labels", f"keys among {', '.join(KEYS)}", key)
        require(column in features, f"labels: {key}", f"a column ({', '.join(features)})", column)
    return dict(labels), None
