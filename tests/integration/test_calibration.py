"""A third split: temperatures and the alarm come from it, all commands know it, and a run resumes with it."""

import json
import logging
from functools import partial
from pathlib import Path

import pytest
from commands import run as command
from distributed_world import train
from fit_world import fit_until, moved, outcome
from ranks import on_ranks
from small_world import MakeConfig, write_manifest

from cache.pipeline import cache_vis
from simv0.alarm.threshold import choose_alarm
from simv0.checks.run import check
from simv0.config.schema import Config
from simv0.errors import CacheError, CheckpointError, ConfigError
from simv0.evaluation.run import evaluate_checkpoint
from simv0.model.checkpoint import load_checkpoint
from simv0.training.fit import fit
from simv0.training.rundir import RunDir

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def third(make_config: MakeConfig, features: Path, tmp_path: Path) -> Config:
    """With 56 windows in 7 recordings to calibrate on, an event in each; the features of all three splits."""
    manifest = write_manifest(tmp_path / "calibration.jsonl", 56, seed=3)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows = [{**row, "group": f"day{i // 8}", "t": 0.5 * i} for i, row in enumerate(rows)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "three"
    folder.mkdir()
    for name in ("train", "val"):
        (folder / f"{name}.h5").symlink_to(features / f"{name}.h5")
    config = make_config(cache={"dir": str(folder)}, data={"calibration_split_path": str(manifest)})
    assert [(report.split, report.outcome) for report in cache_vis(config)] == [
        ("train", "skipped"), ("val", "skipped"), ("calibration", "written"),
    ]  # fmt: skip
    return config


def test_the_alarm_comes_from_the_third_split_and_the_epoch_from_val(third: Config, tmp_path: Path) -> None:
    run = fit(third)
    without = third.model_copy(update={"data": third.data.model_copy(update={"calibration_split_path": None})})
    alone = fit(moved(without, tmp_path / "alone"))
    meta, on_val = load_checkpoint(run.best).meta, load_checkpoint(alone.best).meta
    assert (meta.epoch, meta.metrics) == (on_val.epoch, on_val.metrics)
    assert on_val.alarm is not None
    assert (on_val.alarm.split, on_val.alarm.windows) == ("val", 20)
    alarm = meta.alarm
    assert alarm is not None
    assert alarm.promise is not None
    assert (alarm.split, alarm.windows, alarm.groups, alarm.promise.units) == ("calibration", 56, 7, 7)
    assert (alarm.promise.of, alarm.n_events) == ("events", 7)  # "high" are the last two windows of each
    log = run.log.read_text()
    assert "windows: train 40, val 20, calibration 56; " in log
    assert "calibration: the alarm will promise a recall of 0.684 at 90% confidence, below target: 7 recordings" in log
    assert str(alarm) in log
    assert "val also chose the epoch" not in log
    assert str(alarm).count("on calibration recall") == 1

    found, folder = evaluate_checkpoint(run.best, split="calibration", baselines=False)
    assert folder == run.evaluation / "calibration"
    assert found.notes[0] == (
        "Temperatures and alarm threshold were chosen on this split: expect lower figures on new recordings."
    )
    labels = found.labels
    assert choose_alarm(found.logits, labels.ids, labels.group, third.evaluation, "calibration", labels.t) == alarm
    assert alarm.chosen is not None
    assert found.metrics["alarm_recall"] == alarm.chosen.recall.value
    of_val = evaluate_checkpoint(run.best, baselines=False)[0]
    assert of_val.notes[0] == "Best epoch was chosen on this split: expect lower figures on new recordings."
    with pytest.raises(ConfigError, match=r"^--split calibration: there is no such split: data\.calibration_split_"):
        evaluate_checkpoint(alone.best, split="calibration")
    refused = command("evaluate", "--ckpt", run.best, "--split", "test")
    assert "--split: expected train, val or calibration, found test" in refused.output


def test_a_run_resumes_with_its_third_split_and_with_no_other(third: Config, tmp_path: Path) -> None:
    whole = outcome(fit(moved(third, tmp_path / "whole")))
    fit_until(third, 1)
    path = third.data.calibration_split_path
    assert path is not None
    without = third.model_copy(update={"data": third.data.model_copy(update={"calibration_split_path": None})})
    with pytest.raises(ConfigError, match=r"data\.calibration_split_path: started with '.*', now None"):
        fit(without, resume=True)
    file = Path(third.cache.dir) / "calibration.h5"
    good = (file.read_bytes(), Path(path).read_text())
    write_manifest(Path(path), 56, seed=4)
    file.unlink()
    cache_vis(third)
    with pytest.raises(CheckpointError, match="the data of split calibration has changed since the run was started"):
        fit(third, resume=True)
    file.write_bytes(good[0])
    Path(path).write_text(good[1])
    assert outcome(fit(third, resume=True)) == whole


def test_recordings_shared_with_any_other_split_are_leakage(
    third: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = third.data.model_copy(update={"calibration_split_path": third.data.val_split_path})
    with caplog.at_level(logging.WARNING):
        cache_vis(third.model_copy(update={"data": shared}), overwrite=True)
    assert [message for message in caplog.messages if "LEAKAGE: 1 group" in message] == [
        "LEAKAGE: 1 group appears in both val and calibration (first: 'val'); the calibration figures will flatter "
        "the model. Split by recording."
    ]


def test_several_processes_calibrate_as_one_does(third: Config, tmp_path: Path) -> None:
    alone, several = (moved(third, tmp_path / name) for name in ("alone", "several"))
    one = load_checkpoint(fit(alone).best).meta.alarm
    assert on_ranks(2, partial(train, several)) == [0, 0]
    two = load_checkpoint(RunDir(several.output.output_dir).best).meta.alarm
    assert one is not None
    assert two is not None
    assert (two.split, two.windows, two.promise) == ("calibration", 56, one.promise)
    assert two.temperatures == pytest.approx(one.temperatures, rel=1e-3)


def test_check_looks_at_the_third_split_too(third: Config) -> None:
    report = check(third)
    assert report.problems == []
    assert report.facts["data: calibration"]["windows"] == 56
    assert report.facts["data: val and calibration"] == {"leakage": "none seen"}
    about_alarm = [warning for warning in report.warnings if "alarm" in warning]
    assert [warning.partition(":")[0] for warning in about_alarm] == ["calibration"]
    shared = third.data.model_copy(update={"calibration_split_path": third.data.train_split_path})
    fresh = third.model_copy(update={"data": shared, "cache": third.cache.model_copy(update={"dir": "runs/none"})})
    leaks = [warning for warning in check(fresh).warnings if "LEAKAGE" in warning]
    assert leaks[0].startswith("LEAKAGE: 1 group appears in both train and calibration (first: 'train')")
    missing = third.data.model_copy(update={"calibration_split_path": "/none.jsonl"})
    problems = check(fresh.model_copy(update={"data": missing})).problems
    assert [str(problem) for problem in problems] == ["/none.jsonl: manifest not found"]


def test_features_made_otherwise_are_refused_by_name(third: Config, tmp_path: Path) -> None:
    update = {"dir": str(tmp_path / "wide"), "dtype": "float32"}
    wide = third.model_copy(update={"cache": third.cache.model_copy(update=update)})
    cache_vis(wide)
    file = Path(third.cache.dir) / "calibration.h5"
    file.unlink()
    file.symlink_to(Path(wide.cache.dir) / "calibration.h5")
    with pytest.raises(CacheError, match=r"calibration\.h5.*dtype"):
        fit(third)
