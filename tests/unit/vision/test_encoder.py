"""The frozen encoder: agrees with open_clip's own transform, never trains, knows itself."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from simv0.config.schema import ModelConfig
from simv0.cpu_step.prepare import prepare_encoder
from simv0.data.images import load_image
from simv0.demo.networks import save_tiny_tower
from simv0.errors import CheckpointError, ModelError
from simv0.model.checkpoint import check_frozen
from simv0.vision.encoder import Encoder, Resize, load_encoder, weights_digest

needs_panels = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this PyTorch has no fp16 products of FBGEMM"
)


def config(folder: Path, **changes: Any) -> ModelConfig:
    return ModelConfig(vision_encoder_name=f"local-dir:{folder}", vision_pretrained=None, **changes)


def pictures(folder: Path) -> list[Path]:
    """Smooth waves, as photographs are: a wide, a tall and a small one."""
    paths = []
    for width, height in ((160, 80), (50, 90), (20, 16)):
        x, y = torch.arange(width) / 9, torch.arange(height)[:, None] / 7
        wave = (torch.sin(x + y) + torch.cos(x - 2 * y)) * 60 + 128
        image = torch.stack([wave, wave.flip(0), wave.flip(1)], -1).to(torch.uint8)
        paths.append(folder / f"{width}.png")
        Image.fromarray(image.numpy()).save(paths[-1])
    return paths


@pytest.mark.parametrize("mode", ["squash", "longest", "shortest"])
def test_preprocessing_agrees_with_open_clips_own(models: Path, tmp_path: Path, mode: Any) -> None:
    """Within 2 of 255 a pixel, 0.2 on average (PIL rounds between its two passes)."""
    encoder = load_encoder(config(models / "vision", vision_resize_mode=mode))
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{models / 'vision'}", image_resize_mode=mode)
    for path in pictures(tmp_path):
        wanted = transform(Image.open(path)) * encoder.std[0] + encoder.mean[0]
        found = encoder.resize(load_image(path)[None])[0] / 255
        difference = (found - wanted).abs() * 255
        assert difference.max() <= 2.01, path
        assert difference.mean() <= 0.2, path


def test_preprocessing_agrees_on_real_frames(real: Path) -> None:
    folder = real / "vision" / "mobilenetv2_100"
    encoder = load_encoder(config(folder))
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", image_resize_mode="squash")
    for path in sorted((real / "data" / "rover" / "images").iterdir())[::800]:
        wanted = transform(Image.open(path))[None]
        frame = load_image(path)[None]
        pixels = (encoder.resize(frame) / 255 - encoder.mean) / encoder.std
        assert (pixels - wanted).abs().max() <= 2.01 * 2 / 255
        similarity = torch.cosine_similarity(encoder(frame), encoder.visual(wanted))
        assert similarity.item() > 0.9999


def test_squash_keeps_the_whole_view_and_shortest_does_not() -> None:
    frame = torch.zeros(1, 3, 16, 48, dtype=torch.uint8)
    frame[..., :6] = 255  # something at the left border
    bright = {
        mode: Resize((16, 16), mode, "bilinear")(frame)[..., 0].float().mean().item() for mode in ("squash", "shortest")
    }  # type: ignore[arg-type]
    assert bright == {"squash": 255, "shortest": 0}
    padded = Resize((16, 16), "longest", "bilinear", fill=7)(frame)
    assert padded.shape == (1, 3, 16, 16)
    assert (padded[..., :5, :] == 7).all()


@pytest.mark.parametrize("mode", ["squash", "longest", "shortest"])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_resizing_twice_changes_nothing(mode: Any, size: tuple[int, int]) -> None:
    resize = Resize(size, mode, "bicubic")
    once = resize(torch.randint(0, 256, (2, 3, 37, 51), dtype=torch.uint8))
    assert once.shape[-2:] == size
    assert torch.equal(resize(once), once)


def test_bytes_and_floats_give_the_same_features(models: Path) -> None:
    encoder = load_encoder(config(models / "vision"))
    frames = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(encoder(frames), encoder(frames / 255), atol=1e-5)
    assert encoder(frames).shape == (3, encoder.dv) == (3, 32)


def test_features_are_the_towers_on_normalised_pixels(models: Path) -> None:
    """A second way: open_clip's model and the normalisation written out."""
    clip = open_clip.create_model(f"local-dir:{models / 'vision'}").eval()
    frames = torch.rand(2, 3, 32, 32)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        wanted = clip.encode_image((frames - mean) / std)
    assert torch.allclose(load_encoder(config(models / "vision"))(frames), wanted, atol=1e-5)


