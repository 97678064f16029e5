"""What a command refuses at once, before torch is loaded: wrong paths, an existing run, another config on resume.

Nothing here is final: everything is checked again where it is used.
"""

from pathlib import Path, PurePath
from typing import Any

from simv0.config.schema import Config
from simv0.config.yaml import parse_yaml
from simv0.disk.files import check_checkpoint
from simv0.errors import CacheError, CheckpointError, ConfigError, DataError, SimError, TrainingError, shown
from simv0.training.rundir import RunDir

MANIFEST_CLASS = "simv0.datasets.ManifestDataset"
GIVE = "give train.h5, a .parts folder or checkpoints/best.pt"
FEATURES = (".h5", ".h5.parts")

OPERATIONAL = (
    "data.num_workers",
    "data.frame_spacing",
    "cache.",
    "evaluation.batch_size",
    "output.",
    "training.checkpoint_every_steps",
    "training.device",
    "training.keep_epochs",
    "training.llm_control",
    "training.shard_llm",
    "training.tensorboard",
    "training.trackers",
)
"""Keys that may change on resume: they change no weight (what the cache holds is compared by its digests), and
`evaluation.batch_size` at most the last digit of a metric."""

PLACES = (
    "data.train_split_path",
    "data.val_split_path",
    "model.llm_name_or_path",
    "model.llm_revision",
    "model.vision_encoder_name",
    "model.vision_pretrained",
    "model.vision_weights",
)
"""Keys that say where something is: `restore` compares the digests of what is there."""

YOUNGER = ("evaluation.confidence", "evaluation.confirm", "evaluation.release")
"""Keys that an older run does not know, and that change no weight: it continues, and its next best.pt uses them."""


def check_train(config: Config, resume: bool, overwrite: bool) -> None:
    """Refuse to train over an existing run without --resume or --overwrite, or to resume with another config.

    Raises:
        TrainingError: the folder holds a run, or what no run has made.
        ConfigError: the run was started with another config.
    """
    run = RunDir(config.output.output_dir)
    run.check_asked(overwrite=overwrite, resume=resume)
    if resume and (run.last.exists() or run.previous.exists()):
        check_same_config(run, _begun_with(run), config)
    else:
        check_init_from(config)
        if not resume:
            run.check_ours()
    if not _features_there(config, "train"):
        check_split_paths(config)


def check_init_from(config: Config) -> None:
    """Refuse to start from a checkpoint that is not there, or that the new run would remove.

    Raises:
        CheckpointError: missing, or no checkpoint.
        ConfigError: it lies in the run's own folder.
    """
    if config.training.init_from is None:
        return
    path = Path(config.training.init_from)
    try:
        check_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"training.init_from: {error}") from None
    if path.resolve().is_relative_to(Path(config.output.output_dir).resolve()):
        raise ConfigError(
            f"training.init_from: {path} lies in output.output_dir, which a new run empties; choose another "
            "output.output_dir"
        )


def _begun_with(run: RunDir) -> dict[str, Any]:
    """`config_resolved.yaml`; nothing where it cannot be read: the checkpoint knows it too."""
    try:
        tree = parse_yaml(run.config.read_text(encoding="utf-8"), str(run.config))
    except (OSError, ValueError, SimError):
        return {}
    good = isinstance(tree, dict) and all(isinstance(section, dict) for section in tree.values())
    return tree if good else {}


def check_same_config(run: RunDir, begun: dict[str, dict[str, Any]], config: Config) -> None:
    """Refuse to resume a run that was started with another config.

    Raises:
        ConfigError: naming every key, and the way where the epochs differ.
    """
    differing = config_differences(begun, config.model_dump()) if begun else []
    if not differing:
        return
    if any(difference.endswith("unknown to this simv0") for difference in differing):
        raise ConfigError(
            f"{run.root}: the run was started by another version of simv0 and cannot be resumed by this one: "
            f"{'; '.join(differing)}; its checkpoints still work for prediction; train again in "
            "another output.output_dir"
        )
    way = "give the same values, or another output.output_dir"
    if [line.partition(":")[0] for line in differing] == ["training.epochs"]:
        way = (
            "the learning rate is one cycle that ends with the last epoch, so a different number of epochs is a "
            "different run: train it in another output.output_dir (this run stays as it is)"
        )
    raise ConfigError(f"{run.root}: the run was started with another config: {'; '.join(differing)}; {way}")


def config_differences(stored: dict[str, dict[str, Any]], wanted: dict[str, dict[str, Any]]) -> list[str]:
    """`section.key: stored X, now Y` for every differing key but the operational ones."""
    differing = []
    for section in sorted(stored.keys() | wanted.keys()):
        before, now = stored.get(section, {}), wanted.get(section, {})
        for key in sorted(before.keys() | now.keys()):
            name = f"{section}.{key}"
            if name.startswith(OPERATIONAL) or name in PLACES or (name in YOUNGER and key not in before):
                continue
            if _without_places(before.get(key)) != _without_places(now.get(key)):
                begun = shown(repr(before[key])) if key in before else "an older simv0, which did not know it"
                here = repr(now[key]) if key in now else "unknown to this simv0"
                differing.append(f"{shown(name)}: started with {begun}, now {here}")
    return differing


def _without_places(value: Any) -> Any:
    """A value whose absolute paths are all the same: data may move, behind a link too."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items() if key != "follow_links"}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return "/" if isinstance(value, str) and PurePath(value).is_absolute() else value


def check_split_paths(config: Config) -> None:
    """Refuse missing manifests; how another dataset class reads its path is its own business.

    Raises:
        DataError: naming the file.
    """
    for path in config.data.splits.values():
        if config.data.dataset_class_path == MANIFEST_CLASS:
            _check_manifest(Path(path))


def _features_there(config: Config, name: str) -> bool:
    path = Path(config.cache.dir) / f"{name}.h5"
    return path.exists() or path.with_name(path.name + ".parts").exists()


def check_data(data: str | Path, reader: str | None, trained_with: str | None = None) -> None:
    """Refuse a `--data` that does not exist.

    Args:
        data: what it says.
        reader: the dataset class that would read it; None: ManifestDataset, for want of a config.
        trained_with: the class that the run was trained with, for advice.

    Raises:
        DataError: missing, or a folder where a file is needed.
    """
    path = Path(data)
    if is_features(data):
        if not path.exists():
            raise DataError(f"{path}: feature file not found")
    elif reader in (None, MANIFEST_CLASS):
        foreign = reader is None and trained_with not in (None, MANIFEST_CLASS)
        _check_manifest(
            path, f"; for windows of {shown(str(trained_with))}, give its config with --config" if foreign else ""
        )


def class_of_run(ckpt: Path) -> str | None:
    """The dataset class of the run that a checkpoint is in: a name for messages, never imported."""
    run = run_of(ckpt)
    name = _begun_with(RunDir(run)).get("data", {}).get("dataset_class_path") if run is not None else None
    return name if isinstance(name, str) else None


def _check_manifest(path: Path, advice: str = "") -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name the manifest (.jsonl) in it, or a feature file (.h5){advice}")
    if not path.exists():
        raise DataError(f"{path}: manifest not found{advice}")


def is_features(data: str | Path) -> bool:
    """Whether a path names a feature file or a folder of shards."""
    return str(data).rstrip("/").endswith(FEATURES)


def check_inspected(path: Path) -> None:
    """Refuse a path that names nothing.

    Raises:
        SimError: naming it.
    """
    if path.suffix == ".pt":
        check_checkpoint(path)
    elif not path.exists() and not path.with_name(path.name + ".parts").is_dir():
        raise CacheError(f"{path}: file not found; {GIVE}")


def check_demo(out: Path) -> None:
    """Refuse a folder that holds another run than the demo's.

    Raises:
        TrainingError: it does.
    """
    if RunDir(out).holds_a_run and not (out / "world" / "world.json").exists():
        raise TrainingError(f"{out}: holds a run other than the demo; choose another --out")


def config_of_run(ckpt: Path) -> Path:
    """The `config_resolved.yaml` of the run that a checkpoint is in.

    Raises:
        ConfigError: it is in none.
    """
    run = run_of(ckpt)
    if run is None:
        raise ConfigError(f"{ckpt}: lies outside a run, so its data are unknown; give --config")
    return run / "config_resolved.yaml"


def run_of(ckpt: Path) -> Path | None:
    """The run that a checkpoint is in (`RUN/checkpoints/x.pt` beside `RUN/config_resolved.yaml`)."""
    run = ckpt.resolve().parent.parent
    return run if (run / "config_resolved.yaml").is_file() else None
