"""cache-vis: what it writes, what it resumes, what it refuses to reuse."""

import json
import logging
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cache_world import DV, fresh, make_world, stop_after, train_file
from ranks import on_ranks

import cache.pipeline
import cache.publish
from cache.pipeline import cache_vis
from simv0.config.schema import Config
from simv0.data.manifest import ManifestDataset
from simv0.disk.locks import FileLock
from simv0.errors import CacheError
from simv0.features.dataset import CachedDataset
from simv0.features.reader import read_features
from simv0.features.shards import Plan, parts_of
from simv0.vision.encoder import load_encoder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, bytes]:
    """A config, its feature files made, and the bytes of train.h5."""
    folder = tmp_path_factory.mktemp("world")
    config = make_world(folder)
    cache_vis(config)
    return config, (folder / "cache" / "train.h5").read_bytes()


def test_the_file_holds_what_the_encoder_gives_and_the_dataset_says(world: tuple[Config, bytes]) -> None:
    config, _ = world
    dataset, encoder = ManifestDataset(config.data.train_split_path), load_encoder(config.model, "fp32")
    with h5py.File(train_file(config)) as h5:  # plain h5py, as a user would
        assert h5["vis_feats"].shape == (23, 4, DV)
        assert h5["vis_feats"].dtype == np.float16
        for i in (0, 9, 22):
            sample = dataset[i]
            alone = encoder(sample["frames"])
            np.testing.assert_allclose(h5["vis_feats"][i].astype(np.float32), alone.numpy(), rtol=1e-3, atol=1e-3)
            np.testing.assert_array_equal(h5["telemetry"][i], np.float32(sample["telemetry"]))
            assert h5["sample_id"][i].decode() == sample["sample_id"]
            assert h5["group"][i] == b"film-train"
            assert [h5[f"{head}_id"][i] for head in ("risk", "reason", "action")] == [i % 4, i % 3, i % 6]
            assert h5["weight"][i] == 1 + i % 2


def test_each_frame_is_encoded_once_and_a_complete_file_is_skipped(world: tuple[Config, bytes], tmp_path: Path) -> None:
    config = fresh(world[0], tmp_path)
    train, val = cache_vis(config)
    assert (train.outcome, train.counts.windows, train.counts.frames, train.counts.encoded) == ("written", 23, 92, 26)
    assert (val.counts.frames, val.counts.encoded) == (28, 10)
    assert train_file(config).read_bytes() == world[1]
    assert sorted(os.listdir(config.cache.dir)) == ["train.h5", "val.h5"]
    before = train_file(config).stat().st_mtime_ns
    assert [report.outcome for report in cache_vis(config)] == ["skipped", "skipped"]
    assert train_file(config).stat().st_mtime_ns == before


