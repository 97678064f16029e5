"""A live source through the stream: the newest frame with the newest telemetry, "unknown" where there is none."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from simv0.data.recordings.video import VideoWriter
from simv0.overlay.camera import Camera
from simv0.overlay.draw import Overlay
from simv0.overlay.readings import Telemetry
from simv0.stream import State, Stream

DIMMED = 3
"""A picture that is no longer what the camera sees is this many times as dark."""


def watch(
    stream: Stream,
    camera: Camera,
    telemetry: Telemetry,
    out: Path | None,
    show: Callable[[UInt8[np.ndarray, "h w 3"], State, float], None],
    stop: threading.Event,
) -> int:
    """Judge one frame each `stream.spacing`, the newest one, and show and write what the stream says, until `stop`.

    Where the camera or the telemetry is lost the last frame is repeated, dimmed, and the state is unknown: nothing old
    is ever shown as calm.

    Args:
        stream: made with `live=True`; its clock is `time.monotonic`.
        camera: where the frames come from.
        telemetry: its newest reading is taken with each frame.
        out: the MP4, which begins with the first frame; None to show only.
        show: called with every picture, its state, and the seconds since the beginning.
        stop: ends it.

    Returns:
        The number of pictures in the MP4.
    """
    overlay = Overlay(stream.alarm_threshold)
    began = due = stream.clock()
    frame: UInt8[np.ndarray, "H W 3"] | None = None
    size, written, first = (640, 360), 0, 0.0
    with VideoWriter(out) if out else nullcontext() as writer:
        while True:
            shot, ending = camera.after(due, stream.spacing, stop), stop.is_set()
            if shot is not None:
                t, frame = shot
                state = stream.push(_channels_first(frame), telemetry.at(t), t)
                size = size if written else (frame.shape[1], frame.shape[0])
                due = max(due + stream.spacing, t + stream.spacing / 2)  # not behind it, where the camera is slower
            now = stream.clock()
            if shot is None:
                state, due = stream.state(now), now
            if why := "stopped" if ending else camera.problem or telemetry.problem(now):
                state = blind(state, why)
            seen = np.zeros((size[1], size[0], 3), np.uint8) if frame is None else _sized(frame, size)
            if state.unknown and (shot is None or ending):
                seen = seen // DIMMED
            picture = overlay.draw(_channels_first(seen), state, now - began, telemetry.at(now))
            if writer is not None and frame is not None:
                first = first if written else now
                writer.write(picture, now - first)
                written += 1
            show(picture, state, now - began)
            if ending:
                return written


def blind(state: State, why: str) -> State:
    """What is left of a state when nothing is seen any more: the alarm stays raised, but calm is none."""
    return replace(state, risk="unknown", unknown=why, prediction=None, alarm=state.alarm or None)


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets: then the work is brought to an end, which further ones do not disturb."""
    stop = threading.Event()

    def asked(number: int, _: Any) -> None:
        stop.set()

    previous = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _channels_first(frame: UInt8[np.ndarray, "H W 3"]) -> UInt8[torch.Tensor, "3 H W"]:
    return torch.from_numpy(frame).permute(2, 0, 1)


def _sized(frame: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The frame in the size that the MP4 has begun with."""
    if (frame.shape[1], frame.shape[0]) == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize(size))
