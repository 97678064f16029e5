"""A folder of shards as a split: what one file gives, from features that RAM need not hold."""

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_world import fresh, make_world, train_file
from fit_world import outcome
from small_world import MakeConfig, make_config

from cache.pipeline import cache_vis
from simv0.config.schema import Config
from simv0.data.labels import Labels
from simv0.errors import CacheError
from simv0.evaluation.run import evaluate_checkpoint
from simv0.features.dataset import CachedDataset
from simv0.features.info import FeatureInfo
from simv0.features.reader import sha256
from simv0.features.shards import Parts, Plan, Record
from simv0.features.writer import write_features
from simv0.labels import HEADS
from simv0.training.fit import fit
from simv0.training.splits import Batches, BatchOrder, open_split


@pytest.fixture(scope="module")
def shards(models: Path, manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `features` holds, as folders: 3 shards of train, 2 of val."""
    folder = tmp_path_factory.mktemp("shards")
    cache_vis(make_config(models, manifests, folder, cache={"dir": str(folder), "publish": "shards"}))
    assert sorted(set(os.listdir(folder)) - {"known"}) == ["train.h5.parts", "val.h5.parts"]
    return folder


def mapped(make_config: MakeConfig, cache: Path, root: Path) -> Config:
    return make_config(cache={"dir": str(cache), "in_memory": "never"}, output={"output_dir": str(root)})


def test_shards_stay_where_they_are_wanted_and_become_a_file_when_it_is(tmp_path: Path) -> None:
    config = make_world(tmp_path, publish="shards")
    train, _ = cache_vis(config)
    assert (train.outcome, train.counts.windows) == ("shards", 23)
    assert str(train).endswith("left as shards, which train reads")
    again, _ = cache_vis(config)
    assert (again.outcome, again.counts.windows) == ("shards", 0)
    assert not train_file(config).exists()
    as_file = config.model_copy(update={"cache": config.cache.model_copy(update={"publish": "file"})})
    assert [report.outcome for report in cache_vis(as_file)] == ["written", "written"]
    elsewhere = fresh(as_file, tmp_path / "elsewhere")
    cache_vis(elsewhere)
    assert train_file(config).read_bytes() == train_file(elsewhere).read_bytes()


@pytest.mark.usefixtures("no_report")
def test_training_and_evaluating_on_shards_is_training_on_the_file(
    make_config: MakeConfig, features: Path, shards: Path, tmp_path: Path
) -> None:
    on_shards, on_file = (mapped(make_config, cache, tmp_path / cache.name) for cache in (shards, features))
    run, other = fit(on_shards), fit(on_file)
    assert outcome(run) == outcome(other)
    ours, theirs = (evaluate_checkpoint(each.best, baselines=False)[0].metrics for each in (run, other))
    clock = {"seconds", "data_wait_share"}
    assert {key: ours[key] for key in ours.keys() - clock} == {key: theirs[key] for key in theirs.keys() - clock}
    named, _ = evaluate_checkpoint(run.best, data=str(shards / "val.h5.parts"), baselines=False)
    assert named.metrics["loss"] == theirs["loss"]


@pytest.mark.parametrize("exceeds_ram", [False, True])
def test_batches_of_shards_are_those_of_the_file(
    make_config: MakeConfig,
    features: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exceeds_ram: bool,
) -> None:
    """Two epochs in their global shuffle, bit for bit; also when only one shard may be mapped at a time."""
    if exceeds_ram:
        monkeypatch.setattr("simv0.features.dataset.available_memory", lambda: 1)
    monkeypatch.setattr("simv0.features.dataset.maps_at_once", lambda: 1)
    both = []
    for cache in (shards, features):
        split = open_split(mapped(make_config, cache, tmp_path), "train")
        assert isinstance(split.dataset, CachedDataset)
        assert split.dataset.exceeds_ram == exceeds_ram
        both.append(Batches(split, BatchOrder(40, 8, seed=3)))
    for epoch in (0, 1):
        for batches in both:
            batches.order.epoch = epoch
        mixed = False
        for ours, theirs in zip(*both, strict=True):
            assert set(ours) == set(theirs)
            for key, value in ours.items():
                assert torch.equal(value, theirs[key]) if isinstance(value, torch.Tensor) else value == theirs[key]
            mixed |= len({int(name.split("-")[1]) // 16 for name in ours["sample_id"]}) == 3
        assert mixed  # a batch draws from every shard


def test_an_unfinished_folder_and_one_of_other_features_are_refused(
    make_config: MakeConfig, shards: Path, tmp_path: Path
) -> None:
    for name in ("train.h5.parts", "val.h5.parts"):
        (tmp_path / "half" / name).mkdir(parents=True)
        for path in (shards / name).iterdir():
            os.link(path, tmp_path / "half" / name / path.name)
    config = mapped(make_config, tmp_path / "half", tmp_path / "run")
    squash = config.model_copy(update={"model": config.model.model_copy(update={"vision_resize_mode": "longest"})})
    with pytest.raises(CacheError, match=r"train.h5.parts: does not match the config: vision_preprocess.resize_mode"):
        fit(squash)
    (tmp_path / "half" / "train.h5.parts" / "shard-000001.json").unlink()
    with pytest.raises(CacheError) as error:
        fit(config)
    assert str(error.value) == (
        f"{tmp_path}/half/train.h5.parts: cache-vis has not finished: 2 of 3 shards are done; run it again"
    )


# ---- more than RAM ----------------------------------------------------------------------------------------------

WINDOWS, SHARD, MB = 12_288, 2048, 1 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 MB of features [8,512] in 6 shards; feature 0 of a window is its number within the shard."""
    folder = tmp_path_factory.mktemp("large") / "train.h5.parts"
    folder.mkdir()
    zeros = np.zeros(WINDOWS, np.int64)
    names = [f"w{i}" for i in range(WINDOWS)]
    labels = Labels(
        np.zeros((WINDOWS, 8), np.float32), dict.fromkeys(HEADS, zeros), np.ones(WINDOWS, np.float32), names, None
    )
    block = np.zeros((SHARD, 8, 512), np.float16)
    block[:, 0, 0] = np.arange(SHARD)
    parts, plan = Parts(folder), Plan({"N": WINDOWS, "F": 8, "dv": 512, "dtype": "float16"}, SHARD, 64)
    parts.write_plan(plan)
    for shard in range(len(plan)):
        rows, path = plan.windows(shard), parts.shard_path(shard)
        info = FeatureInfo(plan.identity, labels[rows.start : rows.stop], None, SHARD, [sha256(block)], rows.start)
        write_features(path, info, [block], path.with_suffix(".tmp"))
        parts.write_record(shard, Record(path.stat().st_size, sha256(block)))
    return folder


def told(file: str, key: str) -> int:
    """One of the kernel's figures about this process."""
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(key))


