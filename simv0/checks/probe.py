"""A short measurement on this machine: how fast frames are read and encoded, and how fast a training step is."""

import time
from collections.abc import Callable
from typing import Any

import torch

from simv0.checks.data import Facts, SplitOutline
from simv0.config.schema import Config
from simv0.data.contract import Batch, CheckedDataset
from simv0.data.source import scale_pictures
from simv0.data.workers import cores, enough
from simv0.labels import TELEMETRY
from simv0.llm.compile import compile_llm
from simv0.model.build import build_model
from simv0.runtime.device import pick_device
from simv0.training.epoch import evaluate, train_one_epoch
from simv0.training.recipe import make_optimizer
from simv0.vision.encoder import load_encoder

PATIENCE = 3.0
"""Seconds for each of the four measurements, not counting loading."""


def measure(config: Config, splits: list[SplitOutline], dv: int) -> Facts:
    """Load the networks, time a few batches of each kind, and extrapolate to the whole.

    Compilation is left out, and so are other ranks: N of them share the frames and the steps.
    """
    facts: Facts = {}
    train, val, *_ = splits
    cached, seconds_per_frame = config.model.use_cached_vis_feats, 0.0
    if train.source == "frames":
        facts, seconds_per_frame = _measure_frames(config, train)
        if cached:
            frames = sum(split.frames for split in splits if split.source == "frames")
            facts["cache-vis_seconds"] = seconds_per_frame * frames
    step, evaluation = _measure_steps(config, dv)
    raw = 0.0 if cached else seconds_per_frame * config.model.F  # a window
    epoch = (step + raw) * train.windows + (evaluation + raw) * val.windows
    facts["training windows per second"] = round(1 / (step + raw), 1)
    return {**facts, "epoch_seconds": epoch, "train_seconds": epoch * config.training.epochs}


def _measure_frames(config: Config, train: SplitOutline) -> tuple[Facts, float]:
    """Rates of reading and encoding; seconds a frame of both together."""
    F = config.model.F
    encoder = load_encoder(config.model, config.cache.precision, pick_device(config), decode=config.cache.decode)
    scale_pictures(train.dataset, encoder.smallest)
    checked = CheckedDataset(train.dataset, train.name, F=F, resize=encoder.resize)
    windows = min(len(checked), max(1, config.cache.batch_size // F))
    kept = []
    read = _seconds(lambda: kept.append(checked[len(kept) % windows]["frames"]), at_least=windows) / F
    frames = torch.cat(kept)[: config.cache.batch_size]
    encode = _seconds(lambda: _synchronised(encoder, frames)) / len(frames)
    workers = enough(read, encode) if config.data.num_workers == "auto" else config.data.num_workers
    rates = {"frames read per second": round(1 / read, 1), "frames encoded per second": round(1 / encode, 1)}
    if workers and encoder.mean.device.type == "cpu":  # which does both
        return rates, read / cores() + encode
    return rates, max(read / workers, encode) if workers else read + encode


def _measure_steps(config: Config, dv: int) -> tuple[float, float]:
    """Seconds a window of training and of evaluation, on random features."""
    device = pick_device(config)
    model = build_model(config, dv, None, device)
    if config.training.compile != "off":  # as a run of one step: captured on CUDA, not compiled
        compile_llm(model.llm, "auto", batch=config.batch_size, tokens=model.tokens, steps=1)
    optimizer = make_optimizer(model, config.training, windows=1)
    scaler = torch.amp.GradScaler(device.type) if model.llm.dtype is torch.float16 else None
    sizes = config.batch_size, min(config.batch_size, config.evaluation.batch_size)
    batch, judged = (_random_batch(size, config.model.F, dv) for size in sizes)
    step = _seconds(lambda: train_one_epoch(model, [batch], optimizer, scaler, device)) / sizes[0]
    return step, _seconds(lambda: evaluate(model, [judged], device)) / sizes[1]


def _random_batch(windows: int, F: int, dv: int) -> Batch:
    labels = torch.zeros(windows, dtype=torch.int64)
    return Batch(
        vis_feats=torch.randn(windows, F, dv),
        telemetry=torch.randn(windows, len(TELEMETRY)),
        risk_id=labels,
        reason_id=labels,
        action_id=labels,
        weight=torch.ones(windows),
        sample_id=[str(i) for i in range(windows)],
    )


def _synchronised(encoder: Callable[..., torch.Tensor], frames: torch.Tensor) -> None:
    encoder(frames).cpu()


def _seconds(work: Callable[[], Any], at_least: int = 1) -> float:
    """Mean seconds of a call, within `PATIENCE`; the first one warms up and counts only where it takes all of that."""
    began = time.perf_counter()
    work()
    if at_least == 1 and time.perf_counter() - began > PATIENCE:
        return time.perf_counter() - began
    calls, began = 0, time.perf_counter()
    while calls < at_least or (calls < 50 and time.perf_counter() - began < PATIENCE):
        work()
        calls += 1
    return (time.perf_counter() - began) / calls
