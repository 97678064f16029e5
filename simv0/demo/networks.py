"""Tiny frozen networks with random weights, saved in the formats of real ones: for the demo and the tests.

Nothing is downloaded, and the code that loads real models loads these.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file

import simv0.runtime.torchvision_fix  # noqa: F401  before open_clip and transformers
from simv0.llm.load import quiet_transformers

CELLS = 8
"""The filters of the tiny tower are patterns of so many by so many patches of colour."""


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
    with quiet_transformers(progress=False):
        model.save_pretrained(folder)


def save_tiny_tower(folder: Path, *, seed: int = 0, dv: int = 32, image_size: int = 32) -> None:
    """Write a random CLIP with a small image tower as an open_clip folder (`local-dir:`).

    Random weights see only what their shape lets through. A usual small ViT pools where things are away, and its usual
    start (std 0.02) leaves features that hardly vary: a linear probe then learns next to nothing. So the whole picture
    is one patch, its filters are coarse random colour patterns, and every layer keeps activations at size 1: a layer of
    random features that know what stands where (measured in benchmarks/results/quality_demo_2026-11-23.md).
    """
    import open_clip

    vision_cfg = {
        "image_size": image_size,
        "patch_size": image_size,
        "layers": 1,
        "width": dv,
        "head_width": 16,
        "mlp_ratio": 2.0,
        "pool_type": "avg",  # over the one patch
    }
    text_cfg = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
    model_cfg = {"embed_dim": dv, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**model_cfg)
        _rescale(clip.visual)
    folder.mkdir(parents=True, exist_ok=True)
    preprocess_cfg = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    save_file(
        {name: tensor.contiguous() for name, tensor in clip.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )


@torch.no_grad()
def _rescale(visual: Any) -> None:
    """Draw the weights anew, so that no layer shrinks its input."""
    filters = visual.conv1.weight
    coarse = torch.randn(*filters.shape[:2], CELLS, CELLS)
    filters.copy_(nnf.interpolate(coarse, filters.shape[-2:], mode="bilinear"))
    filters.div_(filters.flatten(1).norm(dim=1)[:, None, None, None])  # pictures are coarse: outputs of size 1 and more
    visual.positional_embedding.normal_(std=0.1)
    for block in visual.transformer.resblocks:
        for layer in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
            layer.weight.normal_(std=layer.in_features**-0.5)
        block.mlp.c_fc.bias.normal_(std=0.5)
