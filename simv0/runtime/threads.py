"""CPU threads: as many as the work pays for, and none that waits for another at every operation.

An operation cut over two threads ends with a barrier, thousands of times a second, and where another program takes one
of the two cores, each barrier waits for it. So where a batch can be cut instead, each thread takes rows of the batch
through the whole network by itself, and they meet once. What is too small for that runs on one thread, which is faster
on a quiet machine too. The cuts do not depend on the number of threads, so neither do the bits, up to a thread a piece.
"""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from simv0.errors import ConfigError
from simv0.runtime import waiting

log = logging.getLogger("simv0")

MOST = 1024
"""A larger number of threads is surely a typo."""

_shared_out: int | None = None
"""Threads that the networks may use while `sharing` is on; None: torch's own way, each operation by itself."""
_pools: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a child has none of the threads


def check_threads(threads: Any, name: str) -> None:
    """Refuse an implausible number of threads.

    Raises:
        ConfigError: not 1 to `MOST`.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST):
        raise ConfigError(f"{name}: expected a number of threads from 1 to {MOST}, found {threads!r}")


@contextmanager
def sharing() -> Iterator[None]:
    """For a `with` block on a machine without a GPU: torch's threads are reserved for the frozen networks
    (`over_batch`); everything else runs on one, and so does the backward pass of a network that `over_batch` cannot
    split.
    """
    global _shared_out
    if torch.cuda.is_available() or _shared_out is not None:
        yield
        return
    _shared_out = torch.get_num_threads()
    try:
        with limited_to(1):
            yield
    finally:
        _shared_out = None


def networks_threads() -> int:
    """Threads that a network may use now."""
    return _shared_out or torch.get_num_threads()


@contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """For a `with` block, let torch split an operation over this many threads."""
    before = torch.get_num_threads()
    if threads != before:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads != before:
            torch.set_num_threads(before)


def tell_of_waiting() -> None:
    """Warn once if torch was imported first, where it matters."""
    if not waiting.WAITS_BRIEFLY and torch.get_num_threads() > 1 and not torch.cuda.is_available():
        waiting.WAITS_BRIEFLY = True
        log.info(
            "torch was imported before simv0, so its threads spin while they wait, which is slow where other programs "
            "need the CPU: import simv0 first, or set GOMP_SPINCOUNT=300"
        )


def over_batch(network: Callable[[Tensor], Tensor], x: Tensor, rows: int, *, pays: bool, splits: bool = True) -> Tensor:
    """Run a network whose rows do not depend on each other, `rows` of the batch a thread; gradients flow to x only.

    Args:
        network: [n, ...] -> [n, ...]; its weights are frozen.
        x: [N, ...], on the CPU.
        rows: rows per piece.
        pays: whether a piece is enough work for a thread.
        splits: whether the network may run in several threads at once; else it gets all threads for each operation, on
            the way forward: on the way back, autograd knows only the threads of the caller.
    """
    if _shared_out is None or x.device.type != "cpu" or not pays:
        return network(x)
    if not splits or len(x) <= rows:
        with limited_to(_shared_out):
            return network(x)
    pieces = -(-len(x) // rows)
    workers = min(_shared_out, pieces)
    with limited_to(_shared_out // workers):
        out: Tensor = _Pieces.apply(x, network, rows, _pool(workers))  # type: ignore[no-untyped-call]
        return out


def _pool(workers: int) -> ThreadPoolExecutor:
    if workers not in _pools:
        _pools[workers] = ThreadPoolExecutor(workers, "simv0-batch")
    return _pools[workers]


class _Pieces(torch.autograd.Function):
    """A batch in pieces, forward and back, each piece in one thread."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, network: Callable[[Tensor], Tensor], rows: int, pool: ThreadPoolExecutor
    ) -> Tensor:
        """[N, ...] -> [N, ...]."""
        wanted, within = ctx.needs_input_grad[0], torch.get_num_threads()

        def run(piece: Tensor) -> tuple[Tensor, Tensor]:
            with limited_to(within), torch.set_grad_enabled(wanted):  # both are a thread's own
                piece = piece.detach().requires_grad_(wanted)
                return piece, network(piece)

        ctx.pool, ctx.within = pool, within
        ctx.pieces = list(pool.map(run, torch.split(x, rows)))
        return torch.cat([out.detach() for _, out in ctx.pieces])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of x."""

        def run(piece: tuple[tuple[Tensor, Tensor], Tensor]) -> Tensor:
            (x, out), grad = piece
            with limited_to(ctx.within):
                return torch.autograd.grad(out, x, grad)[0]

        with limited_to(ctx.within):
            grads = ctx.pool.map(run, zip(ctx.pieces, torch.split(grad, [len(x) for x, _ in ctx.pieces]), strict=True))
            return torch.cat(list(grads)), None, None, None
