"""How good a split's predictions are, from counts that add up exactly over batches and machines."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from simv0.data.contract import Batch
from simv0.labels import HEADS, HIGH
from simv0.model.losses import HEAD_WEIGHTS
from simv0.runtime.device import countable
from simv0.runtime.distributed import summed

Metrics = dict[str, float | None]


class Tally:
    """Counts over a split, from which `metrics` is computed. Every sample counts once in the rates; losses are
    weighted.

    The counts stay on the batches' device, so that counting never waits for a GPU.
    """

    def __init__(self) -> None:
        self.confusion = {head: torch.zeros(len(names), len(names), dtype=torch.int64) for head, names in HEADS.items()}
        self.losses = {head: torch.zeros(2, dtype=torch.float64) for head in HEADS}

    def add(self, logits: Mapping[str, Tensor], batch: Batch, loss_sums: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Count one batch: confusion[label, prediction], and the sums of the losses."""
        for head, counts in self.confusion.items():
            labels: Tensor = batch[f"{head}_id"]  # type: ignore[literal-required]
            cells = countable(labels * len(counts) + logits[f"{head}_logits"].argmax(-1))
            counts = self.confusion[head] = counts.to(cells.device)
            counts.view(-1).index_add_(0, cells, torch.ones_like(cells))
            sums = countable(torch.stack([value.detach() for value in loss_sums[head]])).double()
            self.losses[head] = self.losses[head].to(sums.device) + sums

    def state(self) -> dict[str, Tensor]:
        """The counts, as a checkpoint holds them: on the CPU."""
        return {
            **{f"confusion.{head}": counts.cpu() for head, counts in self.confusion.items()},
            **{f"losses.{head}": sums.cpu() for head, sums in self.losses.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Tally":
        """A tally that counts on from `state`."""
        tally = cls()
        for name, counted in tally.state().items():
            counted.copy_(state[name])
        return tally

    def whole(self) -> "Tally":
        """The counts of all processes together."""
        return Tally.from_state(summed(self.state()))

    def metrics(self) -> Metrics:
        """Every rate and loss of the tally; None where there was no sample to compute it from."""
        result: Metrics = {"loss": None}
        for head, (total, weight) in ((head, sums.tolist()) for head, sums in self.losses.items()):
            result[f"{head}_loss"] = total / weight if weight > 0 else None
        parts = [(HEAD_WEIGHTS[head], result[f"{head}_loss"]) for head in HEADS]
        if any(part is not None for _, part in parts):
            result["loss"] = sum(weight * (part or 0.0) for weight, part in parts)
        return {**result, **from_confusions(self.confusion)}


def from_confusions(confusion: Mapping[str, Tensor]) -> Metrics:
    """Every rate that head -> counts [label, prediction] tell."""
    risk, result = confusion["risk"], Metrics()
    recall = _ratio(risk[HIGH, HIGH], risk[HIGH].sum())
    result["risk_high_recall"] = recall
    result["risk_high_fn_rate"] = None if recall is None else 1 - recall
    not_high = risk.sum() - risk[HIGH].sum()
    result["risk_high_false_alarm_rate"] = _ratio(risk[:, HIGH].sum() - risk[HIGH, HIGH], not_high)
    for head in ("risk", "action"):
        counts = confusion[head]
        result[f"{head}_accuracy"] = _ratio(counts.diagonal().sum(), counts.sum())
    for head in ("risk", "action", "reason"):
        result[f"{head}_macro_f1"] = macro_f1(confusion[head])
    result["macro_f1"] = _mean(result["risk_macro_f1"], result["action_macro_f1"])
    result["composite"] = _harmonic_mean(recall, result["risk_macro_f1"], result["action_macro_f1"])
    return result


def macro_f1(confusion: Tensor) -> float | None:
    """Mean F1 of the classes that occur among labels or predictions; None if nothing was counted.

    F1 = 2 TP / (labels + predictions), so a class that is only predicted, or only missed, counts as 0.
    """
    support = confusion.sum(1) + confusion.sum(0)
    occurs = support > 0
    if not occurs.any():
        return None
    return float((2 * confusion.diagonal()[occurs] / support[occurs]).double().mean())


def ranking(metrics: Metrics, best_metric: str) -> tuple[float, float]:
    """What makes an epoch better than another: `best_metric`, a tie going to macro_f1.

    A metric that is None ranks below every number, so that a val split without "high" is ranked by macro_f1.
    """
    first, second = metrics[best_metric], metrics["macro_f1"]
    return (-1.0 if first is None else first, -1.0 if second is None else second)


def chosen_by(best: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]], best_metric: str) -> str:
    """What made `best` the best of these epochs, itself among them: `best_metric`, or what `ranking` fell back to."""
    if best.get(best_metric) is None:
        return f"macro_f1: {best_metric} has no value on val"
    if sum(epoch.get(best_metric) == best[best_metric] for epoch in epochs) > 1:
        return f"macro_f1: several epochs have a {best_metric} of {best[best_metric]:.3f}"
    return best_metric


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    return int(part) / int(whole) if int(whole) else None


def _mean(*values: float | None) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if len(present) == len(values) else None


def _harmonic_mean(*values: float | None) -> float | None:
    present = [value for value in values if value is not None]
    if len(present) < len(values):
        return None
    return len(present) / sum(1 / value for value in present) if all(present) else 0.0
