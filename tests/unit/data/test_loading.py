"""Workers that cannot do their job: one line, and an end."""

import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fit_world import VisFeats
from small_world import MakeConfig

from simv0.config.load import dump_config
from simv0.data import loading
from simv0.data.loading import Turns, make_loader, started
from simv0.errors import DataError

SMALL_SHM = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]


@pytest.fixture
def small_shm() -> list[str]:
    """Runs a command that sees a /dev/shm of 64 kB."""
    try:
        subprocess.run([*SMALL_SHM, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount namespaces here (unshare -m): {error}")
    return SMALL_SHM


class WithFile(VisFeats):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.file = Path(__file__).open()  # noqa: SIM115


def test_a_dataset_that_cannot_be_sent_to_a_worker_is_one_line() -> None:
    dataset = WithFile("x")
    loader = make_loader(dataset, [[0]], list, 1)
    loader.multiprocessing_context = "spawn"  # as on macOS, and on Linux from Python 3.14 on
    with pytest.raises(DataError) as error:
        started(loader)
    assert str(error.value) == (
        "data.num_workers: the dataset cannot be pickled for another process: cannot pickle '_io.TextIOWrapper' object"
        "; open files and create functions in __getitem__, or set data.num_workers=0"
    )
    dataset.file.close()


class Counted:
    """Samples of 10 ms each, whose number all processes see."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.read = turns, multiprocessing.Value("i", 0)

    def __getitem__(self, i: int) -> int:
        self.turns.wait()
        time.sleep(0.01)
        with self.read.get_lock():
            self.read.value += 1
        return i


def test_readers_pause_while_a_batch_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PAUSE", 0.01)  # however long it takes
    dataset = Counted(turns := Turns())
    batches = [list(range(at, at + 10)) for at in range(0, 60, 10)]
    seen: list[list[int]] = []
    for batch in turns.taken(started(make_loader(dataset, batches, list, 2))):
        time.sleep(0.05)  # what has begun is finished
        before = dataset.read.value
        time.sleep(0.1)
        assert dataset.read.value <= before + 2
        seen.append(batch)
    assert seen == batches
    assert dataset.read.value == 60


class Broken(Counted):
    def __getitem__(self, i: int) -> int:
        raise ValueError("broken")


@pytest.mark.parametrize("persistent", [False, True])
def test_an_error_of_a_users_class_ends_the_readers_though_its_traceback_is_kept(persistent: bool) -> None:
    loader = make_loader(Broken(turns := Turns()), [[0], [1]], list, 2, persistent=persistent)
    with pytest.raises(ValueError, match="broken") as error:
        list(turns.taken(started(loader)))
    assert error.tb is not None
    assert multiprocessing.active_children() == []


def test_who_has_no_main_process_alive_does_not_wait_for_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PAUSE", 0.01)
    turns = Turns()
    next(held := turns.taken(iter("ab")))
    turns.wait()
    monkeypatch.setattr(loading, "PAUSE", 60.0)
    held.close()  # as after an error
    turns.wait()


@pytest.mark.parametrize("command", ["cache-vis", "train"])
def test_no_room_in_shared_memory_is_one_line_and_an_end(
    command: str, small_shm: list[str], make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        data={"num_workers": 2, "batch_size": 32},
        cache={"batch_size": 64},
        model={"use_cached_vis_feats": command == "cache-vis"},
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    done = subprocess.run(
        [*small_shm, sys.executable, "-m", "cli", command, "--config", str(tmp_path / "config.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: data.num_workers: a worker cannot hand over a batch of [\d.]+ MB in shared memory \(No space left on "
        r"device \(28\); /dev/shm has 0.\d of 0.1 MB free\); enlarge it \(docker run --shm-size=8g\), or set "
        r"data.num_workers=0\n",
        "".join(line + "\n" for line in done.stderr.splitlines() if line.startswith("error: ")),
    ), done.stderr
    assert "Traceback" not in done.stderr
