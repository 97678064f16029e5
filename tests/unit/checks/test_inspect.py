"""`simv0 inspect` on feature files and folders of shards."""

from pathlib import Path

import pytest
from cache_world import cache_until, make_world
from strikes import flip_bit

from cache.pipeline import cache_vis
from simv0.checks.files import inspect_path
from simv0.errors import CacheError
from simv0.features.reader import read_features
from simv0.features.shards import parts_of
from simv0.labels import RISKS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    cache_vis(make_world(tmp_path))
    return tmp_path / "cache" / "train.h5"


def test_a_feature_file(path: Path) -> None:
    facts = inspect_path(path, verify=True)
    assert facts["kind"] == "feature file"
    assert facts["complete"]
    assert (facts["vis_feats"], facts["windows"], facts["groups"]) == ("float16 [23,4,24]", 23, 1)
    assert facts["labels"]["risk"] == dict(zip(RISKS, (6, 6, 6, 5), strict=True))
    labels = read_features(path).info.labels
    assert facts["telemetry"]["v"]["max"] == pytest.approx(labels.telemetry[:, 6].max(), abs=1e-5)
    assert facts["weights"] == {"sum": 23 + 11, "zero": 0}
    assert facts["verified"] == "5 of 5 blocks of features are good"
    assert facts["damaged"] == []
    assert "verified" not in inspect_path(path)


def test_a_bad_block_is_named(path: Path) -> None:
    flip_bit(path, read_features(path).offset + 23 * 4 * 24 * 2 - 1)
    assert inspect_path(path, verify=True)["damaged"] == [f"{path}: block 4 (windows 20..22) is damaged"]


def test_an_unfinished_folder_with_a_damaged_shard(tmp_path: Path) -> None:
    cache_until(make_world(tmp_path), 3)
    parts = parts_of(tmp_path / "cache" / "train.h5")
    shard = parts.shard_path(1)
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")  # same size: only the digest tells
    facts = inspect_path(parts.folder, verify=True)
    assert (facts["kind"], facts["complete"], facts["shards"]) == ("folder of shards", False, "3 of 5 done")
    assert facts["windows"] == 10
    assert len(facts["damaged"]) == 1
    assert facts["damaged"][0].startswith(f"{shard}: labels or header are damaged")
    assert inspect_path(parts.shard_path(0))["kind"] == "shard of 23 windows"


def test_what_cannot_be_inspected_is_told_what_to_give(tmp_path: Path) -> None:
    text, damaged = tmp_path / "config.yaml", tmp_path / "train.h5"
    text.write_text("model: {}")
    damaged.write_text("hello")
    for path, what in (
        (tmp_path, "holds no plan.json, so it is not a folder of shards"),
        (text, "neither a feature file nor a checkpoint"),
        (tmp_path / "nothing", "file not found"),
    ):
        with pytest.raises(CacheError) as caught:
            inspect_path(path)
        assert str(caught.value) == f"{path}: {what}; give train.h5, a .parts folder or checkpoints/best.pt"
    with pytest.raises(CacheError, match="not a feature file; if cache-vis was to make it"):
        inspect_path(damaged)
