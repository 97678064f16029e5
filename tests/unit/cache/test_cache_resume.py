"""cache-vis broken off: what it resumes, and what it refuses to build on."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cache_world import cache_until, fresh, make_world, train_file
from strikes import flip_bit

from cache.pipeline import cache_vis
from simv0.config.schema import Config
from simv0.data.manifest import ManifestDataset
from simv0.errors import CacheError
from simv0.features.dataset import CachedDataset
from simv0.features.reader import read_features
from simv0.features.shards import Plan, parts_of


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(
    world: tuple[Config, bytes], tmp_path: Path, workers: int
) -> None:
    config = fresh(world[0], tmp_path)
    config = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": workers})})
    cache_until(config, 2)
    assert not train_file(config).exists()
    with pytest.raises(CacheError, match=r"cache-vis has not finished: 2 of 5 shards are done; run it again"):
        CachedDataset(train_file(config))
    train, _ = cache_vis(config)
    assert train.counts.windows == 23 - 2 * 5
    assert train_file(config).read_bytes() == world[1]
    assert sorted(os.listdir(config.cache.dir)) == ["known", "train.h5", "val.h5"]


def test_killed_between_publishing_and_tidying_up(world: tuple[Config, bytes], tmp_path: Path) -> None:
    config = fresh(world[0], tmp_path)
    shutil.copytree(world[0].cache.dir, config.cache.dir)
    parts_of(train_file(config)).folder.mkdir()
    (Path(config.cache.dir) / "train.h5.lock").touch()
    assert cache_vis(config)[0].outcome == "skipped"
    assert sorted(os.listdir(config.cache.dir)) == ["known", "train.h5", "val.h5"]


def test_a_damaged_shard_is_encoded_again(
    world: tuple[Config, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = fresh(world[0], tmp_path)
    cache_until(config, 4)
    shard = parts_of(train_file(config)).shard_path(1)
    flip_bit(shard, read_features(shard).offset + 100)
    with caplog.at_level(logging.WARNING, "simv0"):
        cache_vis(config)
    assert "shard 1 is encoded again" in caplog.text
    assert train_file(config).read_bytes() == world[1]


def test_unfinished_work_of_another_plan_is_refused(world: tuple[Config, bytes], tmp_path: Path) -> None:
    config = fresh(world[0], tmp_path)
    cache_until(config, 1)
    with pytest.raises(
        CacheError, match=r"cache.batch_size is 8 in the file, 4 in the config.*--overwrite.*another cache.dir"
    ):
        cache_vis(fresh(config, tmp_path, batch_size=4))
    with pytest.raises(CacheError, match=r"cache.shard_windows is 5 in the file, 6 in the config"):
        cache_vis(fresh(config, tmp_path, shard_windows=6))
    assert cache_vis(config)[0].outcome == "written"


class Undigested(ManifestDataset):
    """A class that cannot tell when its frames change."""

    def content_digest(self) -> None:
        return None


def test_frames_that_changed_behind_their_names_are_caught_on_resume(tmp_path: Path) -> None:
    config = make_world(tmp_path)
    own = config.data.model_copy(update={"dataset_class_path": f"{__name__}.Undigested"})
    config = config.model_copy(update={"data": own})
    cache_until(config, 1)
    for image in (tmp_path / "train_images").iterdir():
        shutil.copy(tmp_path / "val_images" / "0000.png", image)
    with pytest.raises(
        CacheError, match=r"window 0 \(train-0\) now encodes to different features .* changed under the"
    ):
        cache_vis(config)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_begin_at_their_own_shards(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    config = fresh(world[0], tmp_path)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    cache_until(config, 1)
    assert parts_of(train_file(config)).record(2 * rank)
    train, _ = cache_vis(config)
    assert train.counts.windows == 18
    assert train_file(config).read_bytes() == world[1]


def test_record_must_match_its_shard(world: tuple[Config, bytes], tmp_path: Path) -> None:
    config = fresh(world[0], tmp_path)
    cache_until(config, 2)
    record = parts_of(train_file(config)).record_path(0)
    tree = json.loads(record.read_text())
    record.write_text(json.dumps({**tree, "sha256": "0" * 64}))
    assert cache_vis(config)[0].counts.windows == 23 - 5  # shard 0 again, shard 1 kept
    assert train_file(config).read_bytes() == world[1]


def test_a_damaged_plan_and_a_foreign_shard(world: tuple[Config, bytes], tmp_path: Path) -> None:
    config = fresh(world[0], tmp_path)
    cache_until(config, 3)
    parts = parts_of(train_file(config))
    shutil.copy(parts.shard_path(0), parts.shard_path(1))  # whole, but of other windows
    shutil.copy(parts.record_path(0), parts.record_path(1))
    plan = (parts.folder / "plan.json").read_text()
    (parts.folder / "plan.json").write_text(plan[:100])
    with pytest.raises(CacheError, match=r"plan.json: cannot be read: .*; delete the folder to start over"):
        cache_vis(config)
    (parts.folder / "plan.json").write_text("{}")
    with pytest.raises(CacheError, match=r"plan.json: expected the keys \['batch_size', 'identity', 'shard_windows'\]"):
        cache_vis(config)
    good = json.loads(plan)
    for change, message in (
        ({"identity": {}}, "plan.json: identity.N: expected an int >= 1, found None; delete the folder to start over"),
        ({"identity": []}, "plan.json: identity.N: expected an int >= 1, found None"),
        ({"identity": {"N": 10**30}}, "plan.json: asks for more than 1000000 shards; delete the folder"),
        ({"shard_windows": 0}, "plan.json: shard_windows: expected an int >= 1, found 0"),
        ({"batch_size": "8"}, "plan.json: batch_size: expected an int >= 1, found '8'"),
    ):
        (parts.folder / "plan.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(CacheError, match=message):
            parts.read_plan()
    with pytest.raises(CacheError, match=r"more than 1000000 shards; set a larger cache.shard_windows"):
        parts.write_plan(Plan({"N": 10**7}, 5, 8))
    (parts.folder / "plan.json").write_text(plan)
    assert cache_vis(config)[0].outcome == "written"
    assert train_file(config).read_bytes() == world[1]
