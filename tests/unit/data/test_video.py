"""Video: the right frame for a time, each decoded once, in a manifest like images; recordings and their telemetry."""

import math
import pickle
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from small_world import MakeConfig
from videos import grey, write_csv, write_rows, write_video

from cache.pipeline import cache_vis
from simv0.data.manifest import ManifestDataset
from simv0.data.recordings.recording import open_recording, read_telemetry
from simv0.data.recordings.video import VideoReader, VideoWriter
from simv0.errors import ConfigError, DataError
from simv0.features.dataset import CachedDataset


def number(frame: torch.Tensor) -> int:
    """Which frame of `write_video` this is."""
    return round((float(frame.float().mean()) - 20) / 5)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "run1.mp4")


def test_a_written_video_reads_back_frame_by_frame(video: Path) -> None:
    read = list(VideoReader(video))
    assert [number(frame) for _, frame in read] == list(range(40))
    assert [t for t, _ in read] == pytest.approx([i / 20 for i in range(40)], abs=1e-4)
    assert read[0][1].shape == (3, 32, 48)
    assert not list(video.parent.glob("*.tmp"))


def test_the_nearest_frame_in_any_order_and_forwards_each_decoded_once(video: Path) -> None:
    reader = VideoReader(video)
    times = [0.0, 0.02, 0.03, 0.05, 0.5, 0.5, 1.0, 1.95, 2.2]
    assert [number(reader.frame_at(t)) for t in times] == [0, 0, 1, 1, 10, 10, 20, 39, 39]
    assert reader.decoded == 40
    assert [number(reader.frame_at(t)) for t in (1.5, 0.1, 1.9)] == [30, 2, 38]
    assert reader.decoded == 40  # all still there
    with pytest.raises(DataError, match=r"run1.mp4: has no frame at 9 s; the nearest one is at 1.950 s$"):
        reader.frame_at(9.0)


def test_a_long_way_back_seeks(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simv0.data.recordings.video.KEPT_BYTES", 0)  # keep two frames only
    reader = VideoReader(video)
    assert [number(reader.frame_at(t)) for t in (1.5, 0.1, 1.9, 0.0)] == [30, 2, 38, 0]


def test_far_ahead_seeks_instead_of_decoding_all_between(tmp_path: Path) -> None:
    """A run that is resumed, or one of several processes, begins in the middle of a recording."""
    with av.open(str(tmp_path / "slow.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(1, 2))
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 48, 32, "yuv420p", 10
        for i in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(20 + 5 * i), format="rgb24")))
        container.mux(stream.encode(None))
    reader = VideoReader(tmp_path / "slow.mp4")
    assert number(reader.frame_at(72.0)) == 36
    assert reader.decoded <= 10  # a key frame every 10 at least
    assert [number(reader.frame_at(t)) for t in (76.0, 4.0, 40.0)] == [38, 2, 20]


ONE = 1 << 16
R, G, B, W = (250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 250)


