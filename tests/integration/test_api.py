"""The commands from Python: a dict or a path in, objects with attributes out; errors are raised, not printed."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fit_world import VisFeats
from small_world import MakeConfig

from cache import cache_vis
from simv0 import evaluate, fit
from simv0.config.load import as_config, load_config
from simv0.errors import ConfigError, DataError, SimError, TrainingError
from simv0.model.checkpoint import load_checkpoint


@pytest.fixture
def tree(make_config: MakeConfig) -> dict[str, Any]:
    """A config as a dict."""
    return make_config().model_dump()


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_from_features_to_a_report(tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    features = cache_vis(tree)
    assert [features[split].outcome for split in ("train", "val")] == ["written", "written"]
    assert [features[split].path for split in features] == [tmp_path / "cache/train.h5", tmp_path / "cache/val.h5"]
    assert repr(cache_vis(tree)).splitlines() == [
        "train: cache/train.h5 is complete (40 windows); nothing to do",
        "val: cache/val.h5 is complete (20 windows); nothing to do",
    ]

    run = fit(tree)
    assert run.folder == tmp_path / "run"
    stored = load_checkpoint(run.best_checkpoint).meta
    assert (run.best_epoch, run.metrics, run.alarm) == (stored.epoch, stored.metrics, stored.alarm)
    assert run.train_epochs == json_lines(tmp_path / "run/metrics/train_metrics.jsonl")
    assert run.val_epochs == json_lines(tmp_path / "run/metrics/val_metrics.jsonl")
    assert run.val_epochs[run.best_epoch - 1].items() >= run.metrics.items()
    assert f"{run.metrics['composite']:.3f}" in repr(run)
    assert repr(run).splitlines()[0] == "run: 2 epochs, the best is"
    assert repr(run).endswith("best checkpoint: run/checkpoints/best.pt")

    found = evaluate(run.best_checkpoint, baselines=False)
    assert found.folder == tmp_path / "run/evaluation"
    assert found.report == tmp_path / "run/evaluation/report.html"
    written = json.loads((found.folder / "metrics.json").read_text())
    assert {name: written[name] for name in found.metrics} == found.metrics
    assert found.metrics["risk_macro_f1"] == pytest.approx(run.metrics["risk_macro_f1"])
    assert found.classes["risk"]["high"]["f1"] == written["classes"]["risk"]["high"]["f1"]
    assert found.predictions == json_lines(found.folder / "predictions.jsonl")
    assert f"│ risk_macro_f1               │ {found.metrics['risk_macro_f1']:.3f} │" in repr(found)
    assert str(found).endswith("written to run/evaluation")
    shown = found._repr_mimebundle_([], [])
    assert f"{found.metrics['risk_macro_f1']:.3f}" in shown["text/html"]
    assert "risk_macro_f1" in shown["text/plain"]


@pytest.fixture
def trained(tree: dict[str, Any], features: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A config whose run is finished."""
    tree["cache"]["dir"] = features
    fit(tree)
    return tree


