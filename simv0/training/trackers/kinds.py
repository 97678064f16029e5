"""The trackers that `training.trackers` may name: what each is told of a run, and how it keeps every point once.

Each is local unless the user's own settings say otherwise (`WANDB_MODE`, `MLFLOW_TRACKING_URI`, `TRACKIO_SPACE_ID`).
None is imported before it is asked for.
"""

import io
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from simv0.config.load import dump_config
from simv0.config.schema import Config
from simv0.disk.files import told_plainly
from simv0.errors import ConfigError

PROJECT = "simv0"
"""Of the runs, where the tracker's own variables name no other."""


@dataclass(frozen=True)
class Followed:
    """What a tracker is told of a run.

    Attributes:
        name: for people.
        id: the run's own, the same after a resume.
        logs: the run's folder for what is kept locally.
    """

    name: str
    id: str
    logs: Path
    config: Config

    @property
    def flat(self) -> dict[str, Any]:
        """`section.key` -> value."""
        tree = self.config.model_dump()
        return {f"{section}.{key}": value for section, values in tree.items() for key, value in values.items()}


@dataclass(frozen=True)
class Point:
    """Some values at one time.

    Attributes:
        place: among all points of the run, from 1.
        axis: what `x` counts: epochs, or steps since the run was begun.
    """

    place: int
    axis: Literal["epoch", "step"]
    x: int
    values: dict[str, float]


@runtime_checkable
class Tracker(Protocol):
    """Where a run is followed. Opened again, it is given all points again, in order, and takes those it lacks.

    Attributes:
        anew: whether opening it has emptied it: then it needs the earlier pictures again too.
    """

    anew: bool

    def write(self, points: Sequence[Point]) -> None:
        """Take points."""

    def show(self, pictures: Mapping[str, bytes]) -> None:
        """Take pictures (name -> PNG)."""

    def close(self) -> None:
        """Write out what is left."""


class TensorBoard:
    """`logs/tensorboard`, written anew each time."""

    anew = True

    def __init__(self, run: Followed) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = run.logs / "tensorboard"
        with told_plainly(self.folder):
            for old in self.folder.glob("events.out.tfevents.*"):
                old.unlink()
            self.writer = SummaryWriter(self.folder, purge_step=0)  # for a TensorBoard that shows the old ones
            self.writer.add_text("config", f"```yaml\n{dump_config(run.config)}\n```")

    def write(self, points: Sequence[Point]) -> None:
        """As scalars over their own axis."""
        with told_plainly(self.folder):
            for point in points:
                for key, value in point.values.items():
                    self.writer.add_scalar(key, value, point.x)
            self.writer.flush()

    def show(self, pictures: Mapping[str, bytes]) -> None:
        """As images."""
        for name, picture in pictures.items():
            self.writer.add_image(name, _array(picture), dataformats="HWC")

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class WandB:
    """Weights & Biases: an offline run in `logs/wandb`, written anew each time, unless `WANDB_MODE` says otherwise."""

    def __init__(self, run: Followed) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.wandb = wandb
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        folder = Path(os.environ.get("WANDB_DIR", run.logs))
        self.anew = mode == "offline"
        if self.anew:  # the copy that `wandb sync` will send must hold all points, once
            for old in (folder / "wandb").glob(f"offline-run-*-{run.id}"):
                shutil.rmtree(old, ignore_errors=True)
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            id=run.id,
            resume="allow",
            dir=folder,
            mode=mode,
            config=run.config.model_dump(),
            settings=wandb.Settings(console="off", silent=True),
        )
        for axis, keys in (("epoch", "train/*"), ("epoch", "val/*"), ("global_step", "step/*")):
            self.run.define_metric(keys, step_metric=axis)
        self.first = int(self.run.starting_step)  # a server has those before

    def write(self, points: Sequence[Point]) -> None:
        """A row of the history each."""
        _log_rows(self.run, points, self.first)

    def show(self, pictures: Mapping[str, bytes]) -> None:
        """As images."""
        self.run.log({name: self.wandb.Image(_image(picture)) for name, picture in pictures.items()})

    def close(self) -> None:
        """End the run; online, this waits until all is sent."""
        self.run.finish()


