"""cache-vis: what it writes, skips and overwrites, where there is room for it."""

import json
import os
import shutil
import socket
import time
from collections import namedtuple
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cache_world import DV, fresh, make_world, train_file
from ranks import on_ranks

from cache.pipeline import cache_vis
from simv0.config.schema import Config
from simv0.data.manifest import ManifestDataset
from simv0.disk.locks import FileLock
from simv0.errors import CacheError
from simv0.features.dataset import CachedDataset
from simv0.vision.encoder import load_encoder


def test_the_file_holds_what_the_encoder_gives_and_the_dataset_says(world: tuple[Config, bytes]) -> None:
    config, _ = world
    rows = [json.loads(line) for line in Path(config.data.train_split_path).read_text().splitlines()]
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
            for key in ("risk_id", "reason_id", "action_id", "weight"):
                assert h5[key][i] == rows[i][key]
            assert h5["group"][i] == b"train"


def test_each_frame_is_encoded_once_and_a_complete_file_is_skipped(world: tuple[Config, bytes], tmp_path: Path) -> None:
    config = fresh(world[0], tmp_path)
    train, val = cache_vis(config)
    assert (train.outcome, train.counts.windows, train.counts.frames, train.counts.encoded) == ("written", 23, 92, 26)
    assert (val.counts.frames, val.counts.encoded) == (28, 10)
    assert train_file(config).read_bytes() == world[1]
    assert sorted(os.listdir(config.cache.dir)) == ["known", "train.h5", "val.h5"]
    before = train_file(config).stat().st_mtime_ns
    assert [report.outcome for report in cache_vis(config)] == ["skipped", "skipped"]
    assert train_file(config).stat().st_mtime_ns == before


def test_nothing_is_written_beside_a_complete_cache(world: tuple[Config, bytes]) -> None:
    """It may be read-only: no lock is taken, which would come and go."""
    os.utime(world[0].cache.dir, ns=(0, 0))
    assert [report.outcome for report in cache_vis(world[0])] == ["skipped", "skipped"]
    assert os.stat(world[0].cache.dir).st_mtime_ns == 0


def test_overwrite_begins_anew(world: tuple[Config, bytes], tmp_path: Path) -> None:
    config = fresh(world[0], tmp_path)
    shutil.copytree(world[0].cache.dir, config.cache.dir)
    other = fresh(config, tmp_path, dtype="float32")
    with pytest.raises(CacheError, match='dtype is "float16" in the file, "float32" in the config'):
        cache_vis(other)
    assert cache_vis(other, overwrite=True)[0].counts.windows == 23
    assert CachedDataset(train_file(config))[0]["vis_feats"].dtype == torch.float32


def test_no_room(world: tuple[Config, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = fresh(world[0], tmp_path)

    def disk(size: int) -> None:
        def usage(parts: Path) -> Any:  # somebody else fills the disk as well
            used = 1.5 * sum(path.stat().st_size for path in parts.glob("*.h5"))
            return namedtuple("usage", "free")(int(size - used))

        monkeypatch.setattr(shutil, "disk_usage", usage)

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

    def waits_or_is_done() -> bool:
        """The first rank: it listens at its port for the other, or it has not waited for it."""
        with suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(os.environ["MASTER_PORT"])), timeout=10).close()
            return True
        return (tmp_path / "0").exists()

    def work() -> None:
        rank = os.environ["RANK"]
        while rank == "1" and not waits_or_is_done():
            time.sleep(0.01)  # `on_ranks` ends what waits too long
        reports = cache_vis(config, overwrite=True)
        (tmp_path / rank).write_text(" ".join(str(report.counts.windows) for report in reports))

    assert on_ranks(2, work) == [0, 0]
    windows = np.array([[int(n) for n in (tmp_path / rank).read_text().split()] for rank in "01"])
    assert windows.sum(0).tolist() == [23, 7]
    assert train_file(config).read_bytes() == world[1]
