"""Speed up loaded networks for a robot's step: one window at a time, no gradients. Only `Predictor` calls this."""

import logging

import torch
from torch import nn

from simv0.cpu_step.packed import pack_linears, pack_tower
from simv0.llm.fast import FastStack
from simv0.llm.frozen import FrozenLLM
from simv0.vision.encoder import Encoder

log = logging.getLogger("simv0")


@torch.inference_mode(False)  # what is captured outlives the call, whatever the caller has switched off
def prepare_llm(llm: FrozenLLM, tokens: int, sixteen_bit: bool = True) -> bool:
    """Speed up single prefixes of `tokens` vectors where possible; there are no gradients from then on.

    On CUDA the stack is captured. On a CPU the fast path's weights are held in 16 bit, which this returns, unless
    `sixteen_bit` is false: in one compiled loop (`single.py`) where numba is installed, else packed for one product
    after the other (`packed.py`).
    """
    device, stack = next(llm.parameters()).device, llm.stack
    if isinstance(stack, FastStack):
        stack.predicting = True
    if device.type != "cpu":
        x = torch.randn(1, tokens, llm.d, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            llm.capture(x.to(device))
    elif isinstance(stack, FastStack) and sixteen_bit:
        if single := _compiled_step(stack, tokens):
            llm.stack = single
            return True
        return pack_linears(stack, tokens)
    return False


def prepare_encoder(encoder: Encoder) -> bool:
    """Store the tower's linear layers in 16 bit where that speeds up single images: on a CPU, computing in fp32, with
    few tokens an image. Returns whether it did.
    """
    if encoder.mean.device.type != "cpu" or encoder.dtype is not torch.float32:
        return False
    x = torch.randn(1, 3, *encoder.image_size, generator=torch.Generator().manual_seed(0))
    return pack_tower(encoder.visual, x)


def _compiled_step(stack: FastStack, tokens: int) -> nn.Module | None:
    try:
        from simv0.cpu_step.single import single_stack
    except (ImportError, RuntimeError) as error:  # no numba; or it finds no place to keep what it compiles
        log.debug("no compiled step: %s", error)
        return None
    return single_stack(stack, tokens)
