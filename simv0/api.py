"""The commands as functions of Python: `from simv0 import fit, evaluate`. The command line calls them too.

Their checks and messages are those of the commands, so an option in a message (`--resume`) is the argument of that name
(`resume=True`). What is wrong is raised as a `simv0.errors.SimError` before the expensive part begins.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simv0.config.load import ConfigLike, as_config, load_run_config
from simv0.errors import ConfigError
from simv0.labels import SPLITS
from simv0.runtime.speaking import called_from_python

if TYPE_CHECKING:
    from simv0.evaluation.evaluated import Evaluated
    from simv0.training.run import Run


def fit(config: ConfigLike, *, resume: bool = False, overwrite: bool = False, overrides: Sequence[str] = ()) -> "Run":
    """Train projector, telemetry MLP, task token and heads, as `simv0 train` does.

    Args:
        config: the path of a YAML file, or its sections as a dict; relative paths in either are relative to the current
            folder.
        resume: continue the run in `output.output_dir`, or begin one; a finished one is left as it is.
        overwrite: replace it.
        overrides: `section.key=value`, a text each: what `--set` takes.

    Raises:
        SimError: what the user can fix.
    """
    with called_from_python():
        from simv0.training.refusals import check_train

        loaded = as_config(config, overrides)
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite exclude each other")
        if os.environ.get("WORLD_SIZE", "1") == "1":  # another process may have begun the run already
            check_train(loaded, resume=resume, overwrite=overwrite)
        from simv0.checks.run import preflight
        from simv0.training.fit import fit as train
        from simv0.training.run import Run

        preflight(loaded, "train")
        return Run(train(loaded, resume=resume, overwrite=overwrite).root)


def evaluate(
    ckpt: str | Path,
    *,
    data: str | Path | None = None,
    split: str = "val",
    baselines: bool = True,
    out: str | Path | None = None,
    config: ConfigLike | None = None,
    overrides: Sequence[str] = (),
) -> "Evaluated":
    """Evaluate a checkpoint, as `simv0 evaluate` does; writes `metrics.json`, `predictions.jsonl` and `report.html`.

    Args:
        ckpt: a checkpoint, such as `Run.best_checkpoint`.
        data: a feature file, a folder of shards, or another split path for the dataset class, instead of a split.
        split: "val", "train" or "calibration".
        baselines: compare with simple models fitted on train, and with `training.llm_control`.
        out: the folder to write to; default: the run's `evaluation/`, or a folder in it for other data.
        config: instead of the run's own.
        overrides: `section.key=value`, a text each: what `--set` takes.

    Raises:
        SimError: what the user can fix.
    """
    with called_from_python():
        from simv0.disk.files import check_checkpoint
        from simv0.evaluation.folder import check_chosen
        from simv0.training.refusals import check_data, config_of_run

        ckpt, out = Path(ckpt), None if out is None else Path(out)
        if split not in SPLITS:
            raise ConfigError(f"--split: expected train, val or calibration, found {split}")
        check_checkpoint(ckpt)
        if out is not None:
            check_chosen(out, {"--data": None if data is None else Path(data), "--ckpt": ckpt})
        loaded = load_run_config(config_of_run(ckpt), overrides) if config is None else as_config(config, overrides)
        if data is not None:
            check_data(data, loaded.data.dataset_class_path)
        from simv0.evaluation.run import evaluate_checkpoint

        found, _ = evaluate_checkpoint(
            ckpt, loaded, None if data is None else os.fspath(data), split, baselines, out=out
        )
        return found
