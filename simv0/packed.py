"""Weights in the blocks that oneDNN multiplies by, for a robot's step: a handful of token vectors at a time.

Plain bf16 weights are re-ordered at every product. At 384 rows that costs some 5 %, at 6 rows more than the product
itself. Packed weights have no backward product, so they are for prediction only; the results are the same to the bit.
"""

import logging

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

log = logging.getLogger("simv0")


class PackedLinear(nn.Module):
    """A bf16 linear layer on the CPU whose weight is packed; forward only."""

    weight: Tensor

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.register_buffer("weight", packed, persistent=False)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*B k"]) -> Float[Tensor, "*B n"]:
        """Product and bias."""
        assert not (torch.is_grad_enabled() and x.requires_grad), "packed weights are for prediction only"
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


@torch.no_grad()
def pack_linears(module: nn.Module, rows: int) -> bool:
    """Pack the bf16 linear layers on the CPU within `module`, one by one, so that no two copies of a model are held.

    Args:
        module: is changed in place.
        rows: token vectors that a product will mostly have; any number works.

    Returns:
        Whether it was done: not on other devices, in other types, or where this PyTorch cannot.
    """
    names = [name for name, child in module.named_modules() if type(child) is nn.Linear]
    for name in names:
        linear = module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        weight = linear.weight
        if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
            return False
        if name == names[0] and not _works(linear, rows):
            return False
        module.set_submodule(name, PackedLinear(linear, rows))
    return bool(names)


def _works(linear: nn.Linear, rows: int) -> bool:
    """Try one layer against the plain product: the operators are not part of PyTorch's promises."""
    x = torch.randn(rows, linear.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        packed, plain = PackedLinear(linear, rows)(x).float(), F.linear(x, linear.weight, linear.bias).float()
    except Exception as error:  # an operator that is missing or has changed can fail in any way
        log.info("the LLM's weights stay unpacked: %s", " ".join(str(error).split())[:200])
        return False
    return float((packed - plain).norm() / plain.norm()) < 0.01
