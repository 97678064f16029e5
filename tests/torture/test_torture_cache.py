"""The attacks of torture_cache.py, a few of each; `make torture` runs them all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import running_child

from simv0.errors import SimError


def test_the_cache_survives_a_little_torture() -> None:
    script = Path(__file__).with_name("torture_cache.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if os.access("/dev/shm", os.W_OK):  # where syncing takes no time; `make torture` uses a real disk
        environment["TMPDIR"] = "/dev/shm"
    run = subprocess.run(
        [sys.executable, str(script), "--size", "ci"], capture_output=True, text=True, env=environment, timeout=240
    )
    assert run.returncode == 0, run.stdout + run.stderr
    results = {line["attack"]: line for line in map(json.loads, run.stdout.splitlines())}
    assert results["kills"]["kills"] >= 4
    assert results["short_writes"]["short writes noticed"] >= 2
    assert results["mutations"]["refused"] > 50
    for name in ("syscalls", "failing_syscalls", "disk_full"):
        if "skipped" in results[name]:
            print(name, "skipped:", results[name]["skipped"])


@pytest.mark.parametrize("holder_dies", [True, False])
def test_a_lock_ends_with_its_holder(tmp_path: Path, holder_dies: bool) -> None:
    from simv0.disk.locks import FileLock

    code = (
        "import signal, sys; from pathlib import Path; from simv0.disk.locks import FileLock\n"
        "lock = FileLock(Path(sys.argv[1])); lock.acquire(); print('held', flush=True); signal.pause()"
    )
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lock = FileLock(path)
        assert not lock.acquire(wait=False)
        assert not lock.acquire(shared=True, wait=False)
        holder.kill() if holder_dies else path.unlink()
        assert lock.acquire(wait=holder_dies)  # dead: released by the kernel; unlinked: a new file, a new lock
        lock.release(remove=True)
        assert not path.exists()
        holder.kill()


def test_a_worker_that_outlives_its_parent_keeps_no_lock(tmp_path: Path) -> None:
    from simv0.disk.locks import FileLock

    lock = FileLock(tmp_path / "lock")
    lock.acquire()
    with running_child():
        lock.release()  # what the kernel does for a killed process
        assert FileLock(tmp_path / "lock").acquire(wait=False)


def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    from simv0.disk.locks import FileLock

    with pytest.raises(SimError, match=r"nowhere/lock: cannot be created: No such file or directory"):
        FileLock(tmp_path / "nowhere" / "lock").acquire()
