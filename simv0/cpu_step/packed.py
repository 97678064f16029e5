"""Weights laid out for a robot's step on a CPU: a handful of token vectors at a time, forward only.

Where a CPU multiplies bf16, the weights go into the blocks of oneDNN: plain ones are re-ordered at every product, which
at 6 rows costs more than the product itself. Elsewhere the weights of an fp32 stack are held in fp16, in the panels of
FBGEMM, which widens them as it multiplies fp32 by them: half the bytes to read, and rows enough for its kernel. So are
those of a vision transformer that sees an image as few tokens. Why: docs/design/llm-paths.md.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

log = logging.getLogger("simv0")


class PackedLinear(nn.Module):
    """A linear layer on the CPU whose weight is packed; forward only.

    Attributes:
        in_features, out_features: as `nn.Linear` has them.
        tolerance: relative difference from the plain product that is taken for rounding.
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
        """As this kind of packing computes it."""
        raise NotImplementedError


class BlockedLinear(PackedLinear):
    """bf16 by bf16, in oneDNN's blocks; `rows` is how many vectors a product will mostly have, any number works."""

    weight: Tensor
    tolerance = 0.01

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__(linear)
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise RuntimeError("no bf16 products of oneDNN on this CPU")
        self.rows, self.bias = rows, linear.bias
        self.register_buffer("weight", self._blocks(linear.weight.detach()), persistent=False)

    def _blocks(self, weight: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, self.rows)
        return packed

    def __getstate__(self) -> dict[str, Any]:
        """The blocks of oneDNN cannot be pickled: the plain weight is."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_buffers": {**state["_buffers"], "weight": self.weight.to_dense()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Packed anew, for the CPU at hand."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.weight = self._blocks(self.weight)

    def product(self, x: Float[Tensor, "*B k"]) -> Float[Tensor, "*B n"]:
        """In bf16."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


class HalvedLinear(PackedLinear):
    """fp32 by fp16, in FBGEMM's panels, summed in fp32.

    fp16 has 11 digits, bf16 has 8: the rounding of a weight is an eighth of bf16's, but for those below 6e-5.
    """

    tolerance = 1e-3

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach()
        if max(map(abs, torch.stack(weight.aminmax()).tolist())) > torch.finfo(torch.float16).max:
            raise RuntimeError("a weight is too large for fp16")
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, linear.bias)

    def product(self, x: Float[Tensor, "*B k"]) -> Float[Tensor, "*B n"]:
        """In fp32."""
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return out


class OpenAttention(nn.Module):
    """`nn.MultiheadAttention` of x with itself, with its two products as linear layers that can be packed.

    Raises:
        ValueError: a variant that is not supported.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        plain = attention.bias_k is None and not attention.add_zero_attn and attention.batch_first
        if not plain or attention.in_proj_weight is None or attention.in_proj_bias is None:
            raise ValueError("it attends to more than x, or in another layout")
        self.heads = attention.num_heads
        self.qkv = _linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        x: Float[Tensor, "B T d"],
        k: Tensor,
        v: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "B T d"], None]:
        """As `nn.MultiheadAttention` has it, for x = k = v and no mask."""
        assert k is x, "attends to x alone"
        assert v is x, "attends to x alone"
        assert attn_mask is None, "every token sees all others"
        assert not need_weights, "gives no weights"
        B, T, d = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2)), None


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    return linear


FEW = 256
"""Tokens of an image up to which a tower is packed: its products take 1.8 times less at 50 (ViT-B-32), 1.2 at 197."""

TOLERANCE = 0.01
"""Relative difference of a packed tower's features taken for rounding: bf16 weights give 1e-6, fp32 ones up to 1e-3."""


@torch.no_grad()
def pack_tower(tower: nn.Module, image: Float[Tensor, "1 3 H W"]) -> bool:
    """Pack the linear layers of a vision tower on the CPU, where they see an image as at most `FEW` tokens.

    The tower stays as it is where a layer cannot be packed, or where packed it does not give the same.

    Args:
        tower: is changed in place; computes in fp32.
        image: of the size it takes, to try it on.

    Returns:
        Whether all of its linear layers are packed.
    """
    kinds = (nn.Linear, nn.MultiheadAttention)
    plain = {name: module for name, module in tower.named_modules() if type(module) in kinds}
    rows = [0]
    hooks = [
        module.register_forward_pre_hook(lambda _, x: rows.append(x[0].numel() // x[0].shape[-1]))
        for module in plain.values()
    ]
    try:
        expected = _features(tower, image)
        if not 0 < max(rows) <= FEW:
            raise ValueError(f"an image is {max(rows)} tokens")
        for name, module in plain.items():
            if isinstance(module, nn.MultiheadAttention):
                tower.set_submodule(name, OpenAttention(module))
        if not pack_linears(tower, max(rows)):
            raise ValueError("not every layer can be packed")
        error = (_features(tower, image) - expected).norm() / expected.norm()
        if not error <= TOLERANCE:
            raise ValueError(f"when packed it differs by {error:.1e}")
    except Exception as fault:  # a tower may use its layers in any way
        log.debug("the vision encoder stays unpacked: %s", " ".join(str(fault).split())[:200])
        for name, module in plain.items():
            tower.set_submodule(name, module)
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return True


def _features(tower: nn.Module, image: Tensor) -> Tensor:
    features = tower(image)
    first: Tensor = features[0] if isinstance(features, tuple) else features  # towers that also return their tokens
    return first


@torch.no_grad()
def pack_linears(module: nn.Module, rows: int) -> bool:
    """Pack the linear layers on the CPU within `module`, one by one: each plain weight is let go when it is packed.

    A layer stays as it is on another device, in another type, where this PyTorch has no such product for this CPU, or
    where packed it gives something else than plain.

    Args:
        module: is changed in place.
        rows: vectors that a product will mostly have; any number works.

    Returns:
        Whether there are linear layers and all of them are packed.
    """
    names = [name for name, child in module.named_modules() if type(child) is nn.Linear]
    plain: dict[str, str] = {}  # and why
    for name in names:
        linear = module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        try:
            module.set_submodule(name, _packed(linear, rows))
        except Exception as error:  # an operator that is missing or has changed can fail in any way
            plain[name] = " ".join(str(error).split())[:200]
    if plain:
        name, reason = next(iter(plain.items()))
        log.debug("%d of %d layers stay unpacked; %s: %s", len(plain), len(names), name, reason)
    return bool(names) and not plain


def _packed(linear: nn.Linear, rows: int) -> PackedLinear:
    """The layer packed, and tried against the plain product: the operators are not part of PyTorch's promises."""
    dtype, device = linear.weight.dtype, linear.weight.device
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float32):
        raise RuntimeError(f"no packing for {dtype} on {device.type}")
    packed = BlockedLinear(linear, rows) if dtype is torch.bfloat16 else HalvedLinear(linear)
    x = torch.randn(rows, linear.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours, plain = packed(x).float(), F.linear(x, linear.weight, linear.bias).float()
    if not (ours - plain).norm() <= packed.tolerance * plain.norm():
        raise RuntimeError("its packed product differs from the plain one")
    return packed
