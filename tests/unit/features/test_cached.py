"""CachedDataset: what training reads, from a file or from shards, in RAM or mapped, in any kind of worker."""

import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_world import DV, make_world
from strikes import flip_bit
from torch.utils.data import DataLoader

from cache.pipeline import cache_vis
from simv0.data.contract import collate
from simv0.data.labels import read_labels
from simv0.errors import CacheError
from simv0.features.dataset import CachedDataset, available_memory
from simv0.features.reader import read_features


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    cache_vis(make_world(folder))
    return folder / "cache" / "train.h5"


def equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


@pytest.mark.parametrize("in_memory", ["always", "never"])
def test_a_batch_is_its_samples(path: Path, in_memory: Any) -> None:
    dataset = CachedDataset(path, in_memory)
    rows = [5, 22, 0, 5]
    batch, stacked = dataset.__getitems__(rows), collate([dataset[i] for i in rows])
    assert set(batch) == set(stacked)
    for key in batch:
        assert equal(batch[key], stacked[key]), key  # type: ignore[literal-required]
    assert batch["vis_feats"].dtype == torch.float16
    assert batch["vis_feats"].shape == (4, 4, DV)
    assert batch["sample_id"] == ["train-5", "train-22", "train-0", "train-5"]
    assert (dataset.F, dataset.dv, dataset.split_name, dataset.class_weights) == (4, DV, "train", None)
    batch["vis_feats"].zero_()  # a batch is the caller's own
    assert dataset[5]["vis_feats"].any()


def test_it_keeps_the_sample_contract(path: Path) -> None:
    dataset = CachedDataset(path)
    labels = read_labels(dataset, "train", 4)
    np.testing.assert_array_equal(labels.telemetry, dataset.labels.telemetry)
    assert labels.group == dataset.labels.group
    with pytest.raises(IndexError):
        dataset[23]


@pytest.mark.parametrize(("in_memory", "start"), [("always", "fork"), ("never", "fork"), ("always", "spawn")])
def test_workers_read_what_the_process_reads(path: Path, in_memory: Any, start: str) -> None:
    dataset = CachedDataset(path, in_memory)
    dataset[0]  # opens the map before the workers start
    context = multiprocessing.get_context(start)
    loader: Any = DataLoader(
        dataset, 4, num_workers=1, collate_fn=collate, multiprocessing_context=context, shuffle=False
    )
    read = torch.cat([batch["vis_feats"] for batch in loader])
    assert torch.equal(read, dataset.__getitems__(range(23))["vis_feats"])


def test_a_pickle_holds_no_features_and_refuses_a_replaced_file(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "train.h5"
    copy.write_bytes(path.read_bytes())
    dataset = CachedDataset(copy, "always")
    pickled = pickle.dumps(dataset)
    assert dataset[3]["vis_feats"].numpy().tobytes() not in pickled
    assert torch.equal(pickle.loads(pickled)[3]["vis_feats"], dataset[3]["vis_feats"])
    replacement = tmp_path / "val.h5"
    replacement.write_bytes(path.with_name("val.h5").read_bytes())
    replacement.replace(copy)
    with pytest.raises(CacheError, match="was replaced while in use"):
        pickle.loads(pickled)[3]


def test_damaged_features_are_found_when_they_are_taken_into_ram(path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "train.h5"
    shutil.copy(path, damaged)
    flip_bit(damaged, read_features(path).offset + 12 * 4 * DV * 2)  # window 12 is in block 2
    with pytest.raises(CacheError, match=r"block 2 \(windows 10..14\) is damaged; recreate it with"):
        CachedDataset(damaged, "always")
    with pytest.raises(CacheError, match="is damaged"):
        CachedDataset(damaged)  # auto: it fits
    CachedDataset(damaged, "never")
    assert read_features(damaged).bad_blocks() == [2]


def test_auto_maps_what_does_not_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simv0.features.dataset.available_memory", lambda: 2 * 23 * 4 * DV * 2)
    assert CachedDataset(path)._ram is None
    monkeypatch.setattr("simv0.features.dataset.available_memory", lambda: 2 * 23 * 4 * DV * 2 + 2)
    assert CachedDataset(path)._ram is not None


def test_auto_leaves_room_for_the_other_processes_of_a_machine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would take its own copy; mapped, they share the page cache's."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("simv0.features.dataset.available_memory", lambda: 8 * 23 * 4 * DV * 2)
    assert CachedDataset(path)._ram is None
    monkeypatch.setattr("simv0.features.dataset.available_memory", lambda: 8 * 23 * 4 * DV * 2 + 8)
    assert CachedDataset(path)._ram is not None


def test_a_container_may_use_less_than_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simv0.features.dataset.CGROUP", tmp_path)
    alone = available_memory()
    assert alone > 1 << 20  # no such files: what the machine has
    for limit, used, expected in (("5000\n", "2000\n", 3000), ("5000", "6000", 1)):  # 0: not known
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text(used)
        assert available_memory() == expected
    for limit in ("max\n", str(1 << 60)):
        (tmp_path / "memory.max").write_text(limit)
        assert available_memory() > 1 << 20


def test_memory_is_told_as_far_as_the_system_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS there is no /proc and no SC_AVPHYS_PAGES, elsewhere not even sysconf."""
    known = {"SC_AVPHYS_PAGES": 1000, "SC_PHYS_PAGES": 6000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("simv0.features.dataset.CGROUP", tmp_path)
    monkeypatch.setattr("simv0.features.dataset.MEMINFO", tmp_path / "meminfo")

    def sysconf(name: str) -> int:
        if name not in known:
            raise ValueError("unrecognized configuration name")
        return known[name]

    monkeypatch.setattr("os.sysconf", sysconf)
    assert available_memory() == 1000 * 4096
    del known["SC_AVPHYS_PAGES"]
    assert available_memory() == 3000 * 4096
    known.clear()
    assert available_memory() == 0
    monkeypatch.delattr("os.sysconf")
    assert available_memory() == 0
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nMemAvailable:    5 kB\n")
    assert available_memory() == 5 * 1024


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"train.h5: feature file not found; create it with `simv0 cache-vis`"):
        CachedDataset(tmp_path / "train.h5")
    with pytest.raises(CacheError, match=r"holds no plan.json; expected a feature file or its folder of shards"):
        CachedDataset(tmp_path)
