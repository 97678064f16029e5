"""Tiny frozen networks with random weights, saved in the formats of real ones: for the demo and the tests.

Nothing is downloaded, and the code that loads real models loads these.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import simv0.torchvision_fix  # noqa: F401  before open_clip and transformers


def save_tiny_llm(folder: Path, *, seed: int = 0, d: int = 64, layers: int = 2) -> None:
    """Write a random Llama as a transformers folder, norms off 1 so that a test sees them."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=d,
        intermediate_size=2 * d,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaModel(config)
        for name, weight in model.named_parameters():
            scale = 0.1 if "norm" in name else weight.shape[-1] ** -0.5  # activations of size 1 in every layer
            weight.data = torch.randn_like(weight) * scale + float("norm" in name)
    model.save_pretrained(folder)


def save_tiny_tower(folder: Path, *, seed: int = 0, dv: int = 32, image_size: int = 32) -> None:
    """Write a random CLIP with a small image tower as an open_clip folder (`local-dir:`)."""
    import open_clip

    model_cfg = {
        "embed_dim": dv,
        "vision_cfg": {"image_size": image_size, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**model_cfg)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"interpolation": "bicubic", "resize_mode": "shortest"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    save_file(
        {name: tensor.contiguous() for name, tensor in clip.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
