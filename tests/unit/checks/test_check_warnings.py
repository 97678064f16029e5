"""What `simv0 check` warns of, and how far it looks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_world import own, problems_of
from small_world import MakeConfig, write_manifest

from simv0.checks.run import check
from simv0.config.load import dump_config
from simv0.config.schema import Config


class Odd:
    """Windows that train would take, each with something that a person would want to know; `n` of them."""

    def __init__(self, split: str, n: int = 60, fails_at: int | None = None, unit: float = 1.0) -> None:
        self.split, self.n, self.fails_at, self.unit = Path(split).stem, n, fails_at, unit
        self.own = np.random.default_rng()
        self.rng = np.random.default_rng(len(self.split))
        self.turns = self.rng.normal(size=n)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i == self.fails_at:
            raise LookupError("a gap in the log")
        feats = np.full((4, 6), 1000 * len(self.split) + i, np.float32)
        telemetry = [0.0, 0.0, 9.8 * self.unit, 0.0, 0.0, 57.3 * self.turns[i], 1.0, self.turns[i]]
        return {"vis_feats": feats, "telemetry": telemetry, "risk_id": 3, "reason_id": i % 4, "action_id": i % 6}


class Twice(Odd):
    """Two windows of one name, in a dataset that says where its windows are."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        return super().__getitem__(i) | {"sample_id": str(i % (self.n - 1))}

    def labels_of(self, i: int) -> dict[str, Any]:
        return {key: value for key, value in self[i].items() if key != "vis_feats"}

    def where_is(self, i: int) -> str:
        return f"{self.split}.log, second {i}"


def odd(**kwargs: Any) -> dict[str, Any]:
    return {"dataset_class_path": "test_check_warnings.Odd", "dataset_kwargs": kwargs}


def test_what_is_odd_is_warned_of(make_config: MakeConfig) -> None:
    small = check(make_config(data=odd(n=3) | {"batch_size": 8}))
    assert small.problems == []
    assert small.warnings[:4] == [
        "train: only 3 windows: too few to train on",
        "data.batch_size: 8 windows a step, but train has 3: one step an epoch",
        "train: no window has risk none or low or med: it cannot be learned",
        "train: no window has reason unknown: it cannot be learned",
    ]
    odd_units = check(make_config(data=odd(unit=1 / 9.8)))
    assert odd_units.warnings == [
        "train: no window has risk none or low or med: it cannot be learned",
        *_odd_telemetry("train", make_config(data=odd(unit=1 / 9.8))),
        "val: no window has risk none or low or med: its accuracy cannot be measured",
        "val has 0 windows of other risks; at least 10 are needed to choose the alarm's threshold: best.pt will have "
        "none",
        *_odd_telemetry("val", make_config(data=odd(unit=1 / 9.8))),
        "train and val: no group: cannot tell whether train and val share recordings; give each "
        "window the name of its recording",
    ]
    assert str(odd_units) == "no problems found, 10 warnings"
    assert odd_units.facts["data: both"] == {"leakage": "unknown: no groups"}


def _odd_telemetry(split: str, config: Config) -> list[str]:
    largest = 57.3 * float(np.abs(Odd(split, 60).turns).max())
    return [
        f"{split}: telemetry ax, ay, az, gx, gy, v: the same in every window, so nothing can be learned from it",
        f"{split}: telemetry ax ay az: the median of |a| is 1.00, as in g; expected m/s^2 (about 9.81 with gravity)",
        f"{split}: telemetry gx gy gz: up to {largest:.4g}, as in degrees/s; expected rad/s",
    ]


