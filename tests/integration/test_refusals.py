"""What is refused at once: before torch is loaded, in one line."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from small_world import MakeConfig

import simv0
from simv0.config.load import dump_config

ROOT = Path(__file__).parents[2]

# In a fresh process: each command's exit code and what it says on stderr; then whether torch was loaded.
CODE = """
import json, sys
from typer.testing import CliRunner
from cli.main import app
import simv0
said = [(r.exit_code, r.stderr) for r in (CliRunner().invoke(app, args) for args in json.loads(sys.argv[1]))]
print(json.dumps([said, "torch" in sys.modules]))
"""


def in_fresh_process(commands: list[list[Any]], cwd: Path) -> list[list[Any]]:
    texts = json.dumps([[str(arg) for arg in args] for args in commands])
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, texts], capture_output=True, text=True, cwd=cwd, env=env, check=True
    )
    said, torch_loaded = json.loads(done.stdout)
    assert not torch_loaded
    return said  # type: ignore[no-any-return]


def test_cheap_refusals_come_before_torch(make_config: MakeConfig, tmp_path: Path) -> None:
    config, run = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(dump_config(make_config()))
    (run / "checkpoints").mkdir(parents=True)
    (run / "config_resolved.yaml").write_text(dump_config(make_config(training={"epochs": 3})))
    best = run / "checkpoints/best.pt"
    best.write_bytes(b"not looked at")
    (run / "checkpoints/last.pt").write_bytes(b"not looked at")
    foreign = tmp_path / "foreign"
    (foreign / "metrics").mkdir(parents=True)
    lost = tmp_path / "lost"
    other = f"output.output_dir={foreign}"
    gone = f"data.train_split_path={lost}.jsonl"
    predict = ["predict", "--ckpt", best]
    overlay = ["overlay", "--ckpt", best, "--frames", lost]
    expected: list[tuple[list[Any], int, str]] = [
        (["train", "--config", lost], 2, f"{lost}: config file not found"),
        (["train", "--config", tmp_path], 2, f"{tmp_path}: is a folder; give the config file in it"),
        (["train", "--config", config], 1, f"{run}: already holds a run; use --resume to continue it, .*"),
        (
            ["train", "--config", config, "--resume"],
            2,
            f"{run}: the run was started with another config: training.epochs: started with 3, now 2; the learning "
            "rate is one cycle that ends with the last epoch, so a different number of epochs is a different run: "
            r"train it in another output.output_dir \(this run stays as it is\)",
        ),
        (
            ["train", "--config", config, "--resume", "--set", "training.lr=0.5"],
            2,
            ".*training.lr: started with 0.001, now 0.5; give the same values, or another output.output_dir",
        ),
        (["train", "--config", config, "--set", other], 1, f"{foreign}: holds metrics but no config_resolved.yaml, .*"),
        (["train", "--config", config, "--overwrite", "--set", gone], 1, f"{lost}.jsonl: manifest not found"),
        (["cache-vis", "--config", config, "--set", gone], 1, f"{lost}.jsonl: manifest not found"),
        (["evaluate", "--ckpt", lost], 1, f"{lost}: checkpoint not found"),
        (["evaluate", "--ckpt", run], 1, f"{run}: is a folder, not a checkpoint; did you mean {best}\\?"),
        (["evaluate", "--ckpt", best, "--data", lost], 1, f"{lost}: manifest not found"),
        (["evaluate", "--ckpt", best, "--data", f"{lost}.h5"], 1, f"{lost}.h5: feature file not found"),
        (["evaluate", "--ckpt", best, "--out", config], 2, f"--out: {config}: is a file; name a folder for .*"),
        (
            ["evaluate", "--ckpt", best, "--out", lost / "x"],
            2,
            f"--out: {lost}/x: the folder {lost} does not exist; create it first",
        ),
        (["evaluate", "--ckpt", best, "--set", "training.lr=-1"], 2, "--set training.lr=-1: training.lr: .*"),
        ([*predict, "--data", lost], 1, f"{lost}: manifest not found"),
        ([*predict, "--data", run], 1, f"{run}: is a folder; name the manifest .*"),
        (
            [*predict, "--data", config, "--out", lost / "x"],
            2,
            f"--out: {lost}/x: the folder {lost} does not exist; create it first",
        ),
        ([*overlay, "--out", tmp_path / "x.mp4"], 2, f"--frames: {lost}: no such folder, .*"),
        (["inspect", lost], 1, f"{lost}: file not found; give train.h5, .*"),
        (["export", lost, "--to", tmp_path / "x"], 1, f"{lost}: checkpoint not found"),
        (["export", run, "--to", run], 2, f"--to: {run}: exists; replace it with --overwrite, or name another folder"),
        (["demo", "--out", run], 1, f"{run}: holds a run other than the demo; choose another --out"),
        (["--version"], 0, ""),
    ]
    said = in_fresh_process([args for args, _, _ in expected], tmp_path)
    for (args, code, message), (found, stderr) in zip(expected, said, strict=True):
        assert found == code, (args, stderr)
        assert re.fullmatch(f"error: {message}\n" if code else "", stderr), (args, stderr)


def test_the_public_classes_are_imported_when_asked_for() -> None:
    code = (
        "import sys, simv0\n"
        "assert 'torch' not in sys.modules and {'Predictor', 'Stream'} <= set(dir(simv0))\n"
        "from simv0 import Predictor, Stream\n"
        "assert Predictor.load and Stream.push\n"
        "try: simv0.predictor_\n"
        "except AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "module 'simv0' has no attribute 'predictor_'\n"


def test_the_version_is_that_of_the_package() -> None:
    assert simv0.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
