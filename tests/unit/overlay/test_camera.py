"""The live camera on loopback: order, drops, losses and returns are read off the numbers drawn into its frames."""

import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest
from live_rtsp import RtspServer
from live_sender import free_port, number_in, sending

from simv0.errors import ConfigError
from simv0.overlay import camera as module
from simv0.overlay.camera import LATE, Camera, Delay

PATIENCE = 60.0
"""Seconds; a busy machine takes its time."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> str:
    """A port of loopback, with a camera that soon believes that it is lost."""
    monkeypatch.setattr(module, "READING", 1.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.5)
    return f"udp://127.0.0.1:{free_port()}"


def numbers(camera: Camera, working: float = 0.0) -> Iterator[int]:
    """The numbers of the frames as somebody sees them who works for so long on each."""
    due = time.monotonic()
    while (shot := camera.after(due, PATIENCE)) is not None:
        yield number_in(shot[1])
        time.sleep(working)
        due = max(math.nextafter(shot[0], math.inf), time.monotonic() - 0.05)


def wait_for_problem(camera: Camera, text: str) -> None:
    end = time.monotonic() + PATIENCE
    while camera.problem is None or text not in camera.problem:
        assert time.monotonic() < end, camera.problem
        time.sleep(0.02)


def test_the_newest_frame_wins_and_the_rest_is_dropped(url: str) -> None:
    with sending(url + "?pkt_size=1316", "--seconds", 100), closing(Camera(url)) as camera:
        slow = numbers(camera, working=0.5)
        seen = [next(slow) for _ in range(5)]
        gaps = [after - before for before, after in pairwise(seen)]
        assert min(gaps) > 5  # 15 frames in half a second: it does not lag behind, one after the other
        assert camera.counts["frames"] > 5 * len(seen)
        assert camera.problem is None


def test_waiting_ends_when_it_is_told_to(url: str) -> None:
    stop, begun = threading.Event(), time.monotonic()
    with closing(Camera(url)) as camera:
        threading.Timer(0.3, stop.set).start()
        assert camera.after(begun + PATIENCE, PATIENCE, stop) is None
    assert time.monotonic() < begun + PATIENCE  # it did not wait for the frame that was due then


def test_a_lost_source_says_so_and_comes_back(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with closing(Camera(url)) as camera:
        caplog.set_level("INFO", "simv0")
        assert camera.problem == "no picture yet"
        assert camera.after(time.monotonic(), 0.01) is None
        with sending(url + "?pkt_size=1316", "--seconds", 100):
            assert next(numbers(camera)) < 3000
        wait_for_problem(camera, "the camera is lost: no data for 1 s")
        before = time.monotonic()
        assert camera.after(before, 0.05) is None  # the last frame is not given for a new one
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
            for _ in range(200):
                noise.sendto(os.urandom(1316), ("127.0.0.1", int(url.rpartition(":")[2])))
        with sending(url + "?pkt_size=1316", "--seconds", 100, "--first", 30_000):
            assert next(numbers(camera)) >= 30_000
        assert camera.counts["lost"] >= 1
    said = [record.getMessage() for record in caplog.records]
    assert f"{url}: no data for 1 s; it is opened anew until it is back" in said
    assert f"{url}: pictures of 320x160 again" in said


def test_rtsp(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "simv0")
    with (
        closing(RtspServer()) as server,
        sending(f"rtp://127.0.0.1:{server.rtp_port}", "--seconds", 100, "--fps", 10),
        closing(Camera(server.url)) as camera,
    ):
        watched = numbers(camera)
        seen = [next(watched) for _ in range(3)]
    assert seen == sorted(set(seen))
    assert "pictures of 320x160" in caplog.text
    assert "secret" not in caplog.text


def test_frames_drawn_upon_a_damaged_one_are_not_shown(url: str) -> None:
    """A relay loses one datagram in 40, so that some pictures are smeared: their numbers would be wrong."""
    into = free_port()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as relay,
        sending(f"udp://127.0.0.1:{into}?pkt_size=376", "--seconds", 100),
        closing(Camera(url)) as camera,
    ):
        relay.bind(("127.0.0.1", into))
        relay.settimeout(PATIENCE)
        there = ("127.0.0.1", int(url.rpartition(":")[2]))
        seen: list[int] = []
        due = time.monotonic()
        for i in range(100_000):
            data = relay.recv(2000)
            if i % 40:
                relay.sendto(data, there)
            if (shot := camera.after(due, 0.0)) is not None:
                seen.append(number_in(shot[1]))
                due = math.nextafter(shot[0], math.inf)
            if camera.counts["damaged"] >= 3 and len(seen) > 20:
                break
    assert seen == sorted(set(seen))
    assert seen[-1] - seen[0] > len(seen)


@pytest.mark.parametrize(
    ("source", "problem"),
    [("/dev/no_such_video", "no such file or directory"), ("tcp://127.0.0.1:{port}", "connection refused")],
)
def test_a_source_that_is_not_there_yet_is_no_end(source: str, problem: str) -> None:
    with closing(Camera(source.format(port=free_port()))) as camera:
        wait_for_problem(camera, f"the camera is lost: {problem}")


def test_a_password_is_not_shown() -> None:
    with closing(Camera("tcp://me:secret@127.0.0.1:1/live?x=1")) as camera:
        assert camera.name == "tcp://127.0.0.1:1/live?x=1"


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        Camera("file:///etc/passwd")
    assert str(error.value) == (
        "--frames: file://: expected one of rtsp, rtsps, udp, tcp, http, https, rtmp, rtmps, srt, or a path"
    )


def test_lateness_is_told_without_a_common_clock() -> None:
    delay = Delay()
    backlog = [delay.beyond_least(1000 + i / 30, 5 + i / 1000) for i in range(30)]  # read in 30 ms
    assert backlog == [math.inf] * 30
    fresh = [delay.beyond_least(1001 + i / 30, 5.03 + i / 30) for i in range(30)]
    assert fresh[1:] == pytest.approx([0.0] * 29, abs=0.01)
    assert delay.beyond_least(1002.0, 7.03) == pytest.approx(1.0, abs=0.01)  # the network held it up
    for t in range(0, 36_000, 10):  # this clock gains 50 ppm, 1.8 s in all
        assert delay.beyond_least(1003.0 + t, 7.03 + t * 1.00005) < LATE
    assert delay.beyond_least(0.0, 50_000.0) == math.inf  # a new sender
    assert delay.beyond_least(0.1, 50_000.1) == pytest.approx(0.0, abs=0.01)
    assert delay.beyond_least(None, 60_000.0) == 0.0
