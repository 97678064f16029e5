"""`simv0 evaluate`: what a checkpoint says about a split, and how good that is."""

import json
import logging
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from simv0.baselines.fit import ranked
from simv0.config.load import load_run_config
from simv0.config.schema import Config
from simv0.data.contract import Batch, CheckedDataset
from simv0.data.jsonl import read_jsonl
from simv0.data.user_class import load_dataset
from simv0.disk.files import told_plainly, write_atomically
from simv0.errors import CheckpointError, ConfigError, DataError
from simv0.evaluation.by_recording import worst
from simv0.evaluation.evaluated import Evaluated
from simv0.evaluation.folder import evaluation_folder
from simv0.evaluation.origins import leakage_of, origin_facts
from simv0.evaluation.others import Others, compare_with_others
from simv0.evaluation.predict_windows import check_brings
from simv0.evaluation.report import pictures, write_report
from simv0.evaluation.unlike import unlike_facts, unlike_shares
from simv0.features.dataset import CachedDataset
from simv0.features.made import brings_features
from simv0.labels import HIGH
from simv0.model.checkpoint import Checkpoint, load_checkpoint
from simv0.model.metrics import Metrics
from simv0.model.predictions import Prediction, distances_of, predictions
from simv0.predict import check_features, load_model, load_trained_encoder
from simv0.runtime.distributed import check_same, gather_in_order, process_group, rank
from simv0.runtime.threads import sharing
from simv0.training.epoch import LogitsKept, evaluate
from simv0.training.epoch_view import batches_shown, every_metric
from simv0.training.refusals import check_data, config_of_run, is_features, run_of
from simv0.training.rundir import RunDir
from simv0.training.splits import Split, eval_batches, open_split, split_digest
from simv0.training.trackers.follow import show_pictures
from simv0.training.trackers.kinds import trackers_of
from simv0.vision.encoder import Encoder

log = logging.getLogger("simv0")


def evaluate_checkpoint(
    ckpt: str | Path,
    config: Config | None = None,
    data: str | None = None,
    split: str = "val",
    baselines: bool = True,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Evaluated, Path]:
    """Evaluate a checkpoint; writes `metrics.json`, `predictions.jsonl` and `report.html`.

    They go to the run's `evaluation/` for best.pt on the run's val split, else to a folder in it (`evaluation_folder`).

    Args:
        ckpt: a checkpoint; inside a run, the config comes from the run's `config_resolved.yaml`.
        config: overrides that; needed for a checkpoint outside a run.
        data: instead of the config's split: a feature file (`.h5`), a folder of shards (`.h5.parts`), or another
            split path for its dataset class.
        split: "val", "train" or "calibration".
        baselines: compare with simple models, fitted on the train split (seconds to minutes, on cached features), and
            with the control of `training.llm_control`.
        out: the folder to write to instead.
        overrides: `section.key=value` on the run's config, where there is no `config`.

    Under torchrun every process takes its share of the windows; the first one writes.

    Returns:
        What was found (without baselines in all processes but the first), and the folder that it was written to.

    Raises:
        SimError: errors the user can fix.
    """
    with process_group(), sharing():
        return _evaluate(Path(ckpt), config, data, split, baselines, out, overrides)


