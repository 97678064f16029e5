"""The command line as a user meets it: the three commands, their errors, their help."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import run
from small_world import MakeConfig, write_manifest
from strikes import flip_bit

from cache.pipeline import cache_vis
from cli.shared import user_errors
from simv0.config.load import dump_config
from simv0.config.yaml import parse_yaml
from simv0.data.manifest import ManifestDataset
from simv0.features.reader import read_features
from simv0.model.checkpoint import load_checkpoint
from simv0.predict import Predictor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config_file(make_config: MakeConfig, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(make_config()))
    return path


def test_the_main_job(config_file: Path, manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cache-vis -> train -> evaluate -> predict -> the exported script, on real files."""
    assert run("cache-vis", "--config", config_file).exit_code == 0
    again = run("cache-vis", "--config", config_file)
    assert "is complete (40 windows); nothing to do" in again.stdout
    trained = run("train", "--config", config_file, "--set", "model.confidence_head=true")
    assert trained.exit_code == 0, trained.output
    best = tmp_path / "run/checkpoints/best.pt"
    assert f"best checkpoint: {best}" in trained.stdout

    evaluated = run("evaluate", "--ckpt", best)
    assert evaluated.exit_code == 0, evaluated.output
    assert "risk_high_recall" in evaluated.stdout
    stored = load_checkpoint(best).meta
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert metrics["composite"] == stored.metrics["composite"]
    assert metrics["windows"] == 20
    assert "against simple models" in evaluated.stdout
    few = [line for line in evaluated.stdout.splitlines() if line.startswith("FEW WINDOWS: ")]
    assert len(few) == 1
    assert few[0].endswith("(95 %). 20 or more are needed for a useful estimate.")
    names = ["majority class", "linear, telemetry", "linear, features + telemetry", "boosted trees", "no LLM"]
    assert list(metrics["baselines"]) == [*names, "small transformer"]
    assert metrics["comparison"]["best"] in metrics["baselines"]
    assert metrics["comparison"]["sentences"][0] in " ".join(evaluated.stdout.split())
    plain = run("evaluate", "--ckpt", best, "--no-baselines")
    assert "no comparison with simple models: left out by --no-baselines" in plain.stdout
    cached = [json.loads(line) for line in (tmp_path / "run/evaluation/predictions.jsonl").read_text().splitlines()]
    assert [row["sample_id"] for row in cached] == [f"val-{i}" for i in range(20)]

    bare = tmp_path / "bare.jsonl"  # no labels
    shutil.copytree(manifests / "val_images", tmp_path / "val_images")
    rows = [json.loads(line) for line in (manifests / "val.jsonl").read_text().splitlines()]
    keep = ("sample_id", "frames", "telemetry")
    bare.write_text("".join(json.dumps({key: row[key] for key in keep}) + "\n" for row in rows))
    out = tmp_path / "predictions.jsonl"
    read, original = [], Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: (read.append(path), original(path))[1])
        assert run("predict", "--ckpt", best, "--data", bare, "--out", out).exit_code == 0
    assert read.count(best) == 1
    before, lost = bare.read_bytes(), run("predict", "--ckpt", best, "--data", bare, "--out", bare)
    assert (lost.exit_code, lost.stderr) == (
        2,
        f"error: --out: {bare} is what --data reads and would be lost; give another name\n",
    )
    assert bare.read_bytes() == before
    (tmp_path / "empty.jsonl").write_text("")
    none = run("predict", "--ckpt", best, "--data", tmp_path / "empty.jsonl")
    assert (none.exit_code, none.stderr) == (1, f"error: {tmp_path}/empty.jsonl: holds no windows\n")
    predicted = [json.loads(line) for line in out.read_text().splitlines()]
    assert json.loads(run("predict", "--ckpt", best, "--data", bare).stdout.splitlines()[7]) == predicted[7]
    for one, other in zip(predicted, cached, strict=True):
        assert one["sample_id"] == other["sample_id"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=5e-3)
        for head in ("risk", "reason", "action"):
            assert one["probs"][head] == pytest.approx(other["probs"][head], abs=5e-3)  # float16 features

    frames = [str(tmp_path / name) for name in rows[3]["frames"]]
    script = [sys.executable, str(tmp_path / "run/export/sim_v0_infer.py"), *frames, "--telemetry"]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    telemetry = [str(x) for x in rows[3]["telemetry"]]
    done = subprocess.run([*script, *telemetry], capture_output=True, text=True, env=env, check=True)
    exported = json.loads(done.stdout)
    assert exported["risk"] == predicted[3]["risk"]
    assert exported["probs"]["action"] == pytest.approx(predicted[3]["probs"]["action"], abs=1e-5)

    sample = ManifestDataset(manifests / "val.jsonl")[3]
    direct = Predictor.load(best).predict(sample["frames"] / 255, torch.tensor(sample["telemetry"]), "x")
    assert direct["sample_id"] == "x"
    assert direct["probs"]["risk"] == pytest.approx(predicted[3]["probs"]["risk"], abs=5e-3)  # not rounded to bytes


