"""What a robot imports stays slim, and the doors that users and files know lead where they did."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROOMS = sorted(path.parent for path in ROOT.glob("simv0/*/__init__.py"))
FORBIDDEN = ("simv0.training", "simv0.features", "simv0.evaluation", "simv0.overlay", "simv0.checks", "simv0.demo")
MOST = 50
"""Modules of simv0 that `Predictor` and `Stream` load, rooms counted; 45 when this was written."""


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*(name for name in sys.modules if name.split('.')[0] == 'simv0'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_a_robot_imports_no_training_no_files_of_features_no_manifests_no_videos() -> None:
    names = loaded_by("import simv0.predict, simv0.stream")
    assert not [name for name in names if name.startswith(FORBIDDEN)]
    assert not names & {"simv0.data.manifest", "simv0.data.recordings.video", "simv0.data.recordings.recording"}
    assert len(names) <= MOST, sorted(names)


def test_the_package_alone_loads_next_to_nothing() -> None:
    assert loaded_by("import simv0; assert 'torch' not in sys.modules") == {
        "simv0", "simv0.runtime", "simv0.runtime.waiting",
    }  # fmt: skip


def test_the_doors_stay() -> None:
    import simv0.datasets
    import simv0.trainer
    from simv0.config import Config, DataConfig, TrainingConfig
    from simv0.data.manifest import ManifestDataset
    from simv0.errors import SimError
    from simv0.model import SimV0Model
    from simv0.model.network import SimV0Model as same

    assert simv0.datasets.ManifestDataset is ManifestDataset
    assert DataConfig(train_split_path="a", val_split_path="b").dataset_class_path == "simv0.datasets.ManifestDataset"
    assert SimV0Model is same
    assert simv0.trainer.train_one_epoch.__module__ == simv0.trainer.evaluate.__module__ == "simv0.training.epoch"
    assert issubclass(SimError, Exception)
    assert TrainingConfig in {field.annotation for field in Config.model_fields.values()}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_the_names_in_a_rooms_text_exist(room: Path) -> None:
    text = importlib.import_module(f"simv0.{room.name}").__doc__
    assert text is not None
    for named in re.findall(r"`([\w.]+\.\w+)`", text):
        module, _, attribute = named.rpartition(".")
        if not (ROOT / named.replace(".", "/")).with_suffix(".py").exists() and not (room / named).exists():
            prefix = "" if named.startswith("simv0.") else f"simv0.{room.name}."
            assert hasattr(importlib.import_module(prefix + module), attribute), named


def test_every_name_of_the_gpu_tests_is_a_test_file() -> None:
    """`wildcard` drops a name that leads nowhere, and what a GPU computes is then tested by nothing."""
    names = re.findall(r"^GPU_TESTS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split()
    tests = ROOT / "tests"
    lost = [name for name in names if not [*tests.glob(f"*/test_{name}.py"), *tests.glob(f"*/*/test_{name}.py")]]
    assert (lost, len(names)) == ([], len(set(names)))


def test_no_file_is_longer_than_one_sitting() -> None:
    files = [path for folder in ("simv0", "cache", "cli", "tests") for path in (ROOT / folder).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: n for name, n in lines.items() if n > 300} == {}
