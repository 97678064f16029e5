"""The frozen decoder-only LLM: prefix vectors in, the hidden state of the last position out.

Any decoder-only family of transformers runs through its own module (`LastHidden`, the reference path); the Llama-like
ones through our own stack (`fast.FastStack`). `load_llm` checks by behaviour what a config cannot promise: that
positions see only what came before them, and that the two paths agree; and that every weight came from the checkpoint.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import simv0.runtime.torchvision_fix  # noqa: F401
from simv0.errors import ModelError
from simv0.llm.fast import FastStack, unsupported_reason
from simv0.llm.frozen import FrozenLLM, LastHidden
from simv0.runtime.digests import UNREAD, tensors_digest
from simv0.runtime.hub import check_llm_at_hand

log = logging.getLogger("simv0")


@torch.inference_mode(False)  # the trials need gradients, whatever the caller has switched off
def load_llm(
    name: str,
    revision: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    fast: bool = True,
) -> FrozenLLM:
    """Load a decoder-only LLM, frozen, its weights held once and in `dtype`.

    Args:
        name: hub name, or path of a local folder with `config.json` and weights.
        revision: branch, tag or commit on the hub.
        dtype: type of the weights and of the computation.
        device: where it runs.
        trust_remote_code: whether code from the LLM's repository may run.
        fast: take the fast path where it exists and agrees; False: the reference path.

    Raises:
        ModelError: not found or not loadable; not decoder-only; weights missing from the checkpoint or not finite;
            code of its own without `trust_remote_code`.
    """
    check_llm_at_hand(name, revision)
    with quiet_transformers(progress=not os.path.isdir(name)):  # a download is worth watching
        model, identity, files = _load_model(name, revision, dtype, trust_remote_code)
    d, embed_rms, bos = _drop_embedding(model, name)
    stack: nn.Module = LastHidden(model.to(device), dtype).requires_grad_(False).eval()
    hidden_size = _check_causal(model, name, d, dtype)
    if fast:
        if reason := unsupported_reason(model, embed_rms):
            log.info("%s runs on transformers' own implementation: %s", name, reason)
        else:
            stack = FastStack(model, dtype)
    return FrozenLLM(stack, d=d, hidden_size=hidden_size, embed_rms=embed_rms, bos=bos, identity=identity, files=files)


def _load_model(
    name: str, revision: str | None, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[Any, dict[str, str | None], tuple[Path, ...]]:
    """The body of the LLM (no LM head, no vision tower), its identity and its files."""
    from transformers import AutoModel

    config, is_folder = read_llm_config(name, revision, trust_remote_code), os.path.isdir(name)
    try:
        model, report = AutoModel.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            attn_implementation="eager",  # faster than sdpa at a handful of tokens
            output_loading_info=True,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # whatever a foreign checkpoint can make its loader raise
        raise _explain(name, is_folder, error) from error
    prefix = model.base_model_prefix
    model = text_of(model)
    _check_weights(model, name, report)
    files = tuple(weight_files(name, revision))
    identity = {
        "llm_name": Path(name).resolve().name if is_folder else name,
        "llm_revision": None if is_folder else files[0].parent.name,  # the hub's cache: snapshots/COMMIT/file
        "llm_tensors": tensors_digest(files, prefix),
    }
    return model, identity, files


def text_of(model: Any) -> Any:
    """The decoder of a model that also sees or hears: the rest would be held and never used."""
    if model.config.get_text_config() is model.config:
        return model
    return getattr(model, "language_model", None) or model.get_decoder()


def read_llm_config(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The LLM's config.json, as transformers reads it; no weights.

    Raises:
        ModelError: not found, not readable, an encoder-decoder, quantised, a LoRA adapter beside it, code of its own
            without `trust_remote_code`.
    """
    from transformers import AutoConfig

    is_folder = os.path.isdir(name)
    if not is_folder and name.startswith(("/", ".", "~")):
        raise ModelError(f"{name}: folder not found; give a folder with config.json and weights, or a hub name")
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a foreign config can make its loader raise
        raise _explain(name, is_folder, error) from error
    if config.is_encoder_decoder:
        raise ModelError(f"{name}: {config.model_type} is an encoder-decoder model; choose a decoder-only LLM")
    if quantised := getattr(config, "quantization_config", None):
        kind = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise ModelError(f"{name}: its weights are quantised ({kind}); give the LLM's unquantised weights")
    if is_folder and os.path.exists(os.path.join(name, "adapter_config.json")):
        raise ModelError(
            f"{name}: holds an adapter (adapter_config.json), which would not be applied; merge it into the weights "
            "(peft's merge_and_unload, then save_pretrained into another folder), or remove it"
        )
    return config


def _explain(name: str, is_folder: bool, error: Exception) -> ModelError:
    """The loader's error as one line that says what to do."""
    text = " ".join(str(error).split())
    short = text if len(text) <= 150 else text[:147] + "..."
    if "trust_remote_code" in text:
        return ModelError(
            f"{name}: needs to run code from its own repository; review it, then set model.trust_remote_code: "
            "true, or choose another LLM"
        )
    if is_folder and os.path.exists(os.path.join(name, "open_clip_config.json")):
        return ModelError(f"{name}: is the folder of a vision encoder (open_clip_config.json); give an LLM's folder")
    if is_folder or not isinstance(error, OSError):
        return ModelError(f"{name}: cannot be loaded as an LLM: {type(error).__name__}: {short}")
    return ModelError(
        f"{name}: not a local folder, and it could not be fetched from the hub; check the name and the network, or "
        f"download it elsewhere and give the path of its folder ({short})"
    )


