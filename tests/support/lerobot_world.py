"""Copies of the LeRobot datasets that lerobot wrote (`write_lerobot.py`), to be damaged or labelled."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simv0.datasets import LeRobotWindows

pa, pq = (pytest.importorskip(name, reason="pyarrow is not installed") for name in ("pyarrow", "pyarrow.parquet"))

FIXTURES = Path(__file__).parent / "lerobot"
TELEMETRY = {"imu.ax": "ax", "imu.az": "az", "wheels.v": "v", "wheels.w": "w"}
FRONT = "videos/observation.images.front"
LENGTHS = [24, 31, 17, 28]  # of the episodes of h264


def windows(root: Path | str = FIXTURES / "h264", **arguments: Any) -> LeRobotWindows:
    return LeRobotWindows(root, **{"delta": [-0.2, -0.1, 0.0], "telemetry": TELEMETRY, **arguments})


def copy(folder: Path, name: str = "h264") -> Path:
    return Path(shutil.copytree(FIXTURES / name, folder / name))


def edit_info(root: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    edit(info)
    path.write_text(json.dumps(info))


def edit_table(path: Path, column: str, row: int, value: Any) -> None:
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row] = value
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, column, pa.array(values, table.schema.field(at).type)), path)


def write_labels(path: Path, rows: list[tuple[int, int]], **columns: list[int]) -> Path:
    ids = {key: [i % 4 for i in range(len(rows))] for key in ("risk_id", "reason_id", "action_id")}
    places = {"episode_index": [e for e, _ in rows], "frame_index": [f for _, f in rows]}
    pq.write_table(pa.table({**places, **ids, **columns}), path)
    return path
