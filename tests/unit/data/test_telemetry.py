"""Telemetry tables and folders of pictures: read as they are meant, or refused with the line and what to write."""

import logging
import math
from pathlib import Path

import pytest
from PIL import Image

from simv0.data.recordings.picture_names import in_time_order
from simv0.data.recordings.recording import open_recording
from simv0.data.recordings.telemetry import read_telemetry
from simv0.errors import ConfigError, DataError

HEAD = "t,ax,ay,az,gx,gy,gz,v,w\n"
ROW = "{t},0.5,0.1,9.81,0.01,0.02,0.03,1.25,0.03\n"
VALUES = [0.5, 0.1, 9.81, 0.01, 0.02, 0.03, 1.25, 0.03]


def read(tmp_path: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> list[tuple[float, list[float]]]:
    (tmp_path / name).write_bytes(text.encode(encoding))
    return read_telemetry(tmp_path / name)


def told(tmp_path: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> str:
    with pytest.raises(DataError) as error:
        read(tmp_path, text, name, encoding)
    return str(error.value).removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize("parted", [",", ";", "\t", ", "])
def test_a_table_is_read(tmp_path: Path, parted: str) -> None:
    text = "\ufeff" + (HEAD + "\n" + " , ,\n" + ROW.format(t=0) + ROW.format(t="2e-1")).replace(",", parted)
    assert read(tmp_path, text) == [(0.0, VALUES), (0.2, VALUES)]


def test_what_was_not_measured_is_nan(tmp_path: Path) -> None:
    ((_, values),) = read(tmp_path, HEAD + "0, ,NaN,1,2,3,4,5,6\n")
    assert [math.isnan(value) for value in values] == [True, True] + [False] * 6
    ((_, values),) = read(tmp_path, '{"t": 1, "telemetry": [null, NaN, 1, 2, 3, 4, 5, 6]}\n', "t.jsonl")
    assert [math.isnan(value) for value in values] == [True, True] + [False] * 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + ROW.format(t=0.5) * 3, "t.csv: t: all 3 readings have the time 0.5 s; give each its own time"),
        (
            HEAD + ROW.format(t="0.0") + "0,200,0,5,0,1,9,81,0,01,0,02,0,03,1,25,0,03\n",
            "t.csv:3: expected 9 fields, as in the header, found 18; write decimal points, not commas",
        ),
        (HEAD + "\n" + "0.1,1,2\n", "t.csv:3: expected 9 fields, as in the header, found 3"),
        (HEAD.replace(",", ";") + "0,2;0;0;0;0;0;0;0;0\n", "t.csv:2: t: expected seconds, found '0,2'; write 0.2"),
        (HEAD + '0.2,"0,5",0,0,0,0,0,0,0\n', "t.csv:2: ax: expected a number, found '0,5'; write 0.5"),
        (HEAD + "0.2,1_000,0,0,0,0,0,0,0\n", "t.csv:2: ax: expected a number, found '1_000'"),
        (HEAD + "0.2,1 000,0,0,0,0,0,0,0\n", "t.csv:2: ax: expected a number, found '1 000'"),
        (HEAD + "0.2,inf,0,0,0,0,0,0,0\n", "t.csv:2: ax: expected a number, found 'inf'"),
        (HEAD + "0.2,\u0661,0,0,0,0,0,0,0\n", "t.csv:2: ax: expected a number, found '\u0661'"),
        (HEAD + HEAD, "t.csv:2: t: expected seconds, found 't'"),
        (HEAD + ",0,0,0,0,0,0,0,0\n", "t.csv:2: t: expected seconds, found ''"),
        (HEAD.replace("gz", "gx"), "t.csv: the columns gz are missing; expected t,ax,ay,az,gx,gy,gz,v,w"),
        (HEAD.replace("w\n", "w,v\n"), "t.csv: the column v appears 2 times; keep one"),
        (
            HEAD + "".join(ROW.format(t=1.7e12 + 50 * i) for i in range(3)),
            "t.csv: t: readings are 50 apart (median); expected seconds: divide ms by 1e3, us by 1e6, ns by 1e9",
        ),
        (
            HEAD + ROW.format(t=0.2) + "\n" + ROW.format(t=0.1),
            "t.csv:4: t: 0.1 comes before 0.2; sort the rows by t",
        ),
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert told(tmp_path, text) == message


def test_json_is_taken_at_its_word(tmp_path: Path) -> None:
    row = '{"t": 0.1, "telemetry": [%s, 0, 0, 0, 0, 0, 0, 0]}\n'
    for value, found in (("true", "True"), ("Infinity", "inf"), ('"0,5"', "'0,5'; write 0.5"), ("[1]", "[1]")):
        assert told(tmp_path, row % value, "t.jsonl") == f"t.jsonl:1: ax: expected a number, found {found}"
    assert told(tmp_path, row.replace("0.1", "true") % 0, "t.jsonl") == "t.jsonl:1: t: expected seconds, found True"


def test_another_encoding_is_told(tmp_path: Path) -> None:
    assert told(tmp_path, HEAD, encoding="utf-16") == "t.csv: is not UTF-8 text (byte 0); save it as UTF-8"
    wanted = "t.csv: is not UTF-8 text (it looks like UTF-16); save it as UTF-8"
    assert told(tmp_path, HEAD, encoding="utf-16-le") == wanted
    assert told(tmp_path, '{"t": 1}', "t.jsonl", "utf-16-be") == wanted.replace("csv", "jsonl")


def test_readings_of_one_moment_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "simv0"):
        read(tmp_path, HEAD + "".join(ROW.format(t=t) for t in (0.0, 0.2, 0.2, 0.4)))
    assert caplog.messages == [
        f"{tmp_path}/t.csv: 1 of 4 readings have the same time as the one before (first: line 4); a frame uses "
        "the first of them"
    ]