def epoch_in_a_process_of(extra: int, folder: Path, in_memory: Any) -> int:
    """Read a shuffled epoch in a child that may hold `extra` bytes more than now: 0, or 1 when that was not enough."""
    child = os.fork()
    if child == 0:
        try:
            limit = told("/proc/self/status", "VmData:") * 1024 + extra
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            dataset = CachedDataset(folder, in_memory)
            for batch in BatchOrder(WINDOWS, 64, seed=0):
                feats = dataset.__getitems__(batch)["vis_feats"]
                assert feats[:, 0, 0].tolist() == [row % SHARD for row in batch]
            os._exit(0)
        except MemoryError:
            os._exit(1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc on this system")
def test_an_epoch_needs_no_ram_for_the_features(large: Path) -> None:
    assert epoch_in_a_process_of(48 * MB, large, "never") == 0
    assert epoch_in_a_process_of(48 * MB, large, "always") == 1


@pytest.mark.skipif(not os.access("/proc/self/io", os.R_OK), reason="no /proc/self/io on this system")
def test_what_exceeds_ram_is_read_window_by_window(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the system reads some hundred kB around each window of 8 kB."""
    read = {}
    for exceeds_ram in (False, True):
        monkeypatch.setattr("simv0.features.dataset.available_memory", lambda: 1 if exceeds_ram else 1 << 60)  # noqa: B023
        dataset = CachedDataset(large, "never")
        for path in large.glob("*.h5"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = told("/proc/self/io", "read_bytes:")
        dataset.__getitems__(np.random.default_rng(0).integers(0, WINDOWS, 64).tolist())
        read[exceeds_ram] = told("/proc/self/io", "read_bytes:") - before
        del dataset
    if read[False] < MB:
        pytest.skip("the file system keeps these files in memory")
    assert read[True] <= 64 * 3 * 4096 + 2 * MB < read[False]
