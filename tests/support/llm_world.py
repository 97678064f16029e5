"""Llamas of a few thousand weights, and prefixes for them."""

from typing import Any

import torch
import torch._inductor.config
import transformers as tf

import simv0.llm.fast
import simv0.runtime.torchvision_fix  # noqa: F401

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


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 256}


HANDLED = {
    "llama": tf.LlamaConfig(**SHAPE),
    "one key head for all": tf.LlamaConfig(**SHAPE | {"num_key_value_heads": 1}),
    "a key head for each": tf.LlamaConfig(**SHAPE | {"num_key_value_heads": 4}),
    "heads wider than the stream": tf.LlamaConfig(**SHAPE | {"head_dim": 16}),
    "biases everywhere": tf.LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "llama 3 rope": tf.LlamaConfig(**SHAPE, rope_parameters=LLAMA3),
    "yarn rope": tf.LlamaConfig(**SHAPE, rope_parameters=YARN, max_position_embeddings=2048),
    "qwen2": tf.Qwen2Config(**SHAPE),
    "qwen2, a window on some layers": tf.Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=3, max_window_layers=1
    ),
    "qwen3": tf.Qwen3Config(**SHAPE),
    "mistral": tf.MistralConfig(**SHAPE, sliding_window=None),
    "mistral, a window": tf.MistralConfig(**SHAPE, sliding_window=3),
}
