"""The reference path of the frozen LLM: every family against its own CausalLM, and what is refused."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import nn

import simv0.runtime.torchvision_fix  # noqa: F401
from simv0.errors import CheckpointError, ModelError
from simv0.llm.frozen import FrozenLLM
from simv0.llm.load import load_llm, weight_files
from simv0.model.checkpoint import check_frozen

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


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One saved CausalLM of every family."""
    folders = {}
    for family, config in FAMILIES.items():
        folders[family] = tmp_path_factory.mktemp("llm") / family
        shaken(tf.AutoModelForCausalLM.from_config(config)).save_pretrained(folders[family])
    return folders


def prefix(llm: FrozenLLM, batch: int = 3, tokens: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(batch, tokens, llm.d, generator=generator) * llm.embed_rms).requires_grad_()


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


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            tf.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4),
            "t5 is an encoder-decoder model; choose a decoder-only LLM",
        ),
        (tf.BertConfig(**SMALL), "its first position attends to later ones (an encoder); choose a decoder-only LLM"),
        (
            tf.ViTConfig(
                hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=32
            ),
            "has no token embedding, so it is not a language model; choose a decoder-only LLM",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_refuses_what_is_not_decoder_only(config: Any, message: str, tmp_path: Path) -> None:
    tf.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_llm(str(tmp_path))
    assert str(caught.value) == f"{tmp_path}: {message}"


def edited(source: Path, target: Path, edit: Any) -> str:
    """A copy of a checkpoint whose weights went through `edit`."""
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = load_file(source / "model.safetensors")
    edit(weights)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return str(target)


def test_refuses_missing_weights(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    key = "model.layers.1.mlp.up_proj.weight"
    name = edited(checkpoints["llama"], tmp_path / "m", lambda weights: weights.pop(key))
    with pytest.raises(ModelError, match=r"1 weights are missing from the checkpoint \(first: layers.1.mlp.up_proj"):
        load_llm(name)


def test_refuses_weights_of_another_shape(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    key = "model.layers.1.mlp.up_proj.weight"
    name = edited(checkpoints["llama"], tmp_path / "m", lambda weights: weights.update({key: torch.zeros(7, 32)}))
    with pytest.raises(ModelError, match="cannot be loaded as an LLM: RuntimeError") as caught:
        load_llm(name)
    assert "\n" not in str(caught.value)


def test_refuses_unused_weights(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Biases that config.json does not know; what older checkpoints hold beside the weights is no fault."""
    bias = {f"model.layers.{i}.mlp.up_proj.bias": torch.zeros(48) for i in range(2)}
    name = edited(checkpoints["llama"], tmp_path / "m", lambda weights: weights.update(bias))
    with pytest.raises(ModelError) as caught:
        load_llm(name)
    assert str(caught.value) == (
        f"{name}: 2 weights are unused, first: model.layers.0.mlp.up_proj.bias; config.json describes a different "
        "model from the weights beside it"
    )
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4), "lm_head.bias": torch.zeros(50)}
    name = edited(checkpoints["llama"], tmp_path / "old", lambda weights: weights.update(old))
    assert load_llm(name).identity["llm_tensors"] == load_llm(str(checkpoints["llama"])).identity["llm_tensors"]


def test_refuses_what_lies_beside_the_weights_and_changes_them(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints["llama"], tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"holds an adapter \(adapter_config.json\), which would not be applied; merge"
    ):
        load_llm(str(folder))
    (folder / "adapter_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ModelError, match=r"its weights are quantised \(awq\); give the LLM's unquantised weights"):
        load_llm(str(folder))


def test_refuses_a_copy_that_lacks_a_shard(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tf.AutoModelForCausalLM.from_pretrained(checkpoints["llama"]).save_pretrained(tmp_path, max_shard_size="20KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match="cannot be loaded as an LLM"):
        load_llm(str(tmp_path))
    with pytest.raises(ModelError, match=f"index.json names {lost.name}, which is missing: the copy is incomplete"):
        weight_files(str(tmp_path))


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_weights_that_are_not_finite(bad: float, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    key = "model.norm.weight"
    name = edited(checkpoints["llama"], tmp_path / "m", lambda weights: weights[key][3].fill_(bad))
    with pytest.raises(ModelError, match=r"the weight norm.weight has values that are not finite in torch.float32"):
        load_llm(name)


def test_refuses_weights_that_overflow_in_fp16(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    key = "model.norm.weight"
    name = edited(checkpoints["llama"], tmp_path / "m", lambda weights: weights[key][3].fill_(1e6))
    with pytest.raises(ModelError, match=r"not finite in torch.float16"):
        load_llm(name, dtype=torch.float16)


def test_refuses_foreign_code(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "homemade", "auto_map": {"AutoConfig": "homemade.Config", "AutoModel": "homemade.Model"}}'
    )
    (tmp_path / "homemade.py").write_text("raise SystemExit('ran foreign code')")
    with pytest.raises(ModelError, match="needs to run code from its own repository") as caught:
        load_llm(str(tmp_path))
    assert "model.trust_remote_code: true" in str(caught.value)


def test_refuses_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="folder not found; give a folder with config"):
        load_llm(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="cannot be loaded as an LLM"):
        load_llm(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is the folder of a vision encoder .*; give an LLM's folder"):
        load_llm(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"^model.llm_name_or_path: nobody/nothing is not a local folder, and its weights "
    ) as caught:
        load_llm("nobody/nothing")
    assert str(caught.value).endswith("or give a local folder")
    assert "\n" not in str(caught.value)


def test_refuses_damaged_weights(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    name = edited(checkpoints["llama"], tmp_path / "m", lambda weights: None)
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded as an LLM"):
        load_llm(name)


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


def test_a_hostile_bin_runs_nothing(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A checkpoint's config may name any folder: its pickled weights are read as data or not at all."""

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "PWNED",))

    folder = tmp_path / "llm"
    shutil.copytree(checkpoints["llama"], folder)
    (folder / "model.safetensors").unlink()
    torch.save({"embed_tokens.weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded as an LLM"):
        load_llm(str(folder))
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_loads_where_the_caller_has_switched_gradients_off(switch: Any, checkpoints: dict[str, Path]) -> None:
    """The checks at load need them, and a training step may come later."""
    with switch():
        llm = load_llm(str(checkpoints["llama"]))
    x = prefix(llm)
    llm(x).sum().backward()
    assert x.grad is not None
    assert llm.path == "fast"
