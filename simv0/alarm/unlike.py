"""Is this window like those of training? A model answers whatever it is shown; this says when not to believe it.

Kept of the train windows: the mean of their features (a window's being the mean over its frames), the first principal
axes of the standardised ones, and the range of each telemetry channel. A new window's distance is the one along the
axes, in standard deviations (Mahalanobis), and what lies off the axes, where other places show first (as in ViM, Wang
et al. 2022). How far is too far is read off windows that were not trained on.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from simv0.labels import TELEMETRY

RATE = 0.02
"""Of windows of the training's own kind at most so many may be called unlike it."""
LEAST = 50
"""Windows; fewer tell no quantile of 1 - RATE: the largest of 49 is the first bound on it (`_limit`)."""
AXES = 32
LARGEST = 20.0
"""Standard deviations that a single feature counts at most: one that hardly varied in training decides nothing."""
LEAST_VARIANCE = 0.01
"""Of standardised features along an axis, and on average off the axes."""
OUTLIERS = 0.005
"""Share at either end of a channel's values that its range leaves out: glitches."""
LEAST_TELEMETRY_LIMIT = 3.0
"""In half ranges from the middle: as far outside of the range as that is wide."""
NOTHING_KEPT = (
    "keeps no summary of its training data (no best.pt, of an older simv0, or with fewer than 50 windows a split): "
    "nothing is said of windows unlike them"
)


class Distances(NamedTuple):
    """Of each window, over the limits: above 1 it is unlike the training data."""

    frames: Float[np.ndarray, " B"]
    telemetry: Float[np.ndarray, " B"]


class Unlike(BaseModel):
    """What a checkpoint keeps of its train windows, and how far from them is too far."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    mean: Tensor
    """[dv] of the windows' features."""
    std: Tensor
    """[dv] of the frames' features, as the model standardises them: 1 where one does not vary."""
    axes: Tensor
    """[k, dv], orthonormal."""
    variance: Tensor
    """[k] along the axes."""
    variance_off: float = Field(gt=0, allow_inf_nan=False)
    """Off the axes, of all directions together."""
    middle: Tensor
    """[8] of each telemetry channel's range."""
    half_range: Tensor
    """[8]; 1 where a channel does not vary."""
    frames_limit: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    telemetry_limit: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    windows: int
    """Train windows that this was made of."""
    limit_windows: int = 0
    """Windows that the limits were read off."""
    limit_share: float | None = None
    """Share of those that lies beyond them."""

    @model_validator(mode="after")
    def _fits(self) -> "Unlike":
        k, dv = self.variance.numel(), self.mean.numel()
        wanted = {"mean": (dv,), "std": (dv,), "axes": (k, dv), "variance": (k,), "middle": (8,), "half_range": (8,)}
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name}: expected {list(shape)}, found {list(getattr(self, name).shape)}")
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {name: value for name, value in self if isinstance(value, Tensor)}

    def facts(self) -> dict[str, float | int | None]:
        """Everything else."""
        return {name: value for name, value in self if not isinstance(value, Tensor)}

    @cached_property
    def _arrays(self) -> Mapping[str, Float[np.ndarray, "..."]]:
        """Without copies, made once: a robot asks at every step."""
        return {name: tensor.numpy() for name, tensor in self.tensors().items()}

    def distances(self, vis_feats: Float[Tensor, "B F dv"], telemetry: Float[Tensor, "B 8"]) -> Distances:
        """How far windows are from those of training, over the limits."""
        return self._distances(window_means(vis_feats), telemetry.float().cpu().numpy())

    def _distances(self, means: Float[np.ndarray, "B dv"], telemetry: Float[np.ndarray, "B 8"]) -> Distances:
        kept = self._arrays
        feats = ((means - kept["mean"]) / kept["std"]).clip(-LARGEST, LARGEST)
        along = np.square(feats @ kept["axes"].T)
        off = np.maximum(np.square(feats).sum(1) - along.sum(1), 0)
        frames = np.sqrt((along / kept["variance"]).mean(1) + off / self.variance_off)
        outside = np.abs(telemetry - kept["middle"]) / kept["half_range"]
        return Distances(frames / self.frames_limit, outside.max(1) / self.telemetry_limit)

    def reason(self, distance: Mapping[str, float], telemetry: Float[Tensor, "8"]) -> str | None:
        """Why a window with this `distance` of a prediction is unlike the training data; None where it is not."""
        reasons = []
        if distance["frames"] > 1:
            reasons.append(f"frames {distance['frames']:.1f} times as far as the limit")
        if distance["telemetry"] > 1:
            values, middle, half = telemetry.tolist(), self.middle.tolist(), self.half_range.tolist()
            far = [abs(value - at) / wide for value, at, wide in zip(values, middle, half, strict=True)]
            c = far.index(max(far))
            trained = f"{middle[c] - half[c]:.4g} to {middle[c] + half[c]:.4g}"
            reasons.append(f"telemetry {TELEMETRY[c]} {values[c]:.4g}, in training {trained}")
        return f"unlike the training data: {'; '.join(reasons)}" if reasons else None


