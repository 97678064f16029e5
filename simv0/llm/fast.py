"""A slim stack of our own for the Llama-like families: the same function as transformers' module, in fewer and larger
steps.

What is saved: the norm weights are folded into the GEMM that follows; q, k, v and gate, up are one GEMM each; the last
layer runs for the last position only; a first vector that all prefixes share is computed once and for all; the tables
of rope and the masks are made once per prefix length. The residual stays in fp32 (cheap, and the smallest error of the
gradients), the GEMMs run in the compute dtype.
"""

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

log = logging.getLogger("simv0")

TOLERANCE = 1e-4
"""Relative difference from transformers' module in fp32: rounding gives 1e-6, a wrong mask, bias or rope above 1e-2."""

_NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight"}
_HEAD_NORMS = {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
_LINEARS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
_KNOWN = _NORMS | _HEAD_NORMS | {f"{name}.{kind}" for name in _LINEARS for kind in ("weight", "bias")}
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")
_NEVER = -1e30

SHORT = 8
"""Prefixes up to this length attend elementwise when compiled: measured 2 times faster at 6 tokens, slower at 18."""

Tables = tuple[Float[Tensor, "T H hd"], Float[Tensor, "T H hd"]]
Kept = tuple[Float[Tensor, "1 1 kv hd"], Float[Tensor, "1 1 kv hd"]]
"""Keys and values of one layer for the vector that every prefix begins with."""


def unsupported_reason(model: Any, embed_rms: float) -> str | None:
    """Why the fast path cannot run this model; None if it can.

    First a fixed rule on the architecture; then, as a safety net, the first and the last layer are tried against
    transformers' own module, in fp32 on random prefixes: outputs and input gradients.
    """
    if reason := unknown_shape(model):
        return reason
    if not (error := _trial(model, embed_rms)) <= TOLERANCE:
        log.warning("the fast path differs from transformers' %s by %.1e", type(model).__name__, error)
        return "the fast path disagrees with it"
    return None


def unknown_shape(model: Any) -> str | None:
    """The rule alone, which needs no weights: why the fast path does not support this architecture; None if it does."""
    from transformers import LlamaModel, MistralModel, Qwen2Model, Qwen3Model

    config = model.config
    if type(model) not in (LlamaModel, MistralModel, Qwen2Model, Qwen3Model):
        return f"{type(model).__name__} is not one of its families"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if (rope := config.rope_parameters["rope_type"]) not in _STATIC_ROPE:
        return f"its rope is {rope}"
    for layer in model.layers:
        if unknown := sorted(set(layer.state_dict()) - _KNOWN):
            return f"a layer holds {unknown[0]}"
        if odd := [name for name in _LINEARS if type(layer.get_submodule(name)) is not nn.Linear]:
            return f"{odd[0]} is not a plain linear layer"
    return None


def _trial(model: Any, embed_rms: float) -> float:
    """Disagreement of the two paths on a copy of two layers."""
    small = two_layers_of(model).float().cpu()  # on every machine the same trial
    x = torch.randn(2, 6, model.config.hidden_size, generator=torch.Generator().manual_seed(0)) * embed_rms
    wanted = outputs_of(lambda x: small(inputs_embeds=x, use_cache=False).last_hidden_state[:, -1], x)
    return disagreement(FastStack(small, torch.float32), wanted, x)


def two_layers_of(model: Any) -> Any:
    """A copy of a model with its first and its last layer only; the model itself is never touched."""
    ends = nn.ModuleList([model.layers[0], model.layers[-1]][: len(model.layers)])
    return copy.deepcopy(model, {id(model.layers): copy.deepcopy(ends)})  # stands in the copy for all layers


class FastStack(nn.Module):
    """All layers and the final norm; takes the layers out of `model` one by one, so that no weight is held twice."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        config, depth = model.config, len(model.layers)
        self.layers = nn.ModuleList()
        self.windows = [_window(model, i) for i in range(depth)]
        for i in range(depth):
            self.layers.append(FastLayer(model.layers[i], config, dtype, last=i == depth - 1))
            model.layers[i] = nn.Identity()
        self.weight = nn.Parameter(model.norm.weight.detach().float(), requires_grad=False)
        self.eps = config.rms_norm_eps
        self.rope, self.dtype = model.rotary_emb, dtype
        self.predicting = False
        """Whether single prefixes without gradients are a robot's steps, where calls cost more than work."""
        self._tables: dict[tuple[int, torch.device, torch.dtype], tuple[Tables, dict[int | None, Tensor]]] = {}

    def forward(self, x: Float[Tensor, "B T d"], kept: list[Kept] | None = None) -> Float[Tensor, "B d"]:
        """Hidden state of the last position, after the final norm. `kept`: `keep` of the vector before x."""
        if kept is not None or not self.predicting or len(x) > 1 or torch.is_grad_enabled():
            return self._run(x, kept, alone=False)
        with torch.inference_mode():  # a fifth less to do around the products
            hidden = self._run(x, None, alone=True)
        return hidden.clone()

    def _run(self, x: Float[Tensor, "B T d"], kept: list[Kept] | None, alone: bool) -> Float[Tensor, "B d"]:
        start = 0 if kept is None else 1
        tables, masks = self._for_length(start + x.shape[1], x.device, torch.float32 if alone else self.dtype)
        x, tables = x.float(), (tables[0][start:], tables[1][start:])
        for i, (layer, window) in enumerate(zip(self.layers, self.windows, strict=True)):
            x = layer(x, tables, masks[window][start:], alone, kept and kept[i])
        return _norm(x[:, -1], self.eps) * self.weight

    @torch.inference_mode(False)  # they outlive the call that first needs them
    @torch.no_grad()
    def keep(self, first: Float[Tensor, " d"]) -> list[Kept]:
        """What later positions read of a first vector in each layer: it sees itself alone, so every prefix the same."""
        tables, masks = self._for_length(1, first.device, self.dtype)
        x, kept = first.float().view(1, 1, -1), []
        for layer, window in zip(self.layers, self.windows, strict=True):
            read: Any = layer
            _, k, v = read.project(_norm(x, self.eps).to(self.dtype), tables)
            kept.append((k, v))
            x = read.forward(x, tables, masks[window])
        return kept

    @torch.inference_mode(False)  # they outlive the call that first needs them
    def _for_length(self, T: int, device: torch.device, dtype: torch.dtype) -> tuple[Tables, dict[int | None, Tensor]]:
        """Rope tables (the scale of the attention folded into the queries' part) and masks, made once per length."""
        if (T, device, dtype) not in self._tables:
            first: Any = self.layers[0]
            position = torch.arange(T, device=device)
            cos, sin = (t[0, :, None] for t in self.rope(position.float(), position[None]))
            scale = torch.ones(first.heads + first.kv_heads, 1, device=device)
            scale[: first.heads] = first.head_dim**-0.5
            half = first.head_dim // 2
            sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)  # the sign of Llama's `rotate_half`
            distance = position[:, None] - position[None, :]
            masks = {
                window: torch.zeros(T, T, device=device).masked_fill(
                    (distance < 0) | (distance >= (window or T)), _NEVER
                )
                for window in set(self.windows)
            }
            self._tables[T, device, dtype] = ((cos * scale).to(dtype), (sin * scale).to(dtype)), masks
        return self._tables[T, device, dtype]


