"""Seeking finds the frame that decoding from the beginning finds, and several workers share one pass over a video."""

import gc
import json
import os
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_world import MakeConfig
from torch.utils.data import DataLoader

from cache.frames import in_stretches
from cache.pipeline import cache_vis
from simv0.data.manifest import ManifestDataset
from simv0.data.recordings.video import FARTHEST, VideoReader
from simv0.data.recordings.window_reader import WindowReader
from simv0.errors import DataError
from simv0.features.dataset import CachedDataset

H264 = "libx264" in av.codecs_available
NOISE = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)


def write_noise(
    path: Path,
    n: int,
    *,
    fps: int,
    gop: int,
    b_frames: int = 0,
    start: int = 0,
    codec: str = "mpeg4",
    options: str = "",
) -> Path:
    """Moving noise, 48x32: decoded without what it refers to a frame is another one. Time stamps begin at `start`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 48, 32, "yuv420p", gop
        stream.codec_context.max_b_frames = b_frames
        if codec == "libx264":
            stream.options = {"x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0{options}"}
        for i in range(n):
            y, x = 3 * i % 96, 2 * i % 80
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(NOISE[y : y + 32, x : x + 48]), format="rgb24")
            frame.pts = start + i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@st.composite
def videos(draw: st.DrawFn) -> dict[str, object]:
    """How a video is written, and when it is looked at."""
    codec = draw(st.sampled_from(["mpeg4", "libx264", "libx264"] if H264 else ["mpeg4"]))
    options = ["", ":open-gop=1", ":open-gop=1:b-pyramid=normal:ref=4", ":intra-refresh=1"]
    return {
        "codec": codec,
        "options": draw(st.sampled_from(options)) if codec == "libx264" else "",
        "n": draw(st.integers(1, 60)),
        "fps": draw(st.sampled_from([10, 30])),
        "gop": draw(st.sampled_from([1, 5, 12, 30])),
        "b_frames": draw(st.integers(0, 3)),
        "start": draw(st.sampled_from([0, 1, 45])),
    }


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    videos(),
    st.sampled_from(["mp4", "mkv", "ts", "avi"]),
    st.lists(st.floats(0, 1.05), min_size=1, max_size=8),
    st.booleans(),
)
def test_seeking_finds_what_decoding_from_the_beginning_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, object], kind: str, places: list[float], few: bool
) -> None:
    monkeypatch.setattr("simv0.data.recordings.video.FAR_AHEAD", 0.15)
    monkeypatch.setattr("simv0.data.recordings.video.FIRST_STEP_BACK", 0.3)
    monkeypatch.setattr("simv0.data.recordings.video.KEPT_BYTES", 0 if few else 2**20)
    path = write_noise(tmp_path / f"noise.{kind}", **how)  # type: ignore[arg-type]
    frames = list(VideoReader(path))
    times = [t for t, _ in frames]
    assert len(frames) == how["n"]
    if times != sorted(times):  # H.264 with B-frames in AVI: there the time stamps are lost
        assert kind == "avi"
        return
    reader = VideoReader(path)
    for t in [times[0] + place * (times[-1] - times[0]) for place in places] + [
        times[-1],
        times[len(times) // 2],
        times[0],
    ]:
        nearest = min(range(len(times)), key=lambda i: abs(times[i] - t))
        if abs(times[nearest] - t) > FARTHEST:  # AVI leaves a gap where the time stamps begin late
            with pytest.raises(DataError, match="has no frame at"):
                reader.frame_at(t)
        else:
            assert torch.equal(reader.frame_at(t), frames[nearest][1]), (t, nearest)
    reader.close()

    windows, count = WindowReader(path), len(frames)
    for place in [*places, 1.0, 0.0]:
        last = min(int(place * count), count - 1)
        window = [i for i in (last - 7, last - 2, last - 1, last) if i >= 0]
        found = windows.frames_at([times[i] + 1e-5 for i in window], within=0.4 / how["fps"])  # type: ignore[operator]
        assert all(torch.equal(frame, frames[i][1]) for frame, i in zip(found, window, strict=True)), window
        assert torch.equal(windows.frame_at(times[last // 2]), frames[last // 2][1]), last  # forwards again
    windows.close()


@pytest.mark.skipif(not H264, reason="this ffmpeg writes no H.264")
def test_windows_that_overlap_decode_each_frame_once_where_key_frames_are_far(tmp_path: Path) -> None:
    reader = WindowReader(write_noise(tmp_path / "far.mp4", 120, fps=10, gop=60, b_frames=2, codec="libx264"))
    for last in range(90, 120):
        reader.frames_at([(last - 4) / 10, (last - 2) / 10, last / 10], within=0.05)
    assert reader.decoded <= 60 + 3


@pytest.mark.skipif(not H264, reason="this ffmpeg writes no H.264")
def test_neighbours_in_a_window_share_what_is_decoded(tmp_path: Path) -> None:
    reader = WindowReader(write_noise(tmp_path / "near.mp4", 60, fps=10, gop=10, codec="libx264"))
    reader.frames_at([i / 10 for i in (33, 35, 36, 41)], within=0.05)
    assert reader.decoded == 7 + 2


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_a_far_place_costs_less_than_the_way_there(tmp_path: Path, kind: str) -> None:
    """Where there is no index, too."""
    reader = VideoReader(write_noise(tmp_path / f"far.{kind}", 300, fps=10, gop=10, b_frames=2))
    reader.frame_at(0.0)
    first = reader.decoded
    reader.frame_at(25.0)
    assert reader.decoded - first <= 10 + 3
    reader.frame_at(12.0)
    assert reader.decoded - first <= 2 * (10 + 3)


@pytest.mark.parametrize("options", ["", ":intra-refresh=1"])
@pytest.mark.skipif(not H264, reason="this ffmpeg writes no H.264")
def test_far_places_without_a_key_frame_between_cost_a_pass_or_two(tmp_path: Path, options: str) -> None:
    """Else each of them would be decoded towards from the beginning."""
    path = write_noise(tmp_path / "x.mp4", 600, fps=5, gop=9999, codec="libx264", options=options)
    reader = VideoReader(path)
    for t in range(0, 120, 6):
        reader.frame_at(float(t))
    assert reader.decoded <= 2 * 600


@pytest.mark.skipif(not H264, reason="this ffmpeg writes no H.264")
def test_times_that_go_back_are_refused(tmp_path: Path) -> None:
    reader = VideoReader(write_noise(tmp_path / "x.avi", 40, fps=10, gop=24, b_frames=2, codec="libx264"))
    with pytest.raises(DataError, match=r"x.avi: the times of its frames go back at \d\.\d{3} s; convert it to MP4$"):
        reader.frame_at(3.9)


@given(st.integers(0, 200), st.integers(0, 9), st.integers(1, 70))
def test_stretches_give_each_worker_neighbours_and_each_unit_once(n: int, workers: int, step: int) -> None:
    jobs = in_stretches(list(range(n)), workers, step)
    assert max(len(job) for job in jobs) <= step
    stretches = max(1, min(workers, n // step))  # of a small shard fewer, so that none is shorter than half a job
    assert len(jobs) % stretches == 0  # all of them: the next shard begins with the first worker again
    dealt = [list(chain(*jobs[stretch::stretches])) for stretch in range(stretches)]
    assert list(chain(*dealt)) == list(range(n))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1 + len(jobs) // stretches


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two minutes of video (600 frames, a key frame every 25): all of it is train, its beginning val."""
    folder = tmp_path_factory.mktemp("recording")
    write_noise(folder / "run1.mp4", 600, fps=5, gop=25)
    rows = [
        {
            "sample_id": f"w-{i}",
            "video": "run1.mp4",
            "timestamps": [round((i + 2 * k) / 5, 3) for k in range(4)],
            "telemetry": [0.0] * 8,
            **dict.fromkeys(("risk_id", "reason_id", "action_id"), 0),
        }
        for i in range(594)
    ]
    for name, some in (("train", rows), ("val", rows[:2])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def collect(batch: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Free what the process that forked this one left behind."""
    gc.collect()
    return batch


def test_a_worker_may_drop_the_readers_and_frames_of_the_process_that_forked_it(recording: Path) -> None:
    """It must not wait for threads that did not come along; a resumed cache-vis looks at finished shards first."""
    gc.collect()
    dataset = ManifestDataset(recording / "train.jsonl")
    before = [dataset.load_frame(name) for name in dataset.frame_ids(0)]
    loader = DataLoader(dataset, num_workers=1, timeout=20, multiprocessing_context="fork", collate_fn=collect)
    again = next(iter(loader))[0]["frames"]
    assert torch.equal(torch.stack(before), again)


def test_workers_share_one_pass_over_a_video(
    recording: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()  # encoders have threads, and a forked worker that collects an encoder waits for them for ever
    log = tmp_path / "decoded.txt"
    frame_at = VideoReader.frame_at

    def counted(reader: VideoReader, t: float) -> torch.Tensor:
        before = reader.decoded
        frame = frame_at(reader, t)
        with log.open("a") as file:
            file.write(f"{os.getpid()} {reader.decoded - before}\n")
        return frame

    monkeypatch.setattr(VideoReader, "frame_at", counted)  # only watched, in each worker
    feats = []
    for workers in (0, 1, 2):
        log.write_text("")
        split = {f"{name}_split_path": str(recording / f"{name}.jsonl") for name in ("train", "val")}
        config = make_config(
            data={**split, "num_workers": workers},
            cache={"dir": str(tmp_path / f"cache{workers}"), "shard_windows": 200, "batch_size": 20},
        )
        train, _ = cache_vis(config)
        rows = [line.split() for line in log.read_text().splitlines()]
        by_process = {name: sum(int(n) for pid, n in rows if pid == name) for name, _ in rows}
        shards, gop, val = 3, 25, 9
        # A worker begins its stretch of a shard in the middle of a group of pictures, and looks one frame further.
        extra = workers * shards * gop if workers > 1 else 0
        assert 600 + val - 1 <= sum(by_process.values()) <= 600 + extra + max(1, workers) * val, workers
        if workers > 1:
            assert max(by_process.values()) <= 600 / workers + shards * gop  # each its share
        feats.append(torch.stack([CachedDataset(train.path)[i]["vis_feats"] for i in range(594)]))
    assert torch.equal(feats[0], feats[1])
    assert torch.equal(feats[0], feats[2])
