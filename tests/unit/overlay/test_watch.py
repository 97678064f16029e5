"""A live source from end to end on loopback: the command, its MP4, and what it says while things are taken away."""

import os
import signal
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
from live_sender import free_port, number_in, reading, sending
from small_world import make_config, write_manifest
from stream_states import state

from cache.pipeline import cache_vis
from simv0.data.recordings.video import VideoReader
from simv0.overlay import camera as camera_module
from simv0.overlay.camera import Camera
from simv0.overlay.readings import Telemetry
from simv0.overlay.watch import DIMMED, blind, until_stopped, watch
from simv0.predict import Predictor
from simv0.stream import State, Stream
from simv0.training.fit import fit

PATIENCE = 200.0


@pytest.fixture(scope="module")
def ckpt(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of windows of one frame, so that none has gaps, however busy the machine is."""
    folder = tmp_path_factory.mktemp("one")
    for split, n in (("train", 16), ("val", 8)):
        write_manifest(folder / f"{split}.jsonl", n, seed=n, F=1)
    config = make_config(models, folder, folder, model={"F": 1, "K": 1}, data={"frame_spacing": 0.2})
    cache_vis(config)
    return fit(config).best


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(camera_module, "READING", 1.0)
    monkeypatch.setattr(camera_module, "LONGEST_PAUSE", 0.5)
    return f"udp://127.0.0.1:{free_port()}"


def test_blind_is_never_calm() -> None:
    calm = state("none", alarm=False)
    assert blind(calm, "why").alarm is None
    assert blind(state("high", alarm=True), "why").alarm is True
    seen = blind(calm, "why")
    assert (seen.risk, seen.unknown, seen.prediction) == ("unknown", "why", None)


def test_what_is_taken_away_is_unknown_and_comes_back(ckpt: Path, url: str, tmp_path: Path) -> None:
    """A camera comes, then telemetry; the camera is lost and comes back; the telemetry is lost and comes back."""
    rover, out = tmp_path / "telemetry.jsonl", tmp_path / "seen.mp4"
    rover.touch()
    stop, driving, ended = threading.Event(), threading.Event(), threading.Event()
    steps = [
        ("no telemetry yet", lambda things: (things.enter_context(sending(url, "--seconds", 300)), driving.clear())),
        (None, lambda _: driving.set()),
        ("the camera is lost", lambda things: things.close()),
        (None, lambda things: things.enter_context(sending(url, "--seconds", 300, "--first", 20_000))),
        ("no telemetry for", lambda _: driving.clear()),
        (None, lambda _: driving.set()),
    ]
    seen: list[tuple[str | None, State, int, bool]] = []
    things = ExitStack()

    def drive() -> None:
        while not ended.wait(0.02):
            if driving.is_set():
                with rover.open("a") as file:
                    file.write(reading(1))

    def show(picture: np.ndarray, state: State, t: float) -> None:
        """Take the next step when the last one can be seen."""
        assert t < PATIENCE
        dimmed = bool(picture[60, 200].mean() < 60)
        seen.append((state.unknown, state, number_in(picture, DIMMED if dimmed else 1), dimmed))
        awaited = steps[len(taken) - 1][0] if taken else "the camera is lost"
        there = state.unknown is None if awaited is None else (state.unknown or "").startswith(awaited)
        if there and len(taken) == len(steps):
            stop.set()
        elif there:
            taken.append(steps[len(taken)][1](things))

    taken: list[Any] = []
    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    with things, closing(Camera(url)) as camera, closing(Telemetry(str(rover))) as telemetry:
        stream = Stream(Predictor.load(ckpt), 0.2, stale_after=10.0)
        pictures = watch(stream, camera, telemetry, out, show, stop)
    ended.set()
    thread.join()

    for why, then, _, dimmed in seen:
        if why is None:
            assert not dimmed
        else:
            assert (then.risk, then.prediction) == ("unknown", None)
            assert then.alarm is not False
    assert seen[-1][0] == "stopped"
    assert seen[-1][3]
    first = next(i for i, (why, *_) in enumerate(seen) if why is None)
    lost = [(number, dimmed) for why, _, number, dimmed in seen[first:] if (why or "").startswith("the camera is lost")]
    assert all(dimmed for _, dimmed in lost)
    assert len({number for number, _ in lost}) == 1  # the last one, again and again
    numbers = [number for why, _, number, dimmed in seen if why is None and not dimmed]
    assert numbers == sorted(numbers)
    assert numbers[0] < 20_000 <= numbers[-1]

    reader = VideoReader(out)
    kept = [(t, number_in(picture.permute(1, 2, 0).numpy())) for t, picture in reader]
    assert len(kept) == pictures
    assert [t for t, _ in kept] == sorted({t for t, _ in kept})
    assert {number for number in numbers if number < 20_000} <= {number for _, number in kept}


def test_ctrl_c_closes_the_mp4_whole(ckpt: Path, url: str, tmp_path: Path) -> None:
    out = tmp_path / "seen.mp4"
    port = free_port()

    def interrupt() -> None:
        end = time.monotonic() + PATIENCE
        while not out.with_name("seen.mp4.tmp").exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(2.0)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # impatience does no harm

    thread, before = threading.Thread(target=interrupt), signal.getsignal(signal.SIGINT)
    threads = threading.active_count()
    with sending(url, "--seconds", 300, "--telemetry", f"udp://127.0.0.1:{port}"):
        thread.start()
        args = ["overlay", "--ckpt", ckpt, "--frames", url, "--telemetry", f"udp://127.0.0.1:{port}", "--out", out]
        result = commands.run(*args, "--live", "--spacing", 0.3)
    thread.join()
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.glob("*.mp4*")) == ["seen.mp4"]
    count = sum(1 for _ in VideoReader(out))
    assert count > 3
    assert f"{out}: {count} pictures" in result.stdout
    assert f"{url}: windows of 1, 0.300 s apart; until Ctrl-C" in result.stdout
    assert result.output.count("motion looks") == 1  # said once, though looked at twice
    assert threading.active_count() == threads
    assert signal.getsignal(signal.SIGINT) is before


def test_the_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with until_stopped() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
    assert signal.getsignal(signal.SIGTERM) is before


def test_options_of_a_live_source_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    result = commands.run("overlay", "--ckpt", "no.pt", "--frames", "rtsp://me:secret@127.0.0.1/live", "--fps", "5")
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        [
            "error: --ckpt: no.pt: checkpoint not found",
            "error: --telemetry: a live source needs it: a file that grows, - or udp://HOST:PORT",
            "error: --fps: only applies to a folder of images; a live source has its own times",
            "error: --out: name the MP4 to write, or give --live to watch, or both",
        ],
    )
    args = ["--frames", "/dev/video0", "--telemetry", tmp_path / "no.jsonl", "--live"]
    result = commands.run("overlay", "--ckpt", Path(__file__), *args)
    assert (result.exit_code, result.stderr) == (2, f"error: --telemetry: {tmp_path}/no.jsonl: file not found\n")