class FastLayer(nn.Module):
    """One decoder layer, laid out for its GEMMs."""

    def __init__(self, layer: Any, config: Any, dtype: torch.dtype, *, last: bool) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps, self.dtype = attention.head_dim, config.rms_norm_eps, dtype
        self.last = last
        qkv, gate_up = [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]
        self.qkv = _fuse(qkv, dtype, layer.input_layernorm.weight)
        self.out = _fuse([attention.o_proj], dtype)
        self.gate_up = _fuse(gate_up, dtype, layer.post_attention_layernorm.weight)
        self.down = _fuse([mlp.down_proj], dtype)
        self.head_norm: nn.Parameter | None = None  # Qwen3's weights [H, hd] of the norms of queries and keys
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm.weight.detach().float(), attention.k_norm.weight.detach().float()
            weight = torch.cat([q.expand(self.heads, -1), k.expand(self.kv_heads, -1)])
            self.head_norm = nn.Parameter(weight, requires_grad=False)

    def forward(
        self,
        x: Float[Tensor, "B T d"],
        tables: Tables,
        mask: Float[Tensor, "T S"],
        alone: bool = False,
        kept: Kept | None = None,
    ) -> Float[Tensor, "B t d"]:
        """Residual in and out, in fp32, at the end only of the last position (t = 1); `alone`: attend in few calls."""
        attended = self._attend(_norm(x, self.eps).to(self.dtype), tables, mask, alone, kept)
        if self.last:
            x = x[:, -1:]
        x = x + self.out(attended)
        gate, up = self.gate_up(_norm(x, self.eps).to(self.dtype)).chunk(2, -1)
        residual: Tensor = x + self.down(F.silu(gate) * up)
        return residual

    def project(self, h: Float[Tensor, "B T d"], tables: Tables, alone: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B,T,heads,hd], keys and values [B,T,kv,hd]."""
        B, T, _ = h.shape
        qkv = self.qkv(h)
        if alone:
            qkv = qkv.float()
        qk, v = qkv.view(B, T, -1, self.head_dim).split([self.heads + self.kv_heads, self.kv_heads], 2)
        if self.head_norm is not None:
            qk = (_norm(qk.float(), self.eps) * self.head_norm).to(qkv.dtype)
        q, k = torch.split(_rotate(qk, *tables), [self.heads, self.kv_heads], 2)
        return q, k, v

    def _attend(
        self, h: Float[Tensor, "B T d"], tables: Tables, mask: Float[Tensor, "T S"], alone: bool, kept: Kept | None
    ) -> Float[Tensor, "B t a"]:
        q, k, v = self.project(h, tables, alone)
        if kept is not None:
            k, v = (
                torch.cat([first.expand(len(h), -1, -1, -1), rest], 1) for first, rest in zip(kept, (k, v), strict=True)
            )
        if self.last:
            q, mask = q[:, -1:], mask[-1:]
        if alone:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0, enable_gqa=True)
            return mixed.transpose(1, 2).flatten(2).to(self.dtype)
        # Beside each key head stand the query heads that share it.
        q = q.view(len(h), -1, self.kv_heads, self.heads // self.kv_heads, self.head_dim)
        if torch.compiler.is_compiling() and k.shape[1] <= SHORT:
            return _mix_elementwise(q, k, v, mask).to(self.dtype)
        return _mix(q, k, v, mask)


Heads = Float[Tensor, "B S kv hd"]


def _rotate(x: Float[Tensor, "B T H hd"], cos: Tensor, sin: Tensor) -> Float[Tensor, "B T H hd"]:
    """Rope on halves, as Llama's `rotate_half` does it; its sign is in `sin`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _mix(q: Float[Tensor, "B t kv g hd"], k: Heads, v: Heads, mask: Float[Tensor, "t S"]) -> Float[Tensor, "B t a"]:
    """Attention; the queries of the heads that share keys go as one matrix."""
    B, t, kv, group, _ = q.shape
    S = k.shape[1]
    scores = q.permute(0, 2, 3, 1, 4).flatten(2, 3) @ k.permute(0, 2, 3, 1)
    weights = (scores.float().view(B, kv, group, t, S) + mask).softmax(-1).to(v.dtype)
    mixed = weights.view(B, kv, group * t, S) @ v.transpose(1, 2)
    return mixed.view(B, kv, group, t, -1).permute(0, 3, 1, 2, 4).flatten(2)