def test_frozen_whatever_train_says(models: Path) -> None:
    encoder = load_encoder(config(models / "vision"))
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(torch.rand(1, 3, 32, 32, requires_grad=True)).requires_grad


def test_bf16_is_close_to_fp32(models: Path) -> None:
    fp32, bf16 = (load_encoder(config(models / "vision"), precision) for precision in ("fp32", "bf16"))
    frames = torch.rand(4, 3, 32, 32)
    assert bf16(frames).dtype == torch.float32
    assert torch.cosine_similarity(fp32(frames), bf16(frames)).min() > 0.999
    assert (fp32.identity["vision_precision"], bf16.identity["vision_precision"]) == ("fp32", "bf16")
    assert fp32.identity["vision_weights"] == bf16.identity["vision_weights"]


def identity(folder: Path, **changes: Any) -> dict[str, Any]:
    return load_encoder(config(folder, **changes)).identity


def test_identity_follows_weights_and_preprocessing_not_the_place(models: Path, tmp_path: Path) -> None:
    here = identity(models / "vision")
    moved = tmp_path / "vision"
    save_tiny_tower(moved)
    assert identity(moved) == here
    assert str(models) not in str(here)
    assert identity(moved, vision_resize_mode="longest") != here
    weights = load_file(moved / "open_clip_model.safetensors")
    weights["visual.proj"][0, 0] += 1e-6
    save_file(weights, moved / "open_clip_model.safetensors")
    assert {key for key, value in identity(moved).items() if value != here[key]} == {"vision_weights"}


@pytest.mark.parametrize(("key", "value"), [("head_width", 32), ("pool_type", "tok"), ("norm_kwargs", {"eps": 0.1})])
def test_identity_follows_what_the_weights_do_not_show(tmp_path: Path, key: str, value: Any) -> None:
    """The same weights in another config are another network."""
    frames = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    save_tiny_tower(tmp_path)
    path = tmp_path / "open_clip_config.json"
    before = load_encoder(config(tmp_path))
    tree = json.loads(path.read_text())
    tree["model_cfg"]["vision_cfg"][key] = value
    path.write_text(json.dumps(tree))
    after = load_encoder(config(tmp_path))
    assert (after(frames) - before(frames)).norm() > 0.01 * before(frames).norm()
    assert after.identity["vision_weights"] == before.identity["vision_weights"]
    with pytest.raises(CheckpointError, match="vision_tower: trained with "):
        check_frozen("vision encoder", before.identity, after.identity, "c.pt")
    old = {field: fact for field, fact in before.identity.items() if field != "vision_tower"}
    check_frozen("vision encoder", old, before.identity, "c.pt")


def test_digest_sees_names_types_and_shapes() -> None:
    zeros = torch.zeros(4)
    states = [{"a": zeros}, {"b": zeros}, {"a": zeros.view(2, 2)}, {"a": zeros.int()}, {"a": zeros.bfloat16()}]
    assert len({weights_digest(state) for state in states}) == len(states)


def test_refusals_name_the_key_and_the_way_out(models: Path, tmp_path: Path) -> None:
    def refusal(model: ModelConfig) -> str:
        with pytest.raises(ModelError) as error:
            load_encoder(model)
        assert "\n" not in str(error.value)
        return str(error.value)

    random_weights = refusal(ModelConfig(vision_encoder_name="ViT-B-32", vision_pretrained=None))
    assert random_weights.startswith(
        "model.vision_pretrained: ViT-B-32 without a pretrained tag would have random weights;"
    )
    assert "laion2b_s34b_b79k" in random_weights
    unknown = refusal(ModelConfig(vision_encoder_name="ViT-B-23", vision_pretrained="x"))
    assert unknown.startswith("model.vision_encoder_name: open_clip has no model ViT-B-23; did you mean ViT-B-")
    tag = refusal(ModelConfig(vision_pretrained="x"))
    assert tag.startswith("model.vision_pretrained: ViT-B-32 has no tag 'x'; write one of its tags (openai, ")
    wrong = "model.dv: the config says 99, but local-dir:"
    assert refusal(config(models / "vision", dv=99)).startswith(wrong)


