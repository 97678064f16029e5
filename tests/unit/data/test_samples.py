"""The sample contract: every way to break it, with the text of its refusal."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_world import F, refusal, sample
from small_world import write_manifest

from simv0.data.contract import CheckedDataset, check_sample, collate
from simv0.data.labels import find_leakage, read_labels
from simv0.data.manifest import ManifestDataset
from simv0.errors import DataError

nan = float("nan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"telemetry": None}, "telemetry is missing; found the keys risk_id, reason_id, action_id"),
        ({"telemetry": [0.0] * 7}, "telemetry: expected float [8] (ax, ay, az, gx, gy, gz, v, w), found float64 [7]"),
        ({"telemetry": [0] * 8}, "telemetry: expected float [8] (ax, ay, az, gx, gy, gz, v, w), found int64 [8]"),
        ({"telemetry": [0.0] * 6 + [nan, 0.0]}, "telemetry: holds NaN or inf in v"),
        ({"telemetry": "fast"}, "telemetry: expected float [8] (ax, ay, az, gx, gy, gz, v, w), found str"),
        ({"risk_id": None}, "risk_id is missing; found the keys telemetry, reason_id, action_id"),
        (
            {"risk_id": None, "risk": "high"},
            "risk_id is missing; found risk 'high': write risk_id, a number (none 0, low 1, med 2, high 3)",
        ),
        ({"risk_id": 4}, "risk_id: expected 0..3 (none, low, med, high), found 4"),
        ({"risk_id": -1}, "risk_id: expected 0..3 (none, low, med, high), found -1"),
        (
            {"action_id": 2.0},
            "action_id: expected an int 0..5 (continue, slow, stop, reverse, turn_left, turn_right), found float 2.0",
        ),
        (
            {"action_id": True},
            "action_id: expected an int 0..5 (continue, slow, stop, reverse, turn_left, turn_right), found bool True",
        ),
        ({"weight": -1}, "weight: expected a finite float32 >= 0, found -1"),
        ({"weight": nan}, "weight: expected a finite float32 >= 0, found nan"),
        ({"weight": 1e39}, "weight: expected a finite float32 >= 0, found 1e+39"),
        ({"weight": np.float64(1e39)}, "weight: expected a finite float32 >= 0, found 1e+39"),
        ({"weight": "1.5"}, "weight: expected a float >= 0, found str '1.5'"),
        ({"weight": True}, "weight: expected a float >= 0, found bool True"),
        ({"weight": np.bool_(True)}, "weight: expected a float >= 0, found bool True"),
        ({"weight": torch.ones(1)}, "weight: expected a float >= 0, found Tensor tensor([1.])"),
        ({"weight": "heavy"}, "weight: expected a float >= 0, found str 'heavy'"),
        ({"sample_id": 5}, "sample_id: expected a string, found int 5"),
        ({"sample_id": b"a"}, "sample_id: expected a string, found bytes b'a'"),
        ({"t": nan}, "t: expected finite seconds, found float nan"),
        ({"t": True}, "t: expected finite seconds, found bool True"),
        ({"t": "12:30"}, "t: expected finite seconds, found str '12:30'"),
        ({"group": ""}, "group: expected a string, found str ''"),
        (
            {"frames": None},
            "expected one of the keys 'frames' and 'vis_feats', "
            "found the keys telemetry, risk_id, reason_id, action_id",
        ),
        ({"frames": torch.zeros(5, 3, 8, 8)}, "frames: expected 4 (model.F), found 5"),
        (
            {"frames": torch.zeros(F, 8, 8, 3)},
            "frames: expected [4,3,H,W], found float32 [4,8,8,3]; put the channels first: permute(0, 3, 1, 2), "
            "in numpy transpose(0, 3, 1, 2)",
        ),
        (
            {"frames": torch.zeros(F, 3, 8, 8, dtype=torch.int64)},
            "frames: expected uint8 0..255 or float 0..1, found int64 [4,3,8,8]",
        ),
        (
            {"frames": torch.full((F, 3, 8, 8), 255.0)},
            "frames: float frames must lie in 0..1, found 255..255; give uint8 for 0..255",
        ),
        ({"frames": torch.full((F, 3, 8, 8), nan)}, "frames: holds NaN or inf"),
        ({"frames": None, "vis_feats": torch.zeros(F)}, "vis_feats: expected float [4,dv], found float32 [4]"),
        (
            {"frames": None, "vis_feats": torch.full((F, 2), float("inf"))},
            "vis_feats: holds NaN or inf, first at [0, 0]",
        ),
    ],
)
def test_what_breaks_the_contract_is_refused_by_split_index_and_key(changes: dict[str, Any], message: str) -> None:
    found = refusal(sample(**changes))
    assert found in (f"train[7]: {message}", f"train[7]{message}")


def test_not_a_dict_and_wrong_width() -> None:
    assert refusal([1]) == "train[7]: expected a dict, found list"
    feats = sample(frames=None, vis_feats=torch.zeros(F, 6))
    assert refusal(feats, dv=5) == "train[7]: vis_feats: expected float [4,5], found float32 [4,6]"


def test_a_good_sample_comes_out_in_standard_types() -> None:
    given = sample(
        frames=np.ones((F, 3, 8, 8), np.float64),
        telemetry=np.arange(8, dtype=np.float64),
        risk_id=np.int32(2),
        weight=2,
    )
    checked = check_sample(given, "train", 7, F=F)
    assert checked["frames"].dtype == torch.float32
    assert checked["telemetry"].tolist() == list(range(8))
    assert checked["risk_id"] == 2
    assert type(checked["risk_id"]) is int
    assert checked["weight"] == 2.0
    for weight in (np.float16(0.5), np.float32(0.5), np.array(0.5), torch.tensor(0.5)):
        assert check_sample(sample(weight=weight), "train", 7, F=F)["weight"] == 0.5
    assert checked["sample_id"] == "7"
    assert "group" not in checked


def test_labels_may_be_absent_for_prediction_only() -> None:
    bare = sample(risk_id=None, reason_id=None, action_id=None)
    assert "risk_id" not in check_sample(bare, "p", 0, F=F, labels=False)
    assert "risk_id: expected 0..3" in refusal(sample(risk_id=9), labels=False)


class Rows:
    """A dataset of samples given as a list."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "val: the split is empty"),
        (
            [sample(sample_id="a"), sample(), sample(sample_id="a")],
            "val[2]: sample_id 'a' already appears at val[0]; sample_ids must be unique within a split",
        ),
        ([sample(weight=0.0), sample(weight=0)], "val: all 2 weights are zero; nothing would be learned"),
        (
            [sample(risk_id=9), sample(), sample(weight=-1)],
            "val[0]: risk_id: expected 0..3 (none, low, med, high), found 9\n"
            "val[2]: weight: expected a finite float32 >= 0, found -1",
        ),
        (
            [sample(group="g"), sample()],
            "val[1]: group is missing, but val[0] has one; set it on all samples or on none",
        ),
        ([sample(), sample(t=0.5)], "val[0]: t is missing, but val[1] has one; set it on all samples or on none"),
    ],
)
def test_what_only_the_whole_split_shows(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError) as error:
        read_labels(Rows(*rows), "val", F)
    assert str(error.value) == message


