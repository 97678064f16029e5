"""`data.num_workers: auto`: how many processes read, and what keeps them from it."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from simv0.data import workers
from simv0.data.workers import Readers, cores, enough, workers_for
from simv0.data.wrapped import unwrapped

FRAMES = torch.arange(24, dtype=torch.uint8).view(1, 3, 2, 4)
MAIN = os.getpid()


class Slow:
    """Frames that take 50 ms each."""

    split = "train"

    def __init__(self, dataset: Any = None) -> None:
        self.dataset = dataset

    def pictures(self, unit: int) -> Tensor:
        time.sleep(0.05)
        return FRAMES


class FailsElsewhere(Slow):
    def pictures(self, unit: int) -> Tensor:
        if os.getpid() != MAIN:
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")
        return super().pictures(unit)


class OthersElsewhere(Slow):
    def pictures(self, unit: int) -> Tensor:
        return super().pictures(unit) + (os.getpid() != MAIN)


class HoldsAFile(Dataset[Any]):
    def __init__(self, file: Any) -> None:
        self.file = file

    def __len__(self) -> int:
        return 1

    def frame_ids(self, i: int) -> list[int]:
        return [i]


@pytest.fixture
def chosen(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Readers, str]]:
    """(The number, what was said) on four cores, where a frame takes 20 ms to encode."""
    monkeypatch.setattr(workers, "cores", lambda: 4)

    def choose(source: Any, units: int = 100, wanted: Any = "auto", on_cpu: bool = False) -> tuple[Readers, str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "simv0"):
            return workers_for(wanted, source, range(units), lambda: 0.02, 8, on_cpu=on_cpu), caplog.text

    return choose


def test_as_many_as_keep_pace_with_the_encoder_and_no_more_than_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 4)
    assert [enough(read, 0.01) for read in (0.001, 0.0101, 0.02, 0.03, 1.0)] == [1, 2, 2, 3, 4]
    monkeypatch.undo()
    usable = len(os.sched_getaffinity(0))
    monkeypatch.setattr(workers, "QUOTA", tmp_path / "cpu.max")
    assert cores() == usable
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores() == usable
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cores() == 1
    (tmp_path / "cpu.max").unlink()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * usable))
    assert cores() == 1


def test_auto_measures_and_says_what_it_found(chosen: Callable[..., tuple[Readers, str]]) -> None:
    readers, said = chosen(Slow())
    assert readers == (3, False)
    assert "20 ms to encode; processes that read ahead: 3 (data.num_workers: auto)" in said
    assert chosen(Slow(), units=5) == ((0, False), "")  # read sooner than a worker has started
    assert chosen(Slow(), units=0) == ((0, False), "")
    assert chosen(FailsElsewhere(), wanted=2) == ((2, False), "")


def test_readers_on_the_encoders_cores_take_turns_with_it_unless_they_only_wait(
    chosen: Callable[..., tuple[Readers, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(Slow(), on_cpu=True)[0] == (3, False)  # a network, say: waiting takes no core from the encoder
    monkeypatch.setattr(workers.time, "process_time", time.perf_counter)  # as if it were work
    readers, said = chosen(Slow(), on_cpu=True)
    assert readers == (4, True)
    assert "processes that read ahead: 4, in turns with the encoder (data.num_workers: auto)" in said
    assert chosen(Slow())[0] == (3, False)


def test_a_dataset_that_other_processes_cannot_read_is_read_in_this_one(
    chosen: Callable[..., tuple[Readers, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = "data.num_workers: auto reads in this process alone: "
    with Path(__file__).open() as file:
        readers, said = chosen(Slow(dataset={"file": file}))
        parts = unwrapped(ConcatDataset([HoldsAFile(file), HoldsAFile(file)]))
        readers_of_parts, said_of_parts = chosen(Slow(dataset=parts))
    assert readers == readers_of_parts == (0, False)
    for each in (said, said_of_parts):
        assert here + "the dataset cannot be pickled for another process: cannot pickle '_io.TextIOWrapper'" in each
    assert chosen(Slow(dataset=unwrapped(ConcatDataset([HoldsAFile(None)]))))[0].number == 3
    readers, said = chosen(FailsElsewhere())
    assert readers.number == 0
    assert here + "a worker failed: RuntimeError: Cannot re-initialize CUDA in forked subprocess" in said
    readers, said = chosen(OthersElsewhere())
    assert readers.number == 0
    assert here + "another process reads other frames" in said
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: type("Full", (), {"free": 100}))
    readers, said = chosen(Slow())
    assert readers.number == 0
    assert here + "no room in /dev/shm (docker run --shm-size=8g)" in said
