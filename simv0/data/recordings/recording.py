"""A recording, frame after frame, each with its telemetry: a folder of images, a video, or a sequence.jsonl."""

import logging
import math
import statistics
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from simv0.data.images import load_image
from simv0.data.jsonl import read_jsonl
from simv0.data.recordings.picture_names import in_time_order
from simv0.data.recordings.telemetry import ABSOLUTE, Reading, check_unit, numbers_in, read_telemetry, seconds_in
from simv0.data.recordings.video import VideoReader
from simv0.errors import ConfigError, DataError
from simv0.labels import TELEMETRY

log = logging.getLogger("simv0")

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
FARTHEST = 0.5
"""Seconds; a frame with no reading this close has no telemetry."""
MOST_OF = 0.9
"""Share of the frames that a video's header announces; fewer are a sign of damage (headers round, and count edits)."""
LATE = 2.5
"""Multiple of the usual interval from which the first frame counts as late (AVI begins one or two late)."""
GAP = 3.5
"""Multiple of the usual interval from which frames count as missing (phones vary less; AVI with B-frames lacks two)."""


@dataclass(frozen=True)
class Moment:
    """One frame with what was measured then."""

    t: float
    frame: UInt8[Tensor, "3 H W"]
    seen: UInt8[Tensor, "3 h w"]
    """The frame as the encoder takes it: itself, or decoded at a smaller scale."""
    telemetry: list[float]
    """8 numbers; NaN where nothing was measured near `t`."""


@dataclass(frozen=True)
class Recording:
    """A recording; iterate over its moments.

    Attributes:
        interval: seconds between frames (median).
        length: number of frames, if it is known in advance; a video's header may be wrong.
        seconds: from the first frame to the last, if that is known in advance.
        smallest: how `load_image` reads what the encoder sees.
    """

    interval: float
    length: int | None
    seconds: float | None
    _frames: Any
    _readings: list[Reading]
    smallest: int | None = None

    def __iter__(self) -> Iterator[Moment]:
        times = [t for t, _ in self._readings]
        for t, frame in self._frames:
            picture = load_image(frame) if isinstance(frame, Path) else frame
            scaled = self.smallest is not None and isinstance(frame, Path)
            seen = load_image(frame, smallest=self.smallest) if scaled else picture
            yield Moment(t, picture, seen, _nearest(self._readings, times, t))


def open_recording(frames: Path, telemetry: Path | None, fps: float | None = None) -> Recording:
    """Open a recording.

    Args:
        frames: a folder of images (in order of their names), a video, or a JSONL file of
            `{"image": path, "t": seconds, "telemetry": [8 numbers]}`.
        telemetry: CSV with the columns t, ax, ay, az, gx, gy, gz, v, w, or JSONL of `{"t": ..., "telemetry": [...]}`;
            each frame takes the reading nearest in time. A JSONL of frames carries its own.
        fps: frames per second of a folder; not needed if the telemetry has one row a frame.

    Raises:
        ConfigError: telemetry or fps is missing, or fps is no rate.
        DataError: what cannot be read.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise ConfigError(f"fps: expected frames per second > 0, found {fps}")
    if frames.suffix == ".jsonl":
        rows = [(seconds_in(row, f"{frames}:{i}"), row) for i, row in enumerate(read_jsonl(frames), 1)]
        images = [(t, frames.parent / _image(row, f"{frames}:{i}")) for i, (t, row) in enumerate(rows, 1)]
        if telemetry is None:
            own = [(t, numbers_in(row.get("telemetry"), f"{frames}:{i}")) for i, (t, row) in enumerate(rows, 1)]
            return _of_images(images, own, frames)
        return _of_images(images, read_telemetry(telemetry), frames, telemetry)
    if telemetry is None:
        raise ConfigError(f"{frames}: has no telemetry; give --telemetry with the columns t,{','.join(TELEMETRY)}")
    readings = read_telemetry(telemetry)
    if not frames.is_dir():
        reader = VideoReader(frames)
        length, seconds = reader.extent()
        check_unit(readings, 0.0, seconds, telemetry)
        interval = reader.interval()
        return Recording(interval, length, seconds, _Watched(reader, frames, interval, length, seconds), readings)
    found = [path for path in frames.iterdir() if path.suffix.lower() in IMAGES]
    paths, times = in_time_order([path for path in found if not path.name.startswith(".")])  # ._x.jpg is none
    if fps is not None:
        times = [i / fps for i in range(len(paths))]
    elif times is None or not _covers(readings, times, len(times) == len(readings)):
        times = _times_of_rows(frames, telemetry, readings, len(paths), times)
    images = list(zip(times, paths, strict=True))
    return _of_images(images, readings, frames, telemetry)


@dataclass(frozen=True)
class _Watched:
    """A video's frames; damage that decoders silently pass over is reported where the frames show it."""

    frames: VideoReader
    path: Path
    interval: float
    length: int | None
    seconds: float | None

    def __iter__(self) -> Iterator[tuple[float, UInt8[Tensor, "3 H W"]]]:
        count, first, last, gap, gap_at, corrupt = 0, 0.0, 0.0, 0.0, 0.0, self.frames.corrupt
        for t, frame in self.frames:
            if not count:
                first = last = t
            if t - last > gap:
                gap, gap_at = t - last, last
            count, last = count + 1, t
            yield t, frame
        expected = max(self.length or 0, round((self.seconds or 0) / self.interval))
        if count < MOST_OF * expected:
            log.warning(
                f"{self.path}: {count} frames could be read, from {first:.3f} s to {last:.3f} s, but its header "
                f"announces about {expected}: it is truncated or damaged"
            )
        if first > LATE * self.interval:
            log.warning(f"{self.path}: no frame before {first:.3f} s: the first ones are missing")
        if not self.frames.begins_with_key:
            log.warning(f"{self.path}: does not begin with a key frame: its beginning is missing or wrong")
        if corrupt := self.frames.corrupt - corrupt:
            log.warning(f"{self.path}: {corrupt} of {count} frames are damaged; the decoder filled in what it could")
        if gap > GAP * self.interval:
            log.warning(
                f"{self.path}: no frame for {gap:.3f} s after {gap_at:.3f} s, where they are {self.interval:.3f} s "
                "apart: frames are missing"
            )


