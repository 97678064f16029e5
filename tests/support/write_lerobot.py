"""Writes the LeRobot v3 datasets of `tests/support/lerobot` with the `lerobot` package itself, and what it reads back.

It is no dependency of simv0 and needs an older torch, so in an environment of its own:

    python3.11 -m venv /tmp/lerobot && /tmp/lerobot/bin/pip install "lerobot==0.4.4" "torch<2.11"
    /tmp/lerobot/bin/python tests/support/write_lerobot.py tests/support/lerobot

Each dataset is a folder `<name>` with `<name>.json` beside it: the first 16 digits of the sha256 of every frame, in
order, as each of LeRobotDataset's two decoders gives it (its floats times 255, uint8 [3,H,W]); null: it finds none.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import FrameTimestampError

HEIGHT, WIDTH = 64, 96
STATE = ["imu.ax", "imu.ay", "imu.az", "wheels.v", "wheels.w", "battery"]
LABELS = {"risk_id": 4, "reason_id": 4, "action_id": 6}
DATASETS: dict[str, dict[str, Any]] = {
    # name: its codec, frames per second, lengths of the episodes, MB after which files of pictures and rows are full
    "h264": {"vcodec": "h264", "fps": 30, "lengths": [24, 31, 17, 28], "full": (0.007, 0.005), "labels": True},
    "av1": {"vcodec": "libsvtav1", "fps": 10, "lengths": [21, 16, 19], "full": (200, 100), "labels": False},
    "hevc": {"vcodec": "hevc", "fps": 25, "lengths": [22, 18], "full": (200, 100), "labels": False},
    "images": {"vcodec": None, "fps": 5, "lengths": [12, 9], "full": (200, 100), "labels": False},
}


def picture(episode: int, frame: int) -> np.ndarray:
    """A ramp in the episode's colour with a bright square that moves: every frame of a dataset is another one."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramp = np.stack([x * 2 + 3 * frame, y * 3 + 20 * episode, x + y + 40 * episode], axis=-1) // 2 % 200
    left = 2 * frame % (WIDTH - 12)
    ramp[20:32, left : left + 12] = (250, 240 - 40 * episode, 30)
    return ramp.astype(np.uint8)


def state(episode: int, frame: int) -> np.ndarray:
    """Eight different numbers a frame, exact in float32."""
    return np.array([frame / 8, -frame / 4, 9.75, episode + frame / 16, -episode, 12.5], np.float32)


def labels(episode: int, frame: int) -> dict[str, int]:
    return {key: (episode + frame // 4) % n for key, n in LABELS.items()}


def write(root: Path, vcodec: str | None, fps: int, lengths: list[int], full: tuple[float, float], **more: Any) -> None:
    camera = {
        "dtype": "video" if vcodec else "image",
        "shape": (HEIGHT, WIDTH, 3),
        "names": ["height", "width", "channels"],
    }
    features: dict[str, Any] = {
        "observation.images.front": camera,
        "observation.state": {"dtype": "float32", "shape": (len(STATE),), "names": STATE},
    }
    if more["labels"]:
        features |= {key: {"dtype": "int64", "shape": (1,), "names": None} for key in LABELS}
    dataset = LeRobotDataset.create(
        "simv0/fixture", fps, features, root, use_videos=vcodec is not None, vcodec=vcodec or "h264"
    )
    video_mb, data_mb = full
    dataset.meta.info |= {"chunks_size": 2, "video_files_size_in_mb": video_mb, "data_files_size_in_mb": data_mb}
    for episode, length in enumerate(lengths):
        for frame in range(length):
            row = {"observation.images.front": picture(episode, frame), "observation.state": state(episode, frame)}
            if more["labels"]:
                row |= {key: np.array([value]) for key, value in labels(episode, frame).items()}
            dataset.add_frame({**row, "task": "drive"})
        dataset.save_episode()
    dataset.finalize()


def digests(root: Path, backend: str) -> list[str | None]:
    dataset = LeRobotDataset("simv0/fixture", root, video_backend=backend)
    return [digest(dataset, i) for i in range(len(dataset))]


def digest(dataset: LeRobotDataset, i: int) -> str | None:
    try:
        frame = (dataset[i]["observation.images.front"] * 255).round().to(torch.uint8)
    except FrameTimestampError:  # its pyav decoder misses frames that stand before their key frame (HEVC)
        return None
    return hashlib.sha256(frame.contiguous().numpy()).hexdigest()[:16]


def main(out: Path) -> None:
    for name, how in DATASETS.items():
        root = out / name
        shutil.rmtree(root, ignore_errors=True)
        write(root, **how)
        shutil.rmtree(root / "images", ignore_errors=True)
        found = {backend: digests(root, backend) for backend in ("pyav", "torchcodec")}
        root.with_suffix(".json").write_text(json.dumps(found) + "\n")
        pairs = list(zip(*found.values(), strict=True))
        print(
            name,
            len(pairs),
            "frames; alike",
            sum(a == b for a, b in pairs),
            "; missed",
            sum(None in pair for pair in pairs),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
