"""CUDA graphs: a stack's launches for one shape of prefixes, recorded once and replayed as one."""

import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from simv0.llm.fast import outputs_of, relative_error

log = logging.getLogger("simv0")

StackFn = Callable[[Tensor], Tensor]

CAPTURE_TOLERANCE = 0.01
"""Relative difference of the captured stack: the same kernels replayed give 0, a wrong capture gives about 1."""


def captured(stack: StackFn, x: Float[Tensor, "B T d"]) -> StackFn | None:
    """Capture the stack for prefixes of x's shape as CUDA graphs: one forward and, if x requires gradients, one
    backward.

    None, with a line in the log, if they cannot be captured or disagree with the stack. With gradients, each call
    overwrites what the one before returned.
    """
    # Not on x itself, whose results the graphs hold from the capture, whether they compute anything or not.
    other = (torch.roll(x.detach(), 1, -1) * 0.5).requires_grad_(x.requires_grad)

    def results(of: StackFn) -> tuple[Tensor, ...]:
        return outputs_of(of, other) if x.requires_grad else (of(other),)

    try:
        # On x's device, and back on its stream when a capture fails half-way: torch itself then stays on the capture's.
        with torch.cuda.stream(torch.cuda.current_stream(x.device)), warnings.catch_warnings(action="ignore"):
            expected = results(stack)
            graphs: Any = torch.cuda.make_graphed_callables(lambda x: stack(x), (x,))  # a module would be changed
            error = relative_error(results(graphs), expected)
    except Exception as fault:  # a kernel that may not be captured can fail in any way
        log.warning("the LLM cannot be captured as CUDA graphs: %s", " ".join(str(fault).split())[:200])
        return None
    if not error <= CAPTURE_TOLERANCE:
        log.warning("the LLM captured as CUDA graphs differs by %.1e and runs uncaptured", error)
        return None
    if x.requires_grad:
        return graphs  # type: ignore[no-any-return]
    lock = threading.Lock()

    def alone(x: Tensor) -> Tensor:
        with lock:  # two callers at once would share one buffer
            return graphs(x).clone()  # type: ignore[no-any-return]

    return alone
