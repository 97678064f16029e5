"""LeRobot datasets that contradict themselves are refused before anything is decoded: the episode and the reason."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot_world import FIXTURES, FRONT, copy, edit_info, edit_table, pa, pq, windows

from simv0.errors import DataError

EPISODES, DATA = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"
VIDEO = f"{FRONT}/chunk-000/file-001.mp4"  # of episodes 1 and 2
FPS = "at 30 frames per second"

Edits = dict[str, dict[tuple[str, int], Any]]
"""File -> (column, row) -> value; in info.json the row is 0."""

DAMAGE: list[tuple[Edits, str]] = [
    # lengths, lerobot #4143
    ({EPISODES: {("length", 1): 0}}, "episode 1: its length is 0, from row 24 on; expected at least one frame"),
    (
        {EPISODES: {("length", 1): 30}},
        "episode 1: its length is 30, but dataset_from_index 24 to dataset_to_index 55 are 31 rows",
    ),
    (
        {"meta/info.json": {("total_frames", 0): 90}},
        "meta/episodes: its episodes are 100 frames long, but meta/info.json says 90",
    ),
    ({"meta/info.json": {("total_episodes", 0): 5}}, "meta/episodes: holds 4 episodes, but meta/info.json says 5"),
    # rows of another episode
    (
        {EPISODES: {("dataset_from_index", 2): 38, ("dataset_to_index", 2): 55}},
        "episode 2: its rows 38 to 54 overlap those of episode 1, 24 to 54",
    ),
    ({DATA: {("episode_index", 54): 0}}, f"episode 1: 1 of its rows, 24 to 54, are of episode 0 in {DATA}"),
    ({EPISODES: {("data/file_index", 3): 0}}, f"episode 3: {DATA} holds 0 rows of it; expected 28, its length"),
    (
        {DATA: {("index", 30): 99}},
        f"episode 1: its rows in {DATA} have the index 24 to 54; expected 24 to 54, in order and together",
    ),
    ({DATA: {("frame_index", 30): 99}}, f"episode 1: its rows in {DATA} do not count frame_index from 0 to 30"),
    # times
    ({DATA: {("timestamp", 29): 0.5}}, f"episode 1: frame 5 has the timestamp 0.5000 s; expected 0.1667 s {FPS}"),
    ({DATA: {("timestamp", 29): np.nan}}, f"episode 1: frame 5 has the timestamp nan s; expected 0.1667 s {FPS}"),
    # videos
    ({VIDEO: {}}, f"episode 1: video not found: {VIDEO}"),
    (
        {EPISODES: {(f"{FRONT}/from_timestamp", 2): 0.5}},
        f"episode 2: its 17 frames last 0.567 s {FPS}, but from_timestamp 0.500 to to_timestamp 1.600 are 1.100 s",
    ),
    (
        {EPISODES: {(f"{FRONT}/from_timestamp", 2): 0.5, (f"{FRONT}/to_timestamp", 2): 0.5 + 17 / 30}},
        f"episode 2: begins at 0.500 s of {VIDEO}, within episode 1, which ends there at 1.033 s",
    ),
    (
        {EPISODES: {(f"{FRONT}/from_timestamp", 2): 2.0, (f"{FRONT}/to_timestamp", 2): 2.0 + 17 / 30}},
        f"episode 2: lies at 2.000 to 2.567 s of {VIDEO}, which ends at 1.600 s",
    ),
    (
        {EPISODES: {(f"{FRONT}/file_index", 3): None}},
        f"episode 3: meta/episodes has no {FRONT}/file_index for it (was its recording finished?)",
    ),
]


@pytest.mark.parametrize(("edits", "message"), DAMAGE, ids=[message for _, message in DAMAGE])
def test_a_damaged_dataset_is_refused_by_episode_and_reason(tmp_path: Path, edits: Edits, message: str) -> None:
    root = copy(tmp_path)
    for name, values in edits.items():
        if name.endswith(".mp4"):
            (root / name).unlink()
        for (column, row), value in values.items():
            if name.endswith(".json"):
                edit_info(root, lambda info, column=column, value=value: info.update({column: value}))
            else:
                edit_table(root / name, column, row, value)
    with pytest.raises(DataError) as error:
        windows(root)
    said = [line.removeprefix(str(root)).lstrip(":/ ") for line in str(error.value).splitlines()]
    assert message in said
    assert len(said) <= 2


def test_a_video_of_another_rate(tmp_path: Path) -> None:
    root = copy(tmp_path)
    shutil.copy(FIXTURES / "hevc" / FRONT / "chunk-000/file-000.mp4", root / VIDEO)
    with pytest.raises(DataError) as error:
        windows(root)
    assert str(error.value) == f"{root}: episode 1: {VIDEO} has 25 frames per second, but meta/info.json says 30"


def test_what_a_killed_recorder_leaves(tmp_path: Path) -> None:
    for number, (name, message) in enumerate(
        [
            (f"{FRONT}/chunk-000/file-000.mp4", "episode 0: {root}/{name}: cannot be read as a video: "),
            ("data/chunk-000/file-001.parquet", "episode 3: {root}/{name}: cannot be read: "),
        ]
    ):
        root = copy(tmp_path / str(number))
        (root / name).write_bytes((root / name).read_bytes()[:-1500])
        with pytest.raises(DataError) as error:
            windows(root)
        assert str(error.value).startswith(f"{root}: " + message.format(root=root, name=name))
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"file-000.parquet: cannot be read: .*\(was its recording finished\?\)$"):
        windows(root)


def test_damage_elsewhere_does_not_matter(tmp_path: Path) -> None:
    root = copy(tmp_path)
    (root / FRONT / "chunk-001/file-000.mp4").unlink()
    assert len(windows(f"{root}#0:3")) > 0
    with pytest.raises(DataError, match=r"episode 3: video not found"):
        windows(root)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda info: info.update(codebase_version="v2.1"),
            "is of version v2.1; expected v3: convert it with lerobot's",
        ),
        (lambda info: info.pop("fps"), "cannot be read: 'fps' is missing"),
        (lambda info: info.update(fps=0), "fps: expected frames per second > 0, found 0"),
    ],
)
def test_info_that_cannot_be_read(tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    root = copy(tmp_path)
    edit_info(root, edit)
    with pytest.raises(DataError) as error:
        windows(root)
    assert str(error.value).startswith(f"{root}/meta/info.json: {message}")


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: is no LeRobot dataset: meta/info.json not found$"):
        windows(tmp_path / "none#0:3")


def test_a_dataset_that_was_only_begun(tmp_path: Path) -> None:
    root = copy(tmp_path)
    shutil.rmtree(root / "meta/episodes")
    edit_info(root, lambda info: info.update(total_episodes=0, total_frames=0, splits={}))
    for chosen in (root, f"{root}#0:3"):
        with pytest.raises(DataError) as error:
            windows(chosen)
        assert str(error.value) == f"{root}: holds no episodes yet"


def test_rows_of_another_width_than_the_info_says(tmp_path: Path) -> None:
    root = copy(tmp_path)
    names = ["imu.ax", "imu.ay", "imu.az", "imu.gz", "wheels.v", "wheels.w", "battery"]
    edit_info(root, lambda info: info["features"]["observation.state"].update(shape=[7], names=names))
    with pytest.raises(DataError) as error:
        windows(root)
    said = "observation.state: its rows hold 6 numbers, but meta/info.json says 7"
    assert str(error.value) == f"{root}: episode 0: {said}"


def test_rows_of_different_widths(tmp_path: Path) -> None:
    root = copy(tmp_path)
    table = pq.read_table(root / DATA)
    values = table["observation.state"].to_pylist()
    values[0], values[1] = values[0][:5], [*values[1], 0.0]  # as many numbers as before
    at = table.column_names.index("observation.state")
    pq.write_table(table.set_column(at, "observation.state", pa.array(values, pa.list_(pa.float32()))), root / DATA)
    with pytest.raises(DataError) as error:
        windows(root)
    assert str(error.value) == f"{root}: episode 0: observation.state: its rows hold different numbers of values"
