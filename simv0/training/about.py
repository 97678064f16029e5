"""What a run says of itself: in its log, and in its checkpoints."""

import itertools
import logging
from typing import Any

from simv0.alarm.threshold import shortcomings
from simv0.data.labels import find_leakage
from simv0.labels import HEADS, HIGH
from simv0.training.resume import Position, numerics
from simv0.training.rundir import provenance
from simv0.training.work import Work

log = logging.getLogger("simv0")


def describe(work: Work) -> dict[str, Any]:
    """The fields of `Meta` that stay the same throughout a run."""
    config, model, train = work.config, work.model, work.train
    origin = {} if work.origin is None else {"init_from": work.origin}
    return {
        "dv": model.dv,
        "d": model.llm.d,
        "F": model.F,
        "K": model.K,
        "frame_spacing": train.frame_spacing,
        "confidence_head": "confidence" in model.heads,
        "labels": {head: list(names) for head, names in HEADS.items()},
        "llm": model.llm.identity,
        "encoder": work.encoder_identity,
        "config": config.model_dump(),
        "provenance": {**provenance(), **numerics(model), **origin},
    }


def introduce(work: Work, position: Position) -> None:
    """Log the setup; refuse a model that would train the wrong weights."""
    config, model, splits, train, val = work.config, work.model, work.splits, work.train, work.splits["val"]
    counts = model.trainable_parameters()
    frozen = sum(weight.numel() for weight in model.llm.parameters())
    trained = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    log.info(
        f"device {work.device}, LLM {model.llm.identity['llm_name']} ({frozen:,} frozen weights, {model.llm.dtype})"
    )
    encoder = model.encoder.identity if model.encoder is not None else train.identity
    origin = "the dataset's own" if encoder is None else f"of {encoder.get('vision_encoder_name')}"
    kind = "frames, encoded again every epoch," if model.encoder is not None else "features"
    log.debug(", ".join(f"{key} {value}" for key, value in {**provenance(), **numerics(model)}.items()))
    log.info(f"data {' and '.join(config.data.splits.values())}: {kind} {origin}")
    log.info(f"training {sum(counts.values()):,} weights: {trained}")
    sizes = ", ".join(f"{name} {len(split.labels)}" for name, split in splits.items())
    log.info(f"windows: {sizes}; F={model.F} K={model.K} dv={model.dv}")
    log.info(f"visual dropout {model.visual_dropout:.2f} (whole windows, and single features in the rest)")
    if not (val.labels.ids["risk"] == HIGH).any():
        log.warning('val has no window of risk "high": best.pt follows macro_f1, and the alarm cannot be evaluated')
    last = work.held_out
    is_high, group, t = last.labels.ids["risk"] == HIGH, last.labels.group, last.labels.t
    for line in shortcomings(is_high, group, t, config.evaluation, last.name):
        log.warning(line)
    for pair in itertools.combinations(splits.values(), 2):
        one, other = (getattr(split.dataset, "dataset", None) for split in pair)
        groups = (split.labels.group for split in pair)
        for warning in find_leakage(one, other, *groups, names=(pair[0].name, pair[1].name)):
            log.warning(warning)
    if work.origin is not None:
        log.info(f"started from {work.origin['file']} (sha256 {work.origin['sha256'][:16]})")
    if (position.epoch, position.step) != (0, 0):
        log.info(f"resuming in epoch {position.epoch + 1} after step {position.step}")