def _covers(readings: list[Reading], times: list[float], paired: bool) -> bool:
    """Whether there is a reading near all of these times, or near some where rows and pictures are no pairs."""
    near = [readings[0][0] - FARTHEST <= t <= readings[-1][0] + FARTHEST for t in times]
    return bool(near) and (all(near) if paired else any(near))


def _times_of_rows(
    frames: Path, telemetry: Path, readings: list[Reading], images: int, named: list[float] | None
) -> list[float]:
    """The times of the telemetry's rows for pictures without times of their own, one row a picture.

    Raises:
        ConfigError: as many rows as pictures are needed.
        DataError: the pictures' names tell other times.
    """
    if images != len(readings):
        why = "so their times are unknown"
        if named:
            why = f"none of them near the times in the images' names ({named[0]:.15g} to {named[-1]:.15g} s)"
        raise ConfigError(f"{frames}: {images} images, but {telemetry} has {len(readings)} rows, {why}; give --fps")
    times = [t for t, _ in readings]
    if named is not None:
        absolute = min(named[0], times[0]) > ABSOLUTE
        start = 0.0 if absolute else statistics.median(row - name for name, row in zip(named, times, strict=True))
        usual = statistics.median(after - before for before, after in pairwise(named)) if len(named) > 1 else FARTHEST
        for i, (name, row) in enumerate(zip(named, times, strict=True)):
            if abs(name + start - row) > (FARTHEST if absolute else min(FARTHEST, 1.5 * usual)):
                raise DataError(
                    f"{frames}: picture {i + 1} is from {name:.15g} s by its name, but row {i + 1} of {telemetry} is "
                    f"from {row:.15g} s; give telemetry from the same clock, or --fps to ignore the names"
                )
        if abs(start) > FARTHEST and max(named[0], times[0]) < ABSOLUTE:
            log.warning(
                f"{telemetry}: its times are {abs(start):.3g} s {'after' if start > 0 else 'before'} those in the "
                f"names of {frames}; they are taken for two clocks, and paired row by row"
            )
    return times


def _of_images(
    images: list[tuple[float, Path]], readings: list[Reading], source: Path, telemetry: Path | None = None
) -> Recording:
    if not images:
        raise DataError(f"{source}: holds no images ({', '.join(IMAGES)})")
    gaps = [after - before for (before, _), (after, _) in pairwise(images)]
    if any(gap <= 0 for gap in gaps):
        at = next(i for i, gap in enumerate(gaps) if gap <= 0)
        raise DataError(f"{source}: frame {at + 1}: its time {images[at + 1][0]:g} is not after {images[at][0]:g}")
    seconds = images[-1][0] - images[0][0]
    if telemetry is not None:
        check_unit(readings, images[0][0], seconds, telemetry)
    return Recording(statistics.median(gaps) if gaps else 1.0, len(images), seconds, images, readings)


def _nearest(readings: list[Reading], times: list[float], t: float) -> list[float]:
    at = bisect_left(times, t)
    near = min(range(max(0, at - 1), min(len(times), at + 1)), key=lambda i: abs(times[i] - t))
    return readings[near][1] if abs(times[near] - t) <= FARTHEST else [math.nan] * len(TELEMETRY)


def _image(row: dict[str, Any], where: str) -> str:
    if not isinstance(row.get("image"), str):
        raise DataError(f"{where}: image: expected a path, found {row.get('image')!r:.40}")
    return str(row["image"])
