"""A manifest of windows on disk, its images, and the class weights that any dataset may bring."""

import hashlib
import math
import statistics
from collections.abc import Hashable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from simv0.data.images import load_image as load_image  # earlier runs' exported scripts take it from here
from simv0.data.jsonl import read_jsonl
from simv0.data.locate import Folder
from simv0.data.recordings.open_files import OpenFiles
from simv0.data.recordings.video import VideoReader
from simv0.errors import ConfigError, DataError, Mistakes, shown
from simv0.runtime.file_digests import sha256_of_files


class ManifestDataset(Dataset[dict[str, Any]]):
    """Windows listed in a JSONL file, one object a line:

        {"sample_id": "run1-0030", "frames": ["images/0.jpg", ...], "telemetry": [8 numbers],
         "risk_id": 0, "reason_id": 3, "action_id": 0, "weight": 1.0, "group": "run1"}

    `frames` are paths relative to the manifest, never outside its folder. Instead of them a row may name a video and
    the seconds of its frames, `"video": "run1.mp4", "timestamps": [0.0, 0.2, ...]`: the nearest frame is taken each
    time. `sample_id`, `weight`, `group` and `t` are optional; the labels too, for prediction; further keys are ignored.

    Args:
        manifest: path of the JSONL file.
        follow_links: whether links in its folder may lead outside (`images -> /mnt/nas`); a name with `..` never may.

    Raises:
        DataError: unreadable, a line that is not such an object, a frame that is missing or outside the folder.
        ConfigError: videos, but PyAV is not installed; `follow_links` is neither true nor false.

    Attributes:
        smallest: the shorter side that a JPEG may be scaled down to while it is decoded; None: not at all.
    """

    def __init__(self, manifest: str | Path, follow_links: Any = False) -> None:
        if not isinstance(follow_links, bool):
            raise ConfigError(f"data.dataset_kwargs: follow_links: expected true or false, found {follow_links!r:.60}")
        self.manifest = Path(manifest)
        self.root = self.manifest.resolve().parent
        self.smallest: int | None = None
        self.rows = read_jsonl(self.manifest)
        self._videos = OpenFiles(VideoReader)
        self._paths: dict[str, str] = {}
        mistakes, folder = Mistakes(), Folder(self.root, follow_links)
        for line, row in enumerate(self.rows, 1):
            with mistakes:
                for key, name in self._files_of(row, line):
                    if name not in self._paths:
                        self._paths[name] = ""  # reported once, if it is missing
                        self._paths[name] = folder.locate(name, f"{self.manifest}:{line}: {key}")
            if mistakes.enough:
                break
        mistakes.tell()

    def _files_of(self, row: dict[str, Any], line: int) -> list[tuple[str, str]]:
        """(key, name) of every file that a row names."""
        where = f"{self.manifest}:{line}"
        frames, video, times = row.get("frames"), row.get("video"), row.get("timestamps")
        given = shown(", ".join(key for key, value in row.items() if value is not None) or "none")
        if video is None:
            if frames is None:
                raise DataError(f"{where}: frames is missing, and so is video; found the keys {given}")
            if not isinstance(frames, list) or not frames or not all(isinstance(name, str) for name in frames):
                raise DataError(f"{where}: frames: expected a list of image paths, found {frames!r:.60}")
            return [("frames", name) for name in frames]
        if frames is not None:
            raise DataError(f"{where}: expected one of the keys 'frames' and 'video', found both")
        if not isinstance(video, str):
            raise DataError(f"{where}: video: expected a path, found {video!r:.60}")
        if times is None:
            raise DataError(f"{where}: timestamps is missing; found the keys {given}")
        if not isinstance(times, list) or not times or not all(0 <= _as_float(t) < math.inf for t in times):
            raise DataError(f"{where}: timestamps: expected a list of seconds >= 0, found {times!r:.60}")
        return [("video", video)]

    def __len__(self) -> int:
        return len(self.rows)

    def where_is(self, index: int) -> str:
        """The window's place for messages: the manifest and the line."""
        return f"{self.manifest}:{index + 1}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        frames = [self.load_frame(name) for name in self.frame_ids(index)]
        sizes = {tuple(frame.shape) for frame in frames}
        if len(sizes) > 1:
            raise DataError(f"{self.where_is(index)}: frames: one window needs one size, found {sorted(sizes)}")
        return {**self.labels_of(index), "frames": torch.stack(frames)}

    def frame_ids(self, index: int) -> list[Hashable]:
        """The window's frames: absolute paths without links, or (such a path of a video, seconds)."""
        row = self.rows[index]
        if row.get("video") is None:
            return [self._paths[name] for name in row["frames"]]
        return [(self._paths[row["video"]], float(t)) for t in row["timestamps"]]

    @property
    def frame_spacing(self) -> float | None:
        """Seconds between the frames of a window: the median over the videos' `timestamps`; None for images."""
        gaps = [b - a for row in self.rows if row.get("video") for a, b in pairwise(map(float, row["timestamps"]))]
        spacing = statistics.median(gaps) if gaps else 0.0
        return round(spacing, 6) if spacing > 0 else None

    def load_frame(self, frame_id: Hashable) -> UInt8[Tensor, "3 H W"]:
        """One frame, RGB. A video is read forwards, each of its frames decoded once; far back or ahead it seeks."""
        if not isinstance(frame_id, tuple):
            return load_image(self.root / str(frame_id), smallest=self.smallest)
        name, t = frame_id
        return self._videos[self.root / name].frame_at(t)

    def labels_of(self, index: int) -> dict[str, Any]:
        """Everything but the frames."""
        return labels_in(self.rows[index])

    def content_digest(self) -> str:
        """sha256 over the manifest's bytes and those of every frame, in order of first use."""
        digest = hashlib.sha256(self.manifest.read_bytes())
        names = dict.fromkeys(name for i, row in enumerate(self.rows, 1) for _, name in self._files_of(row, i))
        for read in sha256_of_files([Path(self._paths[name]) for name in names]):
            digest.update(read)
        return digest.hexdigest()


def labels_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's row without its frames."""
    labels = {key: value for key, value in row.items() if key not in ("frames", "video", "timestamps")}
    telemetry = labels.get("telemetry")
    if isinstance(telemetry, list) and all(type(x) in (int, float) for x in telemetry):
        labels["telemetry"] = [_as_float(x) for x in telemetry]  # 0 and 0.0 are the same number in JSON
    return labels


def _as_float(number: Any) -> float:
    """A number from JSON: inf if it is too large for a float, NaN if it is not a number."""
    if type(number) not in (int, float):
        return math.nan
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