@pytest.mark.parametrize(
    ("names", "times"),
    [
        (["1700000000.6020231", "1700000000.802282", "1700000001.0027933"], [0.6020231, 0.802282, 1.0027933]),
        (
            ["0.0", "5e-05", "0.1", "0.30000000000000004", "0.4", "10.2"],
            [0, 5e-05, 0.1, 0.30000000000000004, 0.4, 10.2],
        ),
        (["0", "0.25", "0.5", "1"], [0, 0.25, 0.5, 1]),  # as %g writes them
        (["-0.5", "-0.25", "0.0"], [-0.5, -0.25, 0]),
        (["cam_9.95_l", "cam_10.05_l", "cam_10.10_l"], [9.95, 10.05, 10.1]),
        (["cam-0.25", "cam-0.5"], [0.25, 0.5]),
        (["1,25", "1,5"], [1.25, 1.5]),
        (["cam1_0.25", "cam1_0.5"], [0.25, 0.5]),
        (["2024-05-01_-0.5_l", "2024-05-01_0_l", "2024-05-01_1e-05_l", "2024-05-01_0.25_l"], [-0.5, 0, 1e-05, 0.25]),
        (["2017.04.16.8", "2017.04.16.10"], None),
        (["frame2", "frame10", "frame10b"], None),
        (["a_2017_04_16_08_729", "a_2017_04_16_08_917", "a_2017_04_16_09_149"], None),
        (["run1_0.5", "run2_0.25"], None),  # of two recordings: by their names
        (["1.9", "1.10", "1.11"], None),  # chapters, not seconds
        (["0.5_left", "0.5_right"], None),
    ],
)
def test_pictures_stand_in_the_order_that_their_names_mean(names: list[str], times: list[float] | None) -> None:
    paths = [Path(f"{name}.PNG") for name in names]
    for given in (sorted(paths), paths[::-1]):
        ordered, found = in_time_order(given)
        assert ordered == paths
        assert (found is None) == (times is None)
        if found is not None and times is not None:
            assert [t - (1.7e9 if found[0] > 1e9 else 0) for t in found] == pytest.approx(times, abs=1e-6)


def folder_of(tmp_path: Path, names: list[str]) -> Path:
    (tmp_path / "cam").mkdir()
    for name in [*names, "._" + names[0]]:  # which macOS leaves
        Image.new("RGB", (4, 4)).save(tmp_path / "cam" / f"{name}.png", "PNG")
    return tmp_path / "cam"


def table(tmp_path: Path, times: list[float]) -> Path:
    (tmp_path / "t.csv").write_text(HEAD + "".join(f"{t!r},{i},0,0,0,0,0,0,0\n" for i, t in enumerate(times)))
    return tmp_path / "t.csv"


