"""Digests of weights, and what they say about names: the same weights are the same network, whatever it is called."""

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOLD_BY = {
    "llm_tensors": ("llm_name", "llm_revision", "llm_weights"),
    "llm_weights": ("llm_name", "llm_revision", "llm_tensors"),
    "vision_weights": ("vision_encoder_name", "vision_pretrained", "vision_file"),
    "content_digest": ("split", "split_file"),
    "split_file": ("split",),
}
"""Digest -> fields that add nothing when two identities share it: names, places, digests of another kind."""

UNREAD = re.compile(
    r"(^|\.)(lm_head|embed_out|score)\.(weight|bias)$"  # an output head: there are no tokens to predict here
    r"|\.rotary_emb\.inv_freq$|\.rotary_pos_emb\.inv_freq$|\.attn\.(masked_)?bias$|\.attention\.(masked_)?bias$"
    r"|\.attention\.rotary_emb\.inv_freq$|\.position_ids$"  # constants that older checkpoints hold
)
"""Entries of a checkpoint that the body of an LLM does not use."""


def settled(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> set[str]:
    """The fields that need no comparison, because a stronger digest is in both identities and agrees."""
    shared = [digest for digest in TOLD_BY if stored.get(digest) is not None and stored[digest] == wanted.get(digest)]
    told = {field for digest in shared for field in TOLD_BY[digest]}
    name = str(stored.get("vision_encoder_name"))
    if "vision_quick_gelu" not in stored and (
        not wanted.get("vision_quick_gelu")
        or stored.get("vision_pretrained") is None
        or "quickgelu" in name
        or name == "roberta-ViT-B-32"
    ):
        told.add("vision_quick_gelu")  # older files do not say it: then only a tag could ask for it, and was not heard
    if "vision_tower" not in stored:  # older files do not say it
        told.add("vision_tower")
    return told


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of a state dict, in order of the names."""
    return _digest((name, partial(state.__getitem__, name)) for name in state)


def tensors_digest(files: Iterable[Path], prefix: str) -> str:
    """As `weights_digest`, of the weights in the files of an LLM: equal whatever their format, shards and order.

    Args:
        files: safetensors or .bin.
        prefix: that a model with a head puts before the names of its body's weights; left out, as is the head.
    """
    named = ((name, load) for file in files for name, load in tensors_in(file) if not UNREAD.search(name))
    return _digest((name.removeprefix(f"{prefix}."), load) for name, load in named)


def files_digest(files: Iterable[Path]) -> str:
    """sha256 over the contents, one after the other."""
    sha = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def _digest(named: Iterable[tuple[str, Callable[[], Tensor]]]) -> str:
    digest = hashlib.sha256()
    for name, load in sorted(named, key=lambda pair: pair[0]):
        tensor = load()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensors_in(file: Path) -> Iterable[tuple[str, Callable[[], Tensor]]]:
    """Name and loader of every tensor in a file of weights; mapped, not read."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        handle = safe_open(file, "pt")
        return [(name, partial(handle.get_tensor, name)) for name in handle.keys()]  # type: ignore[no-untyped-call]  # noqa: SIM118
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    return [(name, partial(state.__getitem__, name)) for name in state]
