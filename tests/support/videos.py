"""Videos and tables written by the tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from simv0.data.recordings.video import VideoWriter


def grey(level: int, width: int = 48, height: int = 32) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def write_csv(path: Path, times: list[float], head: str = "t,ax,ay,az,gx,gy,gz,v,w") -> Path:
    path.write_text(head + "\n" + "".join(f"{t}," + ",".join([str(t * 10)] * 8) + "\n" for t in times))
    return path


def write_video(path: Path, n: int = 40, fps: float = 20) -> Path:
    """Frame i is grey of level 5 i + 20 and starts at i / fps."""
    with VideoWriter(path) as writer:
        for i in range(n):
            writer.write(grey(20 + 5 * i), i / fps)
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