def test_a_read_only_complete_cache_is_skipped(world: tuple[Config, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(*_: Any, **__: Any) -> bool:
        raise CacheError("read-only")

    monkeypatch.setattr(cache.pipeline.FileLock, "acquire", no_lock)
    assert [report.outcome for report in cache_vis(world[0])] == ["skipped", "skipped"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(
    world: tuple[Config, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    config = fresh(world[0], tmp_path)
    config = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": workers})})
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            cache_vis(config)
    assert not train_file(config).exists()
    with pytest.raises(CacheError, match=r"cache-vis has not finished: 2 of 5 shards are done; run it again"):
        CachedDataset(train_file(config))
    train, _ = cache_vis(config)
    assert train.counts.windows == 23 - 2 * 5
    assert train_file(config).read_bytes() == world[1]
    assert sorted(os.listdir(config.cache.dir)) == ["train.h5", "val.h5"]


def test_killed_between_publishing_and_tidying_up(world: tuple[Config, bytes], tmp_path: Path) -> None:
    config = fresh(world[0], tmp_path)
    shutil.copytree(world[0].cache.dir, config.cache.dir)
    parts_of(train_file(config)).folder.mkdir()
    (Path(config.cache.dir) / "train.h5.lock").touch()
    assert cache_vis(config)[0].outcome == "skipped"
    assert sorted(os.listdir(config.cache.dir)) == ["train.h5", "val.h5"]


def test_a_damaged_shard_is_encoded_again(
    world: tuple[Config, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = fresh(world[0], tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            cache_vis(config)
    shard = parts_of(train_file(config)).shard_path(1)
    data = bytearray(shard.read_bytes())
    data[read_features(shard).offset + 100] ^= 1
    shard.write_bytes(data)
    with caplog.at_level(logging.WARNING, "simv0"):
        cache_vis(config)
    assert "shard 1 is encoded again" in caplog.text
    assert train_file(config).read_bytes() == world[1]


def test_overwrite_begins_anew(world: tuple[Config, bytes], tmp_path: Path) -> None:
    config = fresh(world[0], tmp_path)
    shutil.copytree(world[0].cache.dir, config.cache.dir)
    other = fresh(config, tmp_path, dtype="float32")
    with pytest.raises(CacheError, match='dtype is "float16" in the file, "float32" in the config'):
        cache_vis(other)
    assert cache_vis(other, overwrite=True)[0].counts.windows == 23
    assert CachedDataset(train_file(config))[0]["vis_feats"].dtype == torch.float32


def test_unfinished_work_of_another_plan_is_refused(
    world: tuple[Config, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fresh(world[0], tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            cache_vis(config)
    with pytest.raises(
        CacheError, match=r"cache.batch_size is 8 in the file, 4 in the config.*--overwrite.*another cache.dir"
    ):
        cache_vis(fresh(config, tmp_path, batch_size=4))
    with pytest.raises(CacheError, match=r"cache.shard_windows is 5 in the file, 6 in the config"):
        cache_vis(fresh(config, tmp_path, shard_windows=6))
    assert cache_vis(config)[0].outcome == "written"


def test_frames_that_changed_behind_their_names_are_caught_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_world(tmp_path)
    monkeypatch.setattr(ManifestDataset, "content_digest", lambda self: None)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            cache_vis(config)
    for image in (tmp_path / "train").iterdir():
        shutil.copy(tmp_path / "val" / "0.png", image)
    with pytest.raises(
        CacheError, match=r"window 0 \(train-0\) now encodes to different features .* changed under the"
    ):
        cache_vis(config)


def test_no_room(world: tuple[Config, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = fresh(world[0], tmp_path)

    def disk(size: int) -> None:
        def usage(parts: Path) -> Any:  # somebody else fills the disk as well
            used = 1.5 * sum(path.stat().st_size for path in parts.glob("*.h5"))
            return namedtuple("usage", "free")(size - used)

        monkeypatch.setattr(cache.publish.shutil, "disk_usage", usage)

    disk(1000)
    with pytest.raises(CacheError, match=r"the features need 0 MB, 0 MB are free; free some space, or choose another"):
        cache_vis(config)
    disk(100_000)
    train, _ = cache_vis(config)
    assert train.outcome == "shards"
    assert train.path == train_file(config).with_name("train.h5.parts")
    whole, shards = CachedDataset(train_file(world[0])), CachedDataset(train_file(config), in_memory="never")
    rows = [22, 0, 7, 7, 13]
    for key, value in whole.__getitems__(rows).items():
        other = shards.__getitems__(rows)[key]  # type: ignore[literal-required]
        assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value
    disk(10**9)
    assert cache_vis(config)[0].outcome == "written"
    assert train_file(config).read_bytes() == world[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_begin_at_their_own_shards(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    config = fresh(world[0], tmp_path)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            cache_vis(config)
    assert parts_of(train_file(config)).record(2 * rank)
    train, _ = cache_vis(config)
    assert train.counts.windows == 18
    assert train_file(config).read_bytes() == world[1]


def test_windows_in_any_order_give_the_same_features(tmp_path: Path, world: tuple[Config, bytes]) -> None:
    config = make_world(tmp_path)
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    order = np.random.default_rng(0).permutation(len(rows))
    (tmp_path / "train.jsonl").write_text("".join(rows[i] + "\n" for i in order))
    train, _ = cache_vis(config)
    assert train.counts.encoded == 26
    shuffled, straight = CachedDataset(train_file(config)), CachedDataset(train_file(world[0]))
    for here, there in enumerate(order):
        assert torch.equal(shuffled[here]["vis_feats"], straight[int(there)]["vis_feats"])
        assert shuffled.labels.sample_id[here] == straight.labels.sample_id[there]


def test_record_must_match_its_shard(world: tuple[Config, bytes], tmp_path: Path, monkeypatch: Any) -> None:
    config = fresh(world[0], tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            cache_vis(config)
    record = parts_of(train_file(config)).record_path(0)
    tree = json.loads(record.read_text())
    record.write_text(json.dumps({**tree, "sha256": "0" * 64}))
    assert cache_vis(config)[0].counts.windows == 23 - 5  # shard 0 again, shard 1 kept
    assert train_file(config).read_bytes() == world[1]


def test_overwrite_beside_a_running_cache_vis_says_that_it_joins(
    world: tuple[Config, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = fresh(world[0], tmp_path)
    shutil.copytree(world[0].cache.dir, config.cache.dir)
    with FileLock(train_file(config).with_name("train.h5.lock")).held(shared=True):
        train, val = cache_vis(config, overwrite=True)
    assert (train.outcome, val.outcome) == ("skipped", "written")
    assert [said.message for said in caplog.records if said.levelname == "WARNING"] == [
        f"{train_file(config)}: another cache-vis is working on it: --overwrite removes nothing and joins it"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA cannot be used in forked processes")
def test_a_rank_that_comes_late_does_not_overwrite_what_the_others_made(
    world: tuple[Config, bytes], tmp_path: Path
) -> None:
    config = fresh(world[0], tmp_path)
    shutil.copytree(world[0].cache.dir, config.cache.dir)

    def work() -> None:
        rank = os.environ["RANK"]
        time.sleep(2 * int(rank))
        reports = cache_vis(config, overwrite=True)
        (tmp_path / rank).write_text(" ".join(str(report.counts.windows) for report in reports))

    assert on_ranks(2, work) == [0, 0]
    windows = np.array([[int(n) for n in (tmp_path / rank).read_text().split()] for rank in "01"])
    assert windows.sum(0).tolist() == [23, 7]
    assert train_file(config).read_bytes() == world[1]


def test_a_damaged_plan_and_a_foreign_shard(world: tuple[Config, bytes], tmp_path: Path, monkeypatch: Any) -> None:
    config = fresh(world[0], tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            cache_vis(config)
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