def test_labels_are_read_without_frames_where_that_is_possible(
    manifests: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "simv0")

    class NoFrames(ManifestDataset):
        def __getitem__(self, index: int) -> dict[str, Any]:
            raise AssertionError("a frame was read")

    quick = read_labels(NoFrames(manifests / "train.jsonl"), "train", F)
    slow = read_labels(Rows(*ManifestDataset(manifests / "train.jsonl")), "train", F)  # type: ignore[arg-type]
    assert quick.sample_id == slow.sample_id == [f"train-{i}" for i in range(40)]
    assert np.array_equal(quick.telemetry, slow.telemetry)
    assert quick.ids["risk"].tolist() == [i // 2 % 4 for i in range(40)]
    assert quick.group == ["train"] * 40
    assert caplog.messages == [
        "train: reading all 40 windows for their labels (define labels_of on the class to avoid this)"
    ]


def test_shared_recordings_and_frames_are_a_loud_warning(tmp_path: Path) -> None:
    train = ManifestDataset(write_manifest(tmp_path / "a.jsonl", 6, seed=0))
    assert find_leakage(train, ManifestDataset(write_manifest(tmp_path / "b.jsonl", 6, seed=1)), ["a"], ["b"]) == []
    warnings = find_leakage(train, train, ["a"], ["b", "a"])
    assert [warning[:60] for warning in warnings] == [
        "LEAKAGE: 1 group appears in both train and val (first: 'a');",
        f"LEAKAGE: 9 frames appear in both train and val (first: {tmp_path}"[:60],
    ]


def test_a_frame_is_known_by_its_file_not_by_its_name(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_manifest(tmp_path / folder / "a.jsonl", 2, seed=0)
    one, two = (ManifestDataset(tmp_path / folder / "a.jsonl") for folder in ("one", "two"))
    assert find_leakage(one, two, None, None) == []  # equal names in two folders
    rows = (tmp_path / "one" / "a.jsonl").read_text()
    (tmp_path / "above.jsonl").write_text(rows.replace("a_images/", "one/a_images/"))
    (tmp_path / "one" / "odd.jsonl").write_text(rows.replace("a_images/", "./a_images/../a_images/"))
    for name in ("above.jsonl", "one/odd.jsonl"):
        other = ManifestDataset(tmp_path / name)
        assert find_leakage(one, other, None, None)[0].startswith("LEAKAGE: 5 frames appear in both train and val")
        assert torch.equal(other[1]["frames"], one[1]["frames"])


def test_collate_stacks_and_refuses_two_shapes() -> None:
    checked = CheckedDataset(Rows(sample(), sample(sample_id="b", weight=0.5)), "train", F=F)
    batch = collate([checked[0], checked[1]])
    assert batch["frames"].shape == (2, F, 3, 8, 8)
    assert batch["weight"].tolist() == [1.0, 0.5]
    assert batch["action_id"].tolist() == [5, 5]
    assert batch["sample_id"] == ["0", "b"]
    assert collate(batch) is batch
    wide = CheckedDataset(Rows(sample(), sample(frames=torch.zeros(F, 3, 8, 9))), "train", F=F)
    with pytest.raises(DataError) as error:
        collate([wide[0], wide[1]])
    assert str(error.value) == (
        "frames: one batch needs one shape and type, found uint8 [4,3,8,8] in 0 and float32 [4,3,8,9] in 1"
    )