def test_the_same_window_in_train_and_val_is_leakage(make_config: MakeConfig, manifests: Path, tmp_path: Path) -> None:
    """Whatever its files, its name and its group are called."""
    assert "LEAKAGE: val[0] is the same window as train[0] (12 such windows among those compared)" in " ".join(
        check(make_config(data=own())).warnings
    )
    rows = [json.loads(line) for line in (manifests / "train.jsonl").read_text().splitlines()]
    shutil.copytree(manifests / "train_images", tmp_path / "renamed")
    copied = {**rows[31], "frames": [name.replace("train_images", "renamed") for name in rows[31]["frames"]]}
    own_rows = write_manifest(tmp_path / "val.jsonl", 24, seed=9).read_text().splitlines()
    (tmp_path / "val.jsonl").write_text("\n".join([*own_rows, json.dumps({**copied, "group": "val"})]) + "\n")
    report = check(make_config(data={"val_split_path": str(tmp_path / "val.jsonl")}))
    assert report.warnings[-1] == (
        f"LEAKAGE: {tmp_path / 'val.jsonl'}:25 is the same window as {manifests / 'train.jsonl'}:32; the val figures "
        "will flatter the model. Split by recording."
    )


def test_a_class_that_fails_somewhere_is_a_problem_with_its_traceback(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """All windows of a small split are read; of a large one with --full."""
    for n, full, problems in ((60, False, 2), (400, False, 0), (400, True, 2)):
        caplog.clear()
        at = 40 if n == 60 else 123
        report = check(make_config(data=odd(n=n, fails_at=at)), full=full)
        said = [str(problem) for problem in report.problems]
        assert said[:1] == [f"train[{at}]: LookupError: a gap in the log (test_check_warnings.py:{LINE})"][:problems]
        assert len(said) == problems
        assert ('raise LookupError("a gap in the log")' in caplog.text) == bool(problems)


def test_a_name_that_occurs_twice_is_one_problem_a_split(make_config: MakeConfig) -> None:
    report = check(make_config(data=odd() | {"dataset_class_path": "test_check_warnings.Twice"}))
    assert [str(problem) for problem in report.problems] == [
        f"{split}.log, second 59: sample_id '0' already appears at {split}.log, second 0; sample_ids must be unique "
        "within a split"
        for split in ("train", "val")
    ]


LINE = next(i for i, line in enumerate(Path(__file__).read_text().splitlines(), 1) if "raise LookupError" in line)


def test_full_decodes_every_picture(make_config: MakeConfig, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "train.jsonl", 200, seed=3)
    broken = tmp_path / "train_images/0100.png"
    broken.write_bytes(broken.read_bytes()[:60])
    watched: list[tuple[str, int]] = []

    def watch(indices: list[int], split: str) -> list[int]:
        watched.append((split, len(indices)))
        return indices

    config = make_config(data={"train_split_path": str(manifest)})
    report = check(config, full=True, watch=watch)
    assert len(report.problems) == 1
    assert str(report.problems[0]).startswith(f"{broken}: cannot be read as an image: ")
    assert watched == [("train", 200), ("val", 20)]


def test_a_missing_picture_hides_no_wrong_label(make_config: MakeConfig, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "train.jsonl", 30, seed=3, risk_id=7)
    (tmp_path / "train_images/0003.png").unlink()
    said = problems_of(make_config(data={"train_split_path": str(manifest)}))
    assert [line.partition(": ")[2] for line in said] == [
        "frames: no file 'train_images/0003.png' found beside the manifest",
        "risk_id: expected 0..3 (none, low, med, high), found 7 (and 29 more like it)",
    ]


def test_what_workers_hand_over_is_compared_with_the_room(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 10_000

    monkeypatch.setattr("simv0.checks.room.SHARED_MEMORY", Path("/"))
    monkeypatch.setattr("simv0.checks.room.shutil.disk_usage", lambda path: Full)
    config = make_config(data={"num_workers": 2}, cache={"batch_size": 16})
    size = check(config).facts["vision encoder"]["picture"].split(" x ")
    need = 2 * 2 * 16 * 3 * int(size[0]) * int(size[1]) / 1e6
    assert [line for line in problems_of(config) if line.startswith("data.")] == [
        f"data.num_workers: 2 processes hold up to {need:.1f} MB of frames in /, where 0.0 MB are free; enlarge "
        "it (docker run --shm-size=8g), or set data.num_workers=0"
    ]


def test_a_misspelt_key_is_warned_of(make_config: MakeConfig, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "train.jsonl", 30, seed=3, wieght=2.0, weather="rain")
    said = check(make_config(data={"train_split_path": str(manifest)})).warnings
    assert said[0] == f"{manifest}:1: the key 'wieght' is ignored; did you mean 'weight'? (and 29 more like it)"
    assert "weather" not in " ".join(said)
    own_class = check(make_config(data=own(wrong={"groups": "a"}))).warnings
    assert [line.partition(" (and")[0] for line in own_class if "mean" in line] == [
        f"{split}[0]: the key 'groups' is ignored; did you mean 'group'?" for split in ("train", "val")
    ]


class OwnGenerator(Odd):
    def __getitem__(self, i: int) -> dict[str, Any]:
        return super().__getitem__(i) | {"vis_feats": self.own.normal(size=(4, 6)).astype(np.float32)}


def test_draws_that_cannot_be_repeated_are_warned_of(make_config: MakeConfig) -> None:
    said = check(make_config(data={"dataset_class_path": "test_check_warnings.OwnGenerator"})).warnings
    assert [line for line in said if "generator" in line] == [
        f"{split}[0]: changes when it is read again: the class uses its own random generator, so no run "
        "can be repeated or resumed exactly; draw from torch, numpy.random or random, which are seeded"
        for split in ("train", "val")
    ]


def test_a_foreign_feature_file_hides_no_fault_of_the_data(
    make_config: MakeConfig, features: Path, tmp_path: Path
) -> None:
    manifest = write_manifest(tmp_path / "train.jsonl", 30, seed=3, risk_id=7)
    said = problems_of(make_config(cache={"dir": str(features)}, data={"train_split_path": str(manifest)}))
    assert "train.h5: does not match the config: " in said[0]
    assert said[1] == f"{manifest}:1: risk_id: expected 0..3 (none, low, med, high), found 7 (and 29 more like it)"


def test_weights_that_are_neither_here_nor_to_be_had_are_one_line_each(make_config: MakeConfig, tmp_path: Path) -> None:
    model = {
        "llm_name_or_path": "Qwen/Qwen2.5-0.5B",
        "vision_encoder_name": "ViT-B-32",
        "vision_pretrained": "laion2b_s34b_b79k",
    }
    (tmp_path / "config.yaml").write_text(dump_config(make_config(model=model)))
    done = subprocess.run(
        [sys.executable, "-m", "cli", "check", "--config", str(tmp_path / "config.yaml")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
    )
    here = f"are not on this machine ({tmp_path}/hf) and HF_HUB_OFFLINE is set"
    vit = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert [line for line in done.stderr.splitlines() if not line.startswith("warning: ")] == [
        f"error: model.llm_name_or_path: Qwen/Qwen2.5-0.5B is not a local folder, and its weights {here}; check the "
        "name, run `hf download Qwen/Qwen2.5-0.5B` where there is a network, or give a local folder",
        f"error: model.vision_encoder_name: the weights of ViT-B-32 ({vit}) {here}; check the name, run "
        f"`hf download {vit}` where there is a network, or give the file as model.vision_weights",
    ]
    assert done.returncode == 1


def test_memory_that_is_not_known_is_not_checked_and_told(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simv0.checks.room.available_memory", lambda: 0)
    report = check(make_config(cache={"in_memory": "always"}))
    assert report.problems == []
    assert report.facts["train"]["free_RAM_bytes"] is None
    assert report.warnings[-1] == ("machine: free memory is unknown on this system; not checked whether training fits")


def test_a_folder_without_weights_is_found(make_config: MakeConfig, models: Path, tmp_path: Path) -> None:
    for part in ("llm", "vision"):
        (tmp_path / part).mkdir()
        config = next((models / part).glob("*config.json"))
        shutil.copy(config, tmp_path / part)
    model = {"llm_name_or_path": str(tmp_path / "llm"), "vision_encoder_name": f"local-dir:{tmp_path / 'vision'}"}
    assert problems_of(make_config(model=model)) == [
        f"{tmp_path}/llm: has neither model.safetensors nor pytorch_model.bin; save it with save_pretrained",
        f"model.vision_encoder_name: {tmp_path}/vision holds no weights (open_clip_model.safetensors)",
    ]
