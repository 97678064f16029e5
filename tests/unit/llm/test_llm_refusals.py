"""LLM folders that are refused: not decoder-only, not complete, not what config.json says, hostile."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from llm_families import SMALL, edited

from simv0.errors import ModelError
from simv0.llm.load import load_llm, weight_files


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
