"""The package as installed: from another folder, without the checkout, as an ordinary user whose HOME is read-only."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_world import make_config

from simv0.config.load import dump_config

ROOT = Path(__file__).parents[2]
NOBODY = 65534

OWN = """
from simv0.datasets import ManifestDataset
class Windows(ManifestDataset):
    pass
"""
SIMV0 = "import sys; from cli.main import app; app()"


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder that other users may enter (pytest's own is closed to them)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_the_main_job_outside_the_checkout(models: Path, manifests: Path, place: Path) -> None:
    """Own class, two test sets of one name, predict: of the packages that a wheel holds, in an empty folder."""
    site, work, home = place / "site", place / "work", place / "home"
    if importlib.util.find_spec("hatchling"):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
        subprocess.run([*pip, str(site), str(ROOT)], check=True)
    else:  # what [tool.hatch.build.targets.wheel] packs
        for package in ("simv0", "cache", "cli"):
            shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "configs/demo.yaml", site / "cli/demo.yaml")
    subprocess.run(["chmod", "-R", "a+rX", str(site)], check=True)  # whatever the umask of the checkout
    assert (site / "cli/demo.yaml").read_bytes() == (ROOT / "configs/demo.yaml").read_bytes()
    shutil.copytree(manifests, work)
    shutil.copytree(models, work / "models")
    home.mkdir(mode=0o555)
    own = {"dataset_class_path": "my_windows.Windows"}
    config = make_config(work / "models", work, work, data=own, training={"epochs": 1})
    (work / "my.yaml").write_text(dump_config(config))
    (work / "my_windows.py").write_text(OWN)
    for name in ("a", "b"):
        shutil.copytree(manifests, work / name)
    as_user = []
    if os.getuid() == 0 and shutil.which("setpriv"):
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(work)], check=True)
        as_user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        probe = subprocess.run([*as_user, sys.executable, "-c", "import torch"], capture_output=True, check=False)
        if probe.returncode:  # an interpreter in root's own folder
            as_user = []
            subprocess.run(["chown", "-R", f"{os.getuid()}", str(work)], check=True)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def simv0(*args: str) -> str:
        done = subprocess.run(
            [*as_user, sys.executable, "-P", "-c", SIMV0, *args], capture_output=True, text=True, cwd=work, env=env
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    simv0("cache-vis", "--config", "my.yaml")
    simv0("train", "--config", "my.yaml", "--set", "output.output_dir=run")
    best = "run/checkpoints/best.pt"
    for name in ("a", "b"):
        simv0("evaluate", "--ckpt", best, "--data", f"{name}/val.jsonl", "--no-baselines")
    found = sorted(path.parent.name for path in (work / "run/evaluation").glob("*/metrics.json"))
    assert found == ["val", "val-2"]
    rows = simv0("predict", "--ckpt", best, "--data", "a/val.jsonl", "--config", "my.yaml").splitlines()
    assert len([json.loads(row) for row in rows]) == 20
