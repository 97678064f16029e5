"""Systems that are not Linux."""

import subprocess
import sys

import pytest

WINDOWS = """
import importlib.abc, os, sys
if "torch" in sys.argv:  # Linux's torch needs what is taken away
    import torch

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in ("fcntl", "resource"):
    sys.modules.pop(name, None)
for name in ("register_at_fork", "sched_getaffinity", "sysconf"):
    delattr(os, name)
"""


def without_posix(code: str, *before: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WINDOWS + code, *before], capture_output=True, text=True)


@pytest.mark.parametrize("command", ["check", "cache-vis", "train"])
def test_on_windows_a_command_says_what_it_needs(command: str) -> None:
    done = without_posix(f"from cli.main import app; app([{command!r}, '--config', 'none.yaml'])")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: simv0 needs Linux or macOS (there is no fcntl here); on Windows, use WSL2\n"


def test_on_windows_help_and_the_library_that_a_robot_imports_work() -> None:
    done = without_posix("from cli.main import app; app(['--help'])")
    assert (done.returncode, done.stderr) == (0, "")
    assert "cache-vis" in done.stdout
    done = without_posix("import simv0.predict, simv0.stream; print('imported')", "torch")
    assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr
