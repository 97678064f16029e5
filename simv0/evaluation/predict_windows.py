"""`simv0 predict`: what a checkpoint says about windows, labels not needed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from simv0.config.schema import Config
from simv0.data.contract import CheckedDataset, collate
from simv0.data.labels import check_windows
from simv0.data.loading import make_loader, started
from simv0.data.source import scale_pictures
from simv0.data.user_class import load_dataset
from simv0.data.workers import workers_for
from simv0.errors import CheckpointError, DataError
from simv0.features.dataset import CachedDataset
from simv0.model.checkpoint import Checkpoint, load_checkpoint
from simv0.predict import Predictor, check_features, config_of, load_model, load_trained_encoder
from simv0.training.epoch import Stopwatch
from simv0.training.refusals import check_data, is_features

BATCH = 8


def predict_windows(
    ckpt: str | Path, data: str | Path, config: Config | None = None, *, overrides: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Predictions for windows, in their order; everything wrong with them is reported before the networks are loaded,
    as far as that needs no decoding of pictures.

    Args:
        ckpt: a checkpoint.
        data: a manifest, a feature file (`.h5`), a folder of shards (`.h5.parts`); with a config, a split path for its
            dataset class.
        config: names the dataset class and the frozen networks; by default a manifest, and those of the run.
        overrides: `section.key=value` on the checkpoint's config, where there is no `config`.

    Raises:
        SimError: errors the user can fix.
    """
    checkpoint = load_checkpoint(ckpt)
    check_data(data, config.data.dataset_class_path if config is not None else None, trained_with(checkpoint))
    config = config or config_of(checkpoint, ckpt, overrides)
    dataset = open_windows(checkpoint, ckpt, data, config)
    takes_frames = not isinstance(dataset, CachedDataset) and checkpoint.meta.encoder is not None
    encoder = load_trained_encoder(checkpoint, ckpt, config) if takes_frames else None
    predictor = Predictor(load_model(checkpoint, ckpt, config, encoder), checkpoint, amp=config.training.amp)
    name, N = _name(data), len(dataset)
    if isinstance(dataset, CachedDataset):
        checked: Any = dataset
    else:
        checked = CheckedDataset(
            dataset, name, F=predictor.meta.F, labels=False, resize=encoder.resize if encoder else None
        )
    order = [list(range(at, min(at + BATCH, N))) for at in range(0, N, BATCH)]
    scale_pictures(dataset, encoder.smallest if encoder is not None else None)
    workers, wanted = 0, config.data.num_workers
    if encoder is not None:
        workers = workers_for(wanted, checked, range(N), encoder.seconds_per_frame, BATCH * predictor.meta.F).number
    elif wanted != "auto":
        workers = wanted
    seen: set[str] = set()
    for batch in Stopwatch().over(started(make_loader(checked, order, collate, workers))):
        for judged in predictor.judge(batch):
            if judged.sample_id in seen:  # of a class that can be read only window by window
                raise DataError(f"{name}: sample_id {judged.sample_id!r} appears twice; sample_ids must be unique")
            seen.add(judged.sample_id)
            yield judged.as_json()


def open_windows(checkpoint: Checkpoint, ckpt: str | Path, data: str | Path, config: Config) -> Any:
    """The windows, checked as far as that costs no pictures, and whether the checkpoint takes what they bring.

    Raises:
        SimError: errors the user can fix.
    """
    meta, name = checkpoint.meta, _name(data)
    if is_features(data):
        cached = CachedDataset(data, config.cache.in_memory)
        check_features(checkpoint, ckpt, cached.identity, cached.dv, cached.F)
        return cached
    path = str(data)
    section = config.data.model_copy(update={"train_split_path": path, "val_split_path": path})
    dataset = load_dataset(section, "val")
    if not len(dataset):
        raise DataError(f"{data}: holds no windows")
    check_windows(dataset, name, meta.F)
    # A manifest brings frames, decoded where they are predicted.
    first = (
        {"frames": ()} if hasattr(dataset, "load_frame") else CheckedDataset(dataset, name, F=meta.F, labels=False)[0]
    )
    check_brings(checkpoint, ckpt, first, name)
    return dataset


def check_brings(checkpoint: Checkpoint, ckpt: str | Path, sample: dict[str, Any], name: str) -> None:
    """Refuse frames for a checkpoint that was trained on a dataset's own features, and such features for any other.

    Raises:
        CheckpointError: with what it takes.
    """
    meta = checkpoint.meta
    if meta.encoder is None and "frames" in sample:
        raise CheckpointError(
            f"{ckpt}: was trained on a dataset's own vis_feats [{meta.F},{meta.dv}]; it takes no frames, and {name} "
            "brings frames: give --config with the dataset class that yields vis_feats"
        )
    if meta.encoder is not None and "vis_feats" in sample:
        raise CheckpointError(
            f"{ckpt}: was trained on features of {meta.encoder.get('vision_encoder_name')}, and nothing says what the "
            f"vis_feats of {name} were made of: give frames, or a feature file of cache-vis"
        )
    if "vis_feats" in sample and sample["vis_feats"].shape[-1] != meta.dv:
        raise CheckpointError(
            f"{ckpt}: takes vis_feats of width {meta.dv}, found {sample['vis_feats'].shape[-1]} in {name}"
        )


def trained_with(checkpoint: Checkpoint) -> str:
    """The dataset class that a checkpoint says it was trained with, for messages."""
    return str(checkpoint.meta.config.get("data", {}).get("dataset_class_path", ""))


def _name(data: str | Path) -> str:
    return Path(data).name or str(data)