class HalfWindows(ManifestDataset):
    """The last two frames."""

    def frame_ids(self, index: int) -> list[str]:
        return super().frame_ids(index)[-2:]


def test_what_is_said_beside_answers_is_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """`simv0 predict ... | jq` reads stdout."""
    for answers_on_stdout in (False, True):
        with user_errors(answers_on_stdout):
            logging.getLogger("simv0").info("said")
            logging.getLogger("simv0").warning("warned")
        written = capsys.readouterr()
        assert written.out == ("" if answers_on_stdout else "said\n")
        assert written.err == ("said\n" if answers_on_stdout else "") + "warned\n"


@pytest.mark.usefixtures("no_report")
def test_quiet_leaves_the_result_and_verbose_adds_the_details(config_file: Path, tmp_path: Path) -> None:
    cached = run("cache-vis", "--config", config_file, "--quiet")
    assert [line.partition(": ")[0] for line in cached.output.splitlines()] == ["train", "val"]
    trained, best = run("train", "--config", config_file, "--quiet"), tmp_path / "run/checkpoints/best.pt"
    assert trained.stdout == f"best checkpoint: {best}\n"
    assert "epoch  train loss" in (tmp_path / "run/logs/stdout.log").read_text()
    evaluated = run("evaluate", "--ckpt", best, "--quiet", "--no-baselines")
    assert evaluated.stdout.startswith("best.pt on val ")
    assert evaluated.stdout.endswith(f"written to {tmp_path}/run/evaluation\n")

    trained = run("train", "--config", config_file, "--verbose", "--overwrite")
    assert re.search(r"^\d\d:\d\d:\d\d  train: loss \d.*; val: .*risk_high_false_alarm_rate", trained.stdout, re.M)
    assert re.search(rf"^\d\d:\d\d:\d\d  wrote {tmp_path}/run/checkpoints/last.pt$", trained.stdout, re.M)
    both = run("train", "--config", config_file, "--verbose", "--quiet")
    assert (both.exit_code, both.stderr) == (2, "error: --quiet and --verbose exclude each other\n")


class Interrupted(ManifestDataset):
    """Somebody presses Ctrl-C, or a scheduler ends the job, while frame 5 is read."""

    def __init__(self, split_path: str, by: str) -> None:
        super().__init__(split_path)
        self.by, self.main = by, os.getpid()

    def load_frame(self, frame_id: str) -> torch.Tensor:
        if "0005" in frame_id:
            for process in (os.getpid(), self.main):  # a worker too: `timeout` and schedulers tell the whole group
                os.kill(process, getattr(signal, self.by))
        return super().load_frame(frame_id)


@pytest.mark.parametrize("by", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stopped_cache_says_how_to_go_on(config_file: Path, by: str, workers: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    dataset = "data.dataset_class_path=test_cli.Interrupted", f"data.dataset_kwargs={{by: {by}}}"
    dataset += (f"data.num_workers={workers}",)
    stopped = run("cache-vis", "--config", config_file, *(word for key in dataset for word in ("--set", key)))
    assert stopped.exit_code == 130
    assert stopped.stderr.endswith("stopped; finished shards are kept: run cache-vis without --overwrite to resume\n")


@pytest.mark.usefixtures("no_report")
def test_evaluate_elsewhere(
    make_config: MakeConfig, config_file: Path, manifests: Path, tmp_path: Path, features: Path
) -> None:
    setting = ("--set", f"cache.dir={features}")
    assert run("train", "--config", config_file, *setting).exit_code == 0
    best = tmp_path / "run/checkpoints/best.pt"
    lines = (tmp_path / "run/metrics/val_metrics.jsonl").read_text().splitlines()
    for data, folder in ((features / "val.h5", "val"), (manifests / "val.jsonl", "val-2")):
        assert run("evaluate", "--ckpt", best, "--data", data).exit_code == 0
        found = json.loads((tmp_path / f"run/evaluation/{folder}/metrics.json").read_text())
        assert found["windows"] == 20
        on_val = json.loads(lines[found["epoch"] - 1])  # the same windows: of the same features, or of the frames
        assert found["loss"] == pytest.approx(on_val["loss"], rel=1e-3)
        assert found["risk_macro_f1"] == pytest.approx(on_val["risk_macro_f1"])
    shorter = tmp_path / "shorter"
    cache_vis(
        make_config(cache={"dir": str(shorter)}, model={"F": 2}, data={"dataset_class_path": "test_cli.HalfWindows"})
    )
    wrong = run("evaluate", "--ckpt", best, "--data", shorter / "val.h5")
    assert wrong.stderr == f"error: {best}: takes 4 frames a window, found 2\n"
    moved = tmp_path / "moved.pt"
    shutil.copy(best, moved)
    lost = run("evaluate", "--ckpt", moved)
    assert lost.exit_code == 2
    assert lost.stderr == f"error: {moved}: lies outside a run, so its data are unknown; give --config\n"
    assert run("evaluate", "--ckpt", moved, "--config", config_file, *setting).exit_code == 0
    assert (tmp_path / "evaluation/moved/metrics.json").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["train", "--config", "none.yaml"], 2, "error: none.yaml: config file not found\n"),
        (["evaluate", "--ckpt", "none.pt"], 1, "error: none.pt: checkpoint not found\n"),
        (
            ["evaluate", "--ckpt", "x.pt", "--split", "test"],
            2,
            "error: --split: expected train, val or calibration, found test\n",
        ),
        (["evaluate", "--ckpt", "x.pt", "--set", "a.b=1"], 1, "error: x.pt: checkpoint not found\n"),
        (["predict", "--ckpt", "x.pt", "--data", "no.jsonl"], 1, "error: x.pt: checkpoint not found\n"),
    ],
)
def test_errors_are_one_line_with_a_code(args: list[str], code: int, message: str) -> None:
    result = run(*args)
    assert (result.exit_code, result.stderr) == (code, message)


