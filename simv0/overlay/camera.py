"""A live video source: one thread decodes it, opens it anew whenever it is lost, and keeps its newest frame only."""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import UInt8

from simv0.data.images import MAX_PIXELS
from simv0.data.recordings.video import import_av
from simv0.errors import ConfigError, DataError

log = logging.getLogger("simv0")

PROTOCOLS = ("rtsp", "rtsps", "udp", "tcp", "http", "https", "rtmp", "rtmps", "srt")
BENEATH = ("rtp", "srtp", "tls", "httpproxy")
"""What those need. Nothing else is opened, above all no file that a source may name."""
OPTIONS = {
    "protocol_whitelist": ",".join(PROTOCOLS + BENEATH),
    "rtsp_flags": "prefer_tcp",  # by UDP a lost packet damages all pictures until the next key frame
    "analyzeduration": "1000000",  # microseconds; what is read meanwhile waits
}
OPENING, READING = 5.0, 3.0
"""Seconds in which a source must open, and bring something, before it is opened anew."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 4.0
"""Seconds before it is opened anew; doubled after each failure."""
NOTICE = 0.1
"""Seconds between two looks at whether waiting is still wanted."""
LATE = 0.5
"""Seconds by which a frame may arrive later than the quickest ones did; later, it shows the past."""
SETTLED = 0.02
"""Seconds by which a frame may come quicker than any before, unless a backlog is being read."""
DRIFT = 2e-4
"""Seconds per second by which a camera's clock may run apart from ours (quartz: below half of it)."""


DAMAGED = "the picture is damaged until the next key frame"


