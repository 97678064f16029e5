"""The live page: the newest picture, to this machine only, in a real browser."""

import gc
import http.client
import io
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from PIL import Image
from stream_states import state

from simv0.errors import ConfigError
from simv0.overlay.live import PATIENCE, LivePage, Pace

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
MISSING = "a live page needs Starlette and uvicorn: pip install 'simv0[live]'"


def plain(color: tuple[int, int, int]) -> np.ndarray:
    return np.full((240, 320, 3), color, np.uint8)


def port_of(page: LivePage) -> int:
    return int(page.url.rsplit(":", 1)[1].strip("/"))


def look(url: str) -> Any:
    return urllib.request.urlopen(url + "pictures", timeout=20)


def event(answer: Any) -> str | tuple[int, ...]:
    """The next thing that a viewer is told: the colour of a picture's middle, as far as JPEG keeps it, or words."""
    lines = []
    while line := answer.readline().decode().strip():
        lines.append(line)
    text = " ".join(lines)
    if not text.startswith("data: "):
        return text
    picture = np.asarray(Image.open(io.BytesIO(b64decode(text.removeprefix("data: ")))))
    return tuple((picture[picture.shape[0] // 2, picture.shape[1] // 2] > 127) * 255)


def test_viewers_get_the_newest_picture_and_word_of_the_end() -> None:
    page = LivePage()
    with look(page.url) as early:
        page.show(plain(RED), state(), 0.0)
        assert event(early) == RED
        page.show(plain(GREEN), state(), 0.1)
        assert event(early) == GREEN
        with look(page.url) as late:
            assert event(late) == GREEN  # what was old before it looked is not shown
            page.show(plain(BLUE), state(), 0.2)
            page.close()
            for viewer in (early, late):
                assert event(viewer) == BLUE
                assert event(viewer) == "event: end data:"
                assert viewer.read() == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(page)), timeout=10)


def test_after_the_end_the_last_picture_is_still_shown() -> None:
    page = LivePage()
    page.show(plain(GREEN), state(), 0.0)
    page.end()
    with look(page.url) as late:
        assert [event(late), event(late)] == [GREEN, "event: end data:"]
    page.close()


def test_pictures_keep_the_recordings_pace_and_catch_up() -> None:
    now, slept = [50.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(lambda: now[0], sleep)
    for t, computing in ((1000.0, 0.1), (1000.3, 0.3), (1000.4, 0.0), (1000.9, 0.0)):
        pace.wait(t)
        now[0] += computing
    assert slept == pytest.approx([0.0, 0.2, 0.0, 0.3])  # the third was 0.2 s late, and the fourth is on time again


def test_it_listens_on_loopback_and_answers_no_foreign_name() -> None:
    page = LivePage()
    assert page.url.startswith("http://127.0.0.1:")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port_of(page)), timeout=10)  # this machine too, had it bound all
    connection = http.client.HTTPConnection("127.0.0.1", port_of(page), timeout=10)
    answers = {}
    for path, host in (
        ("/", "127.0.0.1:1"),
        ("/", "evil.example:80"),
        ("/pictures", "evil.example"),
        ("/etc", "localhost:1"),
    ):
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        response.read()
        answers[path, host] = response.status
        connection.close()
    assert list(answers.values()) == [200, 400, 400, 404]
    page.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # asyncio's, of the connection that was given up
def test_a_viewer_that_does_not_read_delays_nobody(caplog: pytest.LogCaptureFixture) -> None:
    page = LivePage()
    noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    page.show(noise, state(), 0.0)
    with socket.socket() as stalled, look(page.url) as reader:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", port_of(page)))
        stalled.sendall(b"GET /pictures HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stalled.recv(12) == b"HTTP/1.1 200"
        for i in range(20):
            event(reader)  # every picture arrives beside the stalled one
            page.show(noise, state(), i / 10)
        event(reader)
        page.show(plain(BLUE), state(), 2.0)
        closing = threading.Thread(target=page.close, daemon=True)
        start = time.monotonic()
        closing.start()
        closing.join(60)
        assert not closing.is_alive()
        assert time.monotonic() - start >= PATIENCE  # it was waited for: so it did stall
        assert [event(reader), event(reader)] == [BLUE, "event: end data:"]
    assert caplog.records == []
    del page, closing
    gc.collect()


def test_ctrl_c_stops_the_command_beside_a_viewer() -> None:
    code = "import signal, time\nimport numpy as np\nfrom simv0.overlay.live import LivePage\npage = LivePage()\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run with `&`
    code += "page.show(np.zeros((8, 8, 3), np.uint8), None, 0.0)\nprint(page.url, flush=True)\n"
    code += "for _ in range(600): time.sleep(0.1)"  # a signal just before one long sleep is only seen after it
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdout is not None
        with look(process.stdout.readline().strip()) as viewer:
            assert event(viewer) == (0, 0, 0)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert out == ""  # nothing but what the command itself says
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("\nKeyboardInterrupt\n")
    assert "uvicorn" not in err


def test_a_port_in_use_is_one_line() -> None:
    page = LivePage()
    port = port_of(page)
    with pytest.raises(ConfigError) as error:
        LivePage(port)
    assert str(error.value) == f"live page: port {port} of 127.0.0.1: address already in use; 0 takes a free one"
    page.close()
    LivePage(port).close()


@pytest.mark.parametrize("package", ["uvicorn", "starlette.applications"])
def test_a_missing_package_is_one_line_before_the_model_is_loaded(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as error:
        LivePage()
    assert str(error.value) == MISSING
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    row = '{"image": "0.png", "t": 0.0, "telemetry": [0, 0, 9.8, 0, 0, 0, 1, 0]}\n'
    (tmp_path / "sequence.jsonl").write_text(row + row.replace("0.0", "0.1"))
    (tmp_path / "unread.pt").touch()
    options = {"--ckpt": "unread.pt", "--frames": "sequence.jsonl", "--out": "out.mp4"}
    args = [word for option, name in options.items() for word in (option, str(tmp_path / name))]
    result = run("overlay", "--live", *args)
    assert (result.exit_code, result.stderr) == (2, f"error: {MISSING}\n")


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    watched = threading.Event()

    class Page(LivePage):
        def _events(self) -> Any:
            watched.set()
            return super()._events()

    page = Page()
    page.show(plain((20, 200, 90)), state(), 0.0)

    def close_soon() -> None:
        watched.wait(50)  # a busy machine's browser takes its time
        page.close()

    closing = threading.Thread(target=close_soon)
    closing.start()
    shot = tmp_path / "shot.png"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=800,600", "--virtual-time-budget=3000"]  # it stands still while pictures may come
    command += [f"--screenshot={shot}", "--dump-dom", page.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    closing.join()
    assert '<p id="note" role="status">The overlay has ended.</p>' in done.stdout
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    green = (abs(pixels - (20, 200, 90)) < 12).all(-1).mean()
    assert green > 0.5
