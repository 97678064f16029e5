"""Each fact that changes a feature is compared: changed in turn, it is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from cache_world import config_of, make_world, write_encoder

from cache.pipeline import cache_vis
from simv0.config.schema import Config
from simv0.errors import CacheError
from simv0.features.dataset import CachedDataset
from simv0.features.identity import compare_identity, compare_splits, wanted_identity
from simv0.training.refusals import config_differences
from simv0.training.splits import open_split

WAYS_OUT = r"Recreate it with `simv0 cache-vis --overwrite`, or choose another cache.dir$"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = make_world(tmp_path)
    cache_vis(config)
    return config


def changed(config: Config, section: str, **fields: Any) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=fields)})


def test_what_cache_vis_refuses(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(config.cache.dir) / "train.h5"

    def refused(other: Config, message: str) -> None:
        with pytest.raises(CacheError, match=f"^{path}: does not match the config: {message}.*{WAYS_OUT}"):
            cache_vis(other)

    refused(changed(config, "cache", dtype="float32"), 'dtype is "float16" in the file, "float32" in the config')
    refused(changed(config, "cache", precision="bf16"), 'vision_precision is "fp32" in the file, "bf16" in the config')
    refused(
        changed(config, "model", vision_resize_mode="longest"),
        'vision_preprocess.resize_mode is "squash" in the file, "longest" in the config',
    )
    other = write_encoder(tmp_path / "other" / "vision", seed=1)  # same name, other weights
    refused(changed(config, "model", vision_encoder_name=other), r"vision_weights is \"\w+\" in the file")
    manifest, rows = tmp_path / "train.jsonl", (tmp_path / "train.jsonl").read_text()
    first = json.loads(rows.splitlines()[0])
    manifest.write_text(json.dumps({**first, "risk_id": 3}) + rows[rows.index("\n") :])
    refused(config, r"split_file is .*; content_digest is .*; labels_digest is")
    manifest.write_text(rows[: rows.rindex("\n", 0, -1) + 1])
    refused(config, "split_file is .*; N is 23 in the file, 22 in the config; content_digest is")
    manifest.write_text(rows)
    image = tmp_path / "train_images" / "0003.png"
    image.write_bytes((tmp_path / "train_images" / "0004.png").read_bytes())
    refused(config, r"content_digest is \"\w+\" in the file")


def test_leave_to_follow_links_changes_no_feature_and_no_run(config: Config) -> None:
    followed = changed(config, "data", dataset_kwargs={"follow_links": True})
    assert cache_vis(followed) == cache_vis(config)  # nothing to do
    assert config_differences(config.model_dump(), followed.model_dump()) == []
    own = changed(followed, "data", dataset_class_path="windows.Windows")
    assert wanted_identity(own, "train")["dataset_kwargs"] == {"follow_links": True}


def test_a_moved_world_is_the_same_world(config: Config, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("train_images", "val_images", "train.jsonl", "val.jsonl", "vision"):
        (tmp_path / name).rename(moved / name)
    there = changed(config_of(moved), "cache", dir=config.cache.dir)
    assert [report.outcome for report in cache_vis(there)] == ["skipped", "skipped"]


def test_a_renamed_world_is_the_same_world(config: Config, tmp_path: Path) -> None:
    """Names are compared where no digest tells; train, which knows none, asks for it where names differ."""
    (tmp_path / "vision").rename(tmp_path / "my_tower")
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").rename(tmp_path / f"{split}2.jsonl")
    there = changed(config, "model", vision_encoder_name=f"local-dir:{tmp_path / 'my_tower'}")
    there = changed(
        there, "data", **{f"{split}_split_path": str(tmp_path / f"{split}2.jsonl") for split in ("train", "val")}
    )
    assert [report.outcome for report in cache_vis(there)] == ["skipped", "skipped"]
    assert len(open_split(there, "train").labels) == 23
    other = write_encoder(tmp_path / "other", seed=1)
    with pytest.raises(CacheError, match=r"vision_weights is \"\w+\" in the file"):
        open_split(changed(there, "model", vision_encoder_name=other), "train")
    with pytest.raises(
        CacheError, match=r'vision_encoder_name is "local-dir:vision" in the file, "local-dir:nowhere" in the config'
    ):
        open_split(changed(there, "model", vision_encoder_name="local-dir:/nowhere"), "train")


def test_moved_data_of_a_class_are_the_same_data(tmp_path: Path, config: Config) -> None:
    """A path among the arguments says where the data lie; where their digest agrees nothing else is asked."""
    stored = CachedDataset(Path(config.cache.dir) / "train.h5").identity | {
        "dataset_kwargs": {"root": "films", "crop": "a/b"}
    }
    moved = changed(config, "data", dataset_kwargs={"root": "/mnt/movies", "crop": "a/b"})
    known = wanted_identity(moved, "train") | {"content_digest": stored["content_digest"]}
    compare_identity(stored, known, "x.h5")
    with pytest.raises(CacheError, match='dataset_kwargs.root is "films" in the file, "movies" in the config'):
        compare_identity(stored, wanted_identity(moved, "train"), "x.h5")
    other = wanted_identity(changed(moved, "data", dataset_kwargs={"root": "/mnt/movies", "crop": "c/d"}), "train")
    with pytest.raises(CacheError, match=r'config: dataset_kwargs.crop is "a/b" in the file, "c/d" in the config\.'):
        compare_identity(stored, other | {"content_digest": stored["content_digest"]}, "x.h5")


def test_what_the_config_alone_can_tell(config: Config) -> None:
    path = Path(config.cache.dir) / "train.h5"
    stored = CachedDataset(path).identity
    compare_identity(stored, wanted_identity(config, "train"), path)
    compare_identity(stored, wanted_identity(changed(config, "cache", precision="auto"), "train"), path)
    for section, field, value, named in (
        ("model", "F", 8, "F is 4 in the file, 8 in the config"),
        ("model", "dv", 512, "dv is 24 in the file, 512 in the config"),
        (
            "model",
            "vision_encoder_name",
            "ViT-B-32",
            'vision_encoder_name is "local-dir:vision" in the file, "ViT-B-32" in the config',
        ),
        ("model", "vision_pretrained", "openai", 'vision_pretrained is null in the file, "openai" in the config'),
        ("model", "vision_resize_mode", "shortest", "vision_preprocess.resize_mode is"),
        ("cache", "dtype", "float32", "dtype is"),
        ("cache", "precision", "bf16", "vision_precision is"),
        ("data", "dataset_class_path", "mine.Own", "dataset_class_path is"),
        (
            "data",
            "train_split_path",
            "/elsewhere/other.jsonl",
            'split is "train.jsonl" in the file, "other.jsonl" in the config',
        ),
        (
            "data",
            "dataset_kwargs",
            {"root": "/elsewhere/films"},
            'dataset_kwargs.root is "(missing)" in the file, "films" in the config',
        ),
    ):
        with pytest.raises(CacheError) as caught:
            compare_identity(stored, wanted_identity(changed(config, section, **{field: value}), "train"), path)
        assert named in str(caught.value)


def test_train_and_val_must_agree(config: Config) -> None:
    folder = Path(config.cache.dir)
    train, val = (CachedDataset(folder / f"{name}.h5").identity for name in ("train", "val"))
    compare_splits(train, val, folder / "val.h5")
    assert train["N"] != val["N"]
    names = {"vision_encoder_name", "vision_pretrained", "vision_file"}  # their digest tells more
    for field in set(train) - names - {"N", "content_digest", "labels_digest", "split", "split_file"}:
        with pytest.raises(CacheError, match=f"val.h5: does not match the config: {field}"):
            compare_splits({**train, field: "other"}, val, folder / "val.h5")
