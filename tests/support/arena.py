"""A cache under attack: runs that can be killed, and the checks after each blow."""

import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from cache_world import make_world
from strikes import after_writing

from cache.pipeline import cache_vis
from simv0.config.schema import Config
from simv0.errors import SimError
from simv0.features.reader import read_features
from simv0.features.shards import parts_of

DEADLINE = 60
"""Seconds after which a run counts as hanging."""


class Run:
    """One forked `cache_vis`: what it reported, how it ended."""

    def __init__(self, config: Config, prepare: Callable[[], None] = lambda: None, stopped: bool = False) -> None:
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.reader)
            os._exit(self._child(config, writer, prepare, stopped))
        os.close(writer)
        self.started = time.monotonic()
        if stopped:
            os.waitpid(self.pid, os.WUNTRACED)

    @staticmethod
    def _child(config: Config, pipe: int, prepare: Callable[[], None], stopped: bool) -> int:
        os.set_inheritable(pipe, True)

        def report(count: int, record: Path) -> None:
            shard = int(record.stem.removeprefix("shard-"))
            os.write(pipe, f"done {record.parent.name} {shard}\n".encode())

        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        try:
            prepare()
            if stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            with after_writing("shard-*.json", report):
                cache_vis(config)
        except SimError as error:
            os.write(pipe, f"error {error}\n".encode())
            return 1
        except BaseException:
            os.write(pipe, f"bug {traceback.format_exc()}\n".encode())
            return 70
        return 0

    def end(self, *, kill: bool = False) -> "Run":
        """Wait for the end, or bring it about; then `status`, `done`, `errors` are known."""
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() - self.started < DEADLINE, "hangs"
            time.sleep(0.002)  # looked at again and again, so that one that hangs ends at the deadline
        self.status = os.waitstatus_to_exitcode(found[1])
        with os.fdopen(self.reader, "rb") as file:
            os.set_blocking(file.fileno(), False)  # an orphaned loader worker may hold the other end
            text = (file.read() or b"").decode()
        assert "bug " not in text, text
        self.done = [(name, int(shard)) for name, shard in re.findall(r"^done (\S+) (\d+)$", text, re.MULTILINE)]
        self.errors = re.findall(r"^error (.*)", text, re.MULTILINE)
        assert self.status in (0, 1, -signal.SIGKILL), f"ended with {self.status}: {text}"
        return self


class Arena:
    """A small world, the files an unbroken run makes of it, and the checks after each blow."""

    def __init__(self, folder: Path, windows: int, shard_windows: int) -> None:
        self.folder = folder
        self.config = make_world(folder, windows, shard_windows=shard_windows)
        Run(self.config).end()
        self.truth = {name: (folder / "cache" / name).read_bytes() for name in ("train.h5", "val.h5")}
        self.at(folder / "attacked")

    def at(self, folder: Path) -> None:
        """Attack a cache in this folder from now on, which is emptied."""
        shutil.rmtree(folder, ignore_errors=True)
        self.reported: set[tuple[str, int]] = set()
        self.dir = folder
        self.config = self.config.model_copy(
            update={"cache": self.config.cache.model_copy(update={"dir": str(folder)})}
        )

    def check(self, run: Run) -> None:
        """After a run: nothing that was ever reported is lost, nothing reported twice, no final name on half a file."""
        again = self.reported & set(run.done)
        assert not again, f"{again} were done twice"
        self.reported |= set(run.done)
        for name, truth in self.truth.items():
            final = self.dir / name
            if final.exists():
                assert final.read_bytes() == truth, f"{name} differs"
                continue
            parts = parts_of(final)
            for folder, shard in self.reported:
                if folder == parts.folder.name:
                    assert parts.record(shard), f"{folder}: the record of shard {shard} is lost"
                    assert read_features(parts.shard_path(shard)).bad_blocks() == [], f"shard {shard} is damaged"

    def finish(self) -> None:
        """Run undisturbed: the files must be those of an unbroken run, and alone."""
        run = Run(self.config).end()
        assert run.status == 0, run.errors
        self.check(run)
        files = [path for path in self.dir.iterdir() if path.name != "known"]  # the record of what has been read
        assert {path.name: path.read_bytes() for path in files} == self.truth, sorted(self.dir.iterdir())
