"""Weights laid out for a robot's step on a CPU: a handful of token vectors at a time, forward only.

Where a CPU multiplies bf16, the weights go into the blocks of oneDNN: plain ones are re-ordered at every product, which
at 6 rows costs more than the product itself. Elsewhere the weights of an fp32 stack are held in fp16, in the panels of
FBGEMM, which widens them as it multiplies fp32 by them: half the bytes to read, and rows enough for its kernel. The
sizes and times are in docs/streams.md.
"""

import logging

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

log = logging.getLogger("simv0")


class PackedLinear(nn.Module):
    """A linear layer on the CPU whose weight is packed; forward only.

    Attributes:
        in_features, out_features: as `nn.Linear` has them.
        tolerance: relative difference from the plain product that its arithmetic may make.
    """

    tolerance: float

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Float[Tensor, "*B k"]) -> Float[Tensor, "*B n"]:
        """Product and bias."""
        assert not (torch.is_grad_enabled() and x.requires_grad), "packed weights are for prediction only"
        return self.product(x)

    def product(self, x: Float[Tensor, "*B k"]) -> Float[Tensor, "*B n"]:
        """As the kind of packing does it."""
        raise NotImplementedError


class BlockedLinear(PackedLinear):
    """bf16 by bf16, in oneDNN's blocks; the results are those of the plain weights to the bit."""

    weight: Tensor
    tolerance = 0.01

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__(linear)
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise RuntimeError("no bf16 products of oneDNN on this CPU")
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.register_buffer("weight", packed, persistent=False)
        self.bias = linear.bias

    def product(self, x: Float[Tensor, "*B k"]) -> Float[Tensor, "*B n"]:
        """In bf16."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


class HalvedLinear(PackedLinear):
    """fp32 by fp16, in FBGEMM's panels, summed in fp32.

    Rounding to fp16 moves a weight by up to 2^-12 of itself, an eighth of what bf16 does.
    """

    tolerance = 1e-3

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__(linear)
        del rows  # its kernels take any number, 6 at a time
        weight = linear.weight.detach()
        if weight.abs().max() > torch.finfo(torch.float16).max:
            raise RuntimeError("a weight is too large for fp16")
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, linear.bias)

    def product(self, x: Float[Tensor, "*B k"]) -> Float[Tensor, "*B n"]:
        """In fp32."""
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return out


@torch.no_grad()
def pack_linears(module: nn.Module, rows: int) -> bool:
    """Pack the linear layers on the CPU within `module`, one by one, so that no two copies of a model are held.

    Args:
        module: is changed in place.
        rows: token vectors that a product will mostly have; any number works.

    Returns:
        Whether all were: none on other devices, in other types, or where this PyTorch cannot on this CPU; nor any layer
        that packed differs from itself.
    """
    names = [name for name, child in module.named_modules() if type(child) is nn.Linear]
    for name in names:
        linear = module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        if (packed := _packed(linear, rows)) is None:
            return False
        module.set_submodule(name, packed)
    return bool(names)


def _packed(linear: nn.Linear, rows: int) -> PackedLinear | None:
    """The layer packed and tried against the plain product: the operators are not part of PyTorch's promises."""
    kind = {torch.bfloat16: BlockedLinear, torch.float32: HalvedLinear}.get(linear.weight.dtype)
    if kind is None or linear.weight.device.type != "cpu":
        return None
    x = torch.randn(rows, linear.in_features, generator=torch.Generator().manual_seed(0)).to(linear.weight.dtype)
    try:
        packed = kind(linear, rows)
        ours, plain = packed(x).float(), F.linear(x, linear.weight, linear.bias).float()
    except Exception as error:  # an operator that is missing or has changed can fail in any way
        log.info("the LLM's weights stay unpacked: %s", " ".join(str(error).split())[:200])
        return None
    return packed if float((ours - plain).norm() / plain.norm()) < kind.tolerance else None
