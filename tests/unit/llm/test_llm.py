"""The reference path of the frozen LLM: every family against its own CausalLM, and what is refused."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from llm_families import FAMILIES, GROUPED, edited, prefix, shaken
from torch import nn

import simv0.runtime.torchvision_fix  # noqa: F401
from simv0.errors import CheckpointError
from simv0.llm.load import bos_id, load_llm
from simv0.model.checkpoint import check_frozen


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees_with_its_causal_lm(family: str, checkpoints: dict[str, Path]) -> None:
    """Outputs and input gradients, in train mode too; real tokens at our scale are tokens to the LLM."""
    llm = load_llm(str(checkpoints[family]), fast=False).train()
    assert llm.path == "reference"
    causal = tf.AutoModelForCausalLM.from_pretrained(checkpoints[family]).eval()
    x = prefix(llm)
    weigh = torch.randn(3, llm.hidden_size, generator=torch.Generator().manual_seed(2))

    def causal_hidden(**inputs: Any) -> torch.Tensor:
        hidden: torch.Tensor = causal(**inputs, output_hidden_states=True, use_cache=False).hidden_states[-1][:, -1]
        return hidden

    ours, theirs = llm(x), causal_hidden(inputs_embeds=x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    (our_gradient,) = torch.autograd.grad((ours * weigh).sum(), x)
    (their_gradient,) = torch.autograd.grad((theirs * weigh).sum(), x)
    assert our_gradient.abs().sum(dim=(0, 2)).min() > 0  # every position is heard
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-3, atol=1e-4 * float(their_gradient.abs().max()))
    assert not any(weight.requires_grad for weight in llm.parameters())
    assert not any(module.training for module in llm.modules())

    ids = torch.arange(50).reshape(5, 10)
    tokens = causal.get_input_embeddings()(ids)
    assert llm.embed_rms == pytest.approx(tokens.square().mean().sqrt().item(), rel=1e-5)
    torch.testing.assert_close(llm(tokens), causal_hidden(input_ids=ids), rtol=1e-4, atol=1e-5)


def test_widths_of_a_projected_opt(checkpoints: dict[str, Path]) -> None:
    llm = load_llm(str(checkpoints["opt_projected"]))
    assert (llm.d, llm.hidden_size) == (16, 16)


def test_token_embedding_and_head_are_not_held(checkpoints: dict[str, Path]) -> None:
    llm = load_llm(str(checkpoints["llama"]))
    assert not any(50 in weight.shape for weight in llm.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_held_in_the_compute_dtype_only(dtype: torch.dtype, checkpoints: dict[str, Path]) -> None:
    exact = load_llm(str(checkpoints["gpt2"]))
    llm = load_llm(str(checkpoints["gpt2"]), dtype=dtype)
    assert {weight.dtype for weight in llm.parameters()} == {dtype}
    x = prefix(llm)
    out = llm(x)
    assert out.dtype == torch.float32
    assert (out - exact(x)).norm() < 0.03 * exact(x).norm()
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_identity_is_of_the_tensors_not_of_files_names_or_dtype(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Renamed, in shards, as .bin, without its head, computed in bf16: one LLM. Another weight: another."""
    folder = checkpoints["llama"]
    known = load_llm(str(folder)).identity
    assert (known["llm_name"], known["llm_revision"]) == ("llama", None)
    causal = tf.AutoModelForCausalLM.from_pretrained(folder)
    causal.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    causal.model.save_pretrained(tmp_path / "body")
    shutil.copytree(folder, tmp_path / "bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    torch.save(causal.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    for name in ("shards", "body", "bin"):
        found = load_llm(str(tmp_path / name), dtype=torch.bfloat16).identity
        assert found == {**known, "llm_name": name}
        check_frozen("LLM", known, found, "c.pt")
    other = edited(folder, tmp_path / "other", lambda weights: weights["model.norm.weight"][0].add_(1e-3))
    with pytest.raises(CheckpointError, match="another LLM: llm_name: trained with 'llama', .* llm_tensors: trained"):
        check_frozen("LLM", known, load_llm(other).identity, "c.pt")


def test_an_older_checkpoint_knows_its_llm_by_the_files(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["llama"], tmp_path / "renamed")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    old = {"llm_name": "llama", "llm_revision": None, "llm_weights": digest}
    llm = load_llm(str(folder))
    check_frozen("LLM", old, llm.identity_like(old), "c.pt")
    old["llm_weights"] = "0"
    with pytest.raises(CheckpointError, match="llm_weights: trained with '0'"):
        check_frozen("LLM", old, llm.identity_like(old), "c.pt")


def test_identity_of_shards_and_of_the_hub_cache(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout of the hub's cache, made by hand; offline, as on a robot."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    model = tf.AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    model.save_pretrained(repo / "snapshots" / commit, max_shard_size="20KB")
    shards = sorted((repo / "snapshots" / commit).glob("*.safetensors"))
    assert len(shards) > 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_llm("someone/tiny").identity == {
        "llm_name": "someone/tiny",
        "llm_revision": commit,
        "llm_tensors": load_llm(str(checkpoints["llama"])).identity["llm_tensors"],
    }


def test_embed_rms_by_hand(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Half of the rows are 3, half are 4: RMS sqrt((9 + 16) / 2); Gemma multiplies its tokens by sqrt(width)."""
    for family, factor in (("llama", 1.0), ("gemma2", 32**0.5)):
        model = tf.AutoModelForCausalLM.from_pretrained(checkpoints[family])
        with torch.no_grad():
            model.get_input_embeddings().weight[:25] = 3.0
            model.get_input_embeddings().weight[25:] = -4.0
        model.save_pretrained(tmp_path / family)
        assert load_llm(str(tmp_path / family)).embed_rms == pytest.approx(12.5**0.5 * factor, rel=1e-5)


VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "image_size": 32}
SEEING: dict[str, Any] = {
    "llava": tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION, num_hidden_layers=5, patch_size=16),
        text_config=tf.LlamaConfig(**GROUPED),
    ),
    "qwen2_vl": tf.Qwen2VLConfig(
        text_config={**GROUPED, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 5, "embed_dim": 32, "hidden_size": 32, "num_heads": 4},
    ),
}


@pytest.mark.parametrize("family", SEEING)
def test_of_a_model_that_sees_only_the_decoder_is_held(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = shaken(tf.AutoModel.from_config(SEEING[family]))
    whole.save_pretrained(tmp_path)
    llm = load_llm(str(tmp_path))
    assert len(llm.blocks()) == 2
    assert not any("vis" in name for name, _ in llm.named_modules())
    x = prefix(llm)
    wanted = whole.language_model(inputs_embeds=x, use_cache=False).last_hidden_state[:, -1]
    torch.testing.assert_close(llm(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif("SIMV0_REAL" not in os.environ, reason="SIMV0_REAL is not set: the pretrained LLM is not here")
def test_pretrained_llm_reads_a_story() -> None:
    """Through our path the pretrained LLM knows its language: its own head predicts the story's next tokens."""
    folder = os.environ["SIMV0_REAL"] + "/llm/stories260K"
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    causal = tf.AutoModelForCausalLM.from_pretrained(folder)
    llm = load_llm(folder)
    ids = tokenizer("Once upon a time, there was a little girl named Lily.", return_tensors="pt").input_ids
    embeds = causal.get_input_embeddings()(ids)
    states = torch.stack([llm(embeds[:, : n + 1]) for n in range(ids.shape[1])], dim=1)
    expected = causal(ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
    logits = causal.lm_head(states[:, :-1])
    assert nn.functional.cross_entropy(logits[0], ids[0, 1:]) < 1.5  # uniform: log(512) = 6.2


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_loads_where_the_caller_has_switched_gradients_off(switch: Any, checkpoints: dict[str, Path]) -> None:
    """The checks at load need them, and a training step may come later."""
    with switch():
        llm = load_llm(str(checkpoints["llama"]))
    x = prefix(llm)
    llm(x).sum().backward()
    assert x.grad is not None
    assert llm.path == "fast"


def test_the_first_token_of_an_llms_texts() -> None:
    from transformers import GPT2Config, LlamaConfig, Qwen2Config

    assert bos_id(LlamaConfig(), 32000) == 1
    assert bos_id(GPT2Config(), 50257) == 50256
    assert bos_id(Qwen2Config(bos_token_id=None, eos_token_id=[7, 8]), 100) == 7  # what separates its texts
    assert bos_id(LlamaConfig(bos_token_id=None, eos_token_id=None), 100) is None
    assert bos_id(LlamaConfig(bos_token_id=100, eos_token_id=None), 100) is None  # not of this vocabulary
