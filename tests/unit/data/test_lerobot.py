"""LeRobot v3 datasets, written by lerobot itself (`tests/support/write_lerobot.py`): the same frames, checked rows."""

import hashlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_world import FIXTURES, FRONT, LENGTHS, TELEMETRY, copy, edit_info, pa, pq, windows, write_labels
from small_world import MakeConfig
from torch.utils.data import ConcatDataset

from cache.pipeline import cache_vis
from simv0.data.contract import check_sample
from simv0.data.labels import find_leakage, read_labels
from simv0.data.wrapped import unwrapped
from simv0.errors import ConfigError, DataError, SimError


def digest(frame: torch.Tensor) -> str:
    assert frame.dtype == torch.uint8
    return hashlib.sha256(frame.contiguous().numpy()).hexdigest()[:16]


@pytest.mark.parametrize("name", ["h264", "av1", "hevc", "images"])
def test_frames_are_those_of_lerobot_to_the_last_bit_in_any_order(name: str) -> None:
    dataset = windows(FIXTURES / name, delta=[0.0])
    expected = json.loads((FIXTURES / f"{name}.json").read_text())
    forwards = [digest(dataset.load_frame(dataset.frame_ids(i)[0])) for i in range(len(dataset))]
    order = np.random.default_rng(0).permutation(len(dataset))
    at_random = {i: digest(dataset[i]["frames"][0]) for i in order.tolist()}
    assert forwards == expected["torchcodec"]
    assert [at_random[i] for i in range(len(dataset))] == expected["torchcodec"]
    assert all(ours == theirs for ours, theirs in zip(forwards, expected["pyav"], strict=True) if theirs is not None)
    assert len(set(forwards)) == len(forwards)


def test_a_window_holds_what_its_rows_hold() -> None:
    dataset = windows(hop=5)
    per_episode = [len(range(6, length, 5)) for length in LENGTHS]
    assert len(dataset) == sum(per_episode)
    index = per_episode[0] + 3  # of episode 1, frame 6 + 3 * 5
    sample = check_sample(dataset[index], "train", index, F=3)
    assert sample["group"] == "h264/episode-000001"
    assert sample["sample_id"] == "h264/000001-000021"
    assert sample["t"] == pytest.approx(21 / 30)
    assert sample["telemetry"].tolist() == [21 / 8, 0, 9.75, 0, 0, 0, 1 + 21 / 16, -1]
    assert (sample["risk_id"], sample["reason_id"], sample["action_id"]) == (2, 2, 0)  # (1 + 21 // 4) % 4, 4, 6
    assert dataset.frame_ids(index) == [(str(FIXTURES / "h264"), 1, frame) for frame in (15, 18, 21)]
    expected = json.loads((FIXTURES / "h264.json").read_text())["pyav"]
    assert [digest(frame) for frame in sample["frames"]] == [expected[24 + frame] for frame in (15, 18, 21)]
    assert dataset.frame_spacing == 0.1
    assert dataset.where_is(index) == f"{FIXTURES / 'h264'}, episode 1, frame 21"


def test_each_frame_is_decoded_once_forwards() -> None:
    dataset = windows(FIXTURES / "av1", delta=[-0.4, -0.2, 0.0])
    for frame_id in dict.fromkeys(frame_id for i in range(len(dataset)) for frame_id in dataset.frame_ids(i)):
        dataset.load_frame(frame_id)
    (video,) = {episode.video for episode in dataset.episodes.values()}
    assert video is not None
    assert dataset._videos[video].decoded == sum([21, 16, 19])


@pytest.mark.parametrize(("name", "of_an_odd_frame"), [("h264", 2), ("av1", 2), ("hevc", 3)])
def test_at_random_nothing_is_decoded_but_what_frames_refer_to(name: str, of_an_odd_frame: int) -> None:
    """Every second frame of an episode is a key frame, and HEVC's others refer to both of their neighbours."""
    dataset = windows(FIXTURES / name, delta=[-0.4, -0.2, 0.0] if name != "hevc" else [-0.16, -0.08, 0.0])
    for i in np.random.default_rng(0).permutation(len(dataset)).tolist():
        number, frame = dataset.windows[i]
        video = dataset._videos[dataset.episodes[number].video or Path()]
        before = video.decoded
        dataset[i]
        assert video.decoded - before <= 3 * (of_an_odd_frame if frame % 2 else 1)


