"""A manifest divided into files: who is where, which names the frames have, what is refused, what is told."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from simv0.data.division.split_manifest import Division, split_manifest
from simv0.data.jsonl import read_jsonl
from simv0.data.labels import find_leakage
from simv0.data.manifest import ManifestDataset
from simv0.errors import ConfigError, DataError, SimError


def row(group: Any, i: int, risk: int = 0, **extra: Any) -> dict[str, Any]:
    return {
        **({} if group is None else {"group": group}),
        "sample_id": f"{group}-{i}",
        "frames": ["a.png"],
        "telemetry": [0.5] * 8,
        "risk_id": risk,
        "reason_id": 3,
        "action_id": 0,
        **extra,
    }


def write(folder: Path, rows: list[dict[str, Any]], name: str = "all.jsonl") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def ten(folder: Path) -> Path:
    """Ten recordings of ten windows, each with two risks."""
    return write(folder, [row(f"run{g}", i, i % 2) for g in range(10) for i in range(10)])


def rows_of(division: Division) -> list[list[dict[str, Any]]]:
    return [read_jsonl(part.path) for part in division.parts]


def test_every_row_is_in_one_part_and_no_recording_in_two(tmp_path: Path) -> None:
    manifest = ten(tmp_path)
    division = split_manifest(manifest, val=0.2, calibration=0.1)
    assert [part.path.name for part in division.parts] == ["all_train.jsonl", "all_val.jsonl", "all_calibration.jsonl"]
    parts = rows_of(division)
    assert [len(rows) for rows in parts] == [70, 20, 10] == [part.windows for part in division.parts]
    before = read_jsonl(manifest)
    assert sorted((row for rows in parts for row in rows), key=before.index) == before
    for rows, part in zip(parts, division.parts, strict=True):
        assert rows == sorted(rows, key=before.index)
        assert sorted({row["group"] for row in rows}) == part.recordings
        assert part.classes["risk", "low"] == part.windows / 2
    assert len({name for part in division.parts for name in part.recordings}) == 10
    assert division.link is None
    assert division.problems == [
        f"calibration: one recording only ({division.parts[2].recordings[0]!r}): how recordings differ cannot be told "
        "from it; another --seed or share may give it more"
    ]


def test_the_division_depends_on_the_seed_and_not_on_the_order_of_rows(tmp_path: Path) -> None:
    def val(seed: int, *, shuffled: bool = False) -> list[str]:
        rows = read_jsonl(ten(tmp_path))
        if shuffled:
            random.Random(1).shuffle(rows)
        return split_manifest(write(tmp_path, rows), seed=seed, overwrite=True).parts[1].recordings

    assert val(0) == val(0) == val(0, shuffled=True)
    assert len({tuple(val(seed)) for seed in range(6)}) > 1


def test_nothing_is_overwritten_unasked_and_no_old_part_stays(tmp_path: Path) -> None:
    """An old calibration part would share recordings with the new train."""
    manifest = ten(tmp_path)
    split_manifest(manifest, calibration=0.1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError) as error:
        split_manifest(manifest, seed=1)
    assert str(error.value) == (
        f"{tmp_path}/all_train.jsonl, {tmp_path}/all_val.jsonl, {tmp_path}/all_calibration.jsonl: there already; "
        "--overwrite removes the earlier division, or choose another --out"
    )
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    split_manifest(manifest, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.jsonl", "all_train.jsonl", "all_val.jsonl"]


def test_a_refused_manifest_leaves_the_earlier_division(tmp_path: Path) -> None:
    manifest = ten(tmp_path)
    split_manifest(manifest)
    write(tmp_path, [row("one", 0)])
    with pytest.raises(DataError):
        split_manifest(manifest, overwrite=True)
    assert len(read_jsonl(tmp_path / "all_train.jsonl")) == 80


def test_a_manifest_is_never_replaced_by_its_own_part(tmp_path: Path) -> None:
    manifest = ten(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "all_val.jsonl").symlink_to(manifest)
    with pytest.raises(ConfigError, match="would be replaced by a part of itself; choose another --out"):
        split_manifest(manifest, out=tmp_path / "out", overwrite=True)
    assert len(read_jsonl(manifest)) == 100


@pytest.mark.parametrize(
    ("place", "linked"), [("data/parts", True), ("elsewhere/deep", True), (".", False), ("data", False)]
)
def test_frames_are_found_wherever_the_parts_are_written(
    place: str, linked: bool, manifests: Path, tmp_path: Path
) -> None:
    """Also by names that are absolute, or that climb within the manifest's folder."""
    shutil.copytree(manifests, tmp_path / "data")
    rows = [{**row, "group": f"run{i // 10}"} for i, row in enumerate(read_jsonl(tmp_path / "data/train.jsonl"))]
    rows[0]["frames"] = [f"{tmp_path}/data/{name}" for name in rows[0]["frames"]]
    rows[1]["frames"] = [f"train_images/../{name}" for name in rows[1]["frames"]]
    manifest = write(tmp_path / "data", rows, "train.jsonl")
    division = split_manifest(manifest, val=0.4, out=tmp_path / place)
    assert division.link == (tmp_path / place / "data" if linked else None)
    whole = ManifestDataset(manifest)
    expected = {whole[i]["sample_id"]: whole[i]["frames"] for i in range(len(whole))}
    parts = [ManifestDataset(part.path, follow_links=linked) for part in division.parts]
    for sample in (part[i] for part in parts for i in range(len(part))):
        assert torch.equal(sample["frames"], expected.pop(sample["sample_id"]))
    assert expected == {}
    groups = [[row["group"] for row in part.rows] for part in parts]
    shared = find_leakage(*parts, *groups)
    assert all(" group" not in line for line in shared)


