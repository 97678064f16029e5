"""Live telemetry: the newest reading with its age, from a file that grows, a pipe, a port; garbage is skipped."""

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from live_sender import free_port

from simv0.errors import ConfigError
from simv0.overlay.readings import OLDEST, Telemetry

PATIENCE = 30.0


def row(v: float, **more: Any) -> str:
    return json.dumps({"telemetry": [0.0, 0.0, 9.8, 0.0, 0.0, 0.0, v, 0.0], **more}) + "\n"


def v_of(telemetry: Telemetry) -> float:
    return telemetry.at(time.monotonic())[6]


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def wait_for_lines(telemetry: Telemetry, count: int) -> None:
    wait_until(lambda: telemetry.counts["lines"] >= count)


@contextmanager
def following(path: Path) -> Iterator[tuple[Telemetry, Callable[[str], None]]]:
    """Telemetry from a file, and how to append to it."""

    def append(text: str) -> None:
        with path.open("a") as file:
            file.write(text)

    with closing(Telemetry(str(path))) as telemetry:
        yield telemetry, append


def test_a_file_is_followed_from_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(row(1) + row(2)[:30])
    with following(path) as (telemetry, append):
        assert telemetry.problem(time.monotonic()) == "no telemetry yet"  # what stands there is old
        append(row(2)[30:])  # this line was being written
        wait_for_lines(telemetry, 1)
        assert v_of(telemetry) == 2
        append(row(3) + row(4) + row(5)[:10])
        wait_for_lines(telemetry, 3)
        assert v_of(telemetry) == 4
        assert telemetry.problem(time.monotonic()) is None
        path.rename(tmp_path / "t.1")
        path.write_text(row(6))  # a new file of that name: what it begins with may be a copy
        for change, v in ((path.touch, 7), (lambda: path.write_text(""), 8)):
            change()

            def come(v: int = v) -> bool:
                append(row(v))
                return v_of(telemetry) == v

            wait_until(come)
    assert telemetry.counts["bad"] == 1  # the half line of the file that was moved away


def test_an_old_reading_is_none(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.touch()
    with following(path) as (telemetry, append):
        append(row(1))
        wait_for_lines(telemetry, 1)
        now = time.monotonic()
        assert telemetry.at(now)[6] == 1
        assert all(math.isnan(number) for number in telemetry.at(now + OLDEST))
        assert telemetry.problem(now + 3) in [f"no telemetry for {seconds} s" for seconds in ("3.0", "3.1")]
        append(row(2, t=time.time() - 60) + row(3, t=time.monotonic() - 60))  # overtaken
        wait_for_lines(telemetry, 3)
        assert telemetry._newest is not None
        assert telemetry._newest[1][6] == 1
        append(row(4, t=time.time()))
        wait_for_lines(telemetry, 4)
        assert v_of(telemetry) == 4
        append(row(5, t=time.monotonic()))
        wait_for_lines(telemetry, 5)
        assert v_of(telemetry) == 5
        assert "by its own t" in str(telemetry.problem(time.monotonic() + 9))


def test_a_reading_is_as_old_as_its_own_time_says(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.touch()
    with following(path) as (telemetry, append):
        append(row(1, t=time.time() - 60))
        wait_for_lines(telemetry, 1)
        assert math.isnan(v_of(telemetry))
        assert telemetry.problem(time.monotonic()) == "no telemetry for 60.0 s by its own t"


GARBAGE = {
    "not json": "not JSON",
    '{"telemetry": [0, 0, 9.8, 0, 0, 0, 1, 0]': "not JSON",
    "\x00\x01\x02": "not JSON",
    "[" * 100_000: "not JSON",
    "[1, 2]": "expected a JSON object, found list",
    '{"telemetry": [1, 2, 3]}': "telemetry: expected 8 numbers (ax, ay, az, gx, gy, gz, v, w), found [1, 2, 3]",
    '{"telemetry": [0, 0, "9,8", 0, 0, 0, 1, 0]}': "az: expected a number, found '9,8'; write 9.8",
    '{"speed": 1.0}': "has none of ax, ay, az, gx, gy, gz, v, w",
    '{"telemetry": [0, 0, 9.8, 0, 0, 0, 1, 0], "t": "now"}': "t: expected seconds, found 'now'",
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_skipped_and_told_once(garbage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.jsonl"
    path.touch()
    with following(path) as (telemetry, append):
        append(row(1) + garbage + "\n" + garbage + "\n" + row(2))
        wait_for_lines(telemetry, 4)
        assert v_of(telemetry) == 2
        assert dict(telemetry.counts) == {"lines": 4, "bad": 2}
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{path}: line 2: {GARBAGE[garbage]}; it is skipped, and more like it")
    assert said.isprintable()
    assert len(said) < len(str(path)) + 400


def test_bytes_without_an_end_are_no_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.touch()
    with following(path) as (telemetry, _):
        with path.open("ab") as file:
            file.write(os.urandom(300_000).replace(b"\n", b" "))
        wait_until(lambda: telemetry.counts["bad"] >= 1)


@pytest.mark.parametrize("unit", [1e3, 1e9])
def test_a_time_to_come_is_bad(unit: float, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.jsonl"
    path.touch()
    with following(path) as (telemetry, append):
        append(row(1, t=time.time() * unit) + row(2, t=time.time() + 5) + row(3, t=time.monotonic() + 5))
        wait_for_lines(telemetry, 3)
        assert dict(telemetry.counts) == {"lines": 3, "bad": 3}
    assert "; t looks like " in caplog.text


def test_standard_input_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with closing(Telemetry("-")) as telemetry:
            os.write(writing, row(1).encode())
            wait_until(lambda: v_of(telemetry) == 1)
            os.close(writing)
            wait_until(lambda: telemetry.problem(time.monotonic() + 1) is not None and telemetry._ended)
            assert str(telemetry.problem(time.monotonic() + 1)).endswith("; standard input has ended")


def test_a_port_takes_datagrams_and_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    source = f"udp://127.0.0.1:{free_port()}"
    there = ("127.0.0.1", int(source.rpartition(":")[2]))
    with closing(Telemetry(source)) as telemetry, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(row(1).strip().encode(), there)
        wait_for_lines(telemetry, 1)
        assert v_of(telemetry) == 1
        sender.sendto((row(2) + row(3)).encode(), there)
        wait_for_lines(telemetry, 3)
        assert v_of(telemetry) == 3
        with pytest.raises(ConfigError) as error:
            Telemetry(source)
        assert str(error.value) == f"--telemetry: {source}: address already in use"
    Telemetry(source).close()
    assert not caplog.records


@pytest.mark.parametrize("source", ["udp://:5005", "udp://127.0.0.1", "udp://127.0.0.1:x", "udp://127.0.0.1:99999"])
def test_a_port_needs_a_host(source: str) -> None:
    with pytest.raises(ConfigError) as error:
        Telemetry(source)
    assert str(error.value) == (
        f"--telemetry: {source}: expected udp://HOST:PORT; 127.0.0.1 hears this machine only, 0.0.0.0 all"
    )