def test_features_of_a_split_of_episodes(make_config: MakeConfig) -> None:
    config = make_config(
        data={
            "dataset_class_path": "simv0.datasets.LeRobotWindows",
            "dataset_kwargs": {"delta": [-0.3, -0.2, -0.1, 0.0], "telemetry": dict(TELEMETRY), "hop": 3},
            "train_split_path": f"{FIXTURES / 'h264'}#0:3",
            "val_split_path": f"{FIXTURES / 'h264'}#3",
            "num_workers": 1,
        }
    )
    reports = cache_vis(config)
    expected = [sum(len(range(9, length, 3)) for length in lengths) for lengths in (LENGTHS[:3], LENGTHS[3:])]
    assert [report.windows for report in reports] == expected
    assert reports[0].counts.encoded < reports[0].counts.frames
    assert [str(report.outcome) for report in cache_vis(config)] == ["skipped", "skipped"]


def test_splits_are_apart_and_a_dataset_can_be_sent_to_a_worker() -> None:
    train, val = windows(f"{FIXTURES / 'h264'}#0:2"), windows(f"{FIXTURES / 'h264'}#2:")
    groups = [read_labels(dataset, "train", 3).group for dataset in (train, val)]
    assert find_leakage(train, val, *groups) == []
    assert len(find_leakage(train, windows(f"{FIXTURES / 'h264'}#1:3"), groups[0], groups[0])) == 2
    train[0]
    assert torch.equal(pickle.loads(pickle.dumps(train))[3]["frames"], train[3]["frames"])


def test_two_datasets_in_one_concat_dataset(tmp_path: Path) -> None:
    second = windows(copy(tmp_path).rename(tmp_path / "second"))
    labels = read_labels(unwrapped(ConcatDataset([windows(), second])), "train", 3)
    assert (labels.sample_id[0], labels.sample_id[len(second)]) == ("h264/000000-000006", "second/000000-000006")
    assert labels.group is not None
    assert len(set(labels.group)) == 2 * len(LENGTHS)
    of_one_name = unwrapped(ConcatDataset([windows(), windows(copy(tmp_path))]))
    with pytest.raises(
        DataError, match=r"h264, episode 0, frame 6: sample_id 'h264/000000-000006' already appears at "
    ):
        read_labels(of_one_name, "train", 3)


@pytest.mark.parametrize(
    ("root", "episodes", "expected"),
    [
        ("", None, [0, 1, 2, 3]),
        ("#train", None, [0, 1, 2, 3]),
        ("#1", None, [1]),
        ("#2:", None, [2, 3]),
        ("#:1, 3", None, [0, 3]),
        ("", [2, 0], [0, 2]),
        ("", "0:2", [0, 1]),
    ],
)
def test_episodes_are_chosen(root: str, episodes: Any, expected: list[int]) -> None:
    assert list(windows(f"{FIXTURES / 'h264'}{root}", episodes=episodes).episodes) == expected


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ("val", "episodes: expected numbers such as 0:40,45 or a split of meta/info.json (train), found 'val'"),
        ("1:1", "episodes: expected numbers such as 0:40,45 or a split of meta/info.json (train), found '1:1'"),
        ([], "episodes: expected a list of numbers, found []"),
        ([True], "episodes: expected a list of numbers, found [True]"),
        ([1, 7], f"episodes: {FIXTURES / 'h264'} has no episode 7: it has 4, 0 to 3"),
        ("0:900000000", f"episodes: {FIXTURES / 'h264'} has no episode 4: it has 4, 0 to 3"),
    ],
)
def test_episodes_that_are_not_there(episodes: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        windows(episodes=episodes)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delta": [-0.1, -0.2, 0]}, "delta: expected seconds up to the last frame, such as [-0.4, -0.2, 0.0], found"),
        ({"delta": [-0.2, -0.1]}, "delta: expected seconds up to the last frame, such as [-0.4, -0.2, 0.0], found"),
        ({"delta": 3}, "delta: expected seconds up to the last frame, such as [-0.4, -0.2, 0.0], found 3"),
        (
            {"delta": [-0.25, 0.0]},
            "delta: -0.25 s is between two frames, which are 1/30 s apart; the nearest is -0.2667",
        ),
        ({"camera": "rear"}, "camera: expected one of the dataset's, found 'rear', the dataset has observation.images"),
        ({"hop": 0}, "hop: expected a number of frames > 0, found 0"),
        (
            {"telemetry": {"wheels.x": "v"}},
            "telemetry: expected the name of one number in observation.state, found 'wheels.x'; it holds imu.ax, imu.",
        ),
        (
            {"telemetry": {"wheels.v": "speed"}},
            "telemetry: expected names -> different channels (ax, ay, az, gx, gy, gz, v, w), found {'wheels.v': ",
        ),
        ({"telemetry": {"imu.ax": "v", "imu.ay": "v"}}, "telemetry: expected names -> different channels"),
        (
            {"labels": {"risk": "risk_id"}},
            "labels: expected keys among risk_id, reason_id, action_id, weight, found 'risk'",
        ),
        ({"labels": {"risk_id": "next.risk"}}, "labels: risk_id: expected a column (observation.images.front, "),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        windows(**arguments)
    assert str(error.value).startswith(message)


def test_numbers_of_other_features_and_nameless_ones(tmp_path: Path) -> None:
    root = copy(tmp_path)
    edit_info(root, lambda info: info["features"]["observation.state"].update(names=None))
    sample = windows(root, telemetry={"3": "v", "risk_id/0": "gx"}).labels_of(0)
    assert sample["telemetry"].tolist() == [0, 0, 0, 1, 0, 0, 6 / 16, 0]  # frame 6 of episode 0


def test_windows_end_at_the_frames_that_a_table_labels(tmp_path: Path) -> None:
    root = copy(tmp_path, "av1")
    labelled = [(2, 9), (0, 1), (0, 5), (0, 6), (0, 20), (2, 3), (2, 18)]
    write_labels(root / "labels.parquet", labelled, weight=[1, 1, 1, 1, 1, 2, 1])
    dataset = windows(root, hop=2)  # a window takes 3 frames
    assert dataset.windows == [(0, 5), (0, 20), (2, 3), (2, 9), (2, 18)]
    assert [dataset.labels_of(i)["risk_id"] for i in range(5)] == [labelled.index(end) % 4 for end in dataset.windows]
    assert read_labels(dataset, "train", 3).weight.tolist() == [1, 1, 2, 1, 1]
    write_labels(tmp_path / "mine.parquet", [(0, 20)])
    assert windows(root, labels=str(tmp_path / "mine.parquet")).windows == [(0, 20)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 3), (1, 16)], "row 1: labels frame 16 of episode 1, which has 16 frames"),
        ([(0, 3), (7, 1)], "row 1: labels frame 1 of episode 7, which the dataset does not have"),
        ([(0, 3), (0, 3)], "row 1: labels frame 3 of episode 0 again"),
    ],
)
def test_labels_of_frames_that_are_not_there(tmp_path: Path, rows: list[tuple[int, int]], message: str) -> None:
    path = write_labels(tmp_path / "labels.parquet", rows)
    with pytest.raises(DataError) as error:
        windows(FIXTURES / "av1", labels=str(path))
    assert str(error.value) == f"{path}: {message}"