def _evaluate(
    ckpt: Path,
    config: Config | None,
    data: str | None,
    split: str,
    baselines: bool,
    out: Path | None,
    overrides: Sequence[str],
) -> tuple[Evaluated, Path]:
    checkpoint = load_checkpoint(ckpt)
    run = run_of(ckpt)
    if config is None:
        config = load_run_config(config_of_run(ckpt), overrides)
    if data is not None:
        check_data(data, config.data.dataset_class_path)
    elif split not in config.data.splits:
        raise ConfigError(f"--split {split}: there is no such split: data.{split}_split_path is not set")
    folder, origin = evaluation_folder(
        ckpt, run or ckpt.parent, checkpoint.meta.config.get("data", {}), config, data, split, out
    )
    source, encoder = _open(checkpoint, ckpt, config, data, split)
    model = load_model(checkpoint, ckpt, config, encoder)
    alarm, logits_kept = checkpoint.meta.alarm, LogitsKept()
    predicted: list[list[Prediction]] = []

    def keep(batch: Batch, logits: dict[str, Tensor]) -> None:
        threshold, temperatures = (alarm.threshold, alarm.temperatures) if alarm else (None, None)
        distances = distances_of(batch, checkpoint.unlike)
        predicted.append(predictions(logits, batch["sample_id"], threshold, temperatures, distances))
        logits_kept.keep(batch, logits)
        moved()

    facts = {
        "checkpoint": checkpoint.meta,
        "type of the LLM": str(model.llm.dtype),
        "evaluation.batch_size": config.evaluation.batch_size,
    }
    check_same({**facts, f"{split} split": split_digest(source)})
    batches = eval_batches(config, source)
    with batches_shown(source.name, len(batches.order), shown=rank() == 0) as moved:
        metrics = evaluate(model, batches, model.task_token.device, on_batch=keep)
    log.debug(every_metric(source.name, metrics))
    rows, logits = list(chain.from_iterable(gather_in_order(predicted))), logits_kept.arrays()
    is_high = source.labels.ids["risk"] == HIGH
    metrics |= alarm_rates(rows, is_high) | unlike_shares(rows)
    unlike = None if checkpoint.unlike is None else np.array([row.unlike for row in rows])
    p_of_high = np.array([row.p_high for row in rows])
    metrics |= ranked(p_of_high, is_high)
    leakage, notes = leakage_of(checkpoint.meta, config, source, data) if rank() == 0 else ([], [])
    about = {"checkpoint": ckpt.name, "epoch": checkpoint.meta.epoch, "data": data or split, "windows": len(rows)}
    others = Others("left out by --no-baselines")
    if baselines:
        weights = sum(weight.numel() for weight in model.llm.parameters())
        others = compare_with_others(ckpt, checkpoint.meta, config, source, data, encoder, weights, p_of_high)
    evaluated = Evaluated(
        about=about,
        metrics=metrics,
        logits=logits,
        labels=source.labels,
        alarm=alarm,
        epoch=checkpoint.meta.epoch,
        baselines=others.baselines,
        control=others.control,
        comparison=others.comparison,
        history=_history(run),
        frames=_frames(config, source, data),
        facts=origin_facts(ckpt, run, checkpoint.meta, config, source, data) | unlike_facts(checkpoint.unlike),
        leakage=leakage,
        unlike=unlike,
        notes=[*notes, *others.notes],
        best_metric=config.training.best_metric,
        raw_telemetry=config.data.telemetry_norm == "train",
        frame_spacing=checkpoint.meta.frame_spacing,
        folder=folder,
        predictions=[row.as_json() for row in rows],
    )
    if rank() == 0:
        _write(evaluated, folder, origin)
        if run is not None and trackers_of(config) and folder.is_relative_to(run):
            _show(evaluated, folder.relative_to(run), config, RunDir(run))
    return evaluated, folder


def _show(evaluated: Evaluated, where: Path, config: Config, run: RunDir) -> None:
    """Pictures for the run's trackers."""
    try:
        drawn = pictures(evaluated)
    except ConfigError:  # no matplotlib, as the report has said
        return
    show_pictures(config, run, {f"{where}/{name}": picture for name, picture in drawn.items()})


