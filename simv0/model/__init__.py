"""Tensors in, logits out: the trainable modules around a frozen LLM, their losses, metrics and checkpoints.

`network.SimV0Model` is the model, and `network.segment_means` pools F frames into K tokens; `build.build_model` makes
the model from a config. Imports data, vision, llm and the alarm.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simv0.model.network import SimV0Model

__all__ = ["SimV0Model"]


def __getattr__(name: str) -> Any:
    """`from simv0.model import SimV0Model`, without loading the networks when only the metrics are needed."""
    if name != "SimV0Model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from simv0.model.network import SimV0Model

    return SimV0Model