@pytest.mark.parametrize(
    ("a", "b", "c", "d", "corners"),
    [
        (ONE, 0, 0, ONE, [R, G, B, W]),
        (0, ONE, -ONE, 0, [B, R, W, G]),  # a phone held upright: a quarter clockwise
        (-ONE, 0, 0, -ONE, [W, B, G, R]),
        (0, -ONE, ONE, 0, [G, W, R, B]),
        (-ONE, 0, 0, ONE, [G, R, W, B]),  # mirrored
        (0, ONE, ONE, 0, [R, B, G, W]),  # mirrored along the diagonal
        (ONE // 2, ONE // 2, -ONE // 2, ONE // 2, [R, G, B, W]),  # 45 degrees: left alone
        (0, 0, 0, 0, [R, G, B, W]),  # nonsense
    ],
)
def test_a_phones_video_is_turned_as_players_turn_it(
    tmp_path: Path, a: int, b: int, c: int, d: int, corners: list[tuple[int, int, int]]
) -> None:
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :24], picture[:16, 24:], picture[16:, :24], picture[16:, 24:] = R, G, B, W
    path = tmp_path / "phone.mp4"
    with VideoWriter(path) as writer:
        for i in range(3):
            writer.write(picture, i / 20)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12: the track header's fields before it, version 0
    assert struct.unpack_from(">9i", data, matrix) == (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    shape = (3, 32, 48) if a or not b else (3, 48, 32)
    for frame in (VideoReader(path).frame_at(0.1), next(iter(VideoReader(path)))[1]):
        assert frame.shape == shape
        ends = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
        for (row, column), colour in zip(ends, corners, strict=True):
            assert [int(value) for value in frame[:, row, column]] == pytest.approx(colour, abs=25), (row, column)


def test_a_failed_video_leaves_nothing_and_the_old_one_stands(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", 3)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), VideoWriter(path) as writer:
        writer.write(grey(0), 1 / int(writer is None))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.mp4"]


def window_rows(n: int, **extra: Any) -> list[dict[str, Any]]:
    """Windows of 4 frames 0.1 s apart (every second frame), stride one frame."""
    return [
        {
            "sample_id": f"w-{i}",
            "video": "run1.mp4",
            "timestamps": [round((i + 2 * k) / 20, 3) for k in range(4)],
            "telemetry": [0.1 * i] * 8,
            "risk_id": i % 4,
            "reason_id": 0,
            "action_id": 0,
            **extra,
        }
        for i in range(n)
    ]


def test_manifest_rows_may_name_a_video(video: Path) -> None:
    dataset = ManifestDataset(write_rows(video.parent / "m.jsonl", window_rows(8)))
    sample = dataset[5]
    assert [number(frame) for frame in sample["frames"]] == [5, 7, 9, 11]
    assert "video" not in sample
    assert "timestamps" not in sample
    again = pickle.loads(pickle.dumps(dataset))
    assert [number(frame) for frame in again[0]["frames"]] == [0, 2, 4, 6]
    digest = dataset.content_digest()
    other = video.parent / "other"
    other.mkdir()
    write_video(other / "run1.mp4", 39)
    assert ManifestDataset(write_rows(other / "m.jsonl", window_rows(8))).content_digest() != digest


@pytest.mark.parametrize("workers", [0, 2])
def test_cache_vis_decodes_each_frame_of_a_video_once(
    make_config: MakeConfig, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "run1.mp4")
    for name in ("train", "val"):
        write_rows(tmp_path / f"{name}.jsonl", window_rows(30))
    split = {f"{name}_split_path": str(tmp_path / f"{name}.jsonl") for name in ("train", "val")}
    readers: list[VideoReader] = []
    start = VideoReader.__init__
    # Only watched: each reader counts what it decodes.
    monkeypatch.setattr(VideoReader, "__init__", lambda self, path: (readers.append(self), start(self, path))[1])
    reports = cache_vis(make_config(data={**split, "num_workers": workers}))
    assert [report.counts.encoded for report in reports] == [36, 36]  # 120 frames seen
    if workers == 0:
        assert all(reader.decoded <= 37 for reader in readers)  # one past the last, to know the nearest
        assert len(readers) == 2
    cached = CachedDataset(reports[0].path)[7]["vis_feats"]
    from simv0.vision.encoder import load_encoder

    frames = ManifestDataset(tmp_path / "train.jsonl")[7]["frames"]
    direct = load_encoder(make_config().model)(frames)
    torch.testing.assert_close(cached.float(), direct, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"frames": ["a.png"]}, "expected one of the keys 'frames' and 'video', found both"),
        ({"video": 3}, "video: expected a path, found 3"),
        ({"video": "../run1.mp4"}, "video: '../run1.mp4' leads outside the manifest's folder"),
        ({"video": "none.mp4"}, "video: no file 'none.mp4' found beside the manifest"),
        ({"timestamps": None}, "timestamps is missing; found the keys KEYS"),
        ({"video": None}, "frames is missing, and so is video; found the keys KEYS"),
        ({"timestamps": []}, "timestamps: expected a list of seconds >= 0, found []"),
        ({"timestamps": [0, -1]}, "timestamps: expected a list of seconds >= 0, found [0, -1]"),
        ({"timestamps": [True]}, "timestamps: expected a list of seconds >= 0, found [True]"),
    ],
)
def test_wrong_rows_are_refused(video: Path, row: dict[str, Any], message: str) -> None:
    path = write_rows(video.parent / "wrong.jsonl", window_rows(1, **row))
    with pytest.raises(DataError) as error:
        ManifestDataset(path)
    given = ", ".join(key for key, value in window_rows(1, **row)[0].items() if value is not None)
    assert str(error.value) == f"{path}:1: {message.replace('KEYS', given)}"