def _write(evaluated: Evaluated, folder: Path, origin: dict[str, Any]) -> None:
    """`metrics.json`, `predictions.jsonl`, `report.html`."""
    alarm = evaluated.alarm.model_dump() if evaluated.alarm else None
    content = {
        **evaluated.about,
        **evaluated.metrics,
        "intervals": evaluated.spread,
        "baselines": evaluated.baselines,
        "llm_control": evaluated.control,
        "comparison": evaluated.comparison and evaluated.comparison.plain(),
        "alarm_chosen": alarm,
        "events": evaluated.events if isinstance(evaluated.events, str) else evaluated.events.plain(),
        "worst_recording": worst(evaluated.recordings),
        "recordings": evaluated.recordings,
        "classes": evaluated.classes,
        "cautions": evaluated.cautions,
        "facts": evaluated.facts,
        "source": origin,
    }
    with told_plainly(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "metrics.json", (json.dumps(content, indent=2) + "\n").encode())
    lines = "".join(json.dumps(row) + "\n" for row in evaluated.predictions)
    write_atomically(folder / "predictions.jsonl", lines.encode())
    try:
        write_report(folder / "report.html", evaluated)
    except ConfigError as error:
        log.warning(str(error))


def _history(run: Path | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of a run's two metrics files."""
    if run is None:
        return [], []
    folder = RunDir(run)
    train, val = (read_jsonl(path) if path.exists() else [] for path in (folder.train_metrics, folder.val_metrics))
    return train, val


def _frames(config: Config, source: Split, data: str | None) -> Callable[[int], Tensor] | str:
    """Window -> frames, from the dataset that the features were made of; or why not."""
    if source.identity is None:
        dataset: Any = getattr(source.dataset, "dataset", None)
    elif data is not None:
        return "a feature file holds no pictures"
    else:
        try:
            dataset = load_dataset(config.data, source.name)
        except Exception as error:  # also of the user's own class: the figures need no pictures
            return str(error) or type(error).__name__
    if len(dataset) != len(source.labels):
        return "the dataset has changed since its features were made"

    def frames(window: int) -> Tensor:
        sample = CheckedDataset(dataset, source.name, F=config.model.F, labels=False)[window]
        if "frames" not in sample:
            raise DataError("the dataset yields features, no pictures")
        pictures: Tensor = sample["frames"]
        return pictures

    return frames


def alarm_rates(rows: list[Prediction], is_high: Bool[np.ndarray, " N"]) -> Metrics:
    """`alarm_recall` and `alarm_false_alarm_rate`: what the stored threshold is worth on these windows."""
    if rows[0].alarm is None:
        return {"alarm_recall": None, "alarm_false_alarm_rate": None}
    raised = np.array([row.alarm for row in rows])
    return {
        "alarm_recall": float(raised[is_high].mean()) if is_high.any() else None,
        "alarm_false_alarm_rate": float(raised[~is_high].mean()) if not is_high.all() else None,
    }


def _open(
    checkpoint: Checkpoint, ckpt: Path, config: Config, data: str | None, split: str
) -> tuple[Split, Encoder | None]:
    """The split to evaluate, and the encoder where its frames must be encoded."""
    if data is not None and is_features(data):
        cached = CachedDataset(data, config.cache.in_memory)
        source = Split(split, cached, cached.labels, cached.class_weights, cached.dv, cached.identity)
    else:
        if data is not None:
            override = {f"{split}_split_path": data}
            config = config.model_copy(update={"data": config.data.model_copy(update=override)})
        if checkpoint.meta.encoder is None and not brings_features(config, split):  # no cache-vis can help
            sample = CheckedDataset(load_dataset(config.data, split), split, F=checkpoint.meta.F)[0]
            check_brings(checkpoint, ckpt, sample, data or split)
        encodes = checkpoint.meta.encoder is not None and (data is not None or not config.model.use_cached_vis_feats)
        encoder = load_trained_encoder(checkpoint, ckpt, config) if encodes else None
        if config.model.F != checkpoint.meta.F:
            raise CheckpointError(f"{ckpt}: takes {checkpoint.meta.F} frames a window, but model.F is {config.model.F}")
        source = open_split(config, split, encoder)
        if source.identity is None:
            check_brings(checkpoint, ckpt, source.dataset[0], data or split)
            return source, encoder
    if source.identity is not None:
        check_features(checkpoint, ckpt, source.identity, source.dv, source.identity["F"])
    return source, None
