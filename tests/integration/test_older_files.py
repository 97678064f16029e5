"""Feature files, checkpoints, configs and runs of an older simv0 still work: `support/older`, made by the last version
with all modules in one folder (b75ac95).
"""

import json
import shutil
from pathlib import Path

import pytest
from commands import run

from cache.pipeline import cache_vis
from simv0.config.load import load_config
from simv0.model.checkpoint import load_checkpoint
from simv0.training.work import open_work

pytestmark = pytest.mark.usefixtures("no_report")

OLDER = Path(__file__).parents[1] / "support" / "older"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    shutil.copytree(OLDER, tmp_path / "older")
    here = tmp_path / "older"
    text = (here / "run" / "config_resolved.yaml").read_text(encoding="utf-8").replace("/tmp/m/old", str(here))
    (here / "run" / "config_resolved.yaml").write_text(text, encoding="utf-8")
    return here


def test_features_are_complete_and_a_finished_run_is_finished(older: Path) -> None:
    config = older / "run" / "config_resolved.yaml"
    assert [report.outcome for report in cache_vis(load_config(config))] == ["skipped", "skipped"]
    again = run("train", "--config", config, "--resume")
    assert again.exit_code == 0, again.output
    assert "this run is finished" in again.stdout


def test_a_checkpoint_evaluates_and_predicts_as_it_did(older: Path) -> None:
    best, config = older / "run" / "checkpoints" / "best.pt", older / "run" / "config_resolved.yaml"
    found = run("evaluate", "--ckpt", best, "--no-baselines", "--out", older / "evaluation")
    assert found.exit_code == 0, found.output
    metrics = json.loads((older / "evaluation" / "metrics.json").read_text())
    logged = [json.loads(line) for line in (older / "run" / "metrics" / "val_metrics.jsonl").read_text().splitlines()]
    assert metrics["loss"] == pytest.approx(logged[metrics["epoch"] - 1]["loss"], rel=1e-5)
    assert load_checkpoint(best).unlike is None
    predicted = run("predict", "--ckpt", best, "--config", config, "--data", older / "data" / "val.jsonl")
    assert predicted.exit_code == 0, predicted.output
    wanted = [json.loads(line) for line in (older / "predictions.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert [row["sample_id"] for row in rows] == [row["sample_id"] for row in wanted]
    for row, old in zip(rows, wanted, strict=True):
        assert row["unlike"] is row["distance"] is None  # it keeps nothing to tell that by
        for head, probs in old["probs"].items():
            assert row["probs"][head] == pytest.approx(probs, abs=2e-4)  # fp16 weights, where numba is there


def test_a_resumed_run_keeps_the_prefix_it_was_begun_with(older: Path) -> None:
    config = load_config(older / "run" / "config_resolved.yaml")
    last = load_checkpoint(older / "run" / "checkpoints" / "last.pt")
    assert open_work(config, last).model.bos is None
    assert open_work(config, None).model.bos is not None
