"""torch.compile where it pays: each block of the frozen LLM, for the one shape that training runs at.

On CUDA a step at that shape is a thousand launches of kernels of microseconds each, so there the whole stack is also
captured as CUDA graphs, one forward and one back.
"""

import logging
import time
import warnings
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from simv0.fast_llm import disagreement, outputs_of
from simv0.llm import FrozenLLM

log = logging.getLogger("simv0")

LONG_RUN = 1e15
"""Operations of a run from which compiling pays: it takes about a minute and saves about a quarter of the time, which
is at least a quarter of an hour at 1e12 operations per second (2 cores with bf16 matrix units)."""

CAPTURE_TOLERANCE = 0.01
"""Relative difference of the captured stack: the same kernels replayed give 0, a wrong capture gives about 1."""


def compile_llm(
    llm: FrozenLLM, wish: Literal["auto", "on", "off"], *, batch: int, tokens: int, steps: int
) -> float | None:
    """Compile the LLM's blocks for steps of `batch` prefixes of `tokens` vectors; every other call runs uncompiled.

    One shape only, because a shape is then computed in one way, whatever ran before it: a resumed run repeats an
    uninterrupted one exactly. For the same reason `auto` goes by the operations of the whole run, never by a timing.

    Args:
        llm: is changed in place.
        wish: `auto` compiles for runs of at least `LONG_RUN` operations.
        batch: prefixes in a full training batch.
        tokens: vectors in a prefix.
        steps: training steps of the whole run.

    Returns:
        Seconds it took; None where the blocks stay uncompiled: not worth it, not wished, weights split over processes,
        or no C++ compiler (that is said).
    """
    weights = sum(weight.numel() for weight in llm.parameters() if weight.ndim > 1)
    if llm.sharded or not worth_compiling(wish, weights, batch * tokens * steps):
        return None
    started = time.perf_counter()
    device = next(llm.parameters()).device
    generator = torch.Generator().manual_seed(0)  # the run's own random numbers are left alone
    x = (torch.randn(batch, tokens, llm.d, generator=generator).to(device) * llm.embed_rms).requires_grad_()
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's compiler trips over torch's own deprecations
            for block in llm.blocks():
                block.compile(dynamic=False)
            llm.compiled_for = (batch, tokens)
            torch.autograd.grad(llm(x).sum(), x)
    except Exception as error:  # a compiler that is missing or broken can fail in any way
        llm.compiled_for = (0, 0)
        log.warning("the LLM cannot be compiled here and runs as it is: %s", " ".join(str(error).split())[:200])
        return None
    if device.type == "cuda":
        capture(llm, x)
    return time.perf_counter() - started


def capture(llm: FrozenLLM, x: Float[Tensor, "B T d"]) -> None:
    """Capture the stack for prefixes of x's shape; it stays uncaptured, and that is said, where the graphs cannot be
    made or do not give what the stack gives, outputs and input gradients.
    """
    try:
        expected = outputs_of(llm.stack, x)
        graphs: Any = torch.cuda.make_graphed_callables(lambda x: llm.stack(x), (x,))  # a module would be changed
        error = disagreement(graphs, expected, x)
    except Exception as fault:  # a kernel that may not be captured can fail in any way
        log.warning("the LLM cannot be captured as CUDA graphs: %s", " ".join(str(fault).split())[:200])
        return
    if error <= CAPTURE_TOLERANCE:
        llm.captured = graphs
    else:
        log.warning("the LLM captured as CUDA graphs differs by %.1e and runs uncaptured", error)


def worth_compiling(wish: Literal["auto", "on", "off"], weights: int, vectors: int) -> bool:
    """What `training.compile` comes to.

    Args:
        wish: `auto` compiles for runs of at least `LONG_RUN` operations.
        weights: of the LLM's matrices.
        vectors: that pass through them in the whole run.
    """
    operations = 4.0 * weights * vectors  # multiply and add, forward and backward
    return wish == "on" or (wish == "auto" and operations >= LONG_RUN)
