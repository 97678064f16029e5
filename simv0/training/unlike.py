"""What a checkpoint keeps of its train windows, so that a robot knows others when it sees them."""

import logging

import numpy as np
import torch
from jaxtyping import Float

from simv0.alarm.unlike import LEAST, Unlike, fit_unlike, window_means
from simv0.data.contract import to_device
from simv0.model.network import SimV0Model
from simv0.training.splits import Split, batches_of, evenly_spaced

log = logging.getLogger("simv0")

WINDOWS = 4096
"""At most so many of each split, evenly spaced, are summarised."""
WINDOWS_RAW = 256
"""The same where every window must first be encoded."""


def summarise(model: SimV0Model, train: Split, held_out: Split) -> Unlike | None:
    """The summary of train, with limits read off `held_out`; None where either has too few windows."""
    for split in (train, held_out):
        if len(split.labels) < LEAST:
            log.warning(
                f"{split.name} has {len(split.labels)} windows, and at least {LEAST} are needed to know others from "
                "those of training: best.pt will say nothing of windows unlike them"
            )
            return None
    unlike = fit_unlike(_windows(model, train), _windows(model, held_out), model.feats_std.cpu().double().numpy())
    log.info(
        f"unlike the training data: {100 * (unlike.limit_share or 0):.1f} % of {unlike.limit_windows} windows of "
        f"{held_out.name}"
    )
    return unlike


@torch.no_grad()
def _windows(model: SimV0Model, split: Split) -> tuple[Float[np.ndarray, "n dv"], Float[np.ndarray, "n 8"]]:
    """`window_means` and telemetry of evenly spaced windows."""
    raw = model.encoder is not None
    indices, step = evenly_spaced(len(split.labels), WINDOWS_RAW if raw else WINDOWS), 16 if raw else 256
    device = model.task_token.device
    means = [window_means(model.encode(to_device(batch, device))) for batch in batches_of(split, indices, step)]
    return np.concatenate(means), split.labels.telemetry[indices]
