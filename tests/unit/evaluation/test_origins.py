"""What an evaluation says about windows that the checkpoint has seen, under whatever name they come."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_world import MakeConfig

from cache.pipeline import cache_vis
from simv0.data.labels import Labels
from simv0.data.manifest import ManifestDataset
from simv0.evaluation.origins import copies
from simv0.evaluation.run import evaluate_checkpoint
from simv0.model.metrics import chosen_by
from simv0.training.fit import fit


@pytest.mark.usefixtures("no_report")
def test_windows_of_train_are_recognised_under_other_names(
    make_config: MakeConfig, features: Path, manifests: Path, tmp_path: Path
) -> None:
    run = fit(make_config(cache={"dir": str(features)}))
    rows = [json.loads(line) for line in (manifests / "train.jsonl").read_text().splitlines()]
    test = [{**row, "sample_id": f"test-{i}"} for i, row in enumerate(rows) if row.pop("group")][10:22]

    def cautions(name: str, rows: list[dict[str, object]], folder: Path) -> tuple[list[str], list[str]]:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found, _ = evaluate_checkpoint(run.best, data=str(path), baselines=False)
        assert found.split == f"{name}.jsonl"
        return [line for line in found.cautions if "LEAKAGE" in line], list(found.notes)

    shutil.copytree(manifests, tmp_path / "here")
    same, _ = cautions("same_frames", test, manifests)
    assert [line.partition(" (first")[0] for line in same] == [
        "LEAKAGE: 15 frames appear in both train and same_frames.jsonl"
    ]
    (manifests / "same_frames.jsonl").unlink()
    copied, _ = cautions("copied", test, tmp_path / "here")
    assert copied == [
        "LEAKAGE: 12 of 12 windows of copied.jsonl have exactly the telemetry of a train window (first: 'test-10'); "
        "the copied.jsonl figures will flatter the model. Split by recording."
    ]
    new = [{**row, "telemetry": [float(i)] * 8} for i, row in enumerate(test)]
    assert cautions("new", new, tmp_path / "here") == (
        [],
        ["Without a `group` for each window, recordings shared with train cannot be ruled out."],
    )


def test_telemetry_that_train_repeats_is_no_sign_of_copies() -> None:
    """A car that measures nothing but its turn rate, in steps: its windows are alike, and none a copy."""

    def split(turn_rates: list[float]) -> Labels:
        n, telemetry = len(turn_rates), np.zeros((len(turn_rates), 8), np.float32)
        telemetry[:, 7] = turn_rates
        return Labels(telemetry, {}, np.ones(n, np.float32), [f"w{i}" for i in range(n)], None)

    steps = split([0.0, 0.1, 0.2] * 4)
    assert copies(steps, split([0.0, 0.1, 0.2]), "val") == []
    distinct = split([0.01 * i for i in range(12)])
    assert len(copies(distinct, split([0.01, 0.02, 5.0]), "val")) == 1


def test_what_chose_the_best_epoch_is_told() -> None:
    epochs = [{"composite": 0.5, "macro_f1": 0.6}, {"composite": 0.7, "macro_f1": 0.5}, {"composite": None}]
    assert chosen_by(epochs[1], epochs, "composite") == "composite"
    assert (
        chosen_by(epochs[1], [*epochs, epochs[1]], "composite") == "macro_f1: several epochs have a composite of 0.700"
    )
    assert chosen_by(epochs[2], epochs, "composite") == "macro_f1: composite has no value on val"


class Mounted(ManifestDataset):
    """A user's class whose data lie on a disk that is not always there."""

    there = True

    def __init__(self, split_path: str) -> None:
        if not self.there:
            raise FileNotFoundError("/mnt/nas is not mounted")
        super().__init__(split_path)


def test_an_evaluation_on_features_does_without_the_dataset(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(data={"dataset_class_path": "test_origins.Mounted"})
    cache_vis(config)
    run = fit(config)
    monkeypatch.setattr(Mounted, "there", False)
    found, folder = evaluate_checkpoint(run.best)
    assert found.notes == [
        "Best epoch and alarm threshold were chosen on this split: expect lower figures on new recordings."
    ]
    assert "Their frames are not shown: /mnt/nas is not mounted" in (folder / "report.html").read_text()
    outside, _ = evaluate_checkpoint(run.best, make_config(), data=str(run.root.parent / "cache" / "val.h5"))
    assert outside.notes == []  # the recordings are compared from the feature files alone
