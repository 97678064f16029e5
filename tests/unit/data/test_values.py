"""Values as a user's class may yield them: views, big-endian and read-only arrays, rows of tables, numpy's scalars."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sample_world import F, refusal, sample
from small_world import MakeConfig, write_manifest

from cache.pipeline import cache_vis
from simv0.data.contract import check_sample
from simv0.data.labels import read_labels
from simv0.data.manifest import ManifestDataset
from simv0.errors import DataError
from simv0.features.dataset import CachedDataset

PIXELS = np.arange(F * 3 * 8 * 10, dtype=np.uint8).reshape(F, 3, 8, 10)
TELEMETRY = np.arange(8) / 8
FROZEN = PIXELS.copy()
FROZEN.flags.writeable = False


def checked(**changes: Any) -> dict[str, Any]:
    return check_sample(sample(**changes), "train", 7, F=F)


def record() -> np.ndarray:
    """A field of a packed record: its steps are no whole items."""
    rows = np.zeros(8, np.dtype([("kind", "u1"), ("value", "<f8")]))
    rows["value"] = TELEMETRY
    return rows["value"]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (PIXELS[..., ::-1], PIXELS[..., ::-1]),
        (PIXELS[:, ::-1, ::-1], PIXELS[:, ::-1, ::-1]),
        (PIXELS[::-1], PIXELS[::-1]),
        (FROZEN, PIXELS),
        (np.asfortranarray(PIXELS), PIXELS),
        (np.broadcast_to(PIXELS[:1], PIXELS.shape), PIXELS[[0] * F]),
        (list(PIXELS), PIXELS),
        ([torch.from_numpy(one) for one in PIXELS], PIXELS),
        (torch.from_numpy(PIXELS).requires_grad_(False), PIXELS),
        ((PIXELS / 255).astype(">f4"), (PIXELS / 255).astype("f4")),
        ((PIXELS / 255).astype("f2"), (PIXELS / 255).astype("f2").astype("f4")),
        (PIXELS / 255, (PIXELS / 255).astype("f4")),
    ],
)
def test_frames_whose_meaning_is_exact_are_read(frames: Any, expected: np.ndarray) -> None:
    found = checked(frames=frames)["frames"]
    assert torch.equal(found, torch.from_numpy(expected.copy()))


def test_telemetry_and_scalars_whose_meaning_is_exact_are_read() -> None:
    masked = np.ma.masked_array(TELEMETRY, mask=False)
    for given in (
        TELEMETRY.astype(">f8"),
        TELEMETRY[::-1][::-1],
        TELEMETRY.astype(object),
        record(),
        masked,
        tuple(TELEMETRY),
    ):
        assert checked(telemetry=given)["telemetry"].tolist() == TELEMETRY.tolist()
    found = checked(
        sample_id=np.str_("a"), group=np.str_("g"), risk_id=np.array(2, ">i8"), weight=np.float16(2), t=np.float32(0.5)
    )
    assert {key: type(found[key]) for key in ("sample_id", "group", "risk_id", "weight", "t")} == {
        "sample_id": str,
        "group": str,
        "risk_id": int,
        "weight": float,
        "t": float,
    }
    assert (found["sample_id"], found["risk_id"], found["t"]) == ("a", 2, 0.5)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"frames": PIXELS.astype(np.uint16)}, "uint16 [4,3,8,10]"),
        ({"frames": PIXELS > 9}, "bool [4,3,8,10]"),
        ({"frames": PIXELS.astype(">i2")}, "int16 [4,3,8,10]"),
        ({"frames": PIXELS.astype(np.longdouble)}, f"{np.dtype(np.longdouble)} [4,3,8,10]"),
        ({"frames": np.array([None] * F)}, "object [4] of NoneType"),
        ({"frames": [PIXELS[0], PIXELS[1, :, :2]] * 2}, "a list whose items differ in shape"),
        ({"frames": [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]}, "a list of float32 [3,8,8], float32 [3,8,9]"),
        ({"frames": torch.zeros(F, 3, 8, 8).to_sparse()}, "a tensor of layout torch.sparse_coo"),
        ({"frames": [Image.new("RGB", (10, 8))] * F}, "uint8 [4,8,10,3]; put the channels first: permute(0, 3, 1, 2), "
         "in numpy transpose(0, 3, 1, 2)"),
        ({"telemetry": ["1.5"] * 8}, "text [8]"),
        ({"telemetry": [0.5, None] * 4}, "object [8] of NoneType"),
        ({"telemetry": np.array([0.5, "x"] * 4, object)}, "text [8]"),
        ({"telemetry": np.ma.masked_array(TELEMETRY, TELEMETRY > 0.7)}, "a masked array with 2 masked"),
        ({"telemetry": np.zeros(8, "M8[s]")}, "datetime64[s] [8]"),
        ({"risk_id": np.bool_(True)}, "bool True"),
        ({"risk_id": np.float64(2)}, "float 2.0"),
        ({"risk_id": np.str_("high")}, "str 'high'"),
    ],
)  # fmt: skip
def test_all_else_is_refused_by_what_it_is(changes: dict[str, Any], found: str) -> None:
    assert refusal(sample(**changes)).endswith(f", found {found}")


def test_frames_of_0_to_255_as_floats_are_refused_by_their_range() -> None:
    for dtype in (">f4", np.float64, np.float16):
        assert refusal(sample(frames=PIXELS.astype(dtype))).endswith("found 0..255; give uint8 for 0..255")


def test_a_manifests_line_has_one_name(tmp_path: Path) -> None:
    """In every message: of its keys, of what only the whole split shows, of a key that appears twice."""
    path = write_manifest(tmp_path / "a.jsonl", 4, seed=0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]

    def refused(at: int, changes: dict[str, Any]) -> str:
        new = [{**row, **(changes if i == at else {})} for i, row in enumerate(rows)]
        path.write_text("".join(json.dumps(row) + "\n" for row in new))
        with pytest.raises(DataError) as error:
            read_labels(ManifestDataset(path), "train", F)
        return str(error.value)

    assert refused(2, {"weight": -1}) == f"{path}:3: weight: expected a finite float32 >= 0, found -1"
    assert refused(3, {"sample_id": "a-1"}).startswith(f"{path}:4: sample_id 'a-1' already appears at {path}:2; ")
    assert refused(1, {"t": 0.5}) == f"{path}:1: t is missing, but {path}:2 has one; set it on all samples or on none"
    path.write_text('{"frames": [], "weight": 1, "weight": 2}\n')
    with pytest.raises(DataError) as error:
        ManifestDataset(path)
    assert str(error.value) == f"{path}:1: the key 'weight' appears twice in one object"


def test_the_moments_of_windows_are_kept_in_feature_files(make_config: MakeConfig, tmp_path: Path) -> None:
    for split, n in (("train", 20), ("val", 3)):  # 20 windows: two shards
        path = write_manifest(tmp_path / f"{split}.jsonl", n, seed=n)
        rows = [json.loads(line) | {"t": i / 8} for i, line in enumerate(path.read_text().splitlines())]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(data={f"{split}_split_path": str(tmp_path / f"{split}.jsonl") for split in ("train", "val")})
    cache_vis(config)
    cached = CachedDataset(Path(config.cache.dir) / "train.h5")
    assert cached.labels.t is not None
    assert cached.labels.t.tolist() == [i / 8 for i in range(20)]
    assert cached[3]["t"] == 3 / 8
