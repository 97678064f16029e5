"""What training takes beside the model: stats, what is hidden, optimizer, learning rate, class weights."""

import math

import numpy as np
import torch
from torch import Tensor

from simv0.config.schema import Config, TrainingConfig
from simv0.data.contract import to_device
from simv0.errors import ConfigError
from simv0.labels import HEADS
from simv0.model.network import TRAINABLE, SimV0Model
from simv0.training.splits import Split, feature_stats, telemetry_stats


def set_stats(model: SimV0Model, train: Split, config: Config) -> None:
    """Give the model the train split's telemetry and feature stats."""
    device = model.task_token.device
    telemetry = telemetry_stats(train.labels.telemetry) if config.data.telemetry_norm == "train" else None
    with torch.no_grad():
        feats = feature_stats(train, lambda batch: model.encode(to_device(batch, device)), model.encoder is not None)
    model.set_stats(telemetry, feats)


def visual_dropout(training: TrainingConfig, train: Split) -> float:
    """Share of the pictures, and of the features of the others, that training hides.

    Unset, it is dv / (dv + windows): the wider the features and the fewer the windows, the more there is to memorise.
    """
    if training.visual_dropout is not None:
        return training.visual_dropout
    return train.dv / (train.dv + len(train.labels))


def heads_rate(hidden_size: int) -> float:
    """Factor on the learning rate of heads that read a hidden state of this width.

    Adam moves every weight by the learning rate, so what a step changes in a logit grows with the width (Yang & Hu
    2021): the rate that suits a toy of 64 is nine times too large beside a pretrained LLM of 576.
    """
    return min(10.0, 640 / hidden_size)


def projector_rate(dv: int, windows: int) -> float:
    """Factor on the learning rate of a projector that reads `dv` features of so many training windows.

    The fewer the windows and the wider the features, the sooner pictures are memorised, and the longer the telemetry
    must lead.
    """
    return 1.5 * windows / (dv + windows)


def make_optimizer(model: SimV0Model, training: TrainingConfig, windows: int) -> torch.optim.AdamW:
    """AdamW with one learning rate a module, for a train split of so many windows; only weight matrices are decayed,
    not biases and tokens.
    """
    groups = []
    scale = {"projector": projector_rate(model.dv, windows), "heads": heads_rate(model.llm.hidden_size)}
    scale |= {str(name): rate for name, rate in training.lr_scale.items()}
    for module in TRAINABLE:
        peak = training.lr * scale[module]
        named = [(name, p) for name, p in model.named_parameters() if name.split(".")[0] == module]
        for decayed in (True, False):
            parameters = [p for _, p in named if (p.ndim > 1) == decayed]
            decay = training.weight_decay if decayed else 0.0
            if parameters:
                groups.append({"params": parameters, "lr": peak, "peak_lr": peak, "weight_decay": decay})
    on_cuda = model.task_token.device.type == "cuda"
    return torch.optim.AdamW(groups, fused=on_cuda or None)  # a launch or two a group instead of a dozen


def lr_factor(step: int, total: int) -> float:
    """Factor on the peak learning rate before step `step` of `total`.

    It rises over the first 30 % of the steps and falls to zero, both by a cosine (one-cycle: Smith & Topin 2018): the
    last epoch is a safe one to take.
    """
    warm = 0.3 * total
    at = step + 0.5
    if at < warm:
        return 0.5 - 0.5 * math.cos(math.pi * at / warm)
    return 0.5 + 0.5 * math.cos(math.pi * (at - warm) / (total - warm))


def class_weights(mode: str | None, train: Split, device: torch.device) -> dict[str, Tensor] | None:
    """Head -> weight of each class, as `training.class_weights` says; None where every class weighs 1.

    `balanced` divides by a class's total weight in the split, `sqrt_balanced` by its root; both leave the mean weight
    of a sample as it was, and give 0 to a class that does not occur.

    Raises:
        ConfigError: `dataset`, but the dataset has no `class_weights`.
    """
    check_class_weights_mode(mode, train.class_weights)
    if mode is None:
        mode = "sqrt_balanced" if train.class_weights is None else "dataset"
    if mode == "none":
        return None
    if mode == "dataset" and train.class_weights is not None:
        return {head: torch.tensor(weights, device=device) for head, weights in train.class_weights.items()}
    power = 1.0 if mode == "balanced" else 0.5
    balanced = {}
    for head, names in HEADS.items():
        total = np.bincount(train.labels.ids[head], train.labels.weight, minlength=len(names))
        weight = np.where(total > 0, np.maximum(total, 1e-12) ** -power, 0.0)
        weight *= total.sum() / (weight * total).sum()
        balanced[head] = torch.from_numpy(weight).float().to(device)
    return balanced


def check_class_weights_mode(mode: str | None, own: dict[str, list[float]] | None) -> None:
    """Refuse `training.class_weights: dataset` without the dataset's own.

    Raises:
        ConfigError: naming the ways out.
    """
    if mode == "dataset" and own is None:
        raise ConfigError(
            "training.class_weights: `dataset`, but the dataset has no class_weights; write none, balanced or "
            "sqrt_balanced"
        )
