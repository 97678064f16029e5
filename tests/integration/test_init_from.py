"""`training.init_from`: a new robot's run that starts from an old one's checkpoint."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run as command
from fit_world import fit_until, lines, moved, outcome
from small_world import MakeConfig
from small_world import make_config as config_over
from torch import Tensor

from simv0.checks.collector import ErrorCollector
from simv0.checks.run import check_output
from simv0.config.load import dump_config, load_config
from simv0.config.schema import Config
from simv0.demo.networks import save_tiny_llm
from simv0.disk.files import write_atomically
from simv0.errors import CheckpointError, ConfigError
from simv0.export.folder import export
from simv0.model.checkpoint import load_checkpoint
from simv0.runtime.digests import files_digest
from simv0.training.fit import fit
from simv0.training.origin import adapted, read_origin, shared_channels, start_from
from simv0.training.work import open_work

OLD = "fit_world.VisFeats"


@pytest.fixture(scope="module")
def old_run(models: Path, manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_over(models, manifests, tmp_path_factory.mktemp("old"), data={"dataset_class_path": OLD})
    return fit(config).root


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    """Of the old robot."""
    return make_config(data={"dataset_class_path": OLD})


@pytest.fixture
def old(config: Config, old_run: Path) -> Path:
    """best.pt of the old robot, in `config`'s own folder."""
    shutil.copytree(old_run, config.output.output_dir)
    return Path(config.output.output_dir) / "checkpoints" / "best.pt"


@pytest.fixture
def new(make_config: MakeConfig, old: Path, tmp_path: Path) -> Config:
    return make_config(
        data={"dataset_class_path": "fit_world.OtherRobot"},
        training={"init_from": str(old)},
        output={"output_dir": str(tmp_path / "new")},
    )


def test_the_first_layer_computes_what_it_did_worked_out_by_hand() -> None:
    """One channel: W = 3, b = 1, old mean 2 and std 4, new mean 10 and std 8; x = 18 is z1 = 4 and z2 = 1."""
    one, rest = torch.zeros(8), torch.ones(8)
    old = one.clone(), rest.clone()
    new = one.clone(), rest.clone()
    old[0][6], old[1][6], new[0][6], new[1][6] = 2.0, 4.0, 10.0, 8.0
    weight, bias = torch.zeros(1, 8), torch.ones(1)
    weight[0, 6] = 3.0
    known = shared_channels(old, new)
    assert known.tolist() == [False] * 6 + [True, False]  # the others do not vary
    got, shift = adapted(weight, bias, old, new, known)
    assert (got[0, 6].item(), shift.item()) == (6.0, 7.0)  # 3 * 8 / 4; 1 + 3 * (10 - 2) / 4
    assert 3.0 * (18 - 2) / 4 + 1 == got[0, 6].item() * (18 - 10) / 8 + shift.item() == 13.0


def test_a_channel_counts_only_where_both_robots_vary_and_are_near() -> None:
    old = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 0]), torch.tensor([2.0, 2, 1, 2, 2, 2, 1e-3, 1e3])
    new = torch.tensor([0.0, 5, 9, 9, 18, 19, 0.5, 0]), torch.tensor([2.0, 2, 2, 1, 2, 2, 0.5, 1e-3])
    assert shared_channels(old, new).tolist() == [True, True, False, False, True, False, False, True]
    weight, bias = torch.ones(2, 8), torch.zeros(2)
    got, shift = adapted(weight, bias, old, new, shared_channels(old, new))
    assert got[0].tolist() == pytest.approx([1, 1, 0, 0, 1, 0, 0, 1e-6])
    assert shift.tolist() == [11.5, 11.5]  # 5 / 2 + 18 / 2: what is unknown is the old robot's average


