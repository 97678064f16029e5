"""A trained model, a clock and streams for the tests of the stream."""

from pathlib import Path
from typing import Any

import torch
from small_world import make_config
from torch import Tensor

from cache.pipeline import cache_vis
from simv0.config.schema import Config
from simv0.predict import Predictor
from simv0.stream import Stream
from simv0.training.fit import fit

F, SPACING = 4, 0.2
GOOD = torch.zeros(8)


def trained(models: Path, manifests: Path, folder: Path) -> Config:
    """A run over cached features."""
    config = make_config(models, manifests, folder, cache={"dtype": "float32"})  # parity to the last digits
    cache_vis(config)
    fit(config)
    return config


def best(config: Config) -> Path:
    return Path(config.output.output_dir) / "checkpoints" / "best.pt"


class Clock:
    """A clock that only the test moves; calling it costs nothing."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def image(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def recording(predictor: Predictor, **settings: Any) -> Stream:
    return Stream(predictor, SPACING, **{"live": False, **settings})


def full(predictor: Predictor, **settings: Any) -> Stream:
    """A stream that has just judged its first window, at t = 0.6."""
    stream = recording(predictor, **settings)
    for i in range(F):
        state = stream.push(image(i), GOOD, i * SPACING)
    assert state.outcome == "judged"
    return stream
