"""Predictions for windows that nobody has labelled: of a manifest, a user's own class, a feature file."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_world import VisFeats
from small_world import MakeConfig, write_manifest

from simv0.config.schema import Config
from simv0.data.manifest import ManifestDataset
from simv0.errors import CheckpointError, DataError
from simv0.evaluation.predict_windows import predict_windows
from simv0.evaluation.run import evaluate_checkpoint
from simv0.predict import Predictor
from simv0.stream import Stream
from simv0.training.fit import fit


class Unlabelled(VisFeats):
    """New windows of the class that brings its own features."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {
            key: value for key, value in super().__getitem__(i).items() if not key.endswith("_id") or "sample" in key
        }


class Twice(Unlabelled):
    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**super().__getitem__(i), "sample_id": f"w{min(i, 8)}"}


class Pictures(ManifestDataset):
    """A user's class of pictures."""


def own(make_config: MakeConfig, name: str = "fit_world.VisFeats", **data: Any) -> Config:
    return make_config(data={"dataset_class_path": name, **data}, training={"epochs": 1})


@pytest.mark.usefixtures("no_report")
def test_what_is_trained_on_a_datasets_own_features_can_be_predicted(
    make_config: MakeConfig, manifests: Path, features: Path, tmp_path: Path
) -> None:
    best = fit(own(make_config)).best
    evaluated, _ = evaluate_checkpoint(best, data="other", baselines=False)
    assert evaluated.about["windows"] == 24
    rows = list(predict_windows(best, "other", own(make_config, "test_predict_windows.Unlabelled")))
    assert [row["sample_id"] for row in rows] == [f"w{i}" for i in range(10)]
    for row, high in zip(rows, evaluated.logits["risk"], strict=False):
        assert row["risk"] == ("none", "low", "med", "high")[int(np.argmax(high))]

    predictor, sample = Predictor.load(best), Unlabelled("other")[3]
    feats, telemetry = torch.from_numpy(sample["vis_feats"]), torch.from_numpy(sample["telemetry"])
    alone = predictor.predict_features(feats, telemetry, "w3")
    assert alone["probs"]["risk"] == pytest.approx(rows[3]["probs"]["risk"], abs=1e-5)
    with pytest.raises(DataError, match=r"^window\[0\]: vis_feats: expected float \[4,6\], found float32 \[4,5\]$"):
        predictor.predict_features(feats[:, :5], telemetry)
    takes = "was trained on a dataset's own vis_feats"
    for call in (
        lambda: predictor.predict(torch.zeros(4, 3, 8, 8), telemetry),
        lambda: predictor.encode(torch.zeros(1, 3, 8, 8)),
        lambda: Stream(predictor, 0.2),
        lambda: next(predict_windows(best, manifests / "val.jsonl")),
        lambda: evaluate_checkpoint(best, make_config(), data=str(manifests / "val.jsonl")),
        lambda: next(predict_windows(best, features / "val.h5")),
    ):
        with pytest.raises(CheckpointError, match=takes):
            call()
    with pytest.raises(
        DataError, match="^other: manifest not found; for windows of fit_world.VisFeats, give its config"
    ):
        list(predict_windows(best, "other"))
    with pytest.raises(DataError, match="^other: sample_id 'w8' appears twice; sample_ids must be unique$"):
        list(predict_windows(best, "other", own(make_config, "test_predict_windows.Twice")))


def test_a_class_of_pictures_and_a_feature_file_predict_as_a_manifest_does(
    make_config: MakeConfig, manifests: Path, features: Path, tmp_path: Path
) -> None:
    best = fit(make_config(cache={"dir": str(features)}, training={"epochs": 1})).best
    val = manifests / "val.jsonl"
    plain = list(predict_windows(best, val))
    assert list(predict_windows(best, val, own(make_config, "test_predict_windows.Pictures"))) == plain
    for row, other in zip(plain, predict_windows(best, str(features / "val.h5")), strict=True):
        assert row["sample_id"] == other["sample_id"]
        assert row["probs"]["action"] == pytest.approx(other["probs"]["action"], abs=5e-3)  # float16 features
    with pytest.raises(CheckpointError, match="nothing says what the vis_feats of other were made of"):
        list(predict_windows(best, "other", own(make_config, "test_predict_windows.Unlabelled")))


def test_mistakes_of_a_manifest_come_together_and_before_the_networks(
    make_config: MakeConfig, features: Path, tmp_path: Path
) -> None:
    config = make_config(cache={"dir": str(features)}, training={"epochs": 1})
    best, data = fit(config).best, write_manifest(tmp_path / "new.jsonl", 4, seed=0)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    nowhere = ["model.llm_name_or_path=/none", "model.vision_encoder_name=local-dir:/none"]  # never looked for

    def refusal(*changed: dict[str, Any]) -> str:
        data.write_text("".join(json.dumps({**row, **new}) + "\n" for row, new in zip(rows, changed, strict=True)))
        with pytest.raises(DataError) as caught:
            list(predict_windows(best, data, overrides=nowhere))
        return str(caught.value)

    several = refusal({}, {"frames": rows[1]["frames"][:3]}, {"telemetry": [1.0]}, {"risk_id": 7}).splitlines()
    assert [line.partition(": ")[0] for line in several] == [f"{data}:{line}" for line in (2, 3, 4)]
    assert several[0] == f"{data}:2: frames: expected 4 (model.F), found 3"
    assert refusal({}, {}, {"sample_id": "new-0"}, {}) == (
        f"{data}:3: sample_id 'new-0' already appears at {data}:1; sample_ids must be unique within a split"
    )


def test_wrong_arguments_of_a_predictor_are_one_line() -> None:
    import subprocess
    import sys

    code = (
        "from simv0 import Predictor\n"
        "from simv0.errors import SimError\n"
        "for call in (lambda: Predictor('best.pt', None, amp=True), lambda: Predictor.load(7),\n"
        "             lambda: Predictor.load('best.pt', 'my.yaml'), lambda: Predictor.load('.')):\n"
        "    try: call()\n"
        "    except SimError as error: print(error)\n"
    )  # without the type checks that the tests add
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.sub(r" at 0x\w+", "", done.stdout).splitlines() == [
        "model: expected a SimV0Model, found 'best.pt'; load it with Predictor.load('best.pt')",
        "ckpt: expected the path of a checkpoint, found 7",
        "config: expected a Config, found 'my.yaml'; load it with load_config('my.yaml')",
        ".: is a folder, not a checkpoint; name a .pt such as checkpoints/best.pt",
    ]
