"""sha256 of many files, each read once: a record beside the features says which files have been read.

A file is taken for the one that was read if its path, size, inode and both its times (content, mtime; inode, ctime) are
the same. No program can set ctime, so restored times and equal sizes do not hide a change. A file that was touched
within `SETTLED` seconds before it was read is not recorded: a later write could carry the same times.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from simv0.disk.files import replacing
from simv0.disk.locks import FileLock
from simv0.errors import SimError

SETTLED = 2.0
"""Seconds: the coarsest clock of a file system."""
MAGIC = b"simv0 file digests 1\n"
KEY, DIGEST = 16, 32
READERS = 8
"""Threads that read: they wait for the disk or compute a digest, both without Python's lock."""


class Record:
    """What is known of files, by their fingerprint; on disk if its folder can be written, else for this process.

    Args:
        path: of the record.
        title: of the progress while files are read.
        verify: begin without what the record says.
    """

    def __init__(self, path: Path, title: str, verify: bool = False) -> None:
        self.path, self.title, self.verify = path, title, verify
        self.known: dict[bytes, bytes] = {}
        self.unsettled: set[bytes] = set()
        self.seen: set[bytes] = set()

    def digests(self, files: Sequence[Path]) -> list[bytes]:
        """The sha256 of each file; those that are not known are read, by one process at a time."""
        self._load()
        found = {file: self._known(file) for file in files}
        if None in found.values():
            with self._locked():
                self._load()  # another process may have read them meanwhile
                found |= {file: self._known(file) for file, digest in found.items() if digest is None}
                found |= self._read([file for file, digest in found.items() if digest is None])
        return [digest for digest in map(found.get, files) if digest is not None]

    def _known(self, file: Path) -> bytes | None:
        key = fingerprint(file, file.stat())
        self.seen.add(key)
        return self.known.get(key)

    def forget_others(self) -> None:
        """Drop files that were not asked for: gone, changed, or of other data. Else a record would only grow."""
        if not self.known.keys() <= self.seen:
            self.known = {key: digest for key, digest in self.known.items() if key in self.seen}
            self._save()

    def _read(self, files: list[Path]) -> dict[Path, bytes]:
        from simv0.runtime.progress import progress_of

        found: dict[Path, bytes] = {}
        with progress_of(self.title, len(files), lambda: len(found), unit="files", passing=True) as show:
            try:
                with ThreadPoolExecutor(READERS) as pool:
                    for some in (files[at : at + 256] for at in range(0, len(files), 256)):
                        for file, (key, digest, settled) in zip(some, pool.map(_read, some), strict=True):
                            self.known[key] = found[file] = digest
                            self.seen.add(key)
                            if not settled:
                                self.unsettled.add(key)
                            show()
            finally:
                self._save()  # what was read before a Ctrl-C, too
        return found

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.path.with_name(self.path.name + ".lock"))
        with suppress(SimError, OSError):  # a folder that cannot be written: each process reads for itself
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release(remove=True)

    def _load(self) -> None:
        with suppress(OSError):
            data = b"" if self.verify else self.path.read_bytes()
            body = data[len(MAGIC) + DIGEST :]
            if data[: len(MAGIC) + DIGEST] == MAGIC + hashlib.sha256(body).digest():  # else it is damaged: read anew
                rows = range(0, len(body), KEY + DIGEST)
                self.known |= {body[at : at + KEY]: body[at + KEY : at + KEY + DIGEST] for at in rows}

    def _save(self) -> None:
        body = b"".join(key + digest for key, digest in self.known.items() if key not in self.unsettled)
        with suppress(OSError), replacing(self.path) as file:
            file.write(MAGIC + hashlib.sha256(body).digest() + body)


_record: ContextVar[Record | None] = ContextVar("record", default=None)


@contextmanager
def recorded(record: Record) -> Iterator[None]:
    """In a `with` block `sha256_of_files` reads only what this record does not know; what a whole block has asked for
    is what the record keeps.
    """
    token = _record.set(record)
    try:
        yield
    finally:
        _record.reset(token)
    record.forget_others()


def sha256_of_files(files: Sequence[Path]) -> list[bytes]:
    """The sha256 of each file, for a dataset's `content_digest`: files that `cache-vis` has read before, and that have
    not changed since, are not read again.

    Raises:
        OSError: a file cannot be read.
    """
    record = _record.get()
    return record.digests(files) if record is not None else [_read(file)[1] for file in files]


def fingerprint(path: Path, stat: os.stat_result) -> bytes:
    """What another content of the file would change."""
    facts = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    return hashlib.blake2b(os.fsencode(path.absolute()) + b"\0" + facts.encode(), digest_size=KEY).digest()


def is_settled(stat: os.stat_result, now: float) -> bool:
    """Whether the file was last touched so long ago that its times tell a later change."""
    return now - max(stat.st_mtime, stat.st_ctime) > SETTLED


def _read(file: Path) -> tuple[bytes, bytes, bool]:
    """Fingerprint, sha256, and whether the one stands for the other from now on."""
    with file.open("rb") as stream:
        now, before = time.time(), os.fstat(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256").digest()
        after = os.fstat(stream.fileno())
    key = fingerprint(file, before)
    return key, digest, is_settled(before, now) and fingerprint(file, after) == key
