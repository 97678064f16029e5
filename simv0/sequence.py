"""A recording, frame after frame, each with its telemetry: a folder of images, a video, or a sequence.jsonl."""

import csv
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

from simv0.datasets import load_image, read_jsonl
from simv0.errors import ConfigError, DataError
from simv0.labels import TELEMETRY
from simv0.video import VideoReader

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
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
class Sequence:
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
    _readings: list[tuple[float, list[float]]]

    def __iter__(self) -> Iterator[Moment]:
        times = [t for t, _ in self._readings]
        for t, frame in self._frames:
            picture = load_image(frame) if isinstance(frame, Path) else frame
            yield Moment(t, picture, _nearest(self._readings, times, t))


def open_sequence(frames: Path, telemetry: Path | None, fps: float | None = None) -> Sequence:
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
        rows = [(_seconds(row, f"{frames}:{i}"), row) for i, row in enumerate(read_jsonl(frames), 1)]
        images = [(t, frames.parent / _image(row, f"{frames}:{i}")) for i, (t, row) in enumerate(rows, 1)]
        if telemetry is None:
            own = [(t, _numbers(row.get("telemetry"), f"{frames}:{i}")) for i, (t, row) in enumerate(rows, 1)]
            return _of_images(images, own, frames)
        return _of_images(images, read_telemetry(telemetry), frames)
    if telemetry is None:
        raise ConfigError(f"{frames}: carries no telemetry; give --telemetry with the columns t,{','.join(TELEMETRY)}")
    readings = read_telemetry(telemetry)
    if not frames.is_dir():
        reader = VideoReader(frames)
        return Sequence(reader.interval(), *reader.extent(), reader, readings)
    paths = sorted((path for path in frames.iterdir() if path.suffix.lower() in IMAGES), key=_by_number)
    if fps is not None:
        return _of_images([(i / fps, path) for i, path in enumerate(paths)], readings, frames)
    if len(paths) != len(readings):
        raise ConfigError(
            f"{frames}: {len(paths)} images, but {telemetry} has {len(readings)} rows, so the images have no times; "
            "give --fps"
        )
    return _of_images([(t, path) for (t, _), path in zip(readings, paths, strict=True)], readings, frames)


def _of_images(images: list[tuple[float, Path]], readings: list[tuple[float, list[float]]], source: Path) -> Sequence:
    if not images:
        raise DataError(f"{source}: holds no images ({', '.join(IMAGES)})")
    gaps = [after - before for (before, _), (after, _) in pairwise(images)]
    if any(gap <= 0 for gap in gaps):
        at = next(i for i, gap in enumerate(gaps) if gap <= 0)
        raise DataError(f"{source}: frame {at + 1}: its time {images[at + 1][0]:g} is not after {images[at][0]:g}")
    return Sequence(
        statistics.median(gaps) if gaps else 1.0, len(images), images[-1][0] - images[0][0], images, readings
    )


def read_telemetry(path: Path) -> list[tuple[float, list[float]]]:
    """Rows of (t, 8 numbers) in order of time, from CSV or JSONL.

    Raises:
        DataError: missing columns, what is no number, times out of order.
    """
    if path.suffix == ".jsonl":
        rows: list[dict[str, Any]] = read_jsonl(path)
        first = 1
    else:
        rows, first = _read_csv(path), 2
    readings = []
    for line, row in enumerate(rows, first):
        where = f"{path}:{line}"
        values = row["telemetry"] if "telemetry" in row else [row.get(name) for name in TELEMETRY]
        readings.append((_seconds(row, where), _numbers(values, where)))
    if not readings:
        raise DataError(f"{path}: holds no readings")
    for line, (before, after) in enumerate(pairwise(readings), first + 1):
        if after[0] < before[0]:
            raise DataError(f"{path}:{line}: t: {after[0]:g} comes before {before[0]:g}; sort the rows by t")
    return readings


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            missing = [name for name in ("t", *TELEMETRY) if name not in (reader.fieldnames or [])]
            if missing:
                raise DataError(
                    f"{path}: the columns {', '.join(missing)} are missing; expected t,{','.join(TELEMETRY)}"
                )
            return list(reader)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _nearest(readings: list[tuple[float, list[float]]], times: list[float], t: float) -> list[float]:
    at = bisect_left(times, t)
    near = min(range(max(0, at - 1), min(len(times), at + 1)), key=lambda i: abs(times[i] - t))
    return readings[near][1] if abs(times[near] - t) <= FARTHEST else [math.nan] * len(TELEMETRY)


def _seconds(row: dict[str, Any], where: str) -> float:
    value = _number(row.get("t"))
    if not math.isfinite(value):
        raise DataError(f"{where}: t: expected seconds, found {row.get('t')!r:.40}")
    return value


def _numbers(values: Any, where: str) -> list[float]:
    """8 floats; what was not recorded (null, an empty cell) is NaN, and the stream will say so."""
    if not isinstance(values, list) or len(values) != len(TELEMETRY):
        raise DataError(f"{where}: telemetry: expected 8 numbers ({', '.join(TELEMETRY)}), found {values!r:.60}")
    for name, value in zip(TELEMETRY, values, strict=True):
        if value not in (None, "") and math.isnan(_number(value)) and str(value).strip().lower() != "nan":
            raise DataError(f"{where}: {name}: expected a number, found {value!r:.40}")
    return [_number(value) for value in values]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _image(row: dict[str, Any], where: str) -> str:
    if not isinstance(row.get("image"), str):
        raise DataError(f"{where}: image: expected a path, found {row.get('image')!r:.40}")
    return str(row["image"])


def _by_number(path: Path) -> list[Any]:
    """frame2 before frame10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]