def _check_weights(model: nn.Module, name: str, report: dict[str, Any]) -> None:
    """Refuse weights that transformers would fill in at random or ignore, and NaN or inf."""
    missing = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if missing:
        raise ModelError(
            f"{name}: {len(missing)} weights are missing from the checkpoint (first: {missing[0]}); "
            "is it a complete checkpoint of a decoder-only LLM?"
        )
    if unused := sorted(key for key in report["unexpected_keys"] if not UNREAD.search(key)):
        raise ModelError(
            f"{name}: {len(unused)} weights are unused, first: {unused[0]}; config.json describes a different model "
            "from the weights beside it"
        )
    for key, weight in model.named_parameters():
        if not all(extreme.isfinite() for extreme in weight.aminmax()):  # passes NaN on; needs no memory
            raise ModelError(f"{name}: the weight {key} has values that are not finite in {weight.dtype}")


def _check_causal(model: Any, name: str, d: int, dtype: torch.dtype) -> int:
    """Refuse a model whose first position sees later ones; returns the width of its hidden state."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, d, generator=generator).to(next(model.parameters()).device, dtype).requires_grad_()
    try:
        hidden = model(inputs_embeds=x, use_cache=False).last_hidden_state
        # A random direction: the plain sum over a LayerNorm's output does not depend on its input.
        direction = torch.randn(hidden.shape[-1], generator=generator).to(hidden.device)
        (gradient,) = torch.autograd.grad(hidden[0, 0].float() @ direction, x)
    except Exception as error:  # a model that takes no inputs_embeds can fail in any way
        raise ModelError(f"{name}: does not run on inputs_embeds: {' '.join(str(error).split())[:200]}") from error
    if gradient[0, 1:].any():
        raise ModelError(f"{name}: its first position attends to later ones (an encoder); choose a decoder-only LLM")
    if not gradient[0, 0].any():
        raise ModelError(f"{name}: its output does not depend on inputs_embeds; choose another LLM")
    return int(hidden.shape[-1])


@torch.no_grad()
def _drop_embedding(model: Any, name: str) -> tuple[int, float, Tensor | None]:
    """Take the token embedding out; returns width and RMS of its outputs over the whole vocabulary, and its output for
    the first token of a text. The module is called rather than its weight read, because Gemma scales inside it. What a
    family does to `inputs_embeds` after that (Granite multiplies) it does to tokens and prefix vectors alike.
    """
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise ModelError(f"{name}: has no token embedding, so it is not a language model; choose a decoder-only LLM")
    total, count, width = 0.0, 0, 0
    for ids in torch.split(torch.arange(embedding.num_embeddings), 8192):
        vectors = embedding(ids).float()
        total, count, width = total + vectors.square().sum().item(), count + vectors.numel(), vectors.shape[-1]
    first = bos_id(model.config, embedding.num_embeddings)
    bos = None if first is None else embedding(torch.tensor(first)).float()
    model.set_input_embeddings(nn.Identity())  # often the largest weight of all, and nothing looks tokens up
    return width, (total / count) ** 0.5, bos


def bos_id(config: Any, vocabulary: int) -> int | None:
    """The token that an LLM's texts begin with: its BOS, or the end-of-text token that separates them in training;
    None where its config names neither.
    """
    for key in ("bos_token_id", "eos_token_id"):
        token = getattr(config, key, None)
        token = token[0] if isinstance(token, list) and token else token
        if isinstance(token, int) and 0 <= token < vocabulary:
            return token
    return None


def weight_files(name: str, revision: str | None = None) -> list[Path]:
    """The files on this machine that transformers reads the weights from: safetensors, else bin; one file, else shards.

    Raises:
        ModelError: there are none, or not all.
    """
    from transformers.utils.hub import cached_file

    def find(file: str) -> Path | None:
        # `from_pretrained` has just downloaded what there is.
        path = cached_file(
            name,
            file,
            revision=revision,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return Path(path) if path else None

    for whole in ("model.safetensors", "pytorch_model.bin"):
        if path := find(whole):
            return [path]
        if index := find(f"{whole}.index.json"):
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            found = [(shard, find(shard)) for shard in shards]
            if lost := [shard for shard, path in found if path is None]:
                raise ModelError(f"{name}: {index.name} names {lost[0]}, which is missing: the copy is incomplete")
            return [path for _, path in found if path is not None]
    raise ModelError(f"{name}: has neither model.safetensors nor pytorch_model.bin; save it with save_pretrained")


@contextlib.contextmanager
def quiet_transformers(progress: bool) -> Iterator[None]:
    """Silence the loading report (our own checks read it) and retry messages, and send no .bin files to a converter."""
    from transformers.utils import logging as noise

    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    verbosity, bars, hub = noise.get_verbosity(), noise.is_progress_bar_enabled(), logging.getLogger("huggingface_hub")
    hub_level = hub.level
    noise.set_verbosity(logging.ERROR)
    hub.setLevel(logging.CRITICAL)
    if not progress:
        noise.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        noise.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if bars:
            noise.enable_progress_bar()  # type: ignore[no-untyped-call]