def test_labels_that_are_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line, however many windows lack them, and one that says where labels are looked for."""
    dataset = windows(FIXTURES / "av1")
    assert caplog.messages == [
        f"{FIXTURES / 'av1'}: nothing gives risk_id, reason_id, action_id: enough to predict, not to train; write a "
        "labels.parquet, or name columns as data.dataset_kwargs.labels"
    ]
    with pytest.raises(DataError) as error:
        read_labels(dataset, "train", 3)
    assert str(error.value) == (
        f"{FIXTURES / 'av1'}, episode 0, frame 2: risk_id is missing; found the keys sample_id, group, t, telemetry "
        f"(and {len(dataset) - 1} more like it)"
    )
    pq.write_table(pa.table({"episode_index": [0], "frame_index": [3], "risk": [1]}), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match=r"labels.parquet: has no column risk_id, reason_id, action_id; found episode_"):
        windows(FIXTURES / "av1", labels=str(tmp_path / "labels.parquet"))
    with pytest.raises(DataError, match=r"none.parquet: file not found$"):
        windows(FIXTURES / "av1", labels="none.parquet")


def test_a_label_is_one_number_a_frame() -> None:
    """The first number of a vector would be read as the label."""
    with pytest.raises(DataError) as error:
        windows(labels={"risk_id": "observation.state"})
    assert str(error.value) == (
        f"{FIXTURES / 'h264'}: episode 0: observation.state: holds 6 numbers a frame, but risk_id is one; name a "
        "column of one number, or write the labels to labels.parquet"
    )


def test_no_window_says_why() -> None:
    with pytest.raises(DataError) as error:
        windows(delta=[-3.0, 0.0])
    assert (
        str(error.value)
        == f"{FIXTURES / 'h264'}: holds no window: its longest episode has 31 frames, a window takes 91"
    )


def test_without_pyarrow_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SimError) as error:
        windows()
    assert str(error.value) == "reading a LeRobot dataset needs pyarrow: pip install 'simv0[lerobot]'"


def test_the_digest_changes_with_pictures_and_places(tmp_path: Path) -> None:
    root = copy(tmp_path)
    before = windows(root).content_digest()
    assert before == windows().content_digest()
    assert before != windows(f"{root}#0:3").content_digest()
    path = root / FRONT / "chunk-001/file-000.mp4"
    path.write_bytes(path.read_bytes() + b"\0")
    assert before != windows(root).content_digest()
