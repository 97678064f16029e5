"""A recording, frame after frame, each with its telemetry: a folder of images, a video, or a sequence.jsonl."""

import math
import re
import statistics
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from simv0.data.manifest import load_image, read_jsonl
from simv0.data.telemetry import Reading, numbers_in, read_telemetry, seconds_in
from simv0.data.video import VideoReader
from simv0.errors import ConfigError, DataError
from simv0.labels import TELEMETRY

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
TIMED = re.compile(r"(\D*?)([0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE]-[0-9]+)")
"""A picture's name that is a time, as Python writes a float, after a common beginning."""
FARTHEST = 0.5
"""Seconds; a frame without a reading this near has no telemetry."""


@dataclass(frozen=True)
class Moment:
    """One frame with what was measured then."""

    t: float
    frame: UInt8[Tensor, "3 H W"]
    telemetry: list[float]
    """8 numbers; NaN where nothing was measured near `t`."""


@dataclass(frozen=True)
class Recording:
    """A recording; iterate over its moments.

    Attributes:
        interval: seconds between frames (median).
        length: number of frames, where it is known beforehand; a video may say it wrongly.
        seconds: from the first frame to the last, where it is known beforehand.
    """

    interval: float
    length: int | None
    seconds: float | None
    _frames: Any
    _readings: list[Reading]

    def __iter__(self) -> Iterator[Moment]:
        times = [t for t, _ in self._readings]
        for t, frame in self._frames:
            picture = load_image(frame) if isinstance(frame, Path) else frame
            yield Moment(t, picture, _nearest(self._readings, times, t))


def open_recording(frames: Path, telemetry: Path | None, fps: float | None = None) -> Recording:
    """Open a recording.

    Args:
        frames: a folder of images (in order of their names), a video, or a JSONL file of
            `{"image": path, "t": seconds, "telemetry": [8 numbers]}`.
        telemetry: CSV with the columns t, ax, ay, az, gx, gy, gz, v, w, or JSONL of `{"t": ..., "telemetry": [...]}`;
            each frame takes the reading nearest in time. A JSONL of frames carries its own.
        fps: frames a second of a folder; not needed where the telemetry has one row a frame.

    Raises:
        ConfigError: telemetry or fps is missing, or fps is no rate.
        DataError: what cannot be read.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise ConfigError(f"fps: expected frames a second > 0, found {fps}")
    if frames.suffix == ".jsonl":
        rows = [(seconds_in(row, f"{frames}:{i}"), row) for i, row in enumerate(read_jsonl(frames), 1)]
        images = [(t, frames.parent / _image(row, f"{frames}:{i}")) for i, (t, row) in enumerate(rows, 1)]
        if telemetry is None:
            own = [(t, numbers_in(row.get("telemetry"), f"{frames}:{i}")) for i, (t, row) in enumerate(rows, 1)]
            return _of_images(images, own, frames)
        return _of_images(images, read_telemetry(telemetry), frames)
    if telemetry is None:
        raise ConfigError(f"{frames}: carries no telemetry; give --telemetry with the columns t,{','.join(TELEMETRY)}")
    readings = read_telemetry(telemetry)
    if not frames.is_dir():
        reader = VideoReader(frames)
        return Recording(reader.interval(), *reader.extent(), reader, readings)
    found = [path for path in frames.iterdir() if path.suffix.lower() in IMAGES]
    paths = in_time_order([path for path in found if not path.name.startswith(".")])  # ._x.jpg is none
    if fps is not None:
        return _of_images([(i / fps, path) for i, path in enumerate(paths)], readings, frames)
    if len(paths) != len(readings):
        raise ConfigError(
            f"{frames}: {len(paths)} images, but {telemetry} has {len(readings)} rows, so the images have no times; "
            "give --fps"
        )
    return _of_images([(t, path) for (t, _), path in zip(readings, paths, strict=True)], readings, frames)


def _of_images(images: list[tuple[float, Path]], readings: list[Reading], source: Path) -> Recording:
    if not images:
        raise DataError(f"{source}: holds no images ({', '.join(IMAGES)})")
    gaps = [after - before for (before, _), (after, _) in pairwise(images)]
    if any(gap <= 0 for gap in gaps):
        at = next(i for i, gap in enumerate(gaps) if gap <= 0)
        raise DataError(f"{source}: frame {at + 1}: its time {images[at + 1][0]:g} is not after {images[at][0]:g}")
    return Recording(
        statistics.median(gaps) if gaps else 1.0, len(images), images[-1][0] - images[0][0], images, readings
    )


def _nearest(readings: list[Reading], times: list[float], t: float) -> list[float]:
    at = bisect_left(times, t)
    near = min(range(max(0, at - 1), min(len(times), at + 1)), key=lambda i: abs(times[i] - t))
    return readings[near][1] if abs(times[near] - t) <= FARTHEST else [math.nan] * len(TELEMETRY)


def _image(row: dict[str, Any], where: str) -> str:
    if not isinstance(row.get("image"), str):
        raise DataError(f"{where}: image: expected a path, found {row.get('image')!r:.40}")
    return str(row["image"])


def in_time_order(paths: list[Path]) -> list[Path]:
    """Pictures in the order that their names mean: by time where each is named by seconds with a decimal point, else
    frame2 before frame10.

    Raises:
        DataError: two names of one time.
    """
    timed = [TIMED.fullmatch(path.stem) for path in paths]
    if not all(timed) or len({match[1] for match in timed if match}) > 1:
        return sorted(paths, key=_by_number)
    times = {path: float(match[2]) for path, match in zip(paths, timed, strict=True) if match}
    ordered = sorted(paths, key=times.__getitem__)
    for before, after in pairwise(ordered):
        if times[before] == times[after]:
            raise DataError(f"{after}: is of the same time as {before.name}; keep one of them")
    return ordered


def _by_number(path: Path) -> list[Any]:
    """frame2 before frame10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]
