"""What is known about the frozen networks from their configs alone, before a weight is read.

Both networks are built on torch's meta device, where tensors have shapes but no memory: the code that builds and runs
the real ones says what they hold.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import simv0.runtime.torchvision_fix  # noqa: F401  before open_clip and transformers
from simv0.config.schema import Config, ModelConfig
from simv0.errors import ModelError
from simv0.llm.fast import FastStack, unknown_shape
from simv0.llm.frozen import FrozenLLM, LastHidden
from simv0.llm.load import bos_id, quiet_transformers, read_llm_config, text_of
from simv0.model.network import SimV0Model
from simv0.runtime.device import chosen_device, compute_dtype
from simv0.vision.files import CONFIG, cannot_be_loaded
from simv0.vision.tags import check_names


@dataclass(frozen=True)
class LLMOutline:
    """The LLM as `llm.load_llm` would hold it.

    Attributes:
        family: transformers' name of the architecture.
        path: `fast` or `reference`, by the fast path's rule; its trial needs weights.
        d: embedding width.
        hidden_size: width of what the heads read.
        tokens: vectors that it reads per window.
        weights: held while training: no token embedding, no LM head.
        matrix_weights: those of the matrices among them.
        weights_bytes: what `weights` take.
        loading_bytes: held while it is loaded: the token embedding comes along, and the fast path makes a copy.
        step_bytes: kept from the forward for the backward pass of a batch; None where the family does not run on meta.
    """

    family: str
    path: str
    d: int
    hidden_size: int
    tokens: int
    weights: int
    matrix_weights: int
    weights_bytes: int
    loading_bytes: int
    step_bytes: int | None

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return {
            "family": self.family,
            "path": self.path,
            "d": self.d,
            "weights": self.weights,
            "weights_in_memory_bytes": self.weights_bytes,
            "activations_of_a_step_bytes": self.step_bytes,
        }


@dataclass(frozen=True)
class EncoderOutline:
    """The image tower: feature width, size of its picture, weights."""

    dv: int
    image_size: tuple[int, int]
    weights: int

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return {"dv": self.dv, "picture": "{} x {}".format(*self.image_size), "weights": self.weights}


def outline_llm(config: Config, ranks: int = 1) -> LLMOutline:
    """Read the LLM's config and build it without weights.

    Args:
        config: `model`, `training.amp` and the batch size; this machine decides what amp resolves to.
        ranks: processes that share a batch.

    Raises:
        ModelError: as `llm.load_llm`, as far as the config tells.
    """
    model, dtype = config.model, compute_dtype(config.training, chosen_device(config))
    with quiet_transformers(progress=False):
        found = read_llm_config(model.llm_name_or_path, model.llm_revision, model.trust_remote_code)
        body = _llm_on_meta(found, model, dtype)
    loading = sum(weight.nbytes for weight in body.parameters())
    embedding = body.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise ModelError(
            f"{model.llm_name_or_path}: has no token embedding, so it is not a language model; choose a decoder-only "
            "LLM"
        )
    body.set_input_embeddings(nn.Identity())
    fast = unknown_shape(body) is None
    stack: nn.Module = (FastStack(body, dtype) if fast else LastHidden(body, dtype)).requires_grad_(False).eval()
    share = -(-config.batch_size // ranks)
    bos = model.bos is not False and bos_id(body.config, embedding.num_embeddings) is not None
    tokens = model.K + 2 + bos
    prefix = torch.zeros(share, tokens, embedding.embedding_dim, device="meta", requires_grad=True)
    kept, out = _kept_for_backward(stack, prefix)
    return LLMOutline(
        family=found.model_type,
        path="fast" if fast else "reference",
        d=embedding.embedding_dim,
        hidden_size=out.shape[-1] if out is not None else found.hidden_size,
        tokens=tokens,
        weights=sum(weight.numel() for weight in stack.parameters()),
        matrix_weights=sum(weight.numel() for weight in stack.parameters() if weight.ndim > 1),
        weights_bytes=sum(weight.nbytes for weight in stack.parameters()),
        loading_bytes=loading + (sum(weight.nbytes for weight in stack.parameters()) if fast else 0),
        step_bytes=kept,
    )


def _llm_on_meta(found: Any, model: ModelConfig, dtype: torch.dtype) -> Any:
    from transformers import AutoModel

    try:
        with torch.device("meta"):
            whole = AutoModel.from_config(  # type: ignore[no-untyped-call]
                found, dtype=dtype, attn_implementation="eager", trust_remote_code=model.trust_remote_code
            )
            return text_of(whole)
    except Exception as error:  # whatever a foreign config can make its builder raise
        raise ModelError(
            f"{model.llm_name_or_path}: cannot be loaded as an LLM: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:150]}"
        ) from error


def _kept_for_backward(stack: nn.Module, prefix: Tensor) -> tuple[int | None, Tensor | None]:
    """Bytes that autograd keeps from one forward pass, weights left out; and the pass's output."""
    weights = {weight.untyped_storage()._cdata for weight in stack.parameters()}
    kept: dict[int, Tensor] = {}  # by storage; holding the tensors keeps the numbers of the storages apart

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out: Tensor = _run(stack, prefix)
    except Exception:  # some families look at values, which meta tensors have none of
        return None, None
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), out


