"""The frozen vision encoder: an open_clip image tower, its preprocessing on tensors, and its identity."""

import logging
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as nnf
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import simv0.runtime.torchvision_fix  # noqa: F401  before open_clip, which imports torchvision
from simv0.config.schema import ModelConfig
from simv0.errors import ModelError
from simv0.runtime.device import has_bf16_units
from simv0.runtime.digests import weights_digest
from simv0.runtime.hub import check_encoder_at_hand
from simv0.runtime.threads import networks_threads, over_batch
from simv0.vision.files import cannot_be_loaded, check_positions, warn_of_guesses
from simv0.vision.tags import check_names, facts_of, recorded_decode, recorded_facts

IMAGES = 8
"""Images that one thread takes through the tower by itself: few enough for its caches."""
PAYS = 1e9
"""Operations for that many images from which this is faster than one thread alone."""
WIDE = 2e9
"""Operations for one image from which splitting each operation over two threads pays for their waiting."""


@dataclass(frozen=True)
class Resize:
    """Frames of any size to the encoder's, as open_clip's own PIL transform does it, on batched tensors.

    `squash` distorts the aspect ratio and keeps the whole view; `longest` keeps ratio and view and pads with `fill`;
    `shortest` keeps the ratio and crops the centre. uint8 stays uint8 (rounded once per axis, as PIL does; the greatest
    difference measured is 2 of 255, the mean 0.003), float stays float 0..1. Frames of the right size pass unchanged.
    """

    size: tuple[int, int]
    mode: Literal["squash", "longest", "shortest"]
    interpolation: Literal["bicubic", "bilinear"]
    fill: int = 0

    def __call__(self, frames: Num[Tensor, "N 3 H W"]) -> Num[Tensor, "N 3 h w"]:
        """Resize a batch of frames [N,3,H,W], uint8 0..255 or float 0..1."""
        height, width = frames.shape[-2:]
        target_h, target_w = self.size
        if (height, width) == self.size:
            return frames
        if self.mode == "squash":
            return self._interpolate(frames, self.size)
        if self.mode == "longest":
            ratio = max(height / target_h, width / target_w)
            frames = self._interpolate(frames, (round(height / ratio), round(width / ratio)))
        elif target_h == target_w:  # torchvision's rule: the long side is cut to an int
            short = min(height, width)
            frames = self._interpolate(frames, (int(target_h * height / short), int(target_h * width / short)))
        else:
            ratio = min(height / target_h, width / target_w)
            frames = self._interpolate(frames, (round(height / ratio), round(width / ratio)))
        return self._center(frames)

    def _interpolate(self, frames: Tensor, size: tuple[int, int]) -> Tensor:
        if frames.dtype == torch.uint8 and frames.device.type == "cpu":
            return nnf.interpolate(frames, size, mode=self.interpolation, antialias=True)
        resized = nnf.interpolate(frames.float(), size, mode=self.interpolation, antialias=True)
        if frames.dtype == torch.uint8:
            return resized.round_().clamp_(0, 255).to(torch.uint8)
        return resized.clamp_(0, 1)  # bicubic overshoots

    def _center(self, frames: Tensor) -> Tensor:
        """Centre-crop or pad to `size`."""
        for axis, target in ((-2, self.size[0]), (-1, self.size[1])):
            have = frames.shape[axis]
            if have < target:
                before = (target - have) // 2
                pads = [before, target - have - before]
                fill = self.fill if frames.dtype == torch.uint8 else self.fill / 255
                frames = nnf.pad(frames, pads if axis == -1 else [0, 0, *pads], value=fill)
            elif have > target:
                frames = frames.narrow(axis, round((have - target) / 2.0), target)
        return frames


