"""Live telemetry: a thread reads JSON lines as they come and keeps the newest reading, with its age."""

import json
import logging
import math
import os
import select
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from simv0.data.recordings.telemetry import ABSOLUTE, numbers_in, seconds_in
from simv0.data.spacing import unit_of_clock
from simv0.errors import ConfigError, DataError, shown
from simv0.labels import TELEMETRY

log = logging.getLogger("simv0")

OLDEST = 0.5
"""Seconds; an older reading says nothing of the present."""
AHEAD = 0.1
"""Seconds by which a reading's own time may be in the future."""
LOOK_EVERY = 0.02
"""Seconds between looks at a file that may have grown."""
LONGEST_WAIT = 0.2
"""Seconds until the thread sees that it shall end."""
LONGEST_LINE = 1 << 16
MOST_AT_ONCE = 1 << 20
"""Bytes read before they are parsed."""


class Telemetry:
    """The newest reading of JSON lines: `{"telemetry": [8 numbers]}`, or the channels by name; `t` may stand beside.

    A reading is as old as its own `t` says (seconds since 1970, or of this machine's `time.monotonic`), else as its
    arrival. What is no reading is counted and skipped, and the first such line is shown in a warning.

    Args:
        source: a file, of which only what is appended from now on counts; `-` for standard input; `udp://HOST:PORT`.

    Raises:
        ConfigError: a port that cannot be listened to, a file that is missing.
    """

    def __init__(self, source: str) -> None:
        self.name = "standard input" if source == "-" else source
        self._source = _open(source)
        self.counts: Counter[str] = Counter()
        """Lines read; of these bad."""
        self._newest: tuple[float, list[float], bool] | None = None
        self._ended = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def at(self, now: float) -> list[float]:
        """The newest reading's 8 numbers, all NaN where it is older than `OLDEST` at `now` (`time.monotonic`)."""
        newest = self._newest
        old = newest is None or now - newest[0] > OLDEST
        return [math.nan] * len(TELEMETRY) if old or newest is None else newest[1]

    def problem(self, now: float) -> str | None:
        """Why there is no reading for `now`; None where there is one."""
        newest = self._newest
        if newest is not None and now - newest[0] <= OLDEST:
            return None
        why = " yet"
        if newest is not None:
            why = f" for {now - newest[0]:.1f} s{' by its own t' if newest[2] else ''}"
        if self._ended:
            return f"no telemetry{why}; {self.name} has ended"
        return f"no telemetry{why}" + (f"; {self.counts['bad']} bad lines" if self.counts["bad"] else "")

    def close(self) -> None:
        """Stop reading."""
        self._closing.set()
        self._thread.join()
        self._source.close()

    def _run(self) -> None:
        rest, looked = b"", time.monotonic()
        while not self._closing.is_set():
            data = self._source.read()
            if data is None:
                self._ended = True
                log.warning(f"{self.name}: has ended; there will be no more telemetry")
                return
            now = time.monotonic()
            kept_waiting, looked = now - looked > OLDEST, now  # this program stood still: when they came is unknown
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                if line.strip():
                    self._take(line, kept_waiting)

    def _take(self, line: bytes, kept_waiting: bool) -> None:
        self.counts["lines"] += 1
        try:
            t, numbers = _parse(line, f"{self.name}: line {self.counts['lines']}")
        except DataError as error:
            self.counts["bad"] += 1
            if self.counts["bad"] == 1:
                log.warning(f"{error}; it is skipped, and more like it will be without a word: {_start(line)}")
            return
        now = time.monotonic()
        if t is None and kept_waiting:
            return
        came = now if t is None else now - max(0.0, _clock(t) - t)
        if self._newest is None or came >= self._newest[0]:  # datagrams may overtake each other
            self._newest = came, numbers, t is not None


def _parse(line: bytes, where: str) -> tuple[float | None, list[float]]:
    """`t`, if the line has it, and the 8 numbers.

    Raises:
        DataError: no JSON object, no 8 numbers, a time that is to come.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: not JSON") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}")
    numbers = numbers_in(row["telemetry"] if "telemetry" in row else [row.get(name) for name in TELEMETRY], where)
    if row.get("t") is None:
        if all(math.isnan(number) for number in numbers):
            raise DataError(f"{where}: has none of {', '.join(TELEMETRY)}")
        return None, numbers
    t = seconds_in(row, where)
    if t - _clock(t) > AHEAD:
        hint = unit_of_clock(t, time.time()) or "; leave t out where the clocks differ"
        raise DataError(f"{where}: t is {t - _clock(t):.3g} s ahead of this machine's clock{hint}")
    return t, numbers


def _clock(t: float) -> float:
    """Now, on the clock that `t` is of."""
    return time.time() if t > ABSOLUTE else time.monotonic()


def _start(line: bytes) -> str:
    return shown(line[:120].decode("utf-8", "replace").strip())


def _open(source: str) -> "_Pipe | _Port | _File":
    """Where the lines come from: `read` gives what has come, empty where nothing does within a moment."""
    if source == "-":
        return _Pipe()
    return _Port(source) if source.startswith("udp://") else _File(Path(source))


class _Pipe:
    """Standard input."""

    def read(self) -> bytes | None:
        """None where nothing will come any more."""
        if not select.select([sys.stdin], [], [], LONGEST_WAIT)[0]:
            return b""
        return os.read(sys.stdin.fileno(), MOST_AT_ONCE) or None

    def close(self) -> None:
        pass


class _Port:
    """Datagrams: each holds one line or several."""

    def __init__(self, source: str) -> None:
        try:
            address = urlsplit(source)
            host, port = address.hostname, address.port
        except ValueError:
            host = port = None
        if not host or not port:
            raise ConfigError(
                f"--telemetry: {source}: expected udp://HOST:PORT; 127.0.0.1 hears this machine only, 0.0.0.0 all"
            )
        try:
            family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
            try:
                self._socket.bind(where)
            except OSError:
                self._socket.close()
                raise
        except OSError as error:
            raise ConfigError(f"--telemetry: {source}: {(error.strerror or str(error)).lower()}") from None
        self._socket.settimeout(0)

    def read(self) -> bytes:
        if not select.select([self._socket], [], [], LONGEST_WAIT)[0]:
            return b""
        data = b""
        try:
            while len(data) < MOST_AT_ONCE:
                data += self._socket.recv(LONGEST_LINE) + b"\n"
        except BlockingIOError:  # that was all
            pass
        return data

    def close(self) -> None:
        self._socket.close()


class _File:
    """A file that grows; one that is cut or replaced is followed from where it ends then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._follow()
        except OSError as error:
            raise ConfigError(f"--telemetry: {path}: {(error.strerror or str(error)).lower()}") from None

    def _follow(self) -> None:
        """Open it at its end, but for a last line that is being written."""
        file = self._path.open("rb")
        file.seek(max(0, self._path.stat().st_size - LONGEST_LINE))
        begun = file.read().rpartition(b"\n")[2]
        file.seek(-len(begun), os.SEEK_CUR)
        self._file = file

    def read(self) -> bytes:
        if data := self._file.read(MOST_AT_ONCE):
            return data
        time.sleep(LOOK_EVERY)
        try:
            there, ours = self._path.stat(), os.fstat(self._file.fileno())
            if there.st_ino != ours.st_ino or there.st_size < self._file.tell():
                old = self._file
                self._follow()
                old.close()
                return b"\n"  # what was begun there ends there
        except OSError:  # between two files, or moved away: what is open may still grow
            pass
        return b""

    def close(self) -> None:
        self._file.close()
