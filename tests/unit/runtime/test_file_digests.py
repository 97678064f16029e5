"""Which files are read again to know their sha256."""

import hashlib
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from simv0.runtime.file_digests import Record, recorded, sha256_of_files


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files just written count as old."""
    monkeypatch.setattr("simv0.runtime.file_digests.SETTLED", -1.0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, in order."""
    names: list[str] = []
    digest = hashlib.file_digest

    def watched(stream: Any, kind: Any) -> Any:
        names.append(Path(stream.name).name)
        return digest(stream, kind)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    return names


def write(folder: Path, count: int = 5) -> list[Path]:
    files = [folder / f"{i}.jpg" for i in range(count)]
    for i, file in enumerate(files):
        file.write_bytes(i.to_bytes(2) * 50)
    return files


def digests(folder: Path, files: list[Path], verify: bool = False) -> list[str]:
    with recorded(Record(folder / "known" / "train.digests", "train", verify)):
        found = sha256_of_files(files)
    assert found == [hashlib.sha256(file.read_bytes()).digest() for file in files]  # whatever was read or known
    return [digest.hex() for digest in found]


def test_each_file_is_read_once_and_the_changed_ones_again(tmp_path: Path, reads: list[str]) -> None:
    files = write(tmp_path)
    digests(tmp_path, [*files, files[0]])
    assert sorted(reads) == [file.name for file in files]
    reads.clear()
    digests(tmp_path, files[::-1])
    assert reads == []
    files[3].write_bytes(b"x" * 100)
    digests(tmp_path, files)
    assert reads == ["3.jpg"]
    assert os.listdir(tmp_path / "known") == ["train.digests"]  # no lock stays
    reads.clear()
    digests(tmp_path, files, verify=True)
    assert len(reads) == 5


@pytest.mark.parametrize("change", ["in place", "replaced", "copied back"])
def test_a_change_behind_the_same_size_and_time_is_seen(tmp_path: Path, reads: list[str], change: str) -> None:
    """As an editor that keeps mtime, or rsync -t, leaves it: no program can set ctime back."""
    files = write(tmp_path)
    digests(tmp_path, files)
    reads.clear()
    was = files[2].stat()
    time.sleep(0.02)  # more than the clock of a file system needs to go on
    if change == "in place":
        files[2].write_bytes(b"y" * 100)
    else:
        other = tmp_path / "other"
        other.write_bytes(b"y" * 100)
        os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
        if change == "replaced":
            other.replace(files[2])
        else:
            shutil.copy2(other, files[2])
    os.utime(files[2], ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (files[2].stat().st_size, files[2].stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    digests(tmp_path, files)
    assert reads == ["2.jpg"]


def test_a_file_touched_just_before_it_was_read_is_not_trusted(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write within the same tick of the file system's clock would leave the same times."""
    monkeypatch.setattr("simv0.runtime.file_digests.SETTLED", 2.0)
    files = write(tmp_path)
    os.utime(files[0], (1, 1))  # an old mtime alone does not make it old
    digests(tmp_path, files)
    digests(tmp_path, files)
    assert len(reads) == 10


def test_a_copy_of_the_data_is_read_once_and_kept(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "a").mkdir()
    files = write(tmp_path / "a")
    first = digests(tmp_path, files)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copies = [tmp_path / "b" / file.name for file in files]
    reads.clear()
    assert digests(tmp_path, copies) == first
    assert digests(tmp_path, copies) == first
    assert len(reads) == 5


def test_a_record_keeps_only_what_was_asked_for(tmp_path: Path, reads: list[str]) -> None:
    files, record = write(tmp_path), tmp_path / "known" / "train.digests"
    digests(tmp_path, files[:3])
    size = record.stat().st_size
    for content in (b"a", b"b", b"c"):
        files[1].write_bytes(content)
        digests(tmp_path, files[:3])
        assert record.stat().st_size == size
    with recorded(Record(record, "train")):  # one dataset may ask several times
        sha256_of_files(files[:3])
        sha256_of_files(files[3:])
    reads.clear()
    digests(tmp_path, files)
    assert reads == []
    digests(tmp_path, files[3:])
    assert reads == []
    assert record.stat().st_size < size


@pytest.mark.parametrize("damage", [b"", b"simv0 file digests 1\n", None])
def test_a_damaged_record_is_read_anew(tmp_path: Path, reads: list[str], damage: bytes | None) -> None:
    files, record = write(tmp_path), tmp_path / "known" / "train.digests"
    digests(tmp_path, files)
    data = bytearray(record.read_bytes())
    data[-1] ^= 1
    record.write_bytes(bytes(data) if damage is None else damage)
    digests(tmp_path, files)
    assert len(reads) == 10


def test_a_stopped_reading_keeps_what_it_has_read(tmp_path: Path, reads: list[str]) -> None:
    files = write(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError), recorded(Record(tmp_path / "known" / "train.digests", "train")):
        sha256_of_files([*files[:2], tmp_path / "folder"])
    with recorded(Record(tmp_path / "known" / "train.digests", "train")):
        sha256_of_files(files[:2])
    assert sorted(reads) == ["0.jpg", "1.jpg"]


def test_a_folder_that_cannot_be_written_costs_reading_again(tmp_path: Path, reads: list[str]) -> None:
    files = write(tmp_path)
    (tmp_path / "known").write_text("a file where the folder would be")
    digests(tmp_path, files)
    digests(tmp_path, files)
    assert len(reads) == 10


def _count(folder: str, files: list[Path], counts: Any) -> None:
    reads = 0
    digest = hashlib.file_digest

    def watched(stream: Any, kind: Any) -> Any:
        nonlocal reads
        reads += 1
        return digest(stream, kind)

    hashlib.file_digest = watched  # in a process of its own
    with recorded(Record(Path(folder) / "known" / "train.digests", "train")):
        sha256_of_files(files)
    counts.put(reads)


def test_several_processes_read_each_file_once_among_them(tmp_path: Path) -> None:
    files = write(tmp_path, 300)
    fork = multiprocessing.get_context("fork")
    counts = fork.Queue()
    workers = [fork.Process(target=_count, args=(str(tmp_path), files, counts)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert sorted(counts.get(timeout=60) for _ in workers) == [0, 0, 300]
    for worker in workers:
        worker.join()
