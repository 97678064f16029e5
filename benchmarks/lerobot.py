"""Random windows of LeRobot datasets, windows a core-second: LeRobotWindows and LeRobotDataset with each decoder.

    python -m benchmarks.lerobot FOLDER --pictures IMAGES [--rounds 5]

Runs in an environment with `lerobot` (tests/support/write_lerobot.py says how), simv0's jaxtyping, pydantic and pyyaml,
and its PyAV. Each dataset (640x480, 30 frames/s, 3 episodes of 300 frames out of the pictures of a folder) is written
to FOLDER by lerobot with its own settings, once. A window is 8 frames, 0.2 s apart; all readers read the same ones in
turn, and every frame is compared. Rates are of the process's own CPU time, so that neighbours matter little.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import FrameTimestampError
from PIL import Image

from simv0.datasets import LeRobotWindows

FPS, SIZE, EPISODES, LENGTH, WINDOWS = 30, (640, 480), 3, 300, 12
OURS, ALONE, SPAN = "simv0", "decoding alone", 42  # frames before a window's last
CAMERA, NAME = "observation.images.front", "simv0/benchmark"
DELTA = [round(-0.2 * i, 1) for i in range(7, -1, -1)]
CODECS = {"av1 (lerobot's default)": "libsvtav1", "h264": "h264", "hevc": "hevc", "pictures in tables": None}


def write(root: Path, vcodec: str | None, pictures: list[Path]) -> None:
    camera = {
        "dtype": "video" if vcodec else "image",
        "shape": (SIZE[1], SIZE[0], 3),
        "names": ["height", "width", "c"],
    }
    state = {"dtype": "float32", "shape": (2,), "names": ["v", "w"]}
    features: Any = {CAMERA: camera, "observation.state": state}
    dataset = LeRobotDataset.create(NAME, FPS, features, root, use_videos=vcodec is not None, vcodec=vcodec or "h264")
    for episode in range(EPISODES):
        for path in pictures[episode * LENGTH : (episode + 1) * LENGTH]:
            picture = np.asarray(Image.open(path).convert("RGB").resize(SIZE))
            dataset.add_frame({CAMERA: picture, "observation.state": np.zeros(2, np.float32), "task": "drive"})
        dataset.save_episode()
    dataset.finalize()


def read_or_none(theirs: LeRobotDataset, row: int) -> torch.Tensor | None:
    try:
        return theirs[row][CAMERA]
    except FrameTimestampError:  # HEVC with B-frames: neither decoder finds every frame
        return None


def readers(root: Path, ours: LeRobotWindows) -> dict[str, Callable[[int], torch.Tensor | None]]:
    """Index of a window -> its frames, as each reader gives them."""
    found: dict[str, Callable[[int], torch.Tensor | None]] = {OURS: lambda i: ours[i]["frames"]}
    rows = [number * LENGTH + frame for number, frame in ours.windows]
    for backend in ("torchcodec", "pyav") if (root / "videos").exists() else ("tables",):
        video_backend = {} if backend == "tables" else {"video_backend": backend}
        theirs = LeRobotDataset(NAME, root, delta_timestamps={CAMERA: DELTA}, **video_backend)
        found[f"lerobot, {backend}"] = lambda i, theirs=theirs: read_or_none(theirs, rows[i])
    return found


def decoding_alone(ours: LeRobotWindows, chosen: list[int]) -> float:
    """Windows a core-second if decoding what their frames refer to were all there is to do: what FFmpeg allows."""
    work = []
    for number, frame in (ours.windows[i] for i in chosen):
        episode, seconds = ours.episodes[number], ours.rows[number].seconds
        if episode.video is None:
            return math.inf
        video = ours._videos[episode.video]
        work += [(video, *video._packets_for(episode.start + seconds[frame + n], 0.5 / FPS)) for n in ours.shifts]
    began = time.process_time()
    for video, packets, stamp in work:
        video._decode_run(packets, [stamp])
    return len(chosen) / (time.process_time() - began)


def compare(root: Path, rounds: int) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Median windows a core-second of each reader; how many of its windows were equal to ours, other, and unread."""
    ours = LeRobotWindows(root, delta=DELTA, telemetry={"v": "v", "w": "w"})
    draw, read = np.random.default_rng(0), readers(root, ours)
    rates: dict[str, list[float]] = {name: [] for name in (*read, ALONE)}
    counts = {name: [0, 0, 0] for name in read if name != OURS}
    for _ in range(rounds + 1):  # the first one opens files
        chosen = draw.integers(0, EPISODES * (LENGTH - SPAN), WINDOWS).tolist()
        frames = {}
        for name, one in read.items():
            began = time.process_time()
            frames[name] = [one(i) for i in chosen]
            rates[name].append(WINDOWS / (time.process_time() - began))
        rates[ALONE].append(decoding_alone(ours, chosen))
        for name, count in counts.items():
            for a, b in zip(frames[OURS], frames[name], strict=True):
                count[2 if b is None else int(not torch.equal(a, (b * 255).round().to(torch.uint8)))] += 1
    return {name: statistics.median(values[1:]) for name, values in rates.items()}, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    pictures = sorted(path for path in given.pictures.iterdir() if path.suffix in (".jpg", ".png"))
    for title, vcodec in CODECS.items():
        root = given.folder / str(vcodec)
        if not root.exists():
            write(root, vcodec, pictures)
        rates, counts = compare(root, given.rounds)
        print(f"{title}: {OURS} {rates[OURS]:.2f}, {ALONE} {rates[ALONE]:.2f}", flush=True)
        for name, (equal, other, unread) in counts.items():
            print(
                f"  {name} {rates[name]:.2f}, {OURS} {rates[OURS] / rates[name]:.2f} times as fast; windows "
                f"equal {equal}, other {other}, unread {unread}",
                flush=True,
            )


if __name__ == "__main__":
    main()