def window_means(vis_feats: Float[Tensor, "B F dv"]) -> Float[np.ndarray, "B dv"]:
    """A window's features: the mean over its frames."""
    means: np.ndarray = vis_feats.float().mean(1).cpu().numpy()
    return means


def fit_unlike(
    train: tuple[Float[np.ndarray, "N dv"], Float[np.ndarray, "N 8"]],
    held_out: tuple[Float[np.ndarray, "M dv"], Float[np.ndarray, "M 8"]],
    feats_std: Float[np.ndarray, " dv"],
) -> Unlike:
    """Summarise train windows, and read the limits off windows that were held out.

    Args:
        train: `window_means` and telemetry of at least `LEAST` windows.
        held_out: the same of others of their kind.
        feats_std: `Unlike.std`.
    """
    means, telemetry = (values.astype(np.float64) for values in train)
    mean = means.mean(0)
    feats = ((means - mean) / feats_std).clip(-LARGEST, LARGEST)
    variance, axes = np.linalg.eigh(np.cov(feats.T, bias=True).reshape(len(mean), -1))  # ascending
    k = min(AXES, len(mean))
    low, high = np.quantile(telemetry, [OUTLIERS, 1 - OUTLIERS], axis=0)
    middle, half = (low + high) / 2, (high - low) / 2
    half = np.where(half <= 1e-6 * np.maximum(np.abs(middle), 1e-6), 1.0, half)
    summary = Unlike(
        mean=_tensor(mean),
        std=_tensor(feats_std),
        axes=_tensor(axes[:, ::-1][:, :k].T),
        variance=_tensor(np.maximum(variance[::-1][:k], LEAST_VARIANCE)),
        variance_off=float(max(variance[: len(mean) - k].sum(), LEAST_VARIANCE * len(mean))),
        middle=_tensor(middle),
        half_range=_tensor(half),
        windows=len(means),
    )
    frames, outside = summary._distances(*(values.astype(np.float32) for values in held_out))
    limits = {"frames_limit": _limit(frames), "telemetry_limit": max(_limit(outside), LEAST_TELEMETRY_LIMIT)}
    beyond = (frames > limits["frames_limit"]) | (outside > limits["telemetry_limit"])
    return summary.model_copy(update={**limits, "limit_windows": len(frames), "limit_share": float(beyond.mean())})


def _limit(distance: Float[np.ndarray, " M"]) -> float:
    """Beyond the quantile of 1 - RATE by as much as that lies beyond the median: a new recording differs from training
    by more than the windows of a few recordings can show (benchmarks/results/unlike_epyc-avx512_2026-11-26.md).

    The quantile is the ceil((M + 1)(1 - RATE))-th of M distances, which a further one of the same kind exceeds in at
    most RATE of all cases (conformal prediction, Vovk et al. 2005).
    """
    ordered = np.sort(distance)
    quantile = ordered[int(np.ceil((len(ordered) + 1) * (1 - RATE) - 1e-9)) - 1]
    return float(2 * quantile - np.median(ordered))


def _tensor(values: Float[np.ndarray, "..."]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
