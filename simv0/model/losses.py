"""The objective: CE(risk) + 0.5 CE(reason) + CE(action), and what the confidence head learns beside it."""

from collections.abc import Mapping

import torch
import torch.nn.functional as nnf
from jaxtyping import Float, Int
from torch import Tensor

from simv0.data.contract import Batch
from simv0.labels import HEADS

HEAD_WEIGHTS = {"risk": 1.0, "reason": 0.5, "action": 1.0}


def weighted_cross_entropy(
    logits: Float[Tensor, "B n"],
    ids: Int[Tensor, " B"],
    weight: Float[Tensor, " B"],
    class_weight: Float[Tensor, " n"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """sum(w*l) and sum(w), w = sample weight x weight of the label's class, l = cross entropy."""
    loss = nnf.cross_entropy(logits.float(), ids, reduction="none")
    if class_weight is not None:
        weight = weight * class_weight[ids]
    return (weight * loss).sum(), weight.sum()


def loss_sums(
    logits: Mapping[str, Tensor],
    batch: Batch,
    class_weights: Mapping[str, Tensor] | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Head -> (sum(w*l), sum(w)); sums, so that parts of a batch or of a split add up exactly.

    The confidence head, where there is one, learns whether risk and action are both right: binary cross entropy.
    """
    weight = batch["weight"]
    ids: dict[str, Tensor] = {head: batch[f"{head}_id"] for head in HEADS}  # type: ignore[literal-required]
    sums = {
        head: weighted_cross_entropy(logits[f"{head}_logits"], ids[head], weight, (class_weights or {}).get(head))
        for head in HEADS
    }
    if "confidence_logits" in logits:
        right = torch.ones_like(weight)
        for head in ("risk", "action"):
            right = right * (logits[f"{head}_logits"].argmax(-1) == ids[head])
        loss = nnf.binary_cross_entropy_with_logits(logits["confidence_logits"].float(), right, reduction="none")
        sums["confidence"] = (weight * loss).sum(), weight.sum()
    return sums


def objective(sums: Mapping[str, tuple[Tensor, Tensor]], confidence_weight: float = 0.1) -> dict[str, Tensor]:
    """The loss and its parts: each head's sum(w*l)/sum(w), 0 where sum(w) is 0.

    Returns:
        `loss`, `risk_loss`, `reason_loss`, `action_loss` (, `confidence_loss`).
    """
    parts = {head: total / torch.where(weight > 0, weight, 1) for head, (total, weight) in sums.items()}
    weights = {**HEAD_WEIGHTS, "confidence": confidence_weight}
    loss = torch.stack([weights[head] * part for head, part in parts.items()]).sum()
    return {"loss": loss, **{f"{head}_loss": part for head, part in parts.items()}}
