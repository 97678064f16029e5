"""torch.compile where it pays, and CUDA graphs: the frozen LLM sped up for the one shape that training uses.

On CUDA a step at that shape is two thousand launches of kernels of microseconds each, so there the whole stack is
captured as CUDA graphs, one forward and one back, whether its blocks are compiled or not.
"""

import logging
import time
import warnings
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from simv0.llm.frozen import FrozenLLM

log = logging.getLogger("simv0")

LONG_RUN = 1e15
"""Operations of a run from which compiling pays: it takes about a minute and saves about a quarter of the time, which
is at least a quarter of an hour at 1e12 operations per second (2 cores with bf16 matrix units)."""


def compile_llm(
    llm: FrozenLLM,
    wish: Literal["auto", "on", "off"],
    *,
    batch: int,
    tokens: int,
    steps: int,
    first: Float[Tensor, " d"] | None = None,
) -> float | None:
    """Speed up the LLM for steps of `batch` prefixes of `tokens` vectors; every other call runs as it did.

    One shape only, because a shape is then computed in one way, whatever ran before it: a resumed run repeats an
    uninterrupted one exactly. For the same reason `auto` goes by the operations of the whole run, never by a timing.
    CUDA graphs replay the same kernels, so they are made for every run on CUDA, unless `wish` is `off`.

    Args:
        llm: is changed in place.
        wish: `auto` compiles for runs of at least `LONG_RUN` operations.
        batch: prefixes in a full training batch.
        tokens: vectors in a prefix.
        steps: training steps of the whole run.
        first: the vector that every prefix begins with, one of the `tokens`.

    Returns:
        Seconds that compiling took; None where the blocks stay uncompiled: not worth it, not requested, weights split
        over processes, or no C++ compiler (which is logged).
    """
    if llm.sharded or wish == "off":
        return None
    weights = sum(weight.numel() for weight in llm.parameters() if weight.ndim > 1)
    device = next(llm.parameters()).device
    generator = torch.Generator().manual_seed(0)  # the run's own random numbers are left alone
    x = (torch.randn(batch, tokens, llm.d, generator=generator).to(device) * llm.embed_rms).requires_grad_()
    seconds = compile_blocks(llm, x, first) if worth_compiling(wish, weights, batch * tokens * steps) else None
    if device.type == "cuda":
        llm.capture(x)
    return seconds


def compile_blocks(llm: FrozenLLM, x: Float[Tensor, "B T d"], first: Float[Tensor, " d"] | None = None) -> float | None:
    """Compile the blocks for prefixes of x's shape, with gradients: the seconds it took, None where it cannot be."""
    started = time.perf_counter()
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's compiler trips over torch's own deprecations
            for block in llm.blocks():
                block.compile(dynamic=False)
            llm.compiled_for = (len(x), x.shape[1])
            torch.autograd.grad(llm(x, first).sum(), x)
    except Exception as error:  # a compiler that is missing or broken can fail in any way
        llm.compiled_for = (0, 0)
        log.warning("the LLM cannot be compiled here and runs uncompiled: %s", " ".join(str(error).split())[:200])
        return None
    return time.perf_counter() - started


def worth_compiling(wish: Literal["auto", "on", "off"], weights: int, vectors: int) -> bool:
    """What `training.compile` resolves to.

    Args:
        wish: `auto` compiles for runs of at least `LONG_RUN` operations.
        weights: of the LLM's matrices.
        vectors: that pass through them in the whole run.
    """
    operations = 4.0 * weights * vectors  # multiply and add, forward and backward
    return wish == "on" or (wish == "auto" and operations >= LONG_RUN)
