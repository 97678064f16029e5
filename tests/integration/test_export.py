"""`simv0 export` of a run, and what a robot makes of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from commands import run as command
from stream_world import F, best, full, image, trained

from simv0.config.schema import Config
from simv0.errors import CheckpointError
from simv0.model.checkpoint import load_checkpoint
from simv0.predict import Predictor


@pytest.fixture(scope="module")
def run(models: Path, manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return trained(models, manifests, tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def robot(run: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, exported by the command."""
    folder = tmp_path_factory.mktemp("robots") / "rover"
    found = command("export", run.output.output_dir, "--to", folder)
    assert (found.exit_code, found.stdout) == (0, f"written to {folder}\n"), found.output
    return folder


def test_a_robot_predicts_the_same_bits(run: Config, robot: Path) -> None:
    here, there = Predictor.load(best(run)), Predictor.from_pretrained(robot)
    frames, telemetry = torch.stack([image(i) for i in range(F)]), torch.arange(8.0)
    assert there.predict(frames, telemetry) == here.predict(frames, telemetry)
    assert there.meta.model_dump(exclude={"config"}) == here.meta.model_dump(exclude={"config"})
    assert full(there).state().prediction == full(here).state().prediction


def test_other_commands_take_the_folder_for_a_checkpoint(run: Config, robot: Path) -> None:
    data = run.data.val_split_path
    rows = [command("predict", "--ckpt", ckpt, "--data", data) for ckpt in (best(run), robot)]
    assert (rows[0].exit_code, rows[1].exit_code) == (0, 0), rows[1].output
    assert rows[0].stdout == rows[1].stdout
    told = command("inspect", robot)
    assert told.exit_code == 0, told.output
    assert yaml.safe_load(told.stdout)["kind"] == "checkpoint"


@pytest.mark.usefixtures("no_report")
def test_the_card_holds_what_evaluate_found_of_this_checkpoint_and_no_paths(run: Config, tmp_path: Path) -> None:
    root = Path(run.output.output_dir)
    told = command("export", root, "--to", tmp_path / "before")
    assert told.exit_code == 0
    assert told.stderr == (
        f"{best(run)}: not evaluated, so the model card has the figures of training only; for all of them run simv0 "
        f"evaluate --ckpt {best(run)}, then export again with --overwrite\n"
    )
    assert "Not evaluated; on val, which chose the epoch" in (tmp_path / "before" / "README.md").read_text()
    assert command("evaluate", "--ckpt", best(run), "--no-baselines").exit_code == 0
    assert command("evaluate", "--ckpt", best(run), "--no-baselines", "--split", "train").exit_code == 0
    other = root / "evaluation" / "older"
    other.mkdir()
    metrics = json.loads((root / "evaluation" / "metrics.json").read_text())
    (other / "metrics.json").write_text(json.dumps({**metrics, "epoch": 99, "data": "ALIEN"}))
    found = command("export", best(run), "--to", tmp_path / "robot")
    assert found.exit_code == 0, found.output
    card = (tmp_path / "robot" / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    index = header["model-index"][0]
    assert (header["library_name"], index["name"]) == ("simv0", "robot")
    assert [result["dataset"]["name"] for result in index["results"]] == ["val", "train"]
    low, high = metrics["intervals"]["action_macro_f1"]
    assert f"| action, macro F1 | {metrics['action_macro_f1']:.3f} | {low:.3f} to {high:.3f} |" in card
    digests = load_checkpoint(best(run).with_name("last.pt")).training.digests  # type: ignore[union-attr]
    assert f"| train | `train.jsonl` | `{digests['train']}` |" in card
    assert "alarm: no threshold: " in card
    assert "TRAINED ON" in card  # a caution of the evaluation on train
    assert "ALIEN" not in card
    assert str(root.parent) not in card
    assert str(root.parent) not in (tmp_path / "robot" / "config.json").read_text()


def test_the_hub_reads_the_card(robot: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(robot / "README.md")
    assert card.data.pipeline_tag == "robotics"
    assert "## Intended use" in card.text
    assert "## Limits" in card.text


def test_what_a_folder_lacks_is_told_in_a_line(robot: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    said = command("export", empty, "--to", tmp_path / "x")
    assert (said.exit_code, said.stderr) == (
        1,
        f"error: {empty}: is a folder, not a checkpoint; name a .pt such as checkpoints/best.pt\n",
    )
    again = command("export", robot, "--to", robot)
    assert again.exit_code == 2
    assert again.stderr.startswith(f"error: --to: {robot}: exists; replace it with --overwrite")
    with pytest.raises(CheckpointError, match="is a folder, not a checkpoint"):
        Predictor.from_pretrained(empty)


def test_a_robot_that_reads_an_exported_folder_loads_no_training(robot: Path) -> None:
    code = (
        "import sys\nfrom simv0 import Predictor\nPredictor.from_pretrained(sys.argv[1])\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('simv0.')}\n"
        "print(sorted(rooms & {'training', 'features', 'evaluation', 'export', 'baselines', 'checks'}))"
    )
    done = subprocess.run([sys.executable, "-c", code, robot], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"
