"""Video files by PyAV: frames by their time, in order, each decoded once; and an MP4 written frame by frame."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from simv0.datasets import MAX_PIXELS
from simv0.errors import ConfigError, DataError
from simv0.files import told_plainly

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,h264,hevc,flv,asf"
"""What may be opened: a playlist in a video's clothes could make ffmpeg open other files."""
KEPT_BYTES = 256 * 2**20
"""Decoded frames kept: windows overlap and interleave, and a frame asked for again must not be decoded again."""
FARTHEST = 0.5
"""Seconds; a frame this far from the time asked for is another one."""
FAR_AHEAD = 20.0
"""Seconds; what lies further ahead is not decoded towards but sought: key frames are rarely further apart."""
TICK = Fraction(1, 90_000)
"""Seconds; resolution of the times in a written video."""


def import_av() -> Any:
    """PyAV.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise ConfigError("reading or writing video needs PyAV: pip install 'simv0[video]'") from None
    return av


class VideoReader:
    """One video file, read forwards; going back or far ahead seeks.

    Raises:
        DataError: missing, not a video, too large.
    """

    def __init__(self, path: Path) -> None:
        av = import_av()
        if not path.is_file():
            raise DataError(f"{path}: there is no such video")
        self.path = path
        try:
            self._container = av.open(str(path), options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"})
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, IndexError) as error:
            raise DataError(
                f"{path}: cannot be read as a video: {' '.join(str(error).split()) or 'no stream'}"
            ) from None
        codec = self._stream.codec_context
        if codec.width * codec.height > MAX_PIXELS:
            raise DataError(f"{path}: {codec.width}x{codec.height} pixels; the largest picture read is {MAX_PIXELS}")
        codec.thread_count = 1  # a forked worker that drops a reader would wait for threads it never had
        self._start = float((self._stream.start_time or 0) * self._stream.time_base)
        self.decoded = 0
        """Frames decoded so far."""
        self._kept = max(2, KEPT_BYTES // (codec.width * codec.height * 3 // 2 or 1))
        self._begin()

    def _begin(self) -> None:
        self._frames = self._decode()
        self._past: deque[tuple[float, Any]] = deque(maxlen=self._kept)

    def _decode(self) -> Iterator[tuple[float, Any]]:
        av = import_av()
        try:
            for frame in self._container.decode(self._stream):
                self.decoded += 1
                if frame.time is None:
                    raise DataError(f"{self.path}: a frame without a time; convert the video to MP4")
                yield frame.time - self._start, frame
        except av.FFmpegError as error:
            raise DataError(f"{self.path}: damaged: {' '.join(str(error).split())}") from None

    def __iter__(self) -> Iterator[tuple[float, UInt8[Tensor, "3 H W"]]]:
        """Every frame from the beginning: (seconds since the first, RGB)."""
        self._seek(0.0)
        for time, frame in self._frames:
            yield time, _as_tensor(frame)

    def frame_at(self, t: float) -> UInt8[Tensor, "3 H W"]:
        """The frame nearest to `t` seconds from the video's beginning.

        Raises:
            DataError: the video has no frame within half a second of `t`.
        """
        behind, ahead = (self._past[0][0], self._past[-1][0]) if self._past else (0.0, 0.0)
        if t < behind or t > ahead + FAR_AHEAD:
            self._seek(t)
        while not self._past or self._past[-1][0] < t:
            following = next(self._frames, None)
            if following is None:
                break
            self._past.append(following)
        at = bisect_left(self._past, t, key=lambda pair: pair[0])
        around = [self._past[i] for i in (at - 1, at) if 0 <= i < len(self._past)]
        time, frame = min(around, key=lambda pair: abs(pair[0] - t), default=(float("inf"), None))
        if abs(time - t) > FARTHEST:
            raise DataError(f"{self.path}: has no frame at {t:g} s; the nearest one is at {time:.3f} s")
        return _as_tensor(frame)

    def _seek(self, t: float) -> None:
        """Begin anew at the key frame before `t`."""
        target = int((t + self._start) / self._stream.time_base)
        self._container.seek(max(target, self._stream.start_time or 0), stream=self._stream, backward=True)
        self._begin()

    def interval(self) -> float:
        """Seconds between frames: the median over the first hundred (the average rate counts the last one's length)."""
        packets = islice(self._container.demux(self._stream), 100)
        times = sorted(float(packet.pts * packet.time_base) for packet in packets if packet.pts is not None)
        self._seek(0.0)
        return median(b - a for a, b in pairwise(times)) if len(times) > 1 else 1.0

    def close(self) -> None:
        """Close the file."""
        self._container.close()


def _as_tensor(frame: Any) -> UInt8[Tensor, "3 H W"]:
    picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return picture if matrix is None else turned(picture, np.frombuffer(matrix, np.int32))


def turned(picture: UInt8[Tensor, "3 H W"], matrix: Int32[np.ndarray, "9"]) -> UInt8[Tensor, "3 h w"]:
    """A picture as players show it: phones store it as the sensor lies, and beside it how to turn or mirror it.

    The matrix (ISO/IEC 14496-12, `tkhd`: a b u, c d v, x y w) takes (x, y) to (a x + c y, b x + d y). Right angles
    only: what lies at any other angle is left as it is.
    """
    a, b, _, c, d = np.sign(matrix[:5]).tolist()
    if b and c and not (a or d):
        picture, a, d = picture.transpose(1, 2), c, b
    elif not (a and d) or b or c:
        return picture
    return picture.flip([axis for axis, sign in ((1, d), (2, a)) if sign < 0])


class VideoWriter:
    """An MP4 (H.264 where ffmpeg has it, else MPEG-4), with the frames' own times; appears under its name when whole.

    Use as a context manager; without a single frame no file appears.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._av = import_av()
        self._temporary = path.with_name(path.name + ".tmp")
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> "VideoWriter":
        with told_plainly(self.path):
            self._container = self._av.open(str(self._temporary), "w", format="mp4")
        return self

    def write(self, picture: UInt8[np.ndarray, "H W 3"], t: float) -> None:
        """Append one picture, of even width and height, shown from `t` seconds on."""
        if self._stream is None:
            codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=30)
            self._stream.height, self._stream.width = picture.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.bit_rate = 4_000_000
            self._stream.time_base = self._stream.codec_context.time_base = TICK
        frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
        self._last = max(round(t / TICK), self._last + 1)
        frame.pts, frame.time_base = self._last, TICK
        with told_plainly(self.path):
            self._container.mux(self._stream.encode(frame))

    def __exit__(self, kind: Any, *_: Any) -> None:
        with told_plainly(self.path):
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None and self._stream is not None:
                self._temporary.replace(self.path)
            self._temporary.unlink(missing_ok=True)
