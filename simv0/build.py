"""From a config to the things that train: device, model, stats, optimizer, learning rate."""

import math

import numpy as np
import torch
from torch import Tensor

from simv0.config import Config, ModelConfig, TrainingConfig
from simv0.distributed import local_device, local_world, world
from simv0.encoder import Encoder, has_bf16_units
from simv0.errors import ConfigError
from simv0.labels import HEADS
from simv0.llm import load_llm
from simv0.model import TRAINABLE, SimV0Model
from simv0.splits import Split, feature_stats, telemetry_stats
from simv0.trainer import to_device


def pick_device(config: Config) -> torch.device:
    """This process's GPU where there is one, else the CPU.

    Raises:
        ConfigError: fp16 without CUDA; more processes than GPUs, which NCCL does not connect.
    """
    device = local_device()
    if device.type == "cuda" and local_world() > torch.cuda.device_count():
        raise ConfigError(
            f"torchrun has started {local_world()} processes here, but there are GPUs for {torch.cuda.device_count()}: "
            f"write --nproc-per-node {torch.cuda.device_count()}"
        )
    if config.training.amp and config.training.amp_dtype == "fp16" and device.type != "cuda":
        raise ConfigError("training.amp_dtype: fp16 needs CUDA; write bf16 here, or training.amp: false")
    return device


def compute_dtype(training: TrainingConfig, device: torch.device) -> torch.dtype:
    """Type of the frozen LLM's weights and of its matrix products on a device.

    bf16 only where the device has units for it: without, a CPU multiplies bf16 five to nine times slower than fp32.
    """
    if training.amp and training.amp_dtype == "fp16":
        return torch.float16
    return torch.bfloat16 if training.amp and has_bf16_units(device) else torch.float32


def build_model(config: Config, dv: int, encoder: Encoder | None, device: torch.device) -> SimV0Model:
    """Load the frozen LLM and put freshly seeded trainable modules around it.

    Raises:
        ModelError: an LLM that cannot be loaded, or whose width is not `model.d`.
    """
    wanted = config.model
    sharded = config.training.shard_llm and world() > 1
    llm = load_llm(
        wanted.llm_name_or_path,
        wanted.llm_revision,
        dtype=compute_dtype(config.training, device),
        device="cpu" if sharded else device,
        trust_remote_code=wanted.trust_remote_code,
    )
    check_d(wanted, llm.d)
    if sharded:
        llm.shard(device)
    torch.manual_seed(config.training.seed)
    model = SimV0Model(
        llm,
        dv=dv,
        F=wanted.F,
        K=wanted.K,
        confidence_head=wanted.confidence_head,
        encoder=encoder,
    )
    return model.to(device)


def check_d(model: ModelConfig, d: int) -> None:
    """Refuse a `model.d` that is not the LLM's embedding width.

    Raises:
        ConfigError: with both.
    """
    if model.d not in (None, d):
        raise ConfigError(f"model.d: the config says {model.d}, but {model.llm_name_or_path} has width {d}")


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


def make_optimizer(model: SimV0Model, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with one learning rate a module; only weight matrices are decayed, not biases and tokens."""
    groups = []
    for module in TRAINABLE:
        peak = training.lr * training.lr_scale.get(module, 1.0)  # type: ignore[call-overload]
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