def test_a_video_is_named_from_where_the_parts_are(tmp_path: Path) -> None:
    video = {"frames": None, "video": "runs/1.mp4", "timestamps": [0.0, 0.2]}
    manifest = write(tmp_path / "data", [row(name, 0, **video) for name in "ab"])
    for out, name in (("parts", "data/runs/1.mp4"), (".", "data/runs/1.mp4"), ("data", "runs/1.mp4")):
        for rows in rows_of(split_manifest(manifest, out=tmp_path / out)):
            assert [(row["video"], row["timestamps"], row["frames"]) for row in rows] == [(name, [0.0, 0.2], None)]


def test_what_is_in_the_way_of_the_link_is_kept(tmp_path: Path) -> None:
    manifest = ten(tmp_path / "data")
    (tmp_path / "out" / "data").mkdir(parents=True)
    with pytest.raises(ConfigError) as error:
        split_manifest(manifest, out=tmp_path / "out")
    assert str(error.value) == (
        f"{tmp_path}/out/data: is in the way of a link to {tmp_path}/data, where the frames lie; choose another --out"
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], ": the manifest is empty"),
        (
            [row(None, 0), row(None, 1)],
            ": no row has 'group', so nothing says which windows are of one recording, and rows cannot be divided "
            "without it; write the recording's name in 'group', or name another key with --by; found the keys "
            "sample_id, frames, telemetry, risk_id, reason_id, action_id",
        ),
        (
            [row("a", 0), row(None, 1), row("b", 2), row(None, 3)],
            ":2: group is missing, as in 2 of 4 rows; they may be of any recording and cannot be divided: set it on "
            "all rows, or remove those",
        ),
        ([row("a", 0), row(["b"], 1)], ":2: group: expected a recording's name, found ['b']"),
        (
            [row("a", 0), row("a", 1)],
            ": group: one recording only ('a'), for 2 parts; windows of one recording in two parts would be leakage: "
            "record more, or give stretches of a long recording that lie apart in time names of their own in 'group'",
        ),
        (
            [row("a", 0), row("b", 1, risk=7)],
            ":2: risk_id: expected 0..3 (none, low, med, high), found 7",
        ),
        (
            [row("a", 0), row("b", 1, reason_id=None), row("b", 2, reason_id=None)],
            ":2: reason_id: expected 0..3 (human, obstacle, tight_space, unknown), found None (and 1 more like it)",
        ),
    ],
)
def test_what_cannot_be_divided(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    manifest = write(tmp_path, rows)
    with pytest.raises(DataError) as error:
        split_manifest(manifest)
    assert str(error.value) == f"{manifest}{message}"
    assert [path.name for path in tmp_path.iterdir()] == ["all.jsonl"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"val": 20.0}, "--val: expected a share above 0 and below 1, such as 0.2, found 20"),
        ({"val": float("nan")}, "--val: expected a share above 0 and below 1, such as 0.2, found nan"),
        ({"calibration": 0.0}, "--calibration: expected a share above 0 and below 1, such as 0.2, found 0"),
        (
            {"val": 0.7, "calibration": 0.3},
            "--val 0.7 and --calibration 0.3 leave nothing for train; lower them",
        ),
    ],
)
def test_shares_that_cannot_be(asked: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        split_manifest(ten(tmp_path), **asked)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_what_could_not_be_done_is_told(tmp_path: Path) -> None:
    rows = [row("a", i, i % 2) for i in range(80)] + [row("b", i) for i in range(10)] + [row("c", i) for i in range(10)]
    division = split_manifest(write(tmp_path, rows), val=0.3)
    assert [part.recordings for part in division.parts] == [["a"], ["b", "c"]]
    assert division.problems == [
        "risk low: none in val: only one recording has it ('a')",
        "shares of the windows that differ from those asked for: train 80.0% for 70.0%, val 20.0% for 30.0%; there are "
        "3 recordings, and the longest ('a') has 80.0%",
    ]


def test_classes_that_exclude_each_other_are_told(tmp_path: Path) -> None:
    """Three recordings, three risks, each in two of them: one part holds a single recording, which lacks one."""
    rows = [
        row(group, i, risk)
        for group, risks in zip("abc", ([0, 1], [1, 2], [2, 0]), strict=True)
        for risk in risks
        for i in range(5)
    ]
    problems = split_manifest(write(tmp_path, rows), val=0.33).problems
    assert len(problems) == 2
    assert problems[0].endswith("2 recordings have it, but no division was found that has every class everywhere")
    assert problems[1].endswith(
        ": how recordings differ cannot be told from it; another --seed or share may give it more"
    )


def test_another_key_and_the_recordings_that_it_tears(tmp_path: Path) -> None:
    rows = [row(f"run{day}", i, day=day + (i > 7)) for day in range(4) for i in range(10)]
    division = split_manifest(write(tmp_path, rows), by="day", val=0.4)
    for part, found in zip(division.parts, rows_of(division), strict=True):
        assert sorted({str(row["day"]) for row in found}) == part.recordings
    assert division.problems[-1].endswith("divided by day: LEAKAGE")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ten(tmp_path / "data")
    done = CliRunner().invoke(app, ["split", "data/all.jsonl", "--val", "0.33", "--out", "parts"])
    assert done.exit_code == 0
    for text in ("share (asked)", "70.0% (67.0%)", "risk low", "parts/all_train.jsonl", "follow_links: true"):
        assert text in done.stdout
    assert done.stderr.startswith("warning: shares of the windows that differ from those asked for: train 70.0% for")
    again = CliRunner().invoke(app, ["split", "data/all.jsonl", "--out", "parts"])
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    gone = CliRunner().invoke(app, ["split", "data/none.jsonl"])
    assert (gone.exit_code, gone.stderr) == (1, "error: data/none.jsonl: manifest not found\n")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SimError) as error:
        split_manifest(ten(tmp_path / "data"), out=tmp_path / "file")
    assert str(error.value) == f"{tmp_path}/file: cannot be written: File exists; choose another --out"
