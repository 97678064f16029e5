"""CUDA graphs: a stack's launches for one shape of prefixes, recorded once and replayed as one."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from simv0.fast_llm import outputs_of, relative_error

log = logging.getLogger("simv0")

Stack = Callable[[Tensor], Tensor]

CAPTURE_TOLERANCE = 0.01
"""Relative difference of the captured stack: the same kernels replayed give 0, a wrong capture gives about 1."""


def captured(stack: Stack, x: Float[Tensor, "B T d"]) -> Stack | None:
    """The stack for prefixes of x's shape as CUDA graphs: one forward and, where x asks for gradients, one back.

    None, and that is said, where the graphs cannot be made or do not give what the stack gives. With gradients, what a
    call returns is overwritten by the next one.
    """

    def results(of: Stack) -> tuple[Tensor, ...]:
        return outputs_of(of, x) if x.requires_grad else (of(x),)

    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of its own capturing
            expected = results(stack)
            graphs: Any = torch.cuda.make_graphed_callables(lambda x: stack(x), (x,))  # a module would be changed
            error = relative_error(results(graphs), expected)
    except Exception as fault:  # a kernel that may not be captured can fail in any way
        log.warning("the LLM cannot be captured as CUDA graphs: %s", " ".join(str(fault).split())[:200])
        return None
    if not error <= CAPTURE_TOLERANCE:
        log.warning("the LLM captured as CUDA graphs differs by %.1e and runs uncaptured", error)
        return None
    return graphs if x.requires_grad else lambda x: graphs(x).clone()
