"""A live overlay for ten minutes: order, drops, delay and memory while a camera and a rover send, and sometimes do not.

    python -m benchmarks.live --ckpt runs/demo/checkpoints/best.pt --spacing 0.2 --seconds 600

The sender (tests/support/live_sender.py) draws a number into each frame; the page is read as a browser would. Every
minute the sender is killed for 4 seconds and comes back with other numbers.
"""

import argparse
import io
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from base64 import b64decode
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from live_sender import free_port, number_in

from simv0.data.recordings.video import VideoReader

SENDER = Path(__file__).parents[1] / "tests" / "support" / "live_sender.py"
AWAY, EVERY = 4.0, 60.0
FPS = 30


class Sender:
    """The camera and the rover; they are killed and come back."""

    def __init__(self, url: str, telemetry: str) -> None:
        self._command = [sys.executable, str(SENDER), url, "--fps", str(FPS), "--telemetry", telemetry]
        self.begun: list[tuple[int, float]] = []
        """Each one's first number, and when it was sent."""

    def start(self, first: int) -> None:
        """Let a new one begin with this number."""
        command = [*self._command, "--seconds", "10000", "--first", str(first)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.begun.append((first, float(self.process.stdout.readline().split()[1])))

    def sent_at(self, number: int) -> float | None:
        """When the frame of this number was due to be sent."""
        known = [(first, begun) for first, begun in self.begun if first <= number]
        return known[-1][1] + (number - known[-1][0]) / FPS if known else None


def look(url: str, sender: Sender, delays: list[float], end: threading.Event) -> None:
    """Read the page's pictures and note how long ago each one's frame was sent, once a frame."""
    last = -1
    with urllib.request.urlopen(url + "pictures", timeout=60) as page:
        while not end.is_set():
            line = page.readline()
            if not line.startswith(b"data: "):
                continue
            picture = np.asarray(Image.open(io.BytesIO(b64decode(line[6:]))))
            number = number_in(picture)
            if picture[60, 200].mean() > 60 and number != last and (sent := sender.sent_at(number)) is not None:
                delays.append(time.monotonic() - sent)
                last = number


def resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--spacing", type=float, default=0.2)
    parser.add_argument("--seconds", type=float, default=600)
    wanted = parser.parse_args()
    camera, rover = (f"udp://127.0.0.1:{free_port()}" for _ in range(2))
    with ExitStack() as stack:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "seen.mp4"
        command = ["-m", "cli", "overlay", "--ckpt", str(wanted.ckpt), "--frames", camera, "--telemetry", rover]
        command += ["--spacing", str(wanted.spacing), "--live", "--out", str(out)]
        overlay = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        assert overlay.stdout is not None
        said = []
        for line in overlay.stdout:
            said.append(line)
            if "until Ctrl-C" in line:
                break
        url = re.findall(r"live: (\S+)", "".join(said))[0]
        sender = Sender(camera + "?pkt_size=1316", rover)
        sender.start(0)
        delays: list[float] = []
        memory: list[float] = []
        end = threading.Event()
        threading.Thread(target=look, args=(url, sender, delays, end), daemon=True).start()
        threading.Thread(target=lambda: said.extend(overlay.stdout or ()), daemon=True).start()
        began = away = time.monotonic()
        while time.monotonic() - began < wanted.seconds:
            time.sleep(5)
            memory.append(resident(overlay.pid))
            if time.monotonic() - away > EVERY:
                sender.process.kill()
                sender.process.wait()
                time.sleep(AWAY)
                sender.start(round((time.monotonic() - began) * FPS))
                away = time.monotonic()
        end.set()
        interrupted = time.monotonic()
        overlay.send_signal(signal.SIGINT)
        code = overlay.wait(60)
        closed = time.monotonic() - interrupted
        sender.process.kill()
        time.sleep(0.5)
        report(
            out, delays, memory, {"exit code": code, "seconds to close": round(closed, 2), "senders": len(sender.begun)}
        )
        sys.stderr.writelines(said)


def report(out: Path, delays: list[float], memory: list[float], facts: dict[str, Any]) -> None:
    numbers, times = [], []
    for t, picture in VideoReader(out):
        frame = picture.permute(1, 2, 0).numpy()
        times.append(t)
        if frame[60, 200].mean() > 60:
            numbers.append(number_in(frame))
    third = len(memory) // 3
    cuts = statistics.quantiles(delays, n=100) if len(delays) > 1 else [0.0] * 99
    facts |= {
        "pictures in the MP4": len(times),
        "its seconds": round(times[-1], 1),
        "of these fresh": len(numbers),
        "in order": numbers == sorted(numbers),
        "pictures looked at": len(delays),
        "sent to seen on the page, ms, p50, p90, p99": [round(1e3 * cuts[at]) for at in (49, 89, 98)],
        "MiB resident, each minute": [round(value) for value in memory[::12]],
        "MiB resident, mean of the second and of the last third": [
            round(statistics.mean(memory[third : 2 * third]), 1),
            round(statistics.mean(memory[2 * third :]), 1),
        ],
    }
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
