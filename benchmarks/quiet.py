"""Timings that know whether another process was on the cores, and that wait for what a GPU still has to do."""

import os
import time
from collections.abc import Callable

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the benchmarks run."""

_TICKS = os.sysconf("SC_CLK_TCK")


def measure(work: Callable[[], object], patience: float) -> tuple[float, bool]:
    """Wait (up to `patience` seconds) for a quiet machine, then time `work`: its seconds, and whether it had the
    machine to itself. Tried twice if there is patience.
    """
    for _ in range(2 if patience else 1):
        _wait(patience)
        synchronize()
        others, started = _others(), time.perf_counter()
        work()
        synchronize()
        seconds = time.perf_counter() - started
        if clean := _others() - others < 0.02 + 0.05 * seconds:
            break
    return seconds, clean


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _others() -> float:
    """Core seconds that all other processes have used since the start of the machine."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _wait, *rest = (int(field) / _TICKS for field in stat.readline().split()[1:9])
    own = os.times()
    return user + nice + system + sum(rest) - sum(own[:4])


def _wait(patience: float) -> None:
    give_up = time.perf_counter() + patience
    while time.perf_counter() < give_up:
        before = _others()
        time.sleep(0.2)
        if _others() - before < 0.03:
            return
