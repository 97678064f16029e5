"""What decoders pass over in silence is told when a recording has been read."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from videos import write_csv

from simv0.data.recordings.recording import open_recording

av = pytest.importorskip("av", reason="needs PyAV")

FRAMES, FPS = 60, 20


def video(path: Path, lost: range = range(0)) -> Path:
    """60 frames of 20 a second, a key frame in every 5; the packets of `lost` are left out."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 64, "yuv420p", 5
        for number, packet in enumerate(packets(stream)):
            if number not in lost:
                container.mux(packet)
    return path


def packets(stream: "av.VideoStream") -> Iterator["av.Packet"]:
    draw = np.random.default_rng(0)
    for _ in range(FRAMES):
        noise = draw.integers(0, 255, (64, 64, 3)).astype(np.uint8)
        yield from stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24"))
    yield from stream.encode(None)


def read(path: Path, caplog: pytest.LogCaptureFixture) -> tuple[int, list[str]]:
    recording = open_recording(path, write_csv(path.with_suffix(".csv"), [i / FPS for i in range(FRAMES)]))
    with caplog.at_level(logging.WARNING, "simv0"):
        count = len(list(recording))
    return count, [message for message in caplog.messages if "frame" in message]


@pytest.mark.parametrize("kind", ["mkv", "mp4", "avi", "ts"])
def test_a_whole_video_is_no_cause_for_words(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(video(tmp_path / f"whole.{kind}"), caplog) == (FRAMES, [])


def test_a_video_cut_in_half_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = video(tmp_path / "cut.mkv")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    count, told = read(path, caplog)
    assert 0 < count < 40
    assert (
        f"{path}: {count} frames could be read, from 0.000 s to {(count - 1) / FPS:.3f} s, but its header announces "
        in (told[0])
    )
    assert told[0].endswith("about 60: it is truncated or damaged")


def test_missing_frames_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = video(tmp_path / "gap.mkv", lost=range(20, 30))
    count, told = read(path, caplog)
    assert count == FRAMES - 10
    assert told[-1] == (f"{path}: no frame for 0.550 s after 0.950 s, where they are 0.050 s apart: frames are missing")


def test_damaged_frames_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = video(tmp_path / "flipped.mp4")
    data = bytearray(path.read_bytes())
    for i in range(5):
        data[len(data) // 3 + 100 * i] ^= 0xFF
    path.write_bytes(data)
    count, told = read(path, caplog)
    assert count == FRAMES
    assert re.fullmatch(rf"{path}: [1-9] of 60 frames are damaged; the decoder filled in what it could", told[0]), told


def test_a_lost_beginning_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 64, "yuv420p", 12
        grey = np.full((64, 64, 3), 100, np.uint8)
        made = [p for _ in range(20) for p in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24"))]
        container.mux(made[1:])  # without the key frame: what follows is decoded from nothing
    count, told = read(path, caplog)
    assert count > 0
    assert f"{path}: does not begin with a key frame: its beginning is missing or wrong" in told