def _run(stack: nn.Module, prefix: Tensor) -> Tensor:
    if not isinstance(stack, LastHidden):
        return stack(prefix)  # type: ignore[no-any-return]
    # A whole mask: transformers would look at values to make one.
    batch, tokens, _ = prefix.shape
    mask = torch.zeros(batch, 1, tokens, tokens, dtype=stack.dtype, device="meta")
    inputs = {"inputs_embeds": prefix.to(stack.dtype), "attention_mask": mask, "use_cache": False}
    return stack.model(**inputs).last_hidden_state[:, -1]  # type: ignore[no-any-return]


def outline_encoder(model: ModelConfig) -> EncoderOutline:
    """Read the vision encoder's config and build its image tower without weights.

    Raises:
        ModelError: as `encoder.load_encoder`, as far as the config tells.
    """
    check_names(model)
    silenced = logging.root.level
    logging.root.setLevel(logging.CRITICAL)  # open_clip logs each step, and its errors twice
    try:
        with torch.device("meta"), torch.no_grad():
            tower = _tower_on_meta(model.vision_encoder_name)
            size = tower.image_size if isinstance(tower.image_size, tuple) else (tower.image_size, tower.image_size)
            feats = tower.eval()(torch.zeros(1, 3, *size))
    except Exception as error:  # open_clip and timm raise errors of many kinds
        raise cannot_be_loaded(model, error) from error
    finally:
        logging.root.setLevel(silenced)
    dv = (feats[0] if isinstance(feats, tuple) else feats).shape[-1]
    return EncoderOutline(dv, size, sum(weight.numel() for weight in tower.parameters()))


def _tower_on_meta(name: str) -> Any:
    import open_clip

    if name.startswith("hf-hub:"):  # by this name create_model would fetch the weights too
        from huggingface_hub import hf_hub_download

        name = f"local-dir:{Path(hf_hub_download(name.removeprefix('hf-hub:'), CONFIG)).parent}"
    return open_clip.create_model(name, load_weights=False, pretrained_text=False, device="meta").visual


def outline_trained(config: Config, llm: LLMOutline, dv: int) -> dict[str, int]:
    """Trained module -> number of its parameters."""
    identity: dict[str, str | None] = {}
    with torch.device("meta"):
        frozen = FrozenLLM(nn.Identity(), d=llm.d, hidden_size=llm.hidden_size, embed_rms=1.0, identity=identity)
        model = SimV0Model(
            frozen, dv=dv, F=config.model.F, K=config.model.K, confidence_head=config.model.confidence_head
        )
    return model.trainable_parameters()