def _mix_elementwise(
    q: Float[Tensor, "B t kv g hd"], k: Heads, v: Heads, mask: Float[Tensor, "t S"]
) -> Float[Tensor, "B t a"]:
    """Attention of a handful of tokens without matrix products: a few loops when compiled, slow when not."""
    scores = (q.float()[:, :, None] * k.float()[:, None, :, :, None]).sum(-1)  # [B, t, S, kv, g]
    weights = (scores + mask[..., None, None]).softmax(2)
    return (weights[..., None] * v.float()[:, None, :, :, None]).sum(2).flatten(2)


def _norm(x: Float[Tensor, "*B d"], eps: float) -> Float[Tensor, "*B d"]:
    """RMSNorm without weight (that is folded into the next GEMM)."""
    scaled: Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return scaled


@torch.no_grad()
def _fuse(linears: list[nn.Linear], dtype: torch.dtype, norm: Tensor | None = None) -> nn.Linear:
    """Linear layers over one input as one, the weight of the norm before them folded in."""
    weight = torch.cat([linear.weight.float() for linear in linears])
    fused = nn.Linear(weight.shape[1], weight.shape[0], bias=linears[0].bias is not None, device="meta")
    fused.weight = nn.Parameter((weight if norm is None else weight * norm.float()).to(dtype), requires_grad=False)
    if linears[0].bias is not None:
        bias = torch.cat([linear.bias for linear in linears])
        fused.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return fused


def _window(model: Any, index: int) -> int | None:
    """How many positions, itself included, a position of this layer sees; None: all before it."""
    from transformers import MistralModel

    config = model.config
    if isinstance(model, MistralModel):
        slides = True
    else:
        slides = getattr(config, "layer_types", None) is not None and config.layer_types[index] == "sliding_attention"
    window: int | None = config.sliding_window if slides else None
    return window


def disagreement(ours: Callable[[Tensor], Tensor], theirs: tuple[Tensor, Tensor], x: Float[Tensor, "B T d"]) -> float:
    """The larger of the relative errors of a stack's outputs and input gradients; `theirs` is `outputs_of` another."""
    return relative_error(outputs_of(ours, x), theirs)


def relative_error(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """The largest of the tensors' relative errors."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def outputs_of(stack: Callable[[Tensor], Tensor], x: Float[Tensor, "B T d"]) -> tuple[Tensor, Tensor]:
    """What a stack gives for x, and the gradient of x for a fixed random gradient of that."""
    x = x.clone().requires_grad_()
    out = stack(x).float()
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device)
    (gradient,) = torch.autograd.grad(out, x, direction)
    return out.detach(), gradient
