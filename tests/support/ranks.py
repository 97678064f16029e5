"""Several processes that work on one run, forked so that each starts at once."""

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from simv0.errors import SimError

LIMIT = 60
"""Seconds until processes that wait for each other are given up."""


def on_ranks(world: int, work: Callable[[], None], said: Path | None = None) -> list[int]:
    """Run `work` in `world` processes; their exit codes (negative: the signal), and SimErrors as lines of `said`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(rank, world, port, work, said) for rank in range(world)]
    return wait_for(children)


def wait_for(children: list[int]) -> list[int]:
    """Exit codes of child processes; AssertionError if one hangs."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT
    while len(codes) < len(children) and time.monotonic() < deadline:
        for child in set(children) - codes.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)  # looked at again and again, so that one that hangs ends at the deadline
    for child in set(children) - codes.keys():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(codes) == len(children), f"{len(children) - len(codes)} processes hung"
    return [codes[child] for child in children]


@contextmanager
def running_child() -> Iterator[None]:
    """For a `with` block, a forked child that has begun to run and does nothing."""
    running, ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready, b"x")
        signal.pause()
        os._exit(0)
    try:
        os.read(running, 1)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(running)
        os.close(ready)


def _fork(rank: int, world: int, port: int, work: Callable[[], None], said: Path | None) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        torch.set_num_threads(torch.get_num_threads())  # remakes torch's pool after the fork, before threads race
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work()
        assert not dist.is_initialized(), "the group was not left"
        code = 0
    except SimError as error:
        code = error.exit_code
        if said is not None:
            with said.open("a") as file:
                file.write(f"{rank}: {error}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
    raise AssertionError
