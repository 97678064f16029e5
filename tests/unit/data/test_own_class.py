"""A user's own dataset class: where it is found, what it draws, how its faults are told."""

import os
import random
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_world import VisFeats, fit_until, outcome
from small_world import MakeConfig, data

from cache.frames import FrameSource, Job
from simv0.config.load import dump_config
from simv0.data.contract import CheckedDataset
from simv0.data.labels import read_labels
from simv0.data.user_class import import_class, load_dataset
from simv0.errors import ConfigError
from simv0.training.fit import fit
from simv0.training.splits import Split, eval_batches, train_batches

SIMV0 = Path(sys.executable).parent / "simv0"
FORKSERVER = "import multiprocessing as m; m.set_start_method('forkserver'); from cli.main import app; app()"

MY_WINDOWS = """
import numpy as np
class Windows:
    def __init__(self, split_path): self.n = 24
    def __len__(self): return self.n
    def __getitem__(self, i):
        import my_helper
        return {"vis_feats": np.full((4, 6), i, np.float32), "telemetry": my_helper.telemetry(i),
                "risk_id": i % 4, "reason_id": 0, "action_id": 1}
"""


@pytest.mark.parametrize(
    "command",
    [[SIMV0, "check"], [sys.executable, "-P", "-c", FORKSERVER, "train", "--set", "data.num_workers=1"]],
    ids=["the installed command", "forkserver workers"],
)
def test_a_class_in_the_current_folder_is_found(command: list[Any], make_config: MakeConfig, tmp_path: Path) -> None:
    """And nothing else in that folder stands in for an installed module."""
    (tmp_path / "my_windows.py").write_text(MY_WINDOWS)
    (tmp_path / "my_helper.py").write_text("def telemetry(i): return [float(i), 0.1, 9.8, 0, 0, 0, 1, 0.5]\n")
    for name in ("simv0", "cache", "cli", "torch", "json", "typer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file in the current folder')\n")
    config = make_config(data={"dataset_class_path": "my_windows.Windows"}, training={"epochs": 1})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"COLUMNS": "300"}
    done = subprocess.run(
        [*map(str, command), "--config", "config.yaml"], cwd=tmp_path, env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (f"{tmp_path}/my_windows.py " in done.stdout) if "check" in command else ("best checkpoint" in done.stdout)


def test_a_name_that_is_taken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    import cache

    (tmp_path / "cache.py").write_text(MY_WINDOWS)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "windows.py").write_text(MY_WINDOWS)
    installed = Path(cache.__file__ or "").resolve()
    for path, fault in [
        ("cache.Windows", f"cache has no 'Windows'; cache is {installed}, not {tmp_path}/cache.py: rename yours"),
        (
            "cache.windows.Windows",
            f"no module named 'cache.windows'; cache is {installed}, not {tmp_path}/cache/windows.py: rename yours",
        ),
    ]:
        with pytest.raises(ConfigError) as error:
            import_class(path)
        assert str(error.value) == f"data.dataset_class_path: {fault}"
    assert sys.path[-1] == str(tmp_path)
    import_class("simv0.datasets.ManifestDataset")


def test_a_module_that_cannot_be_imported_names_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "broken_windows.py").write_text("class Windows:\n    size = 1 / 0\n")
    with pytest.raises(ZeroDivisionError) as error:
        import_class("broken_windows.Windows")
    assert error.value.__notes__ == ["in data.dataset_class_path: import of broken_windows"]


def test_our_own_class_does_not_open_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So neither does a checkpoint, whose dataset class is always ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", before := [*sys.path])
    import_class("simv0.datasets.ManifestDataset")
    assert sys.path == before


