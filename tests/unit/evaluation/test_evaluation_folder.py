"""An evaluation replaces no other one: best.pt on val has `evaluation/`, all else a folder of its own in it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_world import MakeConfig, write_manifest

from simv0.config.load import dump_config
from simv0.errors import ConfigError
from simv0.evaluation.folder import evaluation_folder
from simv0.evaluation.run import evaluate_checkpoint
from simv0.training.fit import fit

pytestmark = pytest.mark.usefixtures("no_report")


def test_two_test_sets_of_one_name_train_and_last_lie_beside_vals(
    make_config: MakeConfig, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(cache={"dir": str(features)}, training={"epochs": 1})
    run, written = fit(config), {}
    for site in ("north", "south"):
        (tmp_path / site).mkdir()
        write_manifest(tmp_path / site / "test set.jsonl", 4 if site == "north" else 6, seed=3)
    monkeypatch.chdir(tmp_path)

    def evaluated(name: str, **how: Any) -> Any:
        ckpt = run.last if name == "last" else Path("run/checkpoints/best.pt")  # relative, from another folder
        _, folder = evaluate_checkpoint(ckpt, baselines=False, **how)
        written[name] = folder.resolve()
        return json.loads((folder / "metrics.json").read_text())

    own = evaluated("val")
    assert own["windows"] == 20
    assert evaluated("north", data="north/test set.jsonl")["windows"] == 4
    assert evaluated("south", data="south/test set.jsonl")["windows"] == 6
    assert evaluated("train", split="train")["windows"] == 40
    assert evaluated("last")["checkpoint"] == "last.pt"
    assert evaluated("again", data=str(tmp_path / "north/test set.jsonl"))["windows"] == 4
    assert evaluated("file", data=str(features / "val.h5"))["windows"] == 20
    assert evaluated("chosen", split="train", out=Path("chosen"))["windows"] == 40
    inside = run.root / "evaluation"
    assert written == {
        "val": inside,
        "north": inside / "test_set",
        "south": inside / "test_set-2",
        "train": inside / "train",
        "last": inside / "last",
        "again": inside / "test_set",
        "file": inside / "val",
        "chosen": tmp_path / "chosen",
    }
    assert json.loads((inside / "metrics.json").read_text()) == own

    moved = tmp_path / "moved/far"  # the run's folder, with its config beside it
    moved.parent.mkdir()
    shutil.move(run.root, moved)
    _, folder = evaluate_checkpoint("moved/far/checkpoints/best.pt", baselines=False)
    assert folder.resolve() == moved / "evaluation"


def test_another_config_names_its_val_but_a_moved_one_is_the_runs_own(make_config: MakeConfig, tmp_path: Path) -> None:
    config, ckpt = make_config(), tmp_path / "best.pt"
    trained: Any = config.model_dump()["data"]

    def where(data: dict[str, Any], **trained_with: Any) -> str:
        other = make_config(data=data)
        folder, _ = evaluation_folder(ckpt, tmp_path, trained | trained_with, other, None, "val")
        return str(folder.relative_to(tmp_path))

    assert where({}) == "evaluation"
    assert where({"val_split_path": str(tmp_path / "night.jsonl")}) == "evaluation/night"
    assert where({"val_split_path": str(tmp_path / "val.jsonl")}) == "evaluation/val"
    assert where({"val_split_path": str(tmp_path / "val.jsonl")}, val_split_path="/gone/val.jsonl") == "evaluation"
    assert where({"dataset_class_path": "fit_world.VisFeats"}) == "evaluation/val"


def test_out_never_replaces_what_is_read(make_config: MakeConfig, features: Path, tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text("windows of somebody\n")
    config = make_config()
    with pytest.raises(ConfigError, match=r"^--out: .*/predictions.jsonl is what --data reads and would be lost"):
        evaluation_folder(
            Path("best.pt"), tmp_path, {}, config, str(tmp_path / "predictions.jsonl"), "val", out=tmp_path
        )


def test_set_alone_works_on_the_runs_config(make_config: MakeConfig, features: Path, tmp_path: Path) -> None:
    from commands import run

    config = make_config(cache={"dir": str(features)}, training={"epochs": 1})
    best, llm = fit(config).best, tmp_path / "llm"
    shutil.copytree(config.model.llm_name_or_path, llm)
    (tmp_path / "c.yaml").write_text(dump_config(config))
    wrong = f"model.llm_name_or_path={tmp_path / 'none'}"
    data = write_manifest(tmp_path / "new.jsonl", 2, seed=0)
    for command in (["evaluate", "--no-baselines"], ["predict", "--data", data]):
        found = run(*command, "--ckpt", best, "--set", f"model.llm_name_or_path={llm}", "--set", "training.amp=false")
        assert found.exit_code == 0, found.output
        lost = run(*command, "--ckpt", best, "--set", wrong)
        assert lost.exit_code == 1
        assert str(tmp_path / "none") in lost.stderr
        bad = run(*command, "--ckpt", best, "--set", "model.K=9")
        assert (
            bad.stderr == "error: --set model.K=9: model.K is 9 but a window has only model.F = 4 frames; make K <= F\n"
        )


def test_a_run_outlives_the_keys_it_was_trained_with(make_config: MakeConfig, features: Path) -> None:
    from commands import run

    finished = fit(make_config(cache={"dir": str(features)}, training={"epochs": 1}))
    text = finished.config.read_text(encoding="utf-8")
    finished.config.write_text(text.replace("training:\n", "training:\n  smoothing: 0.1\n"), encoding="utf-8")
    found = run("evaluate", "--no-baselines", "--ckpt", finished.best)
    assert found.exit_code == 0, found.output
    told = f"{finished.config}: keys unknown to this simv0 are ignored: training.smoothing\n"
    assert told in found.stdout
    wrong = run(
        "evaluate", "--no-baselines", "--ckpt", finished.best, "--config", finished.config
    )  # the user's own word
    assert "training.smoothing: unknown key" in wrong.stderr
