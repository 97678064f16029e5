"""Video files by PyAV: frames by their time, in order, each decoded once; and an MP4 written frame by frame."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import dropwhile, islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from simv0.data.images import MAX_PIXELS, turned
from simv0.disk.files import told_plainly
from simv0.errors import ConfigError, DataError

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,h264,hevc,flv,asf"
"""Formats that may be opened: a playlist disguised as a video could make ffmpeg open other files."""
KEPT_BYTES = 256 * 2**20
"""Bytes of decoded frames kept: windows overlap and interleave; a frame requested again must not be decoded again."""
FARTHEST = 0.5
"""Seconds; a frame this far from the requested time is a different one."""
SAME = 1e-4
"""Seconds; a frame this close to the requested time needs no look at the next one."""
FAR_AHEAD = 5.0
"""Seconds; what lies further ahead is not decoded towards but sought. It doubles whenever a search has led behind what
was decoded already. Windows that interleave come back for the frames between their own, seldom further apart.
"""
FIRST_STEP_BACK = 2.0
"""Seconds; where a search leads behind the key frame wanted, the next one begins so much earlier, then twice that."""
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
            raise DataError(f"{path}: video not found")
        self.path = path
        self.decoded = self.corrupt = 0
        """Frames decoded so far, and those among them that the decoder made up in part."""
        self._container: Any = None
        self._to_rgb = av.video.reformatter.VideoReformatter()  # one: else each kept frame keeps its own, of megabytes
        # PyAV converts by threads since 17; as with the decoder's, a forked worker would wait for them.
        self._one_thread = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
        self._rewind()
        codec = self._stream.codec_context
        self._time_base = float(self._stream.time_base)
        self._start = float((self._stream.start_time or 0) * self._stream.time_base)
        self._kept = max(2, KEPT_BYTES // (codec.width * codec.height * 3 // 2 or 1))
        self._far_ahead = FAR_AHEAD
        self._begin()

    def _rewind(self) -> None:
        """Open the file anew: not every container can be sought to its first frame."""
        av = import_av()
        self.close()
        try:
            self._container = av.open(
                str(self.path), options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
            )
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, IndexError) as error:
            raise DataError(
                f"{self.path}: cannot be read as a video: {' '.join(str(error).split()) or 'no stream'}"
            ) from None
        codec = self._stream.codec_context
        if codec.width * codec.height > MAX_PIXELS:
            raise DataError(
                f"{self.path}: {codec.width}x{codec.height} pixels; the largest picture read is {MAX_PIXELS}"
            )
        codec.thread_count = 1  # a forked worker that drops a reader would wait for threads it never had

    def _begin(self, key: int | None = None) -> None:
        self._frames = self._decode(key)
        self._past: deque[tuple[float, Any]] = deque(maxlen=self._kept)

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        av = import_av()  # now: a generator may be closed while the interpreter shuts down
        try:
            yield
        except av.FFmpegError as error:
            raise DataError(f"{self.path}: damaged: {' '.join(str(error).split())}") from None

    def _packets(self) -> Iterator[Any]:
        with self._damage_told():
            yield from self._container.demux(self._stream)

    def _decode(self, key: int | None) -> Iterator[tuple[float, Any]]:
        """Frames from the key frame of this time stamp on, or from the file's current position."""
        packets = self._packets()
        if key is not None:
            packets = dropwhile(lambda packet: not (packet.is_keyframe and packet.pts == key), packets)
        for packet in packets:
            with self._damage_told():
                frames = packet.decode()
            for frame in frames:
                self.decoded += 1
                self.corrupt += frame.is_corrupt
                if frame.time is None:
                    raise DataError(f"{self.path}: a frame without a time; convert the video to MP4")
                if key is None or frame.pts >= key:  # those shown before it need what came before it (open GOP)
                    yield frame.time - self._start, frame

    def __iter__(self) -> Iterator[tuple[float, UInt8[Tensor, "3 H W"]]]:
        """Every frame from the beginning: (seconds since the first, RGB)."""
        self._rewind()
        self._begin()
        for time, frame in self._frames:
            yield time, self._as_tensor(frame)

    def frame_at(self, t: float, within: float = FARTHEST) -> UInt8[Tensor, "3 H W"]:
        """The frame nearest to `t` seconds from the video's beginning.

        Args:
            t: seconds.
            within: seconds that it may be away.

        Raises:
            DataError: the video has no frame `within` reach of `t`, or its frames' times go back.
        """
        behind, ahead = (self._past[0][0], self._past[-1][0]) if self._past else (0.0, 0.0)
        if t < behind:
            self._seek(t)
        elif t > ahead + self._far_ahead:
            self._seek(t)
            begun = self._past[0][0] if self._past else 0.0
            if begun <= ahead:  # key frames are further apart: going on would have been shorter
                self._far_ahead *= 2
        while not self._past or self._past[-1][0] < t - SAME:
            following = next(self._frames, None)
            if following is None:
                break
            if self._past and following[0] < self._past[-1][0]:
                raise DataError(
                    f"{self.path}: the times of its frames go back at {following[0]:.3f} s; convert it to MP4"
                )
            self._past.append(following)
        at = bisect_left(self._past, t, key=lambda pair: pair[0])
        around = [self._past[i] for i in (at - 1, at) if 0 <= i < len(self._past)]
        time, frame = min(around, key=lambda pair: abs(pair[0] - t), default=(float("inf"), None))
        if abs(time - t) > within:
            raise DataError(f"{self.path}: has no frame at {t:g} s; the nearest one is at {time:.3f} s")
        return self._as_tensor(frame)

    def _seek(self, t: float) -> None:
        """Start over at the last key frame up to `t`, wherever the container's own search leads."""
        back = 0.0
        while True:
            broadcast_from_rank0 = not self._land(t - back)
            key = self._last_key(t)
            if key is not None or broadcast_from_rank0:
                break
            back = 2 * back or FIRST_STEP_BACK
        self._land(t - back)
        self._begin(key)
        if key is None:
            return
        first = next(self._frames, None)
        if first is not None and first[1].pts == key:
            self._past.append(first)
        else:  # no decoder can begin there: intra refresh
            self._rewind()
            self._begin()

    def _lose_place(self) -> None:
        """The file was read elsewhere: whatever frame is wanted next is sought."""
        self._begin()
        self._past.append((math.inf, None))

    def _land(self, t: float) -> bool:
        """Go to some place near `t`, the same one every time; False where that is the beginning."""
        av = import_av()
        try:
            if t > 0:
                self._container.seek(self._stamp(t), stream=self._stream, backward=True)
                return True
        except av.FFmpegError:  # this container cannot
            pass
        self._rewind()
        return False

    def _stamp(self, t: float) -> int:
        return math.floor((t + SAME + self._start) / self._time_base)

    def _last_key(self, t: float) -> int | None:
        """Time stamp of the last key frame up to `t` from here on; nothing is decoded.

        Indexes give the order of storage, if there are any, so the packets themselves are read.
        """
        target, key = self._stamp(t), None
        for packet in self._packets():
            stamp = packet.pts if packet.is_keyframe else packet.dts
            if stamp is not None and stamp > target:
                break
            if packet.is_keyframe and stamp is not None:
                key = stamp
        return key

    def interval(self) -> float:
        """Seconds between frames: the median over the first hundred (the average rate counts the last one's length)."""
        self._rewind()
        packets = list(islice(self._packets(), 100))
        self.begins_with_key = bool(packets) and bool(packets[0].is_keyframe)
        times = sorted(float(packet.pts * packet.time_base) for packet in packets if packet.pts is not None)
        self._rewind()
        self._begin()
        return median(b - a for a, b in pairwise(times)) if len(times) > 1 else 1.0

    def extent(self) -> tuple[int | None, float | None]:
        """Number of frames and seconds, as the file says: not every one does."""
        stream, container = self._stream, self._container
        seconds = float((stream.duration or 0) * stream.time_base) or (container.duration or 0) / 1e6  # with its sound
        return stream.frames or None, seconds if seconds > 0 else None

    def _as_tensor(self, frame: Any) -> UInt8[Tensor, "3 H W"]:
        pixels = self._to_rgb.reformat(frame, format="rgb24", **self._one_thread).to_ndarray()
        picture = torch.from_numpy(pixels).permute(2, 0, 1)
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return picture if matrix is None else turned(picture, np.frombuffer(matrix, np.int32))

    def close(self) -> None:
        """Close the file."""
        if self._container is not None:
            self._container.close()


class VideoWriter:
    """An MP4 (H.264 if ffmpeg has it, else MPEG-4), with the frames' own times; it appears under its name when
    complete.

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