class Camera:
    """The newest frame of a live source, decoded by a thread of its own.

    A source that ends, breaks off or falls silent is lost, not over: it is opened again and again until `close`.

    Args:
        source: an address of one of `PROTOCOLS`, or a device such as /dev/video0 (V4L2).

    Raises:
        ConfigError: another protocol; PyAV is not installed.
    """

    def __init__(self, source: str) -> None:
        self._av = import_av()
        protocol, address, _ = source.partition("://")
        if address and protocol not in PROTOCOLS:
            raise ConfigError(f"--frames: {protocol}://: expected one of {', '.join(PROTOCOLS)}, or a path")
        self._source = source
        self.name = _without_password(source)
        self.problem: str | None = "no picture yet"
        """Why the newest frame is not what the source shows now; None while it is."""
        self.counts: Counter[str] = Counter()
        """Whole frames; of these late; how often a picture was damaged, and how often the source was lost."""
        self._lost = True
        self._news = threading.Condition()
        self._newest: tuple[float, Any] | None = None
        self._closing = threading.Event()
        self._to_rgb = self._av.video.reformatter.VideoReformatter()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def after(
        self, due: float, patience: float, stop: threading.Event | None = None
    ) -> tuple[float, UInt8[np.ndarray, "H W 3"]] | None:
        """The newest frame that arrived at `due` or later, awaited until `patience` seconds after that; else None.

        Args:
            due: on the clock of `time.monotonic`.
            patience: seconds.
            stop: nothing is awaited any more once it is set.

        Returns:
            When it arrived, on the clock of `time.monotonic` as `due` is, and the frame in RGB.
        """
        with self._news:
            until = max(due, time.monotonic()) + patience
            while (newest := self._newest) is None or newest[0] < due:
                left = until - time.monotonic()
                if left <= 0 or (stop is not None and stop.is_set()):
                    break
                self._news.wait(min(left, NOTICE))
        if newest is None or newest[0] < due:
            return None
        return newest[0], self._to_rgb.reformat(newest[1], format="rgb24").to_ndarray()

    def close(self) -> None:
        """Stop, which takes until the next frame, or `OPENING` seconds where there is none."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        """Open the source, and when it is lost open it anew."""
        pause = FIRST_PAUSE
        while not self._closing.is_set():
            decoded = self.counts["frames"]
            try:
                self._read()
                why = "it has ended"
            except DataError as error:
                why = str(error)
            except self._av.FFmpegError as error:
                why = f"no data for {READING:g} s" if isinstance(error, self._av.error.ExitError) else error.strerror
            except Exception as error:  # whatever it sends, it may come back
                why = f"{type(error).__name__}: {error}"
            if self.counts["frames"] > decoded:
                pause = FIRST_PAUSE
            self._lose(why[:1].lower() + why[1:])
            self._closing.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _lose(self, why: str) -> None:
        if self._closing.is_set():
            return
        self.counts["lost"] += not self._lost
        self._lost = True
        problem = f"the camera is lost: {why}"
        if problem != self.problem:
            log.warning(f"{self.name}: {why}; it is opened anew until it is back")
        self.problem = problem

    def _read(self) -> None:
        """Open the source and take its frames until it ends.

        Raises:
            FFmpegError: it is lost.
            DataError: it has no video, its pictures are too large or too late.
        """
        device = "://" not in self._source
        with self._av.open(
            self._source,
            format="v4l2" if device else None,
            options={} if device else OPTIONS,
            timeout=(OPENING, READING),
            metadata_errors="replace",
        ) as container:
            stamped = not container.format.flags & self._av.format.Flags.no_timestamps.value
            delay, late_since = Delay(), math.inf
            for frame in self._whole_frames(container):
                now = time.monotonic()
                late = delay.beyond_least(frame.time, now) if stamped else 0.0
                late_since = min(late_since, now) if late > LATE else math.inf
                if now - late_since > READING:  # what waits to be decoded is left behind
                    raise DataError("its pictures come late")
                self._take(frame, late)

    def _whole_frames(self, container: Any) -> Iterator[Any]:
        """The frames, but for those that are damaged, and for those that are drawn upon such."""
        if not container.streams.video:
            raise DataError("it has no video")
        stream = container.streams.video[0]
        context = stream.codec_context
        context.thread_count = 1  # several would hold a frame back each
        whole, brought = False, time.monotonic()
        for packet in container.demux():
            if self._closing.is_set():
                return
            if packet.stream is not stream:
                if time.monotonic() - brought > READING:  # its sound goes on
                    raise DataError(f"no video for {READING:g} s")
                continue
            brought = time.monotonic()
            try:
                frames = [] if packet.is_corrupt else packet.decode()
                damaged = packet.is_corrupt
            except self._av.error.InvalidDataError:
                frames, damaged = [], True
            for frame in frames:
                if frame.width * frame.height > MAX_PIXELS:
                    raise DataError(f"{frame.width}x{frame.height} pixels; at most {MAX_PIXELS} are read")
                damaged = damaged or frame.is_corrupt
                whole = whole or frame.key_frame or context.name == "h264"  # whose decoder itself waits for whole ones
                if whole and not damaged:
                    yield frame
            if damaged:
                context.flush_buffers()
                self.counts["damaged"] += whole
                self.problem = DAMAGED if whole else self.problem
                whole = False

    def _take(self, frame: Any, late: float) -> None:
        """Make it the newest frame, if it shows what is there now."""
        self.counts["frames"] += 1
        problem = None
        if late > LATE:
            self.counts["late"] += 1
            problem = f"the picture is {late:.1f} s late" if late < math.inf else "a backlog of pictures is being read"
        elif self._lost:
            self._lost = False
            log.info(f"{self.name}: pictures of {frame.width}x{frame.height}{' again' if self._newest else ''}")
        with self._news:
            self.problem = problem
            if problem is None:
                self._newest = time.monotonic(), frame
                self._news.notify_all()


class Delay:
    """How much later than the quickest ones frames arrive, by their own time stamps, whatever clock these are of."""

    def __init__(self) -> None:
        self._least, self._stamp, self._now = math.inf, -math.inf, 0.0

    def beyond_least(self, stamp: float | None, now: float) -> float:
        """Seconds by which the frame of `stamp` is late at `now`; 0 where it has no stamp.

        Infinite as long as each one comes quicker than those before: they have waited somewhere, nobody knows how long.
        """
        if stamp is None:
            return 0.0
        if stamp < self._stamp:  # the sender has begun anew
            self._least = math.inf
        before = self._least + DRIFT * (now - self._now)
        self._least = min(now - stamp, before)
        self._stamp, self._now = stamp, now
        return math.inf if before - self._least > SETTLED else now - stamp - self._least


def _without_password(source: str) -> str:
    """The source as it may be shown: an address often holds a user's name and password."""
    parts = urlsplit(source)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else source
