"""The models that a checkpoint is compared with, on the windows that are evaluated."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from simv0.alarm.rates import recordings
from simv0.baselines.fit import Logits, fit_baselines, p_high, predict_all, score
from simv0.baselines.networks import BATCH, affordable_steps
from simv0.baselines.trees import trees_available
from simv0.baselines.worth import Comparison, compare
from simv0.config.schema import Config
from simv0.errors import SimError, shown
from simv0.labels import HIGH
from simv0.model.checkpoint import Checkpoint, Meta, load_checkpoint
from simv0.model.metrics import Metrics
from simv0.predict import load_model
from simv0.runtime.distributed import broadcast_from_rank0, rank
from simv0.runtime.threads import limited_to
from simv0.training.control import around_copy
from simv0.training.epoch import LogitsKept, evaluate
from simv0.training.refusals import config_differences
from simv0.training.rundir import CONTROL
from simv0.training.splits import Split, eval_batches, open_split
from simv0.vision.encoder import Encoder

log = logging.getLogger("simv0")

NO_TREES = "boosted trees are left out: they need scikit-learn (pip install 'simv0[report]')"


@dataclass(frozen=True)
class Others:
    """What other models make of the same windows."""

    baselines: Mapping[str, Metrics] | str
    """Simple model -> metrics, or why there are none."""
    control: Metrics | None = None
    """Of the same recipe around a randomised copy of the LLM, where it was trained (`training.llm_control`)."""
    comparison: Comparison | None = None
    """What the checkpoint has over them; None without others, and without "high" windows."""
    notes: Sequence[str] = ()
    """What is missing from the comparison."""


def compare_with_others(
    ckpt: Path,
    meta: Meta,
    config: Config,
    source: Split,
    data: str | None,
    encoder: Encoder | None,
    llm_weights: int,
    p_of_high: Float[np.ndarray, " N"],
) -> Others:
    """Let the control and simple models predict the same windows.

    Args:
        ckpt: the checkpoint that is evaluated; its control lies beside its run.
        meta: of that checkpoint.
        config: of the evaluation.
        source: the windows.
        data: `--data`, if they come from there.
        encoder: where the windows are frames.
        llm_weights: number of the LLM's weights: what simple models may cost is a share of the training.
        p_of_high: what the checkpoint says of each window.

    All processes take part; the first alone fits simple models, and knows of them.
    """
    control = control_logits(ckpt, meta, config, source, encoder)
    if rank() > 0:
        return Others("fitted by the first process")
    notes = [control] if isinstance(control, str) else []
    simple, labels = simple_models(config, meta, source, data, llm_weights, notes), source.labels
    is_high = labels.ids["risk"] == HIGH
    comparison = compare(
        p_of_high,
        {} if isinstance(simple, str) else {name: p_high(logits) for name, logits in simple.items()},
        p_high(control) if isinstance(control, dict) else None,
        is_high,
        recordings(labels.group, is_high),
    )
    return Others(
        simple if isinstance(simple, str) else {name: score(logits, labels) for name, logits in simple.items()},
        score(control, labels) if isinstance(control, dict) else None,
        comparison,
        notes,
    )


def simple_models(
    config: Config, meta: Meta, source: Split, data: str | None, llm_weights: int, notes: list[str]
) -> dict[str, Logits] | str:
    """Name -> logits of simple models, fitted on the train split's features, or why there are none.

    What is missing from them is added to `notes`.
    """
    if source.identity is None:
        return "the baselines need feature files; run `simv0 cache-vis`"
    try:
        train = open_split(config, "train")
    except SimError as error:
        return f"the train split is not available: {error}"
    if train.identity is None or train.dv != source.dv or (source.name == "train" and data is None):
        return "they would be fitted on the same windows, or on different features"
    started, steps = time.perf_counter(), affordable_steps(config.training, len(train.labels), llm_weights)
    with limited_to(1):  # many small products: two threads took four times as long as one
        fitted = fit_baselines(train, config.training, meta.K, meta.d, steps)
    log.info(f"fitted {len(fitted)} simple models in {time.perf_counter() - started:.0f} s")
    missing = [] if trees_available() else [NO_TREES]
    whole = config.training.epochs * -(-len(train.labels) // BATCH)
    if steps < whole:
        cut = f'"no LLM" and "small transformer" were trained for {steps:,} of {whole:,} steps'
        missing.append(f"{cut}, so that all simple models take a quarter of the training at most")
    for line in missing:
        log.info(line)
    notes += missing
    return predict_all(fitted, source, meta.K)


def control_logits(
    ckpt: Path, meta: Meta, config: Config, source: Split, encoder: Encoder | None
) -> dict[str, Float[np.ndarray, "N _"]] | str | None:
    """What the checkpoint of the same name of `training.llm_control` says, its logits divided by its temperatures; why
    it cannot be compared, or None where there is none. All processes together.
    """
    path = ckpt.resolve().parent.parent / CONTROL / "checkpoints" / ckpt.name
    found = broadcast_from_rank0(_control_of, path, meta)
    if not isinstance(found, Checkpoint):
        return found
    model, kept = load_model(found, path, around_copy(config, path.parent.parent), encoder), LogitsKept()
    evaluate(model, eval_batches(config, source), model.task_token.device, on_batch=kept.keep)
    temperatures = found.meta.alarm.temperatures if found.meta.alarm else {}
    return {head: logits / temperatures.get(head, 1.0) for head, logits in kept.arrays().items()}


def _control_of(path: Path, meta: Meta) -> Checkpoint | str | None:
    if not path.exists():
        return None
    checkpoint = load_checkpoint(path)
    differing = config_differences(checkpoint.meta.config, meta.config)
    if differing:
        return f"{CONTROL} is not compared: it is of another training: {shown(differing[0])}"
    return checkpoint