def test_the_image_size_comes_from_the_model(models: Path) -> None:
    encoder: Encoder = load_encoder(config(models / "vision"))
    assert encoder.image_size == (32, 32)
    assert math.prod(encoder.resize(torch.zeros(1, 3, 9, 99)).shape) == 3 * 32 * 32


def test_convolutions_see_the_channels_last_and_give_the_same() -> None:
    """A tower of convolutions is faster so (benchmarks/encoder.py): a guard without timing."""
    from open_clip.modified_resnet import ModifiedResNet

    torch.manual_seed(0)
    tower = ModifiedResNet((1, 1, 1, 1), output_dim=16, heads=4, image_size=64, width=8).eval()
    plain = copy.deepcopy(tower)
    preprocess = {"size": 64, "resize_mode": "squash", "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    encoder = Encoder(tower, preprocess, "RN", None, "fp32")
    layouts = []
    for layer in tower.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _, args, out: layouts.extend([args[0], out]))
    frames = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    feats = encoder(frames)
    assert len(layouts) > 20
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in layouts)
    torch.testing.assert_close(feats, plain(frames / 127.5 - 1), rtol=1e-4, atol=1e-5)


def test_a_vit_sees_images_as_they_are(models: Path) -> None:
    """Its patches are slower to cut with the channels last."""
    encoder, layouts = load_encoder(config(models / "vision")), []
    encoder.visual.register_forward_hook(lambda _, args, out: layouts.append(args[0].is_contiguous()))
    encoder(torch.rand(2, 3, 32, 32))
    assert layouts == [True]


def vit(patch: int = 16) -> Encoder:
    """A small ViT as open_clip builds it, which sees an image of 32 pixels as (32 / patch)^2 + 1 tokens."""
    torch.manual_seed(0)
    shape = {"image_size": 32, "patch_size": patch, "layers": 2, "width": 64, "heads": 4, "mlp_ratio": 4.0}
    tower = VisionTransformer(**shape, output_dim=48)  # type: ignore[arg-type]
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    preprocess = {"size": 32, "resize_mode": "squash", "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    return Encoder(tower, preprocess, "vit", None, "fp32")


@needs_panels
def test_a_packed_tower_gives_the_same_within_fp16() -> None:
    plain, packed = vit(), vit()
    before = packed.identity
    assert prepare_encoder(packed)
    assert packed.identity == before
    held = [module for module in packed.modules() if isinstance(module, nn.Linear | nn.MultiheadAttention)]
    assert held == []
    frames = torch.randint(0, 256, (5, 3, 40, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for part in (frames[:1], frames):
        error = (packed(part) - plain(part)).norm() / plain(part).norm()
        assert 1e-7 < error < 1e-3  # fp16 rounds these fp32 weights


@needs_panels
def test_a_packed_tower_of_bf16_weights_rounds_nothing() -> None:
    plain, packed = vit(), vit()
    for encoder in (plain, packed):
        encoder.visual.bfloat16()
        encoder.widen()
    assert prepare_encoder(packed)
    frames = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(packed(frames), plain(frames), rtol=1e-4, atol=1e-4)


class Peeks(nn.Module):
    """A tower that looks at the weight of its own layer."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, nn.Linear(48, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.head(self.tower(x).to(self.head.weight.dtype))
        return features


@pytest.mark.parametrize("case", ["many tokens", "bf16", "adds zeros", "peeks", "too large for fp16", "convolutions"])
def test_a_tower_that_would_not_gain_or_is_not_known_stays_as_it_is(case: str) -> None:
    encoder = vit(patch=2 if case == "many tokens" else 16)
    tower: Any = encoder.visual
    if case == "bf16":
        encoder.dtype = torch.bfloat16
        tower.bfloat16()
    elif case == "adds zeros":
        tower.transformer.resblocks[1].attn.add_zero_attn = True
    elif case == "peeks":
        encoder.visual = Peeks(tower)
    elif case == "too large for fp16":
        tower.transformer.resblocks[1].mlp.c_proj.weight.data[0, 0] = 7e4
    elif case == "convolutions":
        encoder.visual = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    frames = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = encoder(frames)
    assert not prepare_encoder(encoder)
    assert torch.equal(encoder(frames), before)