@pytest.mark.usefixtures("no_report")
def test_a_run_is_kept_continued_or_replaced(trained: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    best = Path(trained["output"]["output_dir"]) / "checkpoints/best.pt"
    before = best.read_bytes()
    capsys.readouterr()
    with pytest.raises(TrainingError, match="already holds a run; use --resume to continue it, --overwrite to replace"):
        fit(trained)
    with pytest.raises(ConfigError, match="--resume and --overwrite exclude each other"):
        fit(trained, resume=True, overwrite=True)
    assert capsys.readouterr() == ("", "")
    assert fit(trained, resume=True).best_checkpoint == best
    assert "this run is finished (2 epochs); nothing to do" in capsys.readouterr().out
    assert best.read_bytes() == before
    assert len(fit(trained, overwrite=True, overrides=["training.epochs=1"]).val_epochs) == 1

    without = evaluate(best, split="train", baselines=False, overrides=["evaluation.batch_size=7"])
    assert (without.report, len(without.predictions)) == (None, 40)
    with pytest.raises(ConfigError, match="--split: expected train, val or calibration, found test"):
        evaluate(best, split="test")
    with pytest.raises(DataError, match=r"no.h5: feature file not found"):
        evaluate(best, data=Path("no.h5"))
    with pytest.raises(SimError, match=r"is a folder, not a checkpoint; did you mean .*best.pt\?"):
        evaluate(best.parents[1])


def test_a_dict_is_the_yaml_of_the_same_keys(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to the current folder, both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERE", "data")
    path = tmp_path / "elsewhere/c.yaml"
    path.parent.mkdir()
    path.write_text(
        "data: {train_split_path: '${HERE}/train.jsonl', val_split_path: data/val.jsonl}\n"
        "training: {lr: 1e-3}\nevaluation: {confirm: [1, 2]}\noutput: {output_dir: run}\n"
    )
    tree: dict[str, Any] = {
        "data": {"train_split_path": Path("${HERE}/train.jsonl"), "val_split_path": "data/val.jsonl"},
        "training": {"lr": 1e-3},
        "evaluation": {"confirm": (1, 2)},
        "output": {"output_dir": Path("run")},
    }
    given = as_config(tree)
    assert given == load_config(path) == as_config(path) == as_config(str(path)) == as_config(given)
    assert given.data.train_split_path == str(tmp_path / "data/train.jsonl")
    assert tree["output"] == {"output_dir": Path("run")}  # left as it is
    for config in (tree, path, given):
        assert as_config(config, ["training.lr=0.5"]).training.lr == 0.5
    assert as_config(make_config()) == make_config()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"epoch": 3}}, "config: training.epoch: unknown key; did you mean training.epochs?"),
        ({"training": {"lr": "1"}}, "config: training.lr: input should be a valid number, found '1'"),
        ({"model": 3}, "config: model: expected a section with keys, found 3"),
        (
            {"data": {"train_split_path": {}, "val_split_path": "x"}},
            "config: data.train_split_path: expected the path that data.dataset_class_path is built with, found {}; a "
            "dataset is named by its class or a function that returns it, not given itself",
        ),
    ],
)
def test_mistakes_in_a_dict(change: dict[str, Any], message: str) -> None:
    tree = {"data": {"train_split_path": "a", "val_split_path": "b"}, **change}
    for command in (fit, cache_vis):
        with pytest.raises(ConfigError) as raised:
            command(tree)
        assert str(raised.value) == message
    with pytest.raises(ConfigError, match=r"^none.yaml: config file not found$"):
        fit("none.yaml")


def test_a_class_of_the_notebook(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cell defines is in `__main__`: a class, or a function that returns a dataset which is there already."""
    made = {"train": VisFeats("train"), "val": VisFeats("validation")}
    monkeypatch.setattr(sys.modules["__main__"], "Windows", VisFeats, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "made", lambda path: made[Path(path).name], raising=False)
    tree = config.model_dump()
    runs = []
    for name in ("Windows", "made"):
        tree["data"].update(dataset_class_path=f"__main__.{name}", train_split_path="train", val_split_path="val")
        tree["output"]["output_dir"] += name
        runs.append(fit(tree))
    assert [len(run.val_epochs) for run in runs] == [2, 2]
    assert runs[0].val_epochs[-1]["loss"] != runs[1].val_epochs[-1]["loss"]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    log = logging.getLogger("simv0")
    assert (log.level, log.handlers, log.propagate) == (logging.NOTSET, [], True)
    yield log
    log.setLevel(logging.NOTSET)


def test_the_log_is_on_stdout_unless_its_level_is_chosen(
    trained: dict[str, Any], logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    cache_vis(trained)
    fit(trained, resume=True)
    assert "nothing to do (more epochs" in capsys.readouterr().out
    assert (logger.level, logger.handlers, logger.propagate) == (logging.NOTSET, [], True)
    logger.setLevel(logging.WARNING)
    fit(trained, resume=True)
    assert capsys.readouterr() == ("", "")
