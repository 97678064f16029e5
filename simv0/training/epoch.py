"""One epoch of training, one evaluation; `fit.py` calls them."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from simv0.data.contract import Batch, to_device
from simv0.errors import SimError, TrainingError, unwrap
from simv0.labels import HEADS
from simv0.model.losses import loss_sums, objective
from simv0.model.metrics import Metrics, Tally
from simv0.model.network import SimV0Model
from simv0.runtime.distributed import add_gradients, gather_in_order, whole_weights, world_size

log = logging.getLogger("simv0")


def train_one_epoch(
    model: SimV0Model,
    loader: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    device: torch.device | str,
    *,
    class_weights: Mapping[str, Tensor] | None = None,
    confidence_weight: float = 0.1,
    grad_clip: float = 1.0,
    tally: Tally | None = None,
    before_step: Callable[[], None] | None = None,
    on_loss: Callable[[float], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Metrics:
    """Train on every batch of `loader` once.

    Args:
        model: its trainable modules are updated.
        loader: batches as `samples.collate` makes them.
        optimizer: over `model`'s trainable parameters.
        scaler: loss scaling for fp16; None otherwise.
        device: where the model is.
        class_weights: head -> weight of each class.
        confidence_weight: weight of the confidence head's loss.
        grad_clip: largest norm of the gradient of all trained weights together.
        tally: counts to continue from, when the epoch was started earlier.
        before_step: called before each forward pass (learning rate, seed).
        on_loss: called with the loss of each batch (its share of the whole batch's), which the check has read anyway.
        after_step: called after each step (checkpoint, stop).

    Returns:
        The metrics of the training batches as they came, with `seconds` and `data_wait_share`.

    Raises:
        TrainingError: a non-finite loss or gradient, naming the batch's samples; the weights are those
            of before the step.
    """
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    tally = Tally() if tally is None else tally
    waiting = Stopwatch()
    batches = (to_device(batch, device) for batch in waiting.over(loader))
    batch = next(batches, None)
    while batch is not None:
        if before_step is not None:
            before_step()
        logits, batch = _counted(model(batch), batch)
        sums = loss_sums(logits, batch, class_weights)
        loss = objective(whole_weights(sums), confidence_weight)["loss"]
        optimizer.zero_grad(set_to_none=True)
        (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        if world_size() > 1:  # before its gradient reaches the others, who would name samples of theirs
            _check_finite(batch, {"the loss": loss})
        add_gradients(trained)
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(trained, grad_clip)
        following, fault = _next(batches)  # while a GPU computes
        number, *_ = _check_finite(batch, {"the loss": loss} if scaler else {"the loss": loss, "the gradient": norm})
        if on_loss is not None:
            on_loss(number)
        if scaler is None:
            optimizer.step()
        else:  # which skips a step with a non-finite gradient
            scaler.step(optimizer)
            scaler.update()
        tally.add(logits, batch, sums)
        if after_step is not None:
            after_step()
        if fault is not None:  # now that this batch has done its step
            raise fault
        batch = following
    return {**tally.whole().metrics(), **waiting.report()}


def _next(batches: Iterator[Batch]) -> tuple[Batch | None, Exception | None]:
    """The next batch, or what kept it from coming."""
    try:
        return next(batches, None), None
    except Exception as fault:  # of the user's dataset
        return None, fault


def _counted(logits: dict[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], Batch]:
    """Both unchanged, or without rows if a row was only a stand-in for an empty share."""
    start, stop, _ = batch.get("share", (0, 1, 1))
    if start < stop:
        return logits, batch
    none: Any = {key: value[:0] if key != "share" else value for key, value in batch.items()}  # type: ignore[index]
    return {key: value[:0] for key, value in logits.items()}, none


def _check_finite(batch: Batch, values: Mapping[str, Tensor]) -> list[float]:
    """The values as numbers; refuse a loss or a gradient that is not finite; on a GPU this waits for the step, once."""
    numbers: list[float] = torch.stack([value.detach().float() for value in values.values()]).tolist()
    for what, number in zip(values, numbers, strict=True):
        if not math.isfinite(number):
            names = ", ".join(batch["sample_id"][:8]) + (", ..." if len(batch["sample_id"]) > 8 else "")
            raise TrainingError(
                f"{what} is {number} on the batch of {names}; lower training.lr or inspect these samples "
                "(the last checkpoint is untouched)"
            )
    return numbers


@torch.no_grad()
def evaluate(
    model: SimV0Model,
    loader: Iterable[Batch],
    device: torch.device | str,
    *,
    on_batch: Callable[[Batch, dict[str, Tensor]], None] | None = None,
) -> Metrics:
    """Metrics of a split, with `seconds` and `data_wait_share`.

    Args:
        model: left in the mode it was in.
        loader: batches as `samples.collate` makes them.
        device: where the model is.
        on_batch: called with every batch, features in place of frames, and its logits.
    """
    training = model.training
    model.eval()
    tally, waiting = Tally(), Stopwatch()
    for batch in waiting.over(loader):
        batch = model.encoded(to_device(batch, device))
        logits, batch = _counted(model(batch), batch)
        tally.add(logits, batch, loss_sums(logits, batch))  # no class weights: recipes stay comparable
        if on_batch is not None:
            on_batch(batch, logits)
    model.train(training)
    return {**tally.whole().metrics(), **waiting.report()}


class LogitsKept:
    """The logits of a whole split, for `evaluate(on_batch=...)`."""

    def __init__(self) -> None:
        self._kept: list[dict[str, Tensor]] = []

    def clear(self) -> None:
        """Forget them."""
        self._kept.clear()

    def keep(self, batch: Batch, logits: dict[str, Tensor]) -> None:
        """Keep one batch's."""
        self._kept.append({head: logits[f"{head}_logits"].float().cpu() for head in HEADS})

    def arrays(self) -> dict[str, Float[np.ndarray, "N _"]]:
        """Head -> logits of every sample, of all processes, in the order of the split."""
        kept = gather_in_order(self._kept)
        return {head: torch.cat([logits[head] for logits in kept]).numpy() for head in HEADS}


class Stopwatch:
    """How long a loop took, and the share of it spent waiting for the loader (a GPU may have worked meanwhile)."""

    def __init__(self) -> None:
        self.started, self.waited = time.perf_counter(), 0.0

    def over(self, loader: Iterable[Batch]) -> Iterable[Batch]:
        """Yield the loader's batches, timing the wait for each."""
        iterator, end = iter(loader), object()
        while True:
            asked = time.perf_counter()
            try:
                batch: Any = next(iterator, end)
            except SimError as error:
                raise unwrap(error) from None
            self.waited += time.perf_counter() - asked
            if batch is end:
                return
            yield batch

    def report(self) -> Metrics:
        """`seconds` and `data_wait_share`."""
        seconds = time.perf_counter() - self.started
        return {"data_wait_share": self.waited / seconds, "seconds": seconds}
