"""What people wrap: the classes of docs/data.md, word for word, over real Hugging Face datasets and WebDatasets."""

import io
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import MakeConfig

from cache.pipeline import cache_vis
from simv0.config.schema import Config
from simv0.data.contract import CheckedDataset
from simv0.data.jsonl import read_jsonl
from simv0.data.manifest import ManifestDataset
from simv0.data.source import open_source
from simv0.errors import DataError
from simv0.features.dataset import CachedDataset

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text()
CLASSES = {name: code for code, name in re.findall(r"```python\n(# (\w+)\.py.*?)```", PAGE, re.S)}
SPLITS = ("train", "val")
Make = Callable[[Path, Path], None]


def windows_of(manifests: Path, split: str) -> list[dict[str, Any]]:
    return read_jsonl(manifests / f"{split}.jsonl")


def hub_windows(manifests: Path, here: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for split in SPLITS:
        found = ManifestDataset(manifests / f"{split}.jsonl")
        rows = [{**found[i], "frames": found[i]["frames"].numpy()} for i in range(len(found))]
        frames = datasets.Array4D((4, 3, 24, 40), "uint8")
        features = datasets.Features({**datasets.Dataset.from_list([found.labels_of(0)]).features, "frames": frames})
        datasets.Dataset.from_list(rows, features=features).save_to_disk(str(here / split))


def hub_frames(manifests: Path, here: Path) -> None:
    """Each frame with the labels of the window that it ends; the first three end none."""
    datasets = pytest.importorskip("datasets")
    for split in SPLITS:
        windows = windows_of(manifests, split)
        frames = [*windows[0]["frames"][:-1], *(window["frames"][-1] for window in windows)]
        rows = []
        for at, name in enumerate(frames):
            window = {key: value for key, value in windows[max(0, at - 3)].items() if key not in ("frames", "group")}
            row = {
                **window,
                "image": {"bytes": (manifests / name).read_bytes(), "path": None},
                "episode": split,
                "timestamp": at / 5,
            }
            rows.append(row)
        datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).save_to_disk(str(here / split))


def several_days(manifests: Path, here: Path) -> None:
    for split in SPLITS:
        rows = windows_of(manifests, split)
        for day, kept in (("monday", rows[:13]), ("tuesday", rows[13:])):
            shutil.copytree(manifests, here / split / day)
            (here / split / day / "windows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


def shard_windows(manifests: Path, here: Path) -> None:
    pytest.importorskip("webdataset")
    for split in SPLITS:
        windows = windows_of(manifests, split)
        for shard in range(2):
            with tarfile.open(here / f"{split}-{shard:06}.tar", "w") as tar:
                for window in windows[shard * len(windows) // 2 : (shard + 1) * len(windows) // 2]:
                    labels = {key: value for key, value in window.items() if key not in ("frames", "sample_id")}
                    files = [(f"{k}.jpg", (manifests / name).read_bytes()) for k, name in enumerate(window["frames"])]
                    for name, data in [*files, ("json", json.dumps(labels).encode())]:
                        member = tarfile.TarInfo(f"{window['sample_id']}.{name}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))


SOURCES: dict[str, tuple[Make, str, str, dict[str, Any]]] = {
    "hub_windows": (hub_windows, "Windows", "{}", {}),
    "hub_frames": (hub_frames, "Windows", "{}", {"F": 4, "hop": 1}),
    "several_days": (several_days, "windows", "{}", {}),
    "shard_windows": (shard_windows, "Windows", "{}-{{000000..000001}}.tar", {"F": 4}),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with the page's classes, in which a command would be started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for name, code in CLASSES.items():
        (tmp_path / f"{name}.py").write_text(code)
    yield tmp_path
    for name in CLASSES:
        sys.modules.pop(name, None)


def config_of(name: str, make_config: MakeConfig, **kwargs: Any) -> Config:
    _, member, path, own = SOURCES[name]
    data = {"dataset_class_path": f"{name}.{member}", "dataset_kwargs": {**own, **kwargs}}
    return make_config(data=data | {f"{split}_split_path": path.format(split) for split in SPLITS})


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves shards to the collector
@pytest.mark.parametrize("name", SOURCES)
def test_a_class_of_the_page_gives_the_windows_of_the_manifest(
    name: str, manifests: Path, folder: Path, make_config: MakeConfig
) -> None:
    """Each frame and label; `cache-vis` takes them."""
    SOURCES[name][0](manifests, folder)
    config = config_of(name, make_config)
    for split in SPLITS:
        source = open_source(config.data, split)
        found = CheckedDataset(source.dataset, split, F=4)
        expected = CheckedDataset(ManifestDataset(manifests / f"{split}.jsonl"), split, F=4)
        assert len(found) == len(expected)
        for i in (0, 1, len(found) // 2, len(found) - 1):
            here, there, short = found[i], expected[i], found.labels_of(i)
            assert torch.equal(here.pop("frames"), there.pop("frames"))
            assert {key: str(value) for key, value in here.items()} == {key: str(short[key]) for key in here}
            assert {key: str(here[key]) for key in there} == {key: str(value) for key, value in there.items()}
        recordings = {"hub_frames": 1, "several_days": 2}  # of which each has 3 frames more than windows
        if name in recordings:
            names = {frame for i in range(len(found)) for frame in found.frame_ids(i)}
            assert len(names) == len(found) + 3 * recordings[name]
    cache_vis(config)
    made = CachedDataset(Path(config.cache.dir) / "train.h5")
    assert (len(made), made.frame_spacing) == (40, 0.2 if name == "hub_frames" else None)


def test_a_dataset_that_can_only_be_iterated_over_is_told_what_to_do(
    manifests: Path, folder: Path, make_config: MakeConfig
) -> None:
    pytest.importorskip("datasets")
    shard_windows(manifests, folder)
    (folder / "streams.py").write_text(
        "import datasets, torch, webdataset\n"
        "def tars(path): return webdataset.WebDataset(path, shardshuffle=False).with_length(40, silent=True)\n"
        "def hub(path): return datasets.Dataset.from_list([{'a': 1}]).to_iterable_dataset()\n"
        "class Own(torch.utils.data.IterableDataset):\n"
        "    def __init__(self, path): pass\n"
        "    def __iter__(self): yield {}\n"
        "class Lines:\n"
        "    def __init__(self, path): pass\n"
        "    def __iter__(self): yield {}\n"
    )
    for name, kind in (("tars", "WebDataset_Length"), ("hub", "IterableDataset"), ("Own", "Own"), ("Lines", "Lines")):
        data = make_config(data={"dataset_class_path": f"streams.{name}"}).data
        with pytest.raises(DataError) as error:
            open_source(data, "train")
        assert str(error.value) == (
            f"data.dataset_class_path: streams.{name}: a dataset that can only be iterated over ({kind}), but windows "
            "are read by number; give a class with __len__ and __getitem__ that keeps list(...) of it, not decoded "
            "yet, or write its windows to files and a manifest"
        )
    sys.modules.pop("streams")