class MLflow:
    """MLflow: `logs/mlflow` (SQLite), unless `MLFLOW_TRACKING_URI` names a server."""

    anew = False

    def __init__(self, run: Followed) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)

        self.metric, uri = Metric, os.environ.get("MLFLOW_TRACKING_URI")
        folder = (run.logs / "mlflow").absolute()
        if uri is None:
            folder.mkdir(exist_ok=True)
        self.client = MlflowClient(uri or f"sqlite:///{folder / 'mlflow.db'}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        place = None if uri else (folder / "artifacts").as_uri()
        within = experiment.experiment_id if experiment else self.client.create_experiment(name, place)
        found = self.client.search_runs([within], f"tags.simv0_id = '{run.id}'")
        if found:
            self.id, kept = found[0].info.run_id, found[0].data.metrics
        else:
            made = self.client.create_run(within, run_name=run.name, tags={"simv0_id": run.id})
            self.id, kept = made.info.run_id, {}
            params = [Param(key, str(value)[:500]) for key, value in run.flat.items()]
            self.client.log_batch(self.id, params=params, tags=[RunTag("mlflow.note.content", str(run.logs.parent))])
        self.client.update_run(self.id, status="RUNNING")
        self.there = {(key, point.step) for key in kept for point in self.client.get_metric_history(self.id, key)}

    def write(self, points: Sequence[Point]) -> None:
        """Those that the store does not have."""
        now = int(1000 * time.time())
        rows = [
            self.metric(key, value, now, point.x)
            for point in points
            for key, value in point.values.items()
            if (key, point.x) not in self.there
        ]
        for at in range(0, len(rows), 1000):  # as many as one call takes
            self.client.log_batch(self.id, metrics=rows[at : at + 1000])

    def show(self, pictures: Mapping[str, bytes]) -> None:
        """As artifacts, which replace those of the same name."""
        for name, picture in pictures.items():
            self.client.log_image(self.id, _image(picture), f"{name}.png")

    def close(self) -> None:
        """End the run."""
        self.client.set_terminated(self.id)


class Trackio:
    """trackio: its own local database, unless `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` is set."""

    anew = False

    def __init__(self, run: Followed) -> None:
        import trackio

        self.trackio = trackio
        with redirect_stdout(io.StringIO()):
            self.run: Any = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=f"{run.name}-{run.id}",
                config=run.flat,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        trackio.context_vars.current_run.set(None)  # or it is ended once more at exit, with a line about uploading
        self.first = int(self.run._next_step)

    def write(self, points: Sequence[Point]) -> None:
        """A row each."""
        _log_rows(self.run, points, self.first)

    def show(self, pictures: Mapping[str, bytes]) -> None:
        """As images."""
        self.run.log({name: self.trackio.Image(_image(picture)) for name, picture in pictures.items()})

    def close(self) -> None:
        """Wait until all is written."""
        with redirect_stdout(io.StringIO()):
            self.run.finish()


def _log_rows(run: Any, points: Sequence[Point], first: int) -> None:
    """A row each from place `first` on, at the point's place: W&B and trackio have one step for all axes."""
    for point in points:
        if point.place >= first:
            axis = "epoch" if point.axis == "epoch" else "global_step"
            run.log({axis: point.x, **point.values}, step=point.place)


TRACKERS: dict[str, Callable[[Followed], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def trackers_of(config: Config) -> list[str]:
    """The names of the trackers of a run, each once."""
    older = ["tensorboard"] if config.training.tensorboard else []
    return list(dict.fromkeys([*older, *config.training.trackers]))


def check_trackers(config: Config) -> None:
    """Refuse trackers whose package is missing, without importing any.

    Raises:
        ConfigError: naming them, and what to install.
    """
    missing = [name for name in trackers_of(config) if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"training.trackers: {', '.join(missing)} not installed: pip install 'simv0[{','.join(missing)}]'"
        )


def _image(picture: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(picture)).convert("RGB")


def _array(picture: bytes) -> Any:
    import numpy as np

    return np.asarray(_image(picture))