class Augments(VisFeats):
    """Draws from all three global generators."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = super().__getitem__(i)
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        sample["vis_feats"] = sample["vis_feats"] + np.float32(noise)
        sample["telemetry"] = sample["telemetry"] + np.float32(np.random.rand())
        return sample


def test_random_augmentation_depends_on_seed_epoch_and_index_alone(make_config: MakeConfig) -> None:
    def drawn(workers: int, epoch: int, start: int, seed: int = 0, train: bool = True) -> dict[str, bytes]:
        config = make_config(
            data={"dataset_class_path": "test_own_class.Augments", "num_workers": workers}, training={"seed": seed}
        )
        dataset = CheckedDataset(Augments("x"), "train", F=4, seed=seed)
        split = Split("train", dataset, read_labels(dataset.dataset, "train", 4), None, 6, None, workers=workers)
        batches = train_batches(config, split) if train else eval_batches(config, split)
        batches.order.epoch, batches.order.start = epoch, start
        found = {}
        for batch in batches:
            torch.rand(3), np.random.rand(3), random.random()
            for name, feats in zip(batch["sample_id"], batch["vis_feats"], strict=True):
                found[name] = feats.numpy().tobytes()
        return found

    first = drawn(0, 0, 0)
    assert len(set(first.values())) == 24
    assert drawn(2, 0, 0) == first == drawn(0, 0, 0)
    second = drawn(0, 1, 0)
    assert all(second[name] != first[name] for name in first)
    rest = drawn(1, 1, 2)
    assert len(rest) == 8
    assert {name: second[name] for name in rest} == rest
    assert drawn(0, 0, 0, seed=1) != first
    assert drawn(0, 0, 0, train=False) == drawn(2, 0, 0, train=False)


def test_a_run_on_random_augmentation_resumes_bit_for_bit(make_config: MakeConfig, tmp_path: Path) -> None:
    def config(root: str, workers: int) -> Any:
        return make_config(
            data={"dataset_class_path": "test_own_class.Augments", "num_workers": workers},
            training={"checkpoint_every_steps": 1},
            output={"output_dir": str(tmp_path / root)},
        )

    unbroken = outcome(fit(config("unbroken", 2)))
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    fit_until(config("run", 0), 2)
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    assert outcome(fit(config("run", 0), resume=True)) == unbroken


class DrawsFrames:
    """Windows that share frames, each frame with noise."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Any:
        raise AssertionError("frames come by name")

    def frame_ids(self, i: int) -> list[str]:
        return [f"f{i}", f"f{i + 1}"]

    def load_frame(self, name: str) -> Any:
        if name == "f2":
            raise KeyError("no such frame")
        return torch.rand(3, 4, 5)

    def labels_of(self, i: int) -> dict[str, Any]:
        if i == 2:
            raise ValueError("no labels here")
        return {"telemetry": [0.0] * 8, "risk_id": 0, "reason_id": 0, "action_id": 0}


def test_cache_vis_draws_by_frame_and_leaves_the_generators_alone() -> None:
    source = FrameSource(DrawsFrames(), "train", 2, lambda frames: frames)
    states = torch.get_rng_state(), np.random.get_state()
    one, other = (source.__getitems__(Job(0, units, True))[1] for units in (["f0", "f1"], ["f1"]))
    assert torch.equal(one[1], other[0])
    assert not torch.equal(one[0], one[1])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1][1])


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


class Fails(VisFeats):
    def __init__(self, path: str, at: int = 40) -> None:
        super().__init__(path)
        self.at = at
        if at < 0:
            raise OSError("no such folder")

    def __len__(self) -> int:
        if self.at == 99:
            raise RuntimeError("length unknown")
        return super().__len__()

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i == self.at:
            return {"weight": 1 / 0}
        return super().__getitem__(i)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_of_the_users_class_keeps_its_traceback_and_names_its_place(
    workers: int, make_config: MakeConfig
) -> None:
    def fails(at: int) -> str:
        own = {"dataset_class_path": "test_own_class.Fails", "dataset_kwargs": {"at": at}, "num_workers": workers}
        with pytest.raises((ZeroDivisionError, OSError, RuntimeError)) as error:
            fit(make_config(data=own))
        return told(error.value)

    if workers:
        config = make_config(data={"dataset_class_path": "test_own_class.Fails", "num_workers": 1})
        dataset = CheckedDataset(Fails("x", 20), "train", F=4)
        split = Split("train", dataset, read_labels(VisFeats("x"), "train", 4), None, 6, None, workers=1)
        with pytest.raises(ZeroDivisionError) as error:
            list(eval_batches(config, split))
        found = told(error.value)
    else:
        found = fails(20)
    assert 'return {"weight": 1 / 0}' in found
    assert "in train[20]\n" in found
    if not workers:
        assert "in test_own_class.Fails, built for train\n" in fails(-1)
        assert "in train, __len__\n" in fails(99)


def test_every_method_of_the_users_class_is_named() -> None:
    dataset = DrawsFrames()
    with pytest.raises(ValueError, match="no labels here") as labels:
        read_labels(dataset, "val", 2)
    assert labels.value.__notes__ == ["in val[2]"]
    with pytest.raises(KeyError) as frame:
        FrameSource(dataset, "val", 2, lambda frames: frames).read(["f2"])
    assert frame.value.__notes__ == ["in val, frame 'f2'"]
    with pytest.raises(TypeError, match="object of type 'int' has no len") as built:
        load_dataset(data("test_own_class.NoLen"), "train")
    assert built.value.__notes__ == ["in test_own_class.NoLen, built for train"]


class NoLen:
    def __init__(self, path: str) -> None:
        len(5)  # type: ignore[arg-type]
