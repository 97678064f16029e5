"""The live page: the newest picture, to this machine only, in a real browser."""

import http.client
import shutil
import subprocess
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_overlay import state

from simv0.live import LivePage


def plain(color: tuple[int, int, int]) -> np.ndarray:
    return np.full((240, 320, 3), color, np.uint8)


def jpegs(body: bytes) -> list[bytes]:
    return [part for part in body.split(b"--picture\r\n") if b"image/jpeg" in part]


def test_a_viewer_gets_the_newest_pictures_until_the_end() -> None:
    page = LivePage()
    page.show(plain((255, 0, 0)), state(), 0.0)
    page.show(plain((0, 255, 0)), state(), 0.1)
    with urllib.request.urlopen(page.url + "stream", timeout=10) as answer:
        first = b""
        while b"\r\n\r\n" not in first:
            first += answer.read1()
        page.show(plain((0, 0, 255)), state(), 0.2)
        threading.Thread(target=page.close).start()
        parts = jpegs(first + answer.read())
    assert 1 <= len(parts) <= 2  # the first picture was old before anyone looked
    last = parts[-1].split(b"\r\n\r\n", 1)[1]
    assert last.startswith(b"\xff\xd8")


def test_it_listens_on_loopback_and_answers_no_foreign_name() -> None:
    page = LivePage()
    assert page.url.startswith("http://127.0.0.1:")
    connection = http.client.HTTPConnection("127.0.0.1", int(page.url.rsplit(":", 1)[1].strip("/")), timeout=10)
    answers = {}
    for path, host in (("/", "127.0.0.1:1"), ("/", "evil.example:80"), ("/", "evil.example"), ("/etc", "localhost:1")):
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        response.read()
        answers[path, host] = response.status
        connection.close()
    assert list(answers.values()) == [200, 403, 403, 404]
    page.close()


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    watched = threading.Event()

    class Page(LivePage):
        def _stream(self, handler: BaseHTTPRequestHandler) -> None:
            watched.set()
            super()._stream(handler)

    page = Page()
    page.show(plain((20, 200, 90)), state(), 0.0)

    def close_soon() -> None:
        watched.wait(50)  # a busy machine's browser takes its time
        time.sleep(1)
        page.close()  # ends the stream, so that the browser sees the page as loaded

    closing = threading.Thread(target=close_soon)
    closing.start()
    shot = tmp_path / "shot.png"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=800,600", f"--screenshot={shot}", page.url]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    closing.join()
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    green = (abs(pixels - (20, 200, 90)) < 12).all(-1).mean()
    assert green > 0.5