def test_what_is_no_video_is_refused_and_opens_nothing_else(tmp_path: Path, video: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {video}\n")
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:300])
    for name in ("text", "list", "cut"):
        with pytest.raises(DataError, match=rf"{name}.mp4: cannot be read as a video: ") as error:
            VideoReader(tmp_path / f"{name}.mp4")
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="none.mp4: video not found"):
        VideoReader(tmp_path / "none.mp4")


def test_without_pyav_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['av'] = None\nfrom simv0.data.recordings.video import import_av\ntry: import_av()\n"
    code += "except Exception as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True
    )
    assert done.stdout == "reading or writing video needs PyAV: pip install 'simv0[video]'\n"


# ---- recordings -------------------------------------------------------------------------------------------------


def test_a_video_takes_the_nearest_reading_and_none_from_afar(video: Path, tmp_path: Path) -> None:
    moments = list(open_recording(video, write_csv(tmp_path / "t.csv", [0.0, 0.52, 1.0])))
    assert len(moments) == 40
    by_time = {round(moment.t, 2): moment.telemetry[0] for moment in moments}
    assert (by_time[0.25], by_time[0.3], by_time[0.75], by_time[1.5]) == (0.0, 5.2, 5.2, 10.0)
    assert math.isnan(by_time[1.55])


def test_a_folder_takes_its_times_from_the_rows_or_from_fps(manifests: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    images = sorted((manifests / "val_images").iterdir())[:3]
    for name, image in zip(("f2.png", "f10.png", "f1.png"), images, strict=True):
        (folder / name).write_bytes(image.read_bytes())
    rows = write_csv(tmp_path / "t.csv", [1.0, 1.5, 2.5])
    moments = list(open_recording(folder, rows))
    assert [moment.t for moment in moments] == [1.0, 1.5, 2.5]
    expected = ManifestDataset(manifests / "val.jsonl").load_frame(f"val_images/{images[2].name}")
    assert torch.equal(moments[0].frame, expected)  # f1 before f2 before f10
    assert [moment.t for moment in open_recording(folder, rows, fps=4.0)] == [0, 0.25, 0.5]
    write_csv(rows, [1.0, 1.5])
    with pytest.raises(ConfigError, match=r"frames: 3 images, but .*t.csv has 2 rows, .*; give --fps$"):
        open_recording(folder, rows)
    with pytest.raises(ConfigError, match=r"frames: has no telemetry; give --telemetry with the columns t,ax,"):
        open_recording(folder, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t,ax,ay,az,gx,gy,gz,v\n", "t.csv: the columns w are missing; expected t,ax,ay,az,gx,gy,gz,v,w"),
        ("t,ax,ay,az,gx,gy,gz,v,w\n", "t.csv: has no readings"),
        ("t,ax,ay,az,gx,gy,gz,v,w\nx,1,1,1,1,1,1,1,1\n", "t.csv:2: t: expected seconds, found 'x'"),
        ("t,ax,ay,az,gx,gy,gz,v,w\n0,1,1,1,fast,1,1,1,1\n", "t.csv:2: gx: expected a number, found 'fast'"),
        ("t,ax,ay,az,gx,gy,gz,v,w\n1,1,1,1,1,1,1,1,1\n0,1,1,1,1,1,1,1,1\n", "t.csv:3: t: 0 comes before 1; sort"),
    ],
)
def test_wrong_telemetry_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError) as error:
        read_telemetry(tmp_path / "t.csv")
    assert str(error.value).startswith(f"{tmp_path}/{message}")


def test_an_empty_cell_was_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("t, ax,ay,az,gx,gy,gz,v,w\n0,1,,1,1,1,1,1,nan\n")
    (_, values), *_ = read_telemetry(tmp_path / "t.csv")
    assert [i for i, value in enumerate(values) if math.isnan(value)] == [1, 7]


def test_a_real_sequence_carries_its_own_telemetry(real: Path) -> None:
    sequence = open_recording(real / "data/gopro_walk/sequence.jsonl", None)
    assert sequence.length == 315
    assert sequence.interval == pytest.approx(1 / 29.97, rel=1e-2)
    first = next(iter(sequence))
    assert first.telemetry[6] == 1.046
    assert first.frame.shape[0] == 3
