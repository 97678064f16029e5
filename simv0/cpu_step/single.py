"""The fast path for a robot's step: a `FastStack` for one prefix at a time, in one call of compiled code on each core.

Called one by one, the 20 operations of a layer cost a small LLM as much as its products
(docs/design/llm-paths.md). Needs numba.
"""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt16
from torch import Tensor, nn

from simv0.cpu_step.loop import PackedLayers, Workspace, layout, run
from simv0.cpu_step.tiles import LANES, can_widen, pack
from simv0.llm.fast import FastStack, two_layers_of

log = logging.getLogger("simv0")

TOLERANCE = 1e-3
"""Relative difference from the stack in fp32: rounding its weights to fp16 gives 4e-4 of 30 layers, a mistake 1e-2."""

SHARE = 2 * 2**20
"""Bytes of weights from which a thread pays."""

_PRODUCTS = ("qkv", "out", "gate_up", "down")


class SingleStack(nn.Module):
    """A `FastStack` on the CPU for single prefixes of `tokens` vectors, its weights in fp16 and all else in fp32.

    Forward only. Takes the weights out of `stack` layer by layer, so that no two copies of a model are held; all memory
    is asked for before the first is taken, so a stack that does not fit stays whole.
    """

    def __init__(self, stack: FastStack, tokens: int) -> None:
        super().__init__()
        self.dtype, self.weight, self.eps = torch.float32, stack.weight, stack.eps
        (cos, sin), masks = stack._for_length(tokens, torch.device("cpu"), torch.float32)
        layers: list[Any] = list(stack.layers)
        norms = [layer.head_norm.numpy() for layer in layers if layer.head_norm is not None]
        room = {name: _room(layers, name) for name in _PRODUCTS}
        self.whole = PackedLayers(
            **{name: weights for name, (weights, _) in room.items()},
            **{f"{name}_bias": biases for name, (_, biases) in room.items()},
            head_norm=np.stack(norms) if norms else np.zeros((0, 0, 0), np.float32),
            cos=cos.contiguous().numpy(),
            sin=sin.contiguous().numpy(),
            masks=np.stack([masks[window].numpy() for window in stack.windows]),
            eps=float(stack.eps),
        )
        threads = _threads(sum(weights.nbytes for weights, _ in room.values()))
        tiles, rows = layout(tokens)
        self.board = Workspace(
            x=np.zeros((tokens, len(stack.weight)), np.float32),
            qkv=np.zeros((tokens, self.whole.qkv_bias.shape[1]), np.float32),
            out_in=np.zeros(tiles * rows * self.whole.out.shape[2], np.float32),
            down_in=np.zeros(tiles * rows * self.whole.down.shape[2], np.float32),
            counts=np.zeros((5 * len(layers), 2, 8), np.int64),
            share=1 / (2 * threads),
        )
        self.others = threads - 1
        self._begin()
        for name, (weights, biases) in room.items():
            _take(layers, name, weights, biases)

    def _begin(self) -> None:
        self.pool = ThreadPoolExecutor(max(1, self.others), "simv0-step")
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but threads and locks: every copy has its own."""
        return {key: value for key, value in super().__getstate__().items() if key not in ("pool", "lock")}  # type: ignore[no-untyped-call]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With threads and a lock of its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._begin()

    def forward(self, x: Float[Tensor, "B T d"]) -> Float[Tensor, "B d"]:
        """Hidden state of the last position, after the final norm."""
        assert not (torch.is_grad_enabled() and x.requires_grad), "this stack is for prediction only"
        hidden = torch.stack([self._step(prefix) for prefix in x.detach().float()])
        return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.eps) * self.weight

    def _step(self, prefix: Float[Tensor, "T d"]) -> Float[Tensor, " d"]:
        whole, board = self.whole, self.board
        assert len(prefix) == len(board.x), f"made for {len(board.x)} vectors, got {len(prefix)}"
        with self.lock:
            board.x[:] = prefix.numpy()
            board.counts[:] = 0
            helpers = [self.pool.submit(run, whole, board) for _ in range(self.others)]
            run(whole, board)
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
            return torch.from_numpy(board.x[-1].copy())


def single_stack(stack: FastStack, tokens: int) -> SingleStack | None:
    """The stack for single prefixes, where this CPU and these shapes can; None, and why in the log, elsewhere.

    Like the fast path itself it is tried first, on a copy of the first and the last layer.
    """
    without = "the LLM runs without the compiled step: %s"
    if reason := _unsupported_reason(stack):
        log.info(without, reason)
        return None
    started, compiled = time.perf_counter(), _compiled_here()
    try:
        error = _trial(stack, tokens)
    except Exception as failure:  # a compiler can fail in any way
        log.warning(without, f"it does not compile: {' '.join(str(failure).split())[:200]}")
        return None
    if not error <= TOLERANCE:
        log.warning(without, f"it differs from the fast path by {error:.1e}")
        return None
    if _compiled_here() > compiled:
        log.info(f"compiled a robot's step for this CPU in {time.perf_counter() - started:.0f} s")
    try:
        return SingleStack(stack, tokens)
    except (MemoryError, RuntimeError):  # torch's own is a RuntimeError
        if any(getattr(layer, name) is None for layer in stack.layers for name in _PRODUCTS):
            raise  # the stack is no longer whole
        log.warning(without, "out of memory")
        return None


def _threads(weight_bytes: int) -> int:
    """How many threads a step pays for: waking one takes as long as reading half a megabyte."""
    return max(1, min(torch.get_num_threads(), weight_bytes // SHARE))


def _compiled_here() -> int:
    """How many times this process compiled the step rather than reading it from disk."""
    dispatcher: Any = run
    return sum(dispatcher.stats.cache_misses.values())


def _unsupported_reason(stack: FastStack) -> str | None:
    """What about this CPU or these weights the compiled step does not do."""
    layers: list[Any] = list(stack.layers)
    if not can_widen():
        return "no fp16 in this processor's multiplications"
    for layer in layers:
        for name in _PRODUCTS:
            weight = getattr(layer, name).weight
            if len(weight) % (2 * LANES if name == "gate_up" else LANES):
                return f"{name} has {len(weight)} outputs, not a multiple of {LANES}"
            if max(map(abs, torch.stack(weight.aminmax()).tolist())) > torch.finfo(torch.float16).max:
                return "a weight is too large for fp16"
    return None


@torch.no_grad()
def _trial(stack: FastStack, tokens: int) -> float:
    """Disagreement of the two on a random prefix, with two layers in fp32."""
    small = two_layers_of(stack).float()
    small.windows = stack.windows[:1] + stack.windows[1:][-1:]
    for module in [small, *small.layers]:
        module.dtype = torch.float32
    x = torch.randn(1, tokens, len(stack.weight), generator=torch.Generator().manual_seed(0))
    wanted = small(x)
    return float((SingleStack(small, tokens)(x) - wanted).norm() / wanted.norm())


def _room(layers: list[Any], name: str) -> tuple[UInt16[np.ndarray, "L blocks k 16"], Float32[np.ndarray, "L n"]]:
    """Memory for one product's weights and biases (0 where there are none) of all layers."""
    n, k = getattr(layers[0], name).weight.shape
    return np.empty((len(layers), n // LANES, k, LANES), np.uint16), np.zeros((len(layers), n), np.float32)


@torch.no_grad()
def _take(
    layers: list[Any], name: str, weights: UInt16[np.ndarray, "L blocks k 16"], biases: Float32[np.ndarray, "L n"]
) -> None:
    """Move one product's weights and biases out of all layers, which cannot be run from then on."""
    for i, layer in enumerate(layers):
        linear = getattr(layer, name)
        weight, bias = linear.weight, linear.bias
        if name == "gate_up":  # a block of the gate, then the block of `up` that it is multiplied with
            order = torch.arange(len(weight)).view(2, -1, LANES).transpose(0, 1).flatten()
            weight, bias = weight[order], bias if bias is None else bias[order]
        weights[i] = pack(weight)
        if bias is not None:
            biases[i] = bias.float().numpy()
        setattr(layer, name, None)  # not an Identity, which a half-emptied stack would run through