def test_pictures_named_by_their_time_take_the_reading_of_that_time(tmp_path: Path) -> None:
    cam = folder_of(tmp_path, ["0.2", "0.6000000000000001", "1.0"])
    readings = table(tmp_path, [0.1 * i for i in range(12)])  # more of them than pictures
    moments = [(moment.t, moment.telemetry[0]) for moment in open_recording(cam, readings)]
    assert moments == [(0.2, 2.0), (0.6000000000000001, 6.0), (1.0, 10.0)]


def test_names_that_tell_other_times_than_the_rows_are_refused(tmp_path: Path) -> None:
    now = 1.7e9
    cam = folder_of(tmp_path, [f"{now + t:.1f}" for t in (0, 0.2, 0.4)])
    with pytest.raises(DataError) as error:
        open_recording(cam, table(tmp_path, [now + 37 + t for t in (0, 0.2, 0.4)]))
    assert str(error.value) == (
        f"{cam}: picture 1 is from 1700000000 s by its name, but row 1 of {tmp_path}/t.csv is from 1700000037 s; give "
        "telemetry from the same clock, or --fps to ignore the names"
    )
    moments = list(open_recording(cam, table(tmp_path, [5.0, 5.2, 5.4])))  # since the start: no two clocks to compare
    assert [(moment.t, moment.telemetry[0]) for moment in moments] == [(5.0, 0.0), (5.2, 1.0), (5.4, 2.0)]
    with pytest.raises(DataError, match="picture 3 is from 1700000000.4 s by its name, but row 3 of .* is from 7.4 s"):
        open_recording(cam, table(tmp_path, [5.0, 5.2, 7.4]))


def test_milliseconds_beside_frames_are_told(tmp_path: Path) -> None:
    cam = folder_of(tmp_path, ["a1", "a2", "a3"])
    with pytest.raises(DataError) as error:
        open_recording(cam, table(tmp_path, [1.0 * i for i in range(400)]), fps=10.0)  # 1000 readings a second
    assert str(error.value) == (
        f"{tmp_path}/t.csv: t: readings are 1 apart (median); expected seconds: divide ms by 1e3, us by 1e6, ns by 1e9"
    )
    assert len(list(open_recording(cam, table(tmp_path, [0.0, 1.0]), fps=10.0))) == 3  # a GPS, once a second


def test_two_pictures_of_one_time_are_refused() -> None:
    """Their recording would else stand in the order of the digits: 0.5 before 0.25."""
    with pytest.raises(DataError, match=r"^d/0\.5\.png: has the same time as 0\.5\.jpg; keep one of them$"):
        in_time_order([Path("d/0.5.png"), Path("d/0.25.png"), Path("d/0.5.jpg")])


def test_pictures_begun_before_the_telemetry_keep_their_times(tmp_path: Path) -> None:
    cam = folder_of(tmp_path, ["3.0", "3.5", "4.25"])
    moments = list(open_recording(cam, table(tmp_path, [4.0, 4.2])))
    assert [moment.t for moment in moments] == [3.0, 3.5, 4.25]
    assert [math.isnan(moment.telemetry[0]) for moment in moments] == [True, False, False]
    readings = table(tmp_path, [41.0, 42.0])
    with pytest.raises(ConfigError) as error:
        open_recording(cam, readings)
    assert str(error.value) == (
        f"{cam}: 3 images, but {readings} has 2 rows, none of them near the times in the images' names (3 to 4.25 s); "
        "give --fps"
    )


def test_a_shift_between_two_clocks_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cam = folder_of(tmp_path, ["0.0", "0.2", "0.4"])
    readings = table(tmp_path, [37.0, 37.2, 37.4])
    assert [moment.t for moment in open_recording(cam, readings)] == [37.0, 37.2, 37.4]
    assert caplog.messages == [
        f"{readings}: its times are 37 s after those in the names of {cam}; they are taken for two clocks, and "
        "paired row by row"
    ]
    with pytest.raises(DataError, match=r"picture 3 is from 0.4 s by its name, but row 3 of .* is from 37.8 s"):
        open_recording(cam, table(tmp_path, [37.0, 37.2, 37.8]))  # a row was lost: two frames off


def test_a_clip_out_of_a_long_log_of_a_gps_is_read(tmp_path: Path) -> None:
    now = 1_700_000_000
    cam = folder_of(tmp_path, [f"{now + 600 + t:.1f}" for t in (0, 0.5, 1)])
    moments = list(open_recording(cam, table(tmp_path, [float(now + t) for t in range(3600)])))
    assert [moment.telemetry[0] for moment in moments] == [600, 600, 601]
