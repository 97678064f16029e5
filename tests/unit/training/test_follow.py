"""Trackers hold what the metrics files hold, each point once, also after a kill: read back from what they wrote."""

import json
import os
import pickle
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fit_world import fit_until
from small_world import MakeConfig

import simv0.training.trackers.follow
from simv0.config.schema import Config
from simv0.errors import ConfigError
from simv0.training.fit import fit
from simv0.training.rundir import RunDir
from simv0.training.trackers.kinds import TRACKERS, Followed, Point

Points = dict[str, list[tuple[int, float]]]
"""Key -> (epoch or step, value), in order."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of their packages


@pytest.fixture(scope="session")
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trackio")  # one for all: the package reads its variable once


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch, trackio_folder: Path) -> None:
    monkeypatch.setattr(simv0.training.trackers.follow, "STEP_EVERY", 2)
    monkeypatch.setattr("simv0.training.fit.STEP_EVERY", 2)
    monkeypatch.setenv("TRACKIO_DIR", str(trackio_folder))
    for name in ("WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)


def config_for(make_config: MakeConfig, features: Path, *trackers: str) -> Config:
    """3 epochs of 5 steps, a checkpoint after each step."""
    training = {"epochs": 3, "checkpoint_every_steps": 1, "trackers": list(trackers)}
    return make_config(cache={"dir": str(features)}, training=training)


def from_tensorboard(run: RunDir) -> Points:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(run.root / "logs/tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def from_wandb(run: RunDir) -> Points:
    """Out of the one file that `wandb sync` would send; wandb's own process may still write its end."""
    record_of = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="the extra wandb is not installed").Record
    (path,) = run.root.glob("logs/wandb/offline-run-*/run-*.wandb")
    records: list[Any] = []
    for _ in range(300):
        records = [record_of.FromString(data) for data in leveldb_log(path.read_bytes())]
        if records and records[-1].HasField("exit"):
            break
        time.sleep(0.1)
    found = Points()
    for record in records:
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for key in row.keys() & {"step/loss", "step/lr", "train/loss", "val/composite"}:
            found.setdefault(key, []).append((row.get("epoch", row.get("global_step")), row[key]))
    return found


def leveldb_log(data: bytes) -> Iterator[bytes]:
    """The whole records of a log in LevelDB's format, which begins after wandb's own 7 bytes."""
    at, whole = 7, b""
    while at + 7 < len(data):
        if 32768 - at % 32768 < 7:  # no room for a header in this block
            at += 32768 - at % 32768
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4) and at <= len(data):  # a whole record, or the last part of one
            yield whole
            whole = b""


def from_mlflow(run: RunDir) -> Points:
    with sqlite3.connect(run.root / "logs/mlflow/mlflow.db") as database:
        found = Points()
        for key, step, value in database.execute("select key, step, value from metrics order by step"):
            found.setdefault(key, []).append((step, value))
    return found


def from_trackio(run: RunDir) -> Points:
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    identity = run.root / "logs/trackers.json"
    name = "run-" + (json.loads(identity.read_text())["id"] if identity.exists() else KILLED_ID)
    with sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "simv0.db") as database:
        found = Points()
        for (text,) in database.execute("select metrics from metrics where run_name = ? order by step", (name,)):
            row = json.loads(text)
            for key in row.keys() - {"epoch", "global_step"}:
                found.setdefault(key, []).append((row.get("epoch", row.get("global_step")), row[key]))
    return found


READ = {"tensorboard": from_tensorboard, "wandb": from_wandb, "mlflow": from_mlflow, "trackio": from_trackio}


def from_files(run: RunDir) -> Points:
    """The same out of the metrics files."""
    found = Points()
    for split, path in (("train", run.train_metrics), ("val", run.val_metrics), ("", run.step_metrics)):
        for row in map(json.loads, path.read_text().splitlines()):
            for key in row.keys() - {"epoch", "step"}:
                if row[key] is not None:
                    name = f"{split}/{key}" if split else key
                    found.setdefault(name, []).append((row["epoch" if split else "step"], pytest.approx(row[key])))
    return found


def test_tensorboard_says_what_the_files_say(make_config: MakeConfig, features: Path) -> None:
    run = fit(config_for(make_config, features, "tensorboard"))
    shown = from_tensorboard(run)
    assert shown == from_files(run)
    assert [epoch for epoch, _ in shown["val/composite"]] == [1, 2, 3]
    assert [step for step, _ in shown["step/loss"]] == [2, 4, 6, 8, 10, 12, 14]


def test_the_older_key_writes_the_same(make_config: MakeConfig, features: Path) -> None:
    """A run that was begun without is followed from its first epoch on, once it is resumed with it."""
    config = config_for(make_config, features)
    run = fit(config)
    assert not run.step_metrics.exists()
    on = config.training.model_copy(update={"tensorboard": True})
    fit(config.model_copy(update={"training": on}), resume=True)  # a finished run
    assert from_tensorboard(run) == from_files(run)


