"""A camera and a rover of the tests' own: numbered frames over the network, and telemetry as JSON lines.

    python live_sender.py udp://127.0.0.1:5004 --fps 30 --seconds 10 --telemetry udp://127.0.0.1:5005

Prints `begun SECONDS` (`time.monotonic`) when its first frame is sent; the others follow at 1 / fps.
"""

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS, BLOCK = 16, 20
WIDTH, HEIGHT = BITS * BLOCK, 160
TOP = 80
"""Of the blocks: above and below it the overlay draws its signs."""


def numbered(n: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A grey frame with the number's bits as black and white blocks from left to right."""
    frame = np.full((height, width, 3), 100, np.uint8)
    for bit in range(BITS):
        frame[TOP : TOP + BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 235 if n >> bit & 1 else 20
    return frame


def number_in(frame: np.ndarray, dim: int = 1) -> int:
    """The number that is drawn there, also in a frame that is `dim` times as dark."""
    middles = frame[TOP + BLOCK // 2, BLOCK // 2 : WIDTH : BLOCK].astype(int).mean(-1) * dim
    return sum(1 << bit for bit in range(BITS) if middles[bit] > 128)


def reading(n: int) -> str:
    return json.dumps({"telemetry": [0.0, 0.0, 9.8, 0.0, 0.0, 0.0, 1.0, n % 100 / 100]}) + "\n"


class Camera:
    """Writes numbered frames to an address, in the container that it asks for."""

    def __init__(
        self, url: str, fps: float, codec: str = "libx264", container: str | None = None, gop: int = 0
    ) -> None:
        self._container: Any = av.open(url, "w", format=container or ("rtp" if url.startswith("rtp") else "mpegts"))
        options = {"preset": "ultrafast", "tune": "zerolatency"} if codec == "libx264" else {}
        self._stream: Any = self._container.add_stream(codec, rate=round(fps), options=options)
        self._stream.width, self._stream.height = WIDTH, HEIGHT
        self._stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        self._stream.bit_rate = 2_000_000
        self._stream.gop_size = gop or round(fps)

    def send(self, i: int, number: int) -> None:
        frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
        frame.pts = i
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def close(self) -> None:
        self._container.close()


@contextmanager
def sending(url: str, *options: object) -> Iterator[subprocess.Popen[str]]:
    """The sender as a process of its own, which has begun; killed at the end."""
    command = [sys.executable, __file__, url, *(str(option) for option in options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("begun")
        try:
            yield process
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--fps", type=float, default=30)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--telemetry", default="")
    parser.add_argument("--codec", default="libx264")
    parser.add_argument("--container")
    parser.add_argument("--first", type=int, default=0, help="the first frame's number")
    parser.add_argument("--gop", type=int, default=0)
    wanted = parser.parse_args()
    camera = Camera(wanted.url, wanted.fps, wanted.codec, wanted.container, wanted.gop)
    rover = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    begun = time.monotonic()
    print(f"begun {begun}", flush=True)
    for i in range(round(wanted.fps * wanted.seconds)):
        time.sleep(max(0.0, begun + i / wanted.fps - time.monotonic()))
        camera.send(i, wanted.first + i)
        if wanted.telemetry.startswith("udp://"):
            host, port = wanted.telemetry.removeprefix("udp://").split(":")
            rover.sendto(reading(i).encode(), (host, int(port)))
        elif wanted.telemetry:
            with Path(wanted.telemetry).open("a") as file:
                file.write(reading(i))
    camera.close()


if __name__ == "__main__":
    main()
