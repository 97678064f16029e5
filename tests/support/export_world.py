"""A checkpoint that is made, not trained, and a summary of its training data."""

from typing import Any

import torch

from simv0.alarm.unlike import Unlike
from simv0.labels import HEADS
from simv0.model.checkpoint import Checkpoint, Meta


def checkpoint(**changes: Any) -> Checkpoint:
    meta = {
        "dv": 4, "d": 8, "F": 4, "K": 2, "confidence_head": False,
        "labels": {head: list(names) for head, names in HEADS.items()},
        "llm": {"llm_name": "x", "llm_weights": "0"}, "encoder": None, "epoch": 1,
        "metrics": {"loss": 1.0, "composite": None}, "alarm": None, "config": {"training": {"lr": 1e-3}},
        "provenance": {"torch": torch.__version__.split("+")[0]},
    }  # fmt: skip
    state = {"heads.weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.5])}
    return Checkpoint(meta=Meta(**{**meta, **changes}), state=state)


def summary() -> Unlike:
    return Unlike(
        mean=torch.zeros(4), std=torch.ones(4), axes=torch.eye(4)[:2].contiguous(), variance=torch.ones(2),
        variance_off=2.0, middle=torch.zeros(8), half_range=torch.ones(8), windows=50,
    )  # fmt: skip