def test_a_new_robot_begins_with_what_the_old_one_computes(new: Config, old: Path) -> None:
    """On equal raw telemetry, of the channels that both have; the others at the old robot's average."""
    origin = read_origin(new)
    assert origin is not None
    work = open_work(new, None, origin)
    model = work.model
    telemetry = torch.from_numpy(work.train.labels.telemetry)
    stats = telemetry.double().mean(0).float(), telemetry.double().std(0, correction=0).float()
    shift = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0]).bool()  # az and gx do not vary
    model.set_stats((stats[0], torch.where(shift, 1.0, stats[1])), None)
    start_from(origin, model)

    def old_token(raw: Tensor) -> Tensor:
        z = (raw - origin.state["telemetry_mean"]) / origin.state["telemetry_std"]
        z[:, [2, 3, 6]] = 0  # az and gx; v is 100 m/s, far from anything that the old robot knows
        hidden = z @ origin.state["telemetry_mlp.0.weight"].T + origin.state["telemetry_mlp.0.bias"]
        last = origin.state["telemetry_mlp.2.weight"], origin.state["telemetry_mlp.2.bias"]
        return torch.nn.functional.gelu(hidden) @ last[0].T + last[1]

    now = model.telemetry_mlp((telemetry - model.telemetry_mean) / model.telemetry_std)
    torch.testing.assert_close(now, old_token(telemetry), rtol=1e-4, atol=1e-4)
    for name in ("projector.weight", "task_token", "heads.risk.weight", "heads.action.bias"):
        assert torch.equal(model.trainable_state()[name], origin.state[name]), name


def test_between_equal_robots_nothing_changes(config: Config, old: Path, tmp_path: Path) -> None:
    again = moved(config, tmp_path / "again", init_from=str(old))
    origin = read_origin(again)
    assert origin is not None
    work = open_work(again, None, origin)
    work.model.set_stats(
        (origin.state["telemetry_mean"], origin.state["telemetry_std"]),
        (origin.state["feats_mean"], origin.state["feats_std"]),
    )
    start_from(origin, work.model)
    for name, tensor in work.model.trainable_state().items():
        assert torch.equal(tensor, origin.state[name]), name


def test_a_run_says_where_it_came_from_and_learns_from_there(new: Config, old: Path, tmp_path: Path) -> None:
    run = fit(new)
    kept = {"file": "best.pt", "sha256": files_digest([old])}
    for path in (run.best, run.last):
        assert load_checkpoint(path).meta.provenance["init_from"] == kept
    log = run.log.read_text()
    assert "started from best.pt (sha256 " in log
    card = (export(run.root, tmp_path / "robot") / "README.md").read_text()
    assert f"started from another robot's `best.pt`, sha256 `{kept['sha256']}`" in card
    scratch = fit(moved(new, tmp_path / "scratch", init_from=None))
    assert "init_from" not in load_checkpoint(scratch.best).meta.provenance
    assert lines(run.train_metrics)[0]["loss"] != lines(scratch.train_metrics)[0]["loss"]


def test_an_exported_folder_starts_the_same_run(new: Config, old: Path, tmp_path: Path) -> None:
    folder = export(old, tmp_path / "old_robot")
    runs = [fit(moved(new, tmp_path / f"run{i}", init_from=str(path))) for i, path in enumerate((old, folder))]
    assert outcome(runs[0]) == outcome(runs[1])
    kept = load_checkpoint(runs[1].best).meta.provenance["init_from"]
    weights = folder / "model.safetensors"
    assert kept == {"file": "old_robot/model.safetensors", "sha256": files_digest([weights])}


def test_a_killed_run_resumes_without_the_file(new: Config, old: Path, tmp_path: Path) -> None:
    whole = fit(moved(new, tmp_path / "whole"))
    fit_until(new, 1)
    old.unlink()
    errors = ErrorCollector()
    check_output(new, errors)
    assert errors.problems == []
    run = fit(new, resume=True)
    assert outcome(run) == outcome(whole)
    assert (
        load_checkpoint(run.best).meta.provenance["init_from"]
        == load_checkpoint(whole.best).meta.provenance["init_from"]
    )


def test_a_run_is_not_resumed_from_another_checkpoint(
    new: Config, old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit_until(new, 1)
    folder = Path(new.output.output_dir)
    other = shutil.copy(folder / "checkpoints" / "last.pt", tmp_path / "other.pt")
    sha256 = files_digest([old])
    with pytest.raises(ConfigError) as error:
        fit(moved(new, folder, init_from=str(other)), resume=True)
    assert str(error.value) == (
        f"training.init_from: {other} is another checkpoint than the run was started from (best.pt, sha256 "
        f"{sha256[:16]}): a run that has begun goes on from its own; give the same, or another output.output_dir for a "
        "run from this one"
    )
    copy = shutil.copy(old, tmp_path / "copy.pt")
    shutil.copy(other, old)  # the old robot has been trained on
    with caplog.at_level("INFO", logger="simv0"):
        fit_until(new, 1, resume=True)
    assert f"training.init_from: {old} has changed since the run was started from it" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="simv0"):
        fit(moved(new, folder, init_from=str(copy)), resume=True)
    assert "training.init_from" not in caplog.text


