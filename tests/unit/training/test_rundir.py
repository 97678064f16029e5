"""output_dir: what a run may remove, who owns it, and what it logs."""

import logging
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fit_world import outcome
from ranks import running_child

import simv0.training.fit
import simv0.training.resume
import simv0.training.rundir
from simv0.config.schema import Config
from simv0.errors import ConfigError, TrainingError
from simv0.training.fit import fit
from simv0.training.resume import find_checkpoint
from simv0.training.rundir import PARTS, RunDir


def test_without_git_the_hash_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = simv0.training.rundir.provenance()
    assert (found["git"], found["simv0_git"]) == (None, None)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_users_git_hash_and_that_of_simv0_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hashes = {}
    for name in ("users", "source"):
        (tmp_path / name / "folder").mkdir(parents=True)
        (tmp_path / name / "folder" / "x.py").write_text(name)
        git = ["git", "-C", str(tmp_path / name), "-c", "user.name=x", "-c", "user.email=x@x.invalid"]
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
            subprocess.run([*git, *command], check=True)
        hashes[name] = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    monkeypatch.chdir(tmp_path / "users" / "folder")
    monkeypatch.setattr("simv0.training.rundir.SOURCE", tmp_path / "source")
    (tmp_path / "users" / "folder" / "x.py").write_text("changed")
    found = simv0.training.rundir.provenance()
    assert (found["git"], found["simv0_git"]) == (f"{hashes['users']}-dirty", hashes["source"])
    monkeypatch.setattr(
        "simv0.training.rundir.SOURCE", tmp_path / "users" / "folder"
    )  # installed inside the user's repository
    assert simv0.training.rundir.provenance()["simv0_git"] is None
    monkeypatch.chdir(tmp_path)
    assert simv0.training.rundir.provenance()["git"] is None


@pytest.mark.parametrize("dies_at", range(1, 12))
def test_overwrite_killed_at_any_moment_never_brings_the_old_run_back(
    config: Config, unbroken: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    """Either the old run is whole, or `--resume` begins from zero."""
    run = fit(config)
    calls = 0

    class Killed(BaseException):
        pass

    def dying(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == dies_at:
                raise Killed
            return original(*args, **kwargs)

        return call

    for name in ("rename", "mkdir", "replace"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    monkeypatch.setattr("shutil.rmtree", dying(shutil.rmtree))
    with pytest.raises(Killed):
        run.begin(config)
    monkeypatch.undo()
    checkpoint = find_checkpoint(run, config)
    assert checkpoint is None or (run.previous.exists() and run.best.exists())
    assert outcome(fit(config, resume=True)) == unbroken
    assert not (run.root / ".removed").exists() or checkpoint is not None


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}, {}])
def test_a_folder_that_is_no_run_keeps_its_content(config: Config, how: dict[str, bool]) -> None:
    """An output_dir such as `.` may hold a `logs` folder of somebody else."""
    mine = Path(config.output.output_dir) / "logs/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("x")
    with pytest.raises(
        TrainingError, match=r"run: holds logs but no config_resolved.yaml, so they are not from a run of simv0"
    ):
        fit(config, **how)
    assert mine.exists()


def test_a_worker_that_outlives_the_run_does_not_keep_it_locked(config: Config) -> None:
    """Loader workers notice the death of their parent only after seconds."""
    owner = RunDir(config.output.output_dir)
    owner.claim()
    with running_child():  # which lets go when it begins to run
        owner.release()  # what the kernel does for a killed process
        RunDir(config.output.output_dir).claim()


def test_a_file_system_without_locks_is_said(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    run = RunDir(config.output.output_dir)
    run.claim()
    run.release()
    assert "this file system has no locks (No locks available): do not start a second run here" in caplog.text


def test_the_log_file_may_fail_without_a_word(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(config.output.output_dir)
    run.claim()
    run.begin(config)
    with run.log_to_file():
        handler = logging.getLogger("simv0").handlers[-1]
        assert isinstance(handler, logging.FileHandler)
        handler.stream.close()
        handler.stream = open("/dev/full", "w")  # noqa: SIM115
        logging.getLogger("simv0").info("x" * 10)
    run.release()
    assert capsys.readouterr().err == ""


def test_parts_are_all_that_begin_removes(config: Config) -> None:
    run = fit(config)
    (run.root / "world").mkdir()
    fit(config, overwrite=True)
    assert {path.name for path in run.root.iterdir()} == {*PARTS, "world", ".lock", "config_resolved.yaml"}


def test_the_exported_script_does_nothing_when_a_spawned_worker_imports_it(config: Config) -> None:
    run = fit(config)
    runpy.run_path(str(run.export / "sim_v0_infer.py"), run_name="__mp_main__")  # would ask for its arguments


def test_train_says_which_data_networks_and_features_it_uses(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "simv0")
    fit(config)
    data = config.data
    assert f"data {data.train_split_path} and {data.val_split_path}: features the dataset's own" in caplog.messages
    assert any(said.startswith("device cpu, LLM ") for said in caplog.messages)


def test_what_the_data_cannot_give_is_told_before_a_run_is_replaced(config: Config) -> None:
    run = RunDir(config.output.output_dir)
    run.root.mkdir(parents=True)
    run.begin(config)
    run.best.write_bytes(b"the earlier run's")
    asks = config.model_copy(update={"training": config.training.model_copy(update={"class_weights": "dataset"})})
    with pytest.raises(ConfigError, match="the dataset has no class_weights"):
        fit(asks, overwrite=True)
    assert run.best.read_bytes() == b"the earlier run's"
