"""What simpler models make of the same windows: whoever trains an LLM around them should see that it earns its keep.

Each is fitted on the train split's cached features with the recipe's class weights, deterministically, in bounded work:
seconds on a thousand windows, a minute or two on any number.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Subset

from simv0.alarm.calibration import softmax
from simv0.alarm.roc import auroc, average_precision, recall_at_false_alarms
from simv0.baselines.linear import Linear, Targets
from simv0.baselines.networks import STEPS, train_small_transformer, train_without_llm
from simv0.baselines.trees import Trees, trees_available
from simv0.config.schema import TrainingConfig
from simv0.data.contract import Batch
from simv0.data.labels import Labels
from simv0.labels import HEADS, HIGH
from simv0.model.losses import loss_sums
from simv0.model.metrics import Metrics, Tally
from simv0.model.network import segment_means
from simv0.training.recipe import class_weights
from simv0.training.splits import Split, evenly_spaced, fetch

FITTED_ON = 16_384
"""Windows, evenly spaced, of a larger train split: its features need not fit into RAM."""
AT_ONCE = 256
"""Windows that are read, and predicted, at once."""

Logits = Mapping[str, Float[np.ndarray, "N _"]]
"""Head -> logits of every window."""
Predict = Callable[[Batch], dict[str, Tensor]]
"""Windows, their features as segment means, -> `<head>_logits`."""


def fit_baselines(train: Split, recipe: TrainingConfig, K: int, d: int, steps: int = STEPS) -> dict[str, Predict]:
    """Fit each baseline; boosted trees only where scikit-learn is installed.

    Args:
        train: a split of cached features; fitted on `FITTED_ON` windows of it at most.
        recipe: class weights, and how the two networks are trained.
        K: segments of a window.
        d: width of the prefix of the model without an LLM.
        steps: that each of the two networks is trained for, at most.

    Returns:
        Name -> what predicts.
    """
    train = part(train, evenly_spaced(len(train.labels), FITTED_ON))
    known = joined(windows(train, K))
    plain = _targets(known, {})
    targets = _targets(known, class_weights(recipe.class_weights, train, torch.device("cpu")) or {})
    majority = Linear([torch.zeros(len(train.labels), 1)], plain)
    telemetry = Linear([known["telemetry"]], targets)
    both = Linear([_mean(known), known["telemetry"]], targets, train.labels)
    fitted: dict[str, Predict] = {
        "majority class": lambda batch: majority([torch.zeros(len(batch["telemetry"]), 1)]),
        "linear, telemetry": lambda batch: telemetry([batch["telemetry"]]),
        "linear, features + telemetry": lambda batch: both([_mean(batch), batch["telemetry"]]),
    }
    if trees_available():
        trees = Trees(_mean(known), known["telemetry"], targets)
        fitted["boosted trees"] = lambda batch: trees(_mean(batch), batch["telemetry"])
    fitted["no LLM"] = train_without_llm(known, train, recipe, d, steps)
    fitted["small transformer"] = train_small_transformer(known, train, recipe, steps)
    return fitted


def _targets(known: Batch, by_class: Mapping[str, Tensor]) -> Targets:
    targets = {}
    for head in HEADS:
        ids: Tensor = known[f"{head}_id"]  # type: ignore[literal-required]
        targets[head] = ids, known["weight"] * (by_class[head][ids] if head in by_class else 1.0)
    return targets


def _mean(batch: Batch) -> Float[Tensor, "B dv"]:
    return batch["vis_feats"].mean(1)


@torch.no_grad()
def predict_all(fitted: Mapping[str, Predict], split: Split, K: int) -> dict[str, Logits]:
    """Name -> logits of every window of a split of cached features."""
    kept: dict[str, list[dict[str, Tensor]]] = {name: [] for name in fitted}
    for batch in windows(split, K):
        for name, predict in fitted.items():
            kept[name].append(predict(batch))
    return {
        name: {head: torch.cat([logits[f"{head}_logits"] for logits in some]).numpy() for head in HEADS}
        for name, some in kept.items()
    }


def windows(split: Split, K: int) -> Iterator[Batch]:
    """A split of cached features in its order, `AT_ONCE` windows at a time, their F features as K segment means."""
    for at in range(0, len(split.labels), AT_ONCE):
        batch = fetch(split.dataset, list(range(at, min(at + AT_ONCE, len(split.labels)))))
        feats = batch["vis_feats"].float()
        means = torch.einsum("kf,bfv->bkv", segment_means(feats.shape[1], K), feats)
        tensors: Any = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        tensors |= {"vis_feats": means, "telemetry": batch["telemetry"].float()}
        yield tensors


def joined(batches: Iterator[Batch]) -> Batch:
    """Batches of tensors as one."""
    some: list[Any] = list(batches)
    whole: Any = {key: torch.cat([batch[key] for batch in some]) for key in some[0]}
    return whole  # type: ignore[no-any-return]


def part(split: Split, rows: Sequence[int]) -> Split:
    """Some windows of a split."""
    labels, at = split.labels, np.array(rows)
    some = replace(
        labels,
        telemetry=labels.telemetry[at],
        ids={head: ids[at] for head, ids in labels.ids.items()},
        weight=labels.weight[at],
        sample_id=[labels.sample_id[row] for row in rows],
        group=labels.group and [labels.group[row] for row in rows],
        t=None if labels.t is None else labels.t[at],
    )
    return replace(split, dataset=Subset(split.dataset, rows), labels=some)


def score(logits: Logits, labels: Labels) -> Metrics:
    """The metrics of an epoch, and those of `ranked`."""
    tensors = {f"{head}_logits": torch.from_numpy(np.asarray(logits[head])) for head in HEADS}
    truth: Any = {f"{head}_id": torch.from_numpy(labels.ids[head]) for head in HEADS}
    truth["weight"] = torch.from_numpy(labels.weight).float()
    tally = Tally()
    tally.add(tensors, truth, loss_sums(tensors, truth))
    return {**tally.metrics(), **ranked(p_high(logits), labels.ids["risk"] == HIGH)}


def p_high(logits: Logits) -> Float[np.ndarray, " N"]:
    """P(high) of every window."""
    return softmax(logits["risk"])[:, HIGH]


def ranked(p_high: Float[np.ndarray, " N"], is_high: Bool[np.ndarray, " N"]) -> Metrics:
    """How well P(high) tells "high" from the rest at no threshold in particular."""
    return {
        "risk_high_recall_at_5": recall_at_false_alarms(p_high, is_high),
        "risk_high_auroc": auroc(p_high, is_high),
        "risk_high_average_precision": average_precision(p_high, is_high),
    }
