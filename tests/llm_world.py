"""Llamas of a few thousand weights, and prefixes for them."""

from typing import Any

import torch
import transformers as tf

import simv0.torchvision_fix  # noqa: F401

D, WIDTH, HEADS, KV, HD, DEPTH = 32, 48, 4, 2, 8, 3
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": D,
    "intermediate_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": HD,
}
PER_TOKEN = D * (HEADS + 2 * KV) * HD + HEADS * HD * D + 3 * D * WIDTH
"""Weights of one layer, each of which multiplies every token's vector once."""


def reference(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of which no norm is 1 and no bias 0."""
    torch.manual_seed(0)
    model = tf.AutoModel.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight) * 0.1)
    return model.to(dtype)


def vectors(batch: int = 3, tokens: int = 7) -> torch.Tensor:
    return torch.randn(batch, tokens, D, generator=torch.Generator().manual_seed(3))
