"""A file of weights beside its tag gives the tag's features; alone it is refused where it could give others."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from fit_world import fit_until
from safetensors.torch import load_file, save_file
from small_world import MakeConfig

from simv0.config.schema import Config, ModelConfig
from simv0.demo.networks import save_tiny_tower
from simv0.errors import CheckpointError, ModelError
from simv0.features.identity import differing_features, wanted_identity
from simv0.model.checkpoint import check_frozen, load_checkpoint, save_checkpoint
from simv0.training.fit import fit
from simv0.vision.encoder import load_encoder

HALVES = (0.5, 0.5, 0.5)
OTHER: dict[str, Any] = {"mean": HALVES, "std": HALVES, "interpolation": "bilinear", "quick_gelu": True}


@pytest.fixture
def weights(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of `Tiny-32`, an architecture with the tags `plain` and `other`, which "download" them."""
    monkeypatch.setenv("HOME", str(tmp_path))  # of open_clip's downloads
    path = tmp_path / "tiny.pt"
    torch.save(load_file(models / "vision" / "open_clip_model.safetensors"), path)
    found = json.loads((models / "vision" / "open_clip_config.json").read_text())["model_cfg"]
    url = {"url": f"file://{path}", "hf_hub": ""}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-32", found)
    tags = {"plain": url, "other": {**url, **OTHER}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-32", tags)
    return path


def tiny(tag: str, **changes: Any) -> ModelConfig:
    return ModelConfig(vision_encoder_name="Tiny-32", vision_pretrained=tag, **changes)


def test_a_file_beside_its_tag_gives_the_tags_features(weights: Path) -> None:
    frames = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = {}
    for tag in ("plain", "other"):
        by_tag, by_file = load_encoder(tiny(tag)), load_encoder(tiny(tag, vision_weights=str(weights)))
        features[tag] = by_tag(frames)
        torch.testing.assert_close(by_file(frames), features[tag], rtol=0, atol=0)
        assert by_file.identity == by_tag.identity
    clip, _, _ = open_clip.create_model_and_transforms("Tiny-32", str(weights), force_quick_gelu=True)
    images = by_tag.resize(frames).float() / 255 * 2 - 1
    torch.testing.assert_close(features["other"], clip.encode_image(images).detach(), rtol=1e-4, atol=1e-5)
    assert (features["plain"] - features["other"]).norm() > 0.01 * features["plain"].norm()
    assert by_tag.identity["vision_quick_gelu"]
    assert by_tag.identity["vision_preprocess"]["mean"] == [0.5, 0.5, 0.5]
    assert by_tag.identity["vision_preprocess"]["interpolation"] == "bilinear"
    with pytest.raises(CheckpointError, match="vision_quick_gelu: trained with True, found False"):
        check_frozen("vision encoder", by_tag.identity, load_encoder(tiny("plain")).identity, "c.pt")


def test_a_bare_file_is_refused_where_tags_differ(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError) as caught:
        load_encoder(tiny(str(weights)))
    assert str(caught.value) == (
        f"model.vision_pretrained: {weights} is a file, which does not say how Tiny-32 prepares images (plain: mean "
        "default, bicubic; other: mean (0.5, 0.5, 0.5), bilinear, QuickGELU); write the tag it was trained as, and the "
        "file as model.vision_weights"
    )
    trained = load_encoder(tiny("other", vision_weights=str(weights)))  # a checkpoint knows how
    bare = load_encoder(tiny(str(weights)), trained=trained.identity)
    check_frozen("vision encoder", trained.identity, bare.identity, "c.pt")
    monkeypatch.delitem(open_clip.pretrained._PRETRAINED["Tiny-32"], "plain")
    check_frozen("vision encoder", trained.identity, load_encoder(tiny(str(weights))).identity, "c.pt")


def test_an_older_checkpoint_of_a_tag_with_quick_gelu_predicts_as_it_was_trained(weights: Path) -> None:
    """Its features were made without: the tag was not heard, and nothing said so."""
    new = load_encoder(tiny("other", vision_weights=str(weights))).identity
    old = {key: value for key, value in new.items() if key != "vision_quick_gelu"}
    encoder = load_encoder(tiny("other", vision_weights=str(weights)), trained=old)
    assert not encoder.identity["vision_quick_gelu"]
    check_frozen("vision encoder", old, encoder.identity, "c.pt")
    with pytest.raises(CheckpointError, match="vision_quick_gelu: trained with None, found True"):
        check_frozen("vision encoder", old, new, "c.pt")


def test_a_file_without_its_tag_or_that_is_not_there(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"vision_weights is set without model.vision_pretrained"):
        ModelConfig(vision_encoder_name="local-dir:x", vision_pretrained=None, vision_weights=str(weights))
    with pytest.raises(ModelError, match=r"^model.vision_weights: /nowhere.pt: file not found$"):
        load_encoder(tiny("plain", vision_weights="/nowhere.pt"))
    with pytest.raises(ModelError, match=r"is a folder; name the file in it; found .*tiny.pt"):
        load_encoder(tiny("plain", vision_weights=str(weights.parent)))


def test_a_file_of_another_architecture_is_told_by_its_name(weights: Path, tmp_path: Path) -> None:
    torch.save({"visual.proj": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ModelError) as caught:
        load_encoder(tiny("plain", vision_weights=str(tmp_path / "other.pt")))
    assert str(caught.value).startswith(
        f"model.vision_encoder_name: Tiny-32 (pretrained: plain) from {tmp_path}/other.pt cannot be loaded: the "
        "weights are of another architecture: "
    )
    assert str(caught.value).endswith("1 of another size (visual.proj)")


def test_weights_of_another_image_size_are_told(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    """open_clip stretches their positions without a word: the features would be others than the tag's."""
    state = torch.load(weights)
    state["visual.positional_embedding"] = torch.randn(5, 32)
    torch.save(state, weights)
    told = "the weights are of another image size: 5 positions, the tower has 2; "
    with pytest.raises(ModelError) as caught:
        load_encoder(tiny("plain", vision_weights=str(weights)))
    assert str(caught.value) == (
        f"model.vision_encoder_name: {weights}: {told}write the architecture and the tag that the file was trained as"
    )
    folder = weights.parent / "tower"
    save_tiny_tower(folder)
    save_file(state, folder / "open_clip_model.safetensors")
    identity = load_encoder(ModelConfig(vision_encoder_name=f"local-dir:{folder}", vision_pretrained=None)).identity
    assert caplog.messages == [
        f"model.vision_encoder_name: {folder}/open_clip_model.safetensors: {told}they are stretched to it"
    ]
    load_encoder(tiny("plain", vision_weights=str(weights)), trained=identity)  # as it was trained


def test_a_bare_file_of_an_architecture_without_tags(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(open_clip.pretrained._PRETRAINED, "Tiny-32")
    with pytest.raises(
        ModelError, match=r"nor does Tiny-32 have tags; write local-dir:PATH of a folder with the file and an"
    ):
        load_encoder(tiny(str(weights)))


def test_older_features_of_a_bare_file_are_accepted(weights: Path, make_config: MakeConfig) -> None:
    """Their identity holds the file's whole path and how images were prepared, nothing of QuickGELU."""
    made = load_encoder(tiny("plain", vision_weights=str(weights))).identity
    config = make_config(model={"vision_encoder_name": "Tiny-32", "vision_pretrained": str(weights)})
    stored = wanted_identity(config, "train") | made | {"vision_pretrained": str(weights)}
    del stored["vision_file"], stored["vision_quick_gelu"]
    assert differing_features(config, "train", stored) == []
    lines = differing_features(config, "train", stored | {"vision_weights": "0"})
    assert any(line.startswith('vision_weights is "0" in the file, "') for line in lines)


def test_an_older_run_on_frames_of_a_tag_with_quick_gelu_goes_on(
    weights: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had none then, since the tag was not heard."""
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED["Tiny-32"], "gelu", {"url": f"file://{weights}", "quick_gelu": True}
    )

    def raw(tag: str) -> Config:
        model = {"vision_encoder_name": "Tiny-32", "vision_pretrained": tag, "vision_weights": str(weights)}
        return make_config(
            model={**model, "use_cached_vis_feats": False},
            training={"epochs": 1, "checkpoint_every_steps": 1},
            output={"output_dir": str(tmp_path / "run")},
        )

    fit_until(raw("plain"), 2)
    last = tmp_path / "run/checkpoints/last.pt"
    old = load_checkpoint(last)
    assert old.meta.encoder is not None
    assert old.meta.encoder.pop("vision_quick_gelu") is False
    old.meta.encoder["vision_pretrained"] = "gelu"
    save_checkpoint(last, old)
    resumed = load_checkpoint(fit(raw("gelu"), resume=True).last).meta
    assert resumed.epoch == 1
    assert resumed.encoder is not None
    assert resumed.encoder["vision_quick_gelu"] is False
