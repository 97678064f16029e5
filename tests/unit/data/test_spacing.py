"""Seconds between the frames of a window: from the data into the checkpoint, and to the robot."""

import logging
from pathlib import Path
from typing import Any

import pytest
from small_world import MakeConfig
from videos import write_rows, write_video

from cache.pipeline import cache_vis
from simv0.checks.files import inspect_path
from simv0.checks.run import check
from simv0.config.schema import DataConfig
from simv0.data.manifest import ManifestDataset
from simv0.data.spacing import choose_spacing, split_spacing, warn_of_spacing
from simv0.errors import ConfigError, DataError
from simv0.features.dataset import CachedDataset
from simv0.model.checkpoint import load_checkpoint
from simv0.predict import Predictor
from simv0.stream import Stream
from simv0.training.fit import fit
from simv0.training.refusals import config_differences


def windows_of(video: Path, seconds: list[float], n: int = 12) -> Path:
    """A manifest of n windows whose frames lie at `seconds` from their beginnings."""
    rows: list[dict[str, Any]] = [
        {
            "sample_id": f"{video.stem}-{i}",
            "video": video.name,
            "timestamps": [round(i / 20 + s, 3) for s in seconds],
            "telemetry": [0.1 * i] * 8,
            **{f"{head}_id": i % 4 for head in ("risk", "reason", "action")},
        }
        for i in range(n)
    ]
    return write_rows(video.with_suffix(".jsonl"), rows)


@pytest.mark.parametrize("publish", ["file", "shards"])
def test_from_timestamps_to_the_stream(make_config: MakeConfig, tmp_path: Path, publish: str) -> None:
    paths = {
        f"{name}_split_path": str(windows_of(write_video(tmp_path / f"{name}.mp4"), [0, 0.2, 0.4, 0.6]))
        for name in ("train", "val")
    }
    config = make_config(data=paths, cache={"publish": publish}, training={"epochs": 1})
    assert check(config).facts["data: train"]["frame spacing"] == "0.2 s"
    cache_vis(config)
    assert check(config).facts["data: val"]["frame spacing"] == "0.2 s"
    path = Path(config.cache.dir) / ("train.h5" if publish == "file" else "train.h5.parts")
    assert CachedDataset(path).frame_spacing == inspect_path(path)["frame_spacing"] == 0.2
    best = fit(config).best
    assert load_checkpoint(best).meta.frame_spacing == inspect_path(best)["frame_spacing"] == 0.2
    assert Stream(Predictor.load(best)).spacing == 0.2


def test_images_take_it_from_the_config_and_without_it_is_unknown(
    make_config: MakeConfig, features: Path, tmp_path: Path
) -> None:
    cache = {"dir": str(features)}
    said = fit(make_config(data={"frame_spacing": 0.5}, cache=cache, training={"epochs": 1})).best
    assert load_checkpoint(said).meta.frame_spacing == 0.5
    output = {"output_dir": str(tmp_path / "other")}
    silent = fit(make_config(cache=cache, training={"epochs": 1}, output=output)).best
    assert load_checkpoint(silent).meta.frame_spacing is None
    assert inspect_path(features / "train.h5")["frame_spacing"] is None


def test_it_is_the_median_and_only_of_videos(tmp_path: Path, manifests: Path) -> None:
    video = write_video(tmp_path / "uneven.mp4")
    assert ManifestDataset(windows_of(video, [0, 0.2, 0.4, 1.0])).frame_spacing == 0.2
    assert ManifestDataset(windows_of(video, [0])).frame_spacing is None
    assert ManifestDataset(manifests / "val.jsonl").frame_spacing is None


def test_the_config_and_the_data_must_agree(caplog: pytest.LogCaptureFixture) -> None:
    silent = DataConfig(train_split_path="t", val_split_path="v")
    said = silent.model_copy(update={"frame_spacing": 0.2})
    assert [split_spacing(silent, s, "train") for s in (None, 0.3)] == [None, 0.3]
    assert [split_spacing(said, s, "train") for s in (None, 0.21)] == [0.2, 0.2]
    with pytest.raises(ConfigError) as error:
        split_spacing(said, 0.3, "val")
    assert str(error.value) == "data.frame_spacing: 0.2 s, but the frames of val's windows are 0.3 s apart"
    with pytest.raises(DataError) as wrong:
        split_spacing(silent, "0.2", "train")
    assert str(wrong.value) == "train: frame_spacing: expected seconds > 0, found '0.2'"
    assert not config_differences({"data": {}}, {"data": {"frame_spacing": 0.2}})  # a run may learn of it on resume
    with caplog.at_level(logging.WARNING, "simv0"):
        warn_of_spacing(0.2, 0.22)
        assert caplog.messages == []
        warn_of_spacing(0.2, 0.5)
    assert caplog.messages == ["val's frames are 0.5 s apart, train's 0.2 s: val is not representative of train"]


def test_another_spacing_than_in_training_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "simv0"):
        assert [choose_spacing(*pair) for pair in ((None, 0.2), (0.22, 0.2), (1, None))] == [0.2, 0.22, 1.0]
        assert caplog.messages == []
        assert choose_spacing(0.1, 0.2) == 0.1
    assert caplog.messages == [
        "spacing: 0.1 s, but the frames of the training windows are 0.2 s apart: motion looks 0.5 times as fast as in "
        "training"
    ]