class Encoder(nn.Module):
    """A frozen image tower: frames in, features out, never a gradient.

    Attributes:
        dv: feature width.
        resize: the geometric part of the preprocessing; runs on CPU tensors, so that loader workers can do it.
        precision: "fp32" or "bf16", what `auto` resolved to.
        identity: every fact that changes a feature: names, digest of the weights, precision, preprocessing.
        smallest: the shorter side that JPEGs are scaled down to while they are decoded; None: they are not.
        wide: whether a CPU's operations on one image are large enough for more than one thread.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, visual: nn.Module, preprocess: Mapping[str, Any], name: str, tag: str | None, precision: str):
        super().__init__()
        size = preprocess["size"]
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.resize = Resize(
            self.image_size, preprocess["resize_mode"], preprocess["interpolation"], preprocess.get("fill_color", 0)
        )
        self.precision = precision
        self.identity: dict[str, Any] = {
            "vision_encoder_name": portable_name(name),
            "vision_pretrained": Path(tag).name if tag is not None and Path(tag).is_file() else tag,
            "vision_weights": weights_digest(visual.state_dict()),
            "vision_precision": precision,
            "vision_quick_gelu": any(type(layer).__name__ == "QuickGELU" for layer in visual.modules()),
            "vision_tower": unseen_in_weights(visual),
            "vision_preprocess": {
                "size": list(self.image_size),
                "resize_mode": self.resize.mode,
                "interpolation": self.resize.interpolation,
                "fill": self.resize.fill,
                "mean": [float(x) for x in preprocess["mean"]],
                "std": [float(x) for x in preprocess["std"]],
            },
        }
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        # Convolutions are faster with the channels last, the one that cuts a ViT's patches is not.
        convolutions = sum(isinstance(layer, nn.Conv2d) for layer in visual.modules())
        self.layout = torch.channels_last if convolutions > 1 else torch.contiguous_format
        visual.to(dtype=self.dtype, memory_format=self.layout)  # type: ignore[call-overload]
        self.visual = visual.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(preprocess["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess["std"]).view(1, 3, 1, 1), persistent=False)
        self.eval()
        self.pays = self.wide = False
        self.smallest: int | None = None
        self._seconds_per_frame: float | None = None
        with FlopCounterMode(display=False) as counter:
            self.dv = self(torch.zeros(1, 3, *self.image_size, dtype=torch.uint8)).shape[-1]
        work = counter.get_total_flops()
        self.pays, self.wide = IMAGES * work >= PAYS, work >= WIDE

    def train(self, mode: bool = True) -> "Encoder":
        """Stays in eval mode: batch norm and dropout of a frozen network never train."""
        return super().train(False)

    def take_scaled(self) -> None:
        """Let JPEGs be decoded at a smaller scale, and record it (`cache.decode: scaled`)."""
        self.smallest = 2 * max(self.image_size)
        self.identity["vision_preprocess"]["decode"] = "scaled"

    def widen(self) -> None:
        """Compute in fp32 from now on, whatever the precision of the weights: within the rounding of bf16 the same
        features, and five to nine times as fast on a CPU without units for bf16.
        """
        self.dtype = torch.float32
        self.visual.float()

    # no_grad, not inference_mode: autocast under inference_mode was measured 8 times slower.
    @torch.no_grad()
    def forward(self, frames: Num[Tensor, "N 3 H W"]) -> Float[Tensor, "N dv"]:
        """Encode frames of any size, uint8 0..255 or float 0..1, into float32 features."""
        return over_batch(self._tower, self.resize(frames).to(self.mean.device), IMAGES, pays=self.pays)

    def seconds_per_frame(self) -> float:
        """Seconds that a frame of a batch takes on this machine; the faster of two runs, once and for all."""
        if self._seconds_per_frame is not None:
            return self._seconds_per_frame
        rows = IMAGES * (networks_threads() if self.mean.device.type == "cpu" else 8)
        frames = torch.zeros(rows, 3, *self.image_size, dtype=torch.uint8)
        began = time.perf_counter()
        self(frames).cpu()
        between = time.perf_counter()
        self(frames).cpu()
        self._seconds_per_frame = min(between - began, time.perf_counter() - between) / rows
        return self._seconds_per_frame

    def _tower(self, frames: Num[Tensor, "n 3 h w"]) -> Float[Tensor, "n dv"]:
        pixels = frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
        images = ((pixels - self.mean) / self.std).to(self.dtype, memory_format=self.layout)
        feats = self.visual(images)
        if isinstance(feats, tuple):  # towers that also return their tokens
            feats = feats[0]
        return feats.float()  # type: ignore[no-any-return]


def load_encoder(
    model: ModelConfig,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
    trained: Mapping[str, Any] | None = None,
    decode: Literal["full", "scaled"] = "full",
) -> Encoder:
    """Load the image tower that the config names; the text tower is dropped.

    Args:
        model: `vision_encoder_name`, `vision_pretrained`, `vision_weights`, `vision_resize_mode`, and `dv` to check.
        precision: fp32, bf16, or auto.
        device: where it runs.
        trained: the encoder's identity in a checkpoint: images are decoded and prepared as they were for it.
        decode: `cache.decode`, where nothing is trained yet.

    Raises:
        ModelError: unknown name or tag, weights that are missing, damaged or not downloadable, a `dv` that differs; a
            file of weights that does not tell how images are prepared for it.
    """
    import open_clip

    from simv0.vision.undrawn import Undrawn, check_set

    name, tag = model.vision_encoder_name, model.vision_pretrained
    check_names(model)
    check_encoder_at_hand(model)
    if trained is None:
        warn_of_guesses(model)
    facts = recorded_facts(trained) if trained is not None else facts_of(model)
    silenced = logging.root.level
    logging.root.setLevel(logging.CRITICAL)  # open_clip logs each step, and its errors twice
    try:
        # Warnings are of QuickGELU, where `trained` says what it was trained with.
        with Undrawn(), warnings.catch_warnings(action="ignore"):
            clip, _, transform = open_clip.create_model_and_transforms(
                name,
                model.vision_weights or tag,
                image_mean=facts.mean,
                image_std=facts.std,
                image_interpolation=facts.interpolation,
                image_resize_mode=model.vision_resize_mode,
                force_quick_gelu=facts.quick_gelu,
                weights_only=True,
                require_pretrained=True,
            )
    except Exception as error:  # open_clip raises bare RuntimeErrors, safetensors and json errors of their own
        raise cannot_be_loaded(model, error) from error
    finally:
        logging.root.setLevel(silenced)
    check_set(clip.visual, name)
    if trained is None:
        check_positions(model, clip.visual)
    del transform  # its facts are in preprocess_cfg
    preprocess = {**open_clip.get_model_preprocess_cfg(clip), "resize_mode": model.vision_resize_mode}
    encoder = Encoder(clip.visual, preprocess, name, tag, resolve_precision(precision, device)).to(device)
    check_dv(model, encoder.dv)
    if (decode if trained is None else recorded_decode(trained)) == "scaled":
        encoder.take_scaled()
    return encoder


def unseen_in_weights(visual: nn.Module) -> dict[str, Any]:
    """What changes a tower's features but neither the names nor the shapes of its weights: heads, epsilons, pooling."""
    layers = list(visual.modules())
    return {
        "heads": sorted({layer.num_heads for layer in layers if isinstance(getattr(layer, "num_heads", None), int)}),
        "eps": sorted({layer.eps for layer in layers if isinstance(getattr(layer, "eps", None), float)}),
        "pool": getattr(visual, "pool_type", None),
    }


def check_dv(model: ModelConfig, dv: int) -> None:
    """Refuse a `model.dv` that is not the encoder's feature width.

    Raises:
        ModelError: with both.
    """
    if model.dv not in (None, dv):
        name = model.vision_encoder_name
        raise ModelError(f"model.dv: the config says {model.dv}, but {name} gives features of width {dv}")


def is_local(model: ModelConfig) -> bool:
    """Whether the encoder's weights are a folder or a file on this machine."""
    weights = model.vision_weights or model.vision_pretrained
    return model.vision_encoder_name.startswith("local-dir:") or (weights is not None and Path(weights).is_file())


def resolve_precision(precision: str, device: torch.device | str = "cpu") -> str:
    """What `auto` resolves to: bf16 where the device has bf16 matrix units, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16_units(device) else "fp32"


def portable_name(name: str) -> str:
    """`local-dir:` names keep their last component only: a folder may move, its weights have a digest."""
    prefix = "local-dir:"
    return prefix + Path(name.removeprefix(prefix)).name if name.startswith(prefix) else name