def test_a_run_that_was_begun_otherwise_is_not_resumed(config: Config, old: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training.init_from: started with None, now '.*/best.pt'"):
        fit(moved(config, Path(config.output.output_dir), init_from=str(old)), resume=True)


def test_other_heads_and_other_windows_are_no_hindrance(new: Config, make_config: MakeConfig, tmp_path: Path) -> None:
    tree: dict[str, Any] = {"data": new.data.model_dump(), "training": new.training.model_dump()}
    output = {"output_dir": str(tmp_path / "wide")}
    run = fit(make_config(**tree, model={"K": 4, "confidence_head": True}, output=output))
    assert load_checkpoint(run.best).meta.confidence_head


def refused(config: Config) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as error:
        fit(config)
    assert not (Path(config.output.output_dir) / "config_resolved.yaml").exists()
    return str(error.value)


def test_another_llm_is_refused_by_name(new: Config, old: Path, tmp_path: Path) -> None:
    save_tiny_llm(tmp_path / "other", seed=5)
    model = new.model.model_copy(update={"llm_name_or_path": str(tmp_path / "other")})
    said = refused(new.model_copy(update={"model": model}))
    assert said.startswith(
        f"training.init_from: {old}: belongs to another LLM: llm_name: trained with 'llm', found 'other'"
    )


def test_another_encoder_is_refused(make_config: MakeConfig, features: Path, old: Path, tmp_path: Path) -> None:
    output = {"output_dir": str(tmp_path / "other")}
    said = refused(make_config(cache={"dir": str(features)}, training={"init_from": str(old)}, output=output))
    assert said == (
        f"training.init_from: {old}: was trained on a dataset's own vis_feats, but this run trains on features of an "
        "encoder"
    )


CASES: list[tuple[Callable[[Path], dict[str, Any]], str]] = [
    (lambda old: {"init_from": str(old) + "x"}, "training.init_from: .*best.ptx: checkpoint not found"),
    (lambda old: {"init_from": str(old.parent)}, "training.init_from: .* is a folder, not a checkpoint; did you mean"),
    (lambda old: {"init_from": str(write(old))}, ".*damaged.pt: not a simv0 checkpoint, or cut short"),
]


def write(old: Path) -> Path:
    path = old.with_name("damaged.pt")
    write_atomically(path, old.read_bytes()[:-9])
    return path


@pytest.mark.parametrize(("changes", "told"), CASES, ids=["missing", "folder", "damaged"])
def test_what_cannot_be_read_is_told_before_the_run_begins(
    new: Config, old: Path, changes: Callable[[Path], dict[str, Any]], told: str
) -> None:
    config = new.model_copy(update={"training": new.training.model_copy(update=changes(old))})
    assert re.match(told, refused(config))


def test_a_run_does_not_remove_what_it_starts_from(config: Config, old: Path) -> None:
    with pytest.raises(ConfigError, match="lies in output.output_dir, which a new run empties"):
        fit(moved(config, Path(config.output.output_dir), init_from=str(old)), overwrite=True)
    assert old.exists()


def test_telemetry_of_another_kind_is_refused(new: Config) -> None:
    data = new.data.model_copy(update={"telemetry_norm": "none"})
    assert "was trained with data.telemetry_norm train, but it is none here" in refused(
        new.model_copy(update={"data": data})
    )


def test_commands_tell_it_at_once(new: Config, tmp_path: Path) -> None:
    path, gone = tmp_path / "c.yaml", f"training.init_from={tmp_path / 'gone.pt'}"
    path.write_text(dump_config(new))
    told = f"error: training.init_from: {tmp_path / 'gone.pt'}: checkpoint not found\n"
    for name in ("check", "train"):
        said = command(name, "--config", path, "--set", gone)
        assert (said.exit_code, told in said.stderr) == (1, True)
    with pytest.raises(ConfigError, match="llm_control and training.init_from exclude each other"):
        load_config(path, ["training.llm_control=true"])
