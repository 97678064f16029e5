"""Complete feature files: recognised without the encoder and without reading frames; refused if anything changed."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_world import fresh, plain_config, train_file, write_encoder
from strikes import while_running

from cache import cache_vis
from simv0.config.schema import Config
from simv0.errors import CacheError
from simv0.vision.encoder import Encoder


@pytest.fixture
def complete(world: tuple[Config, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A world of its own with complete feature files; files just written count as old."""
    monkeypatch.setattr("simv0.runtime.file_digests.SETTLED", -1.0)
    source = Path(world[0].data.train_split_path).parent
    shutil.copytree(source, tmp_path / "world", ignore=shutil.ignore_patterns("cache*"))
    tree = world[0].model_dump_json().replace(str(source), str(tmp_path / "world"))
    config = fresh(Config.model_validate_json(tree), tmp_path)
    cache_vis(config.model_dump())
    return config


@pytest.fixture
def encoded() -> Iterator[list[int]]:
    """Grows whenever an encoder computes, also when it is loaded."""
    calls: list[int] = []
    with while_running(Encoder, lambda count, _: calls.append(count)):
        yield calls


def outcomes(config: Config, **how: Any) -> list[str]:
    return [report.outcome for report in cache_vis(config.model_dump(), **how).values()]


def test_complete_files_need_no_encoder(complete: Config, encoded: list[int]) -> None:
    before = train_file(complete).read_bytes()
    assert outcomes(complete) == ["skipped", "skipped"]
    assert not encoded
    shutil.rmtree(Path(complete.cache.dir) / "known")  # may be deleted at any time: then everything is looked at once
    assert outcomes(complete) == ["skipped", "skipped"]
    assert encoded
    encoded.clear()
    assert outcomes(complete) == ["skipped", "skipped"]
    assert not encoded
    assert outcomes(complete, verify=True) == ["skipped", "skipped"]
    assert encoded
    assert train_file(complete).read_bytes() == before


def test_a_changed_frame_is_refused_by_name(complete: Config, tmp_path: Path) -> None:
    """Its size and mtime are those of the frame that was encoded."""
    picture = next((tmp_path / "world" / "train_images").iterdir())
    was, data = picture.stat(), bytearray(picture.read_bytes())
    data[-1] ^= 1
    picture.write_bytes(bytes(data))
    os.utime(picture, ns=(was.st_atime_ns, was.st_mtime_ns))
    with pytest.raises(CacheError, match=r"train.h5: does not match the config: content_digest is"):
        cache_vis(complete.model_dump())


def test_other_weights_in_the_same_folder_are_refused_by_name(complete: Config) -> None:
    folder = complete.model.vision_encoder_name.removeprefix("local-dir:")
    shutil.rmtree(folder)
    write_encoder(Path(folder), seed=1)
    with pytest.raises(CacheError, match=r"train.h5: does not match the config: vision_weights is"):
        cache_vis(complete.model_dump())


def test_an_encoder_in_the_hubs_cache_is_known_until_another_version_comes(
    complete: Config, encoded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout of the hub's cache, made by hand; offline. A version counts when it has been downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--someone--tiny"
    for seed, commit in enumerate(("abc", "def")):
        write_encoder(repository / "snapshots" / commit, seed)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    named = {"vision_encoder_name": "hf-hub:someone/tiny"}
    config = complete.model_copy(update={"model": complete.model.model_copy(update=named)})
    assert outcomes(config) == ["skipped", "skipped"]  # the weights are those of the folder
    assert encoded
    encoded.clear()
    assert outcomes(config) == ["skipped", "skipped"]
    assert not encoded
    (repository / "refs" / "main").write_text("def")
    with pytest.raises(CacheError, match=r"train.h5: does not match the config: .*vision_weights is"):
        cache_vis(config.model_dump())


@pytest.mark.parametrize("damage", ["{", "[]", '{"facts": {"files": 3}}', '{"facts": null, "identity": {}, "dv": 1}'])
def test_a_damaged_record_costs_loading_the_encoder(complete: Config, encoded: list[int], damage: str) -> None:
    (Path(complete.cache.dir) / "known" / "encoder.json").write_text(damage)
    assert outcomes(complete) == ["skipped", "skipped"]
    assert encoded


def test_another_version_of_a_package_costs_loading_the_encoder(complete: Config, encoded: list[int]) -> None:
    path = Path(complete.cache.dir) / "known" / "encoder.json"
    tree = json.loads(path.read_text())
    tree["facts"]["versions"]["pillow"] = "1.0"
    path.write_text(json.dumps(tree))
    assert outcomes(complete) == ["skipped", "skipped"]
    assert encoded


def test_a_dataset_without_a_digest_is_compared_by_encoding(
    tmp_path: Path, encoded: list[int], monkeypatch: Any
) -> None:
    monkeypatch.setattr("simv0.runtime.file_digests.SETTLED", -1.0)
    config = plain_config(tmp_path)
    cache_vis(config.model_dump())
    encoded.clear()
    assert outcomes(config) == ["skipped", "skipped"]
    assert len(encoded) > 2
