"""A small CausalLM of every family, and prefixes for it."""

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import nn

from simv0.llm.frozen import FrozenLLM

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}


GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 8}


OPT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 64,
}


FAMILIES: dict[str, Any] = {
    "llama": tf.LlamaConfig(**GROUPED),
    "qwen2": tf.Qwen2Config(**GROUPED),
    "qwen3": tf.Qwen3Config(**GROUPED),
    "mistral": tf.MistralConfig(**GROUPED, sliding_window=4),
    "gemma": tf.GemmaConfig(**GROUPED),
    "gemma2": tf.Gemma2Config(**GROUPED, sliding_window=4),
    "gemma3": tf.Gemma3TextConfig(**GROUPED, sliding_window=4),
    "gpt2": tf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0),
    "gpt_neox": tf.GPTNeoXConfig(**SMALL),
    "opt": tf.OPTConfig(**OPT),
    "opt_projected": tf.OPTConfig(**OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "phi": tf.PhiConfig(**SMALL, num_key_value_heads=2),
    "granite": tf.GraniteConfig(**SMALL, embedding_multiplier=12.0),
}


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms that are not 1 and biases that are not 0, so that a test sees them; no dropout."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model.eval()


def prefix(llm: FrozenLLM, batch: int = 3, tokens: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(batch, tokens, llm.d, generator=generator) * llm.embed_rms).requires_grad_()


def edited(source: Path, target: Path, edit: Any) -> str:
    """A copy of a checkpoint whose weights went through `edit`."""
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = load_file(source / "model.safetensors")
    edit(weights)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return str(target)
