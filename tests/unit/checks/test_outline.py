"""What `simv0 check` says of networks and files before they exist is what they turn out to be."""

from pathlib import Path

import pytest
import torch
from small_world import MakeConfig

import simv0.checks.probe
import simv0.checks.room
from cache.pipeline import cache_vis
from simv0.checks.networks import outline_encoder, outline_llm, outline_trained
from simv0.checks.run import check
from simv0.config.schema import Config, ModelConfig
from simv0.demo.networks import save_tiny_tower
from simv0.demo.world import write_world
from simv0.errors import SimError
from simv0.llm.frozen import FrozenLLM
from simv0.llm.load import load_llm
from simv0.model.build import build_model
from simv0.vision.encoder import load_encoder


def kept_of_a_step(llm: FrozenLLM, config: Config, tokens: int) -> int:
    """Bytes that autograd keeps of a training batch's forward pass, weights left out."""
    kept: dict[int, torch.Tensor] = {}
    own = {weight.data_ptr() for weight in llm.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    prefix = torch.zeros(config.batch_size, tokens, llm.d, requires_grad=True)
    llm(prefix)  # its tables are made once
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        llm(prefix)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_outline_of_the_llm_is_what_is_loaded(
    dtype: torch.dtype, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, their bytes, and what autograd keeps of a step: equal to the real ones."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": dtype is torch.bfloat16})
    config = make_config(training={"amp": True})
    outline = outline_llm(config)
    llm = load_llm(config.model.llm_name_or_path, dtype=dtype)
    assert outline.weights == sum(weight.numel() for weight in llm.parameters())
    assert outline.weights_bytes == sum(weight.nbytes for weight in llm.parameters())
    assert (outline.d, outline.hidden_size, outline.path) == (llm.d, llm.hidden_size, llm.path)
    assert outline.step_bytes == pytest.approx(kept_of_a_step(llm, config, outline.tokens), rel=0.02)
    model = build_model(config, 32, None, torch.device("cpu"))
    assert outline.tokens == model.tokens == config.model.K + 3
    assert outline_trained(config, outline, 32) == model.trainable_parameters()


def test_a_family_off_the_fast_path_has_an_outline_too(make_config: MakeConfig, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=16)).save_pretrained(tmp_path)
    config = make_config(model={"llm_name_or_path": str(tmp_path)})
    outline, llm = outline_llm(config), load_llm(str(tmp_path))
    assert (outline.path, outline.d) == ("reference", 32)
    assert outline.weights == sum(weight.numel() for weight in llm.parameters())
    assert outline.step_bytes == pytest.approx(kept_of_a_step(llm, config, outline.tokens), rel=0.02)


def test_the_feature_file_has_the_size_that_was_estimated(make_config: MakeConfig, tmp_path: Path) -> None:
    world = tmp_path / "world"
    write_world(world, train_windows=150, val_windows=40, seed=0)
    save_tiny_tower(tmp_path / "vision", dv=128)
    data = {f"{split}_split_path": str(world / f"{split}.jsonl") for split in ("train", "val")}
    config = make_config(data=data, model={"vision_encoder_name": f"local-dir:{tmp_path / 'vision'}", "F": 8})
    facts = check(config).facts["cache-vis"]
    reports = cache_vis(config)
    for report in reports:
        assert facts[f"{report.split}_file_bytes"] == pytest.approx(report.path.stat().st_size, rel=0.01)
        assert facts[f"{report.split}_frames"] == report.counts.encoded


def test_probe_measures(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simv0.checks.probe, "PATIENCE", 0.02)
    facts = check(make_config(data={"num_workers": 0}), probe=True).facts["probe"]
    assert facts["train_seconds"] == pytest.approx(2 * facts["epoch_seconds"])
    per_frame = 1 / facts["frames read per second"] + 1 / facts["frames encoded per second"]
    assert facts["cache-vis_seconds"] == pytest.approx((43 + 23) * per_frame, rel=0.02)
    raw = check(make_config(model={"use_cached_vis_feats": False}), probe=True).facts["probe"]
    assert "cache-vis_seconds" not in raw
    assert 1 / raw["training windows per second"] > 4 / raw["frames encoded per second"]
    assert "probe" not in check(make_config(model={"d": 3}), probe=True).facts


def test_the_encoder_outline_is_what_is_loaded(make_config: MakeConfig) -> None:
    config = make_config()
    encoder = load_encoder(config.model)
    outline = outline_encoder(config.model)
    assert (outline.dv, outline.image_size) == (encoder.dv, encoder.image_size)
    assert outline.weights == sum(weight.numel() for weight in encoder.parameters())
    with pytest.raises(SimError, match=r"open_clip has no model ViT-B-33; did you mean ViT-B-32"):
        outline_encoder(config.model.model_copy(update={"vision_encoder_name": "ViT-B-33"}))


def test_the_outline_of_an_encoder_of_the_hub_fetches_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub/models--lab--tower/snapshots/0123"
    save_tiny_tower(snapshot, dv=48)
    (snapshot / "open_clip_model.safetensors").unlink()
    (tmp_path / "hub/models--lab--tower/refs").mkdir()
    (tmp_path / "hub/models--lab--tower/refs/main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    of_the_hub = ModelConfig(vision_encoder_name="hf-hub:lab/tower", vision_pretrained=None)
    save_tiny_tower(tmp_path / "whole", dv=48)
    whole = ModelConfig(vision_encoder_name=f"local-dir:{tmp_path / 'whole'}", vision_pretrained=None)
    assert outline_encoder(of_the_hub) == outline_encoder(whole)