POINTS = [Point(n, "step", 2 * n, {"step/loss": 1 / n, "step/lr": 0.5}) for n in range(1, 8)]
POINTS[3] = Point(4, "epoch", 1, {"train/loss": 2.0, "val/composite": 0.25})
KILLED_ID = "0123abcd"
KILLED = """
import os, pickle, signal, sys
run, name, points = pickle.load(sys.stdin.buffer)
from simv0.training.trackers.kinds import TRACKERS
tracker = TRACKERS[name](run)
tracker.write(points)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", READ)
def test_a_tracker_that_was_killed_takes_what_it_lacks(name: str, make_config: MakeConfig, tmp_path: Path) -> None:
    """Killed with all of what it was given, some of it or nothing on disk; given all again, it has every point once."""
    pytest.importorskip(name, reason=f"the extra {name} is not installed")
    run = RunDir(tmp_path / "run")
    (run.root / "logs").mkdir(parents=True)
    about = Followed("run", KILLED_ID, run.root / "logs", make_config(training={"trackers": [name]}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    given = pickle.dumps((about, name, POINTS[:5]))
    done = subprocess.run(
        [sys.executable, "-c", KILLED], input=given, env=environment, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    for points in (POINTS[:6], POINTS):  # resumed, and resumed again
        tracker = TRACKERS[name](about)
        tracker.write(points)
        tracker.close()
    expected = Points()
    for point in POINTS:
        for key, value in point.values.items():
            expected.setdefault(key, []).append((point.x, pytest.approx(value)))
    assert READ[name](run) == expected


def test_a_killed_run_ends_with_every_point_once(make_config: MakeConfig, features: Path) -> None:
    config = config_for(make_config, features, "tensorboard")
    fit_until(config, 9)  # in epoch 2
    run = RunDir(config.output.output_dir)
    run.step_metrics.write_text(
        run.step_metrics.read_text() + '{"epoch": 2, "step": 10, "step/loss": 9, "step/lr": 9}\n{"ep'
    )
    fit(config, resume=True)
    expected = from_files(run)
    assert [step for step, _ in expected["step/loss"]] == [2, 4, 6, 8, 10, 12, 14]
    assert from_tensorboard(run) == expected


def test_a_stopped_run_leaves_the_next_points_place_free(make_config: MakeConfig, features: Path) -> None:
    """Trackers are closed in order there, and a tracker that only grows knows what it has by its last place."""
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    config = config_for(make_config, features, "trackio")
    fit_until(config, 4)
    run = fit(config, resume=True)
    assert from_trackio(run) == from_files(run)
    import trackio

    assert trackio.context_vars.current_run.get() is None  # nothing is left that it would end, and tell of, at exit


def test_missing_packages_are_one_line_before_training(
    make_config: MakeConfig, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    config = config_for(make_config, features, "wandb", "tensorboard")
    with pytest.raises(ConfigError) as error:
        fit(config)
    told = "training.trackers: wandb, tensorboard not installed: pip install 'simv0[wandb,tensorboard]'"
    assert str(error.value) == told
    assert not RunDir(config.output.output_dir).val_metrics.exists()


class Broken:
    """A tracker whose server is gone."""

    anew = False

    def __init__(self, run: Any) -> None:
        pass

    def write(self, points: Any) -> None:
        raise ConnectionError("no route to host\nmore of it")

    def show(self, pictures: Any) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


def test_a_tracker_that_fails_costs_no_run(
    make_config: MakeConfig, features: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(simv0.training.trackers.follow.TRACKERS, "tensorboard", Broken)
    monkeypatch.setattr(simv0.training.trackers.follow, "GATHER", 0.01)
    run = fit(config_for(make_config, features, "tensorboard"))
    said = "tensorboard: ConnectionError: no route to host; going on without it (metrics/ has every point; "
    said += "train --resume delivers them)"
    assert [message for message in caplog.messages if "ConnectionError" in message] == [said]
    assert [step for step, _ in from_files(run)["step/loss"]] == [2, 4, 6, 8, 10, 12, 14]


def test_a_tracker_that_cannot_be_opened_costs_neither_the_run_nor_the_others(
    make_config: MakeConfig, features: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`--overwrite` has removed the earlier run by then."""
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    for names in (["mlflow"], ["mlflow", "tensorboard"]):
        caplog.clear()
        run = fit(config_for(make_config, features, *names), overwrite=True)
        (said,) = (message for message in caplog.messages if "cannot be opened" in message)
        assert re.fullmatch(r"mlflow: cannot be opened: \w+: .*; going on without it \(metrics/ has every.*", said)
        assert [step for step, _ in from_files(run)["step/loss"]] == [2, 4, 6, 8, 10, 12, 14]
        assert run.best.exists()
    assert from_tensorboard(run) == from_files(run)