def test_config_errors_of_every_command_come_at_once(config_file: Path) -> None:
    for command in ("cache-vis", "train"):
        result = run(command, "--config", config_file, "--set", "training.lrr=1", "--set", "model.K=9")
        assert result.exit_code == 2
        assert sorted(result.stderr.splitlines()) == [
            "error: --set model.K=9: model.K is 9 but a window has only model.F = 4 frames; make K <= F",
            "error: --set training.lrr=1: training.lrr: unknown key; did you mean training.lr?",
        ]
    both = run("train", "--config", config_file, "--resume", "--overwrite")
    assert both.stderr == "error: --resume and --overwrite exclude each other\n"


def test_another_encoder_is_refused_at_evaluation(config_file: Path, tmp_path: Path, features: Path) -> None:
    from simv0.demo.networks import save_tiny_tower

    assert run("train", "--config", config_file, "--set", f"cache.dir={features}").exit_code == 0
    save_tiny_tower(tmp_path / "vision", seed=5)  # same name, other weights
    best = tmp_path / "run/checkpoints/best.pt"
    data = write_manifest(tmp_path / "new.jsonl", 2, seed=0)
    other = f"model.vision_encoder_name=local-dir:{tmp_path / 'vision'}"
    result = run("predict", "--ckpt", best, "--data", data, "--config", config_file, "--set", other)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {best}: belongs to another vision encoder: vision_weights: trained with ")


def test_inspect_tells_a_checkpoint_and_a_damaged_cache(config_file: Path, tmp_path: Path, features: Path) -> None:
    assert run("train", "--config", config_file, "--set", f"cache.dir={features}").exit_code == 0
    best = parse_yaml(run("inspect", tmp_path / "run/checkpoints/best.pt").stdout, "stdout")
    assert (best["kind"], best["dv"], best["weights"]["projector.weight"]) == ("checkpoint", 32, [64, 32])
    assert best["encoder"]["vision_encoder_name"] == "local-dir:vision"
    last = parse_yaml(run("inspect", tmp_path / "run/checkpoints/last.pt").stdout, "stdout")
    assert (last["kind"], last["epoch"], last["step"]) == ("checkpoint to resume from", 2, 0)
    whole = run("inspect", features / "val.h5", "--verify")
    assert whole.exit_code == 0
    facts = parse_yaml(whole.stdout, "stdout")
    assert (facts["kind"], facts["windows"], facts["damaged"]) == ("feature file", 20, [])
    bad = tmp_path / "bad.h5"
    shutil.copy(features / "val.h5", bad)
    flip_bit(bad, read_features(bad).offset)
    result = run("inspect", bad, "--verify")
    assert result.exit_code == 1
    assert parse_yaml(result.stdout, "stdout")["damaged"] == [f"{bad}: block 0 (windows 0..15) is damaged"]


def test_help_is_quick_and_names_every_command() -> None:
    code = "import sys; from cli.main import app; app(['--help'], standalone_mode=False); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    for command in ("cache-vis", "train", "evaluate", "predict", "inspect", "demo"):
        assert command in done.stdout


def test_the_three_packages_lie_in_one_folder() -> None:
    import cache
    import cli
    import simv0

    assert len({Path(package.__file__).parents[1] for package in (cache, cli, simv0)}) == 1  # type: ignore[arg-type]
