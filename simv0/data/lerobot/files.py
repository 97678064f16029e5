"""The files of a LeRobot v3 dataset: `meta/info.json`, tables and pictures in Parquet."""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped, UInt8
from torch import Tensor

from simv0.data.images import load_image
from simv0.errors import ConfigError, DataError


def import_parquet() -> Any:
    """Pyarrow's reader of Parquet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("reading a LeRobot dataset needs pyarrow: pip install 'simv0[lerobot]'") from None
    return pyarrow.parquet


@dataclass(frozen=True)
class Info:
    """`meta/info.json`, as far as it is needed.

    Attributes:
        splits: name -> episodes, such as `0:40`.
        features: name -> dtype, shape, names of its numbers.
        data_path, video_path: templates of file names.
    """

    root: Path
    fps: float
    episodes: int
    frames: int
    splits: Mapping[str, str]
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    video_path: str | None

    def short(self, path: Path) -> str:
        """A file of the dataset, within its folder."""
        return path.relative_to(self.root).as_posix()

    def camera(self, wanted: str | None) -> str:
        """The feature of a camera: `front` is short for `observation.images.front`; None: the only one.

        Raises:
            ConfigError: no such camera, or none is named where there are several.
        """
        cameras = [name for name, feature in self.features.items() if feature.get("dtype") in ("image", "video")]
        found = cameras if wanted is None else [name for name in cameras if wanted in (name, name.rpartition(".")[2])]
        if len(found) != 1:
            shown = f"{wanted!r:.60}, the dataset has" if wanted is not None else "none named, the dataset has"
            raise ConfigError(f"camera: expected one of the dataset's, found {shown} {', '.join(cameras) or 'none'}")
        return found[0]

    def position(self, number: str) -> tuple[str, int]:
        """Feature and place of a number by its name: in `observation.state`, or as `feature/name`.

        Raises:
            ConfigError: there is no such number.
        """
        feature, name = "observation.state", number
        if number not in self.names(feature) and "/" in number:
            feature, _, name = number.rpartition("/")
        names = self.names(feature)
        if names.count(name) != 1:
            raise ConfigError(
                f"telemetry: expected the name of one number in {feature}, found {number!r:.60}; "
                f"it holds {', '.join(names) or 'none'}"
            )
        return feature, names.index(name)

    def names(self, feature: str) -> list[str]:
        """Names of a feature's numbers; where it gives none, their places: 0, 1, ..."""
        found = self.features.get(feature, {})
        names = found.get("names")
        if isinstance(names, Mapping):  # grouped: {"motors": [...]}
            names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
        size = int(np.prod(found.get("shape", [0])))
        return [str(name) for name in names] if names and len(names) == size else [str(i) for i in range(size)]


def read_info(root: Path) -> Info:
    """Read `meta/info.json`.

    Raises:
        DataError: missing, no JSON, of another version, without what is needed.
    """
    path = root / "meta" / "info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
        if not version.startswith("v3."):
            raise DataError(
                f"{path}: is of version {version}; expected v3: convert it with lerobot's convert_dataset_v21_to_v30"
            )
        found = Info(
            root, float(info["fps"]), int(info["total_episodes"]), int(info["total_frames"]), info.get("splits") or {},
            dict(info["features"]), str(info["data_path"]), info.get("video_path"),
        )  # fmt: skip
    except FileNotFoundError:
        raise DataError(f"{root}: is no LeRobot dataset: meta/info.json not found") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read: {what}") from None
    if not found.fps > 0:
        raise DataError(f"{path}: fps: expected frames per second > 0, found {info['fps']!r:.40}")
    return found


def read_table(path: Path, columns: Sequence[str], also: Sequence[str] = ()) -> Any:
    """Columns of a Parquet file; `also`: those that it may lack.

    Raises:
        DataError: missing, damaged, or without one of them.
    """
    parquet = import_parquet()
    try:
        with parquet.ParquetFile(path) as file:
            lacking = [column for column in columns if column not in file.schema_arrow.names]
            if lacking:
                raise DataError(
                    f"{path}: has no column {', '.join(lacking)}; found {', '.join(file.schema_arrow.names)}"
                )
            return file.read(columns=[*columns, *(column for column in also if column in file.schema_arrow.names)])
    except FileNotFoundError:
        raise DataError(f"{path}: file not found") from None
    except (OSError, ValueError) as error:  # pyarrow's own are of these
        raise DataError(
            f"{path}: cannot be read: {' '.join(str(error).split())[:120]} (was its recording finished?)"
        ) from None


def numbers(table: Any, column: str) -> Shaped[np.ndarray, "rows n"]:
    """A column as an array; a feature of one number may be stored as a list of one."""
    import pyarrow.compute

    values = table[column].combine_chunks()
    if str(values.type).startswith(("list", "fixed_size_list", "large_list")):
        flat = values.flatten().to_numpy(zero_copy_only=False)
        if len(values) and (values.null_count or len(pyarrow.compute.list_value_length(values).unique()) > 1):
            raise DataError(f"{column}: its rows hold different numbers of values")
        return flat.reshape(len(values), -1)  # type: ignore[no-any-return]
    return values.to_numpy(zero_copy_only=False).reshape(-1, 1)  # type: ignore[no-any-return]


class PictureTable:
    """A Parquet file of pictures, read a row group (an episode) at a time.

    Args:
        path: of the file.
        column: of the pictures: {"bytes": PNG or JPEG, "path": its name}.
    """

    def __init__(self, path: Path, column: str) -> None:
        self.path, self.column = path, column
        self._file = import_parquet().ParquetFile(path)
        groups = (self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups))
        self._ends = list(accumulate(groups))
        self._group, self._pictures = -1, cast(Any, None)

    def picture(self, row: int) -> UInt8[Tensor, "3 H W"]:
        """The picture of a row, RGB.

        Raises:
            DataError: none is stored there, or it cannot be read.
        """
        group = bisect_right(self._ends, row)
        if group != self._group:
            self._pictures = self._file.read_row_group(group, columns=[self.column])[self.column]
            self._group = group
        within = row - (self._ends[group - 1] if group else 0)
        stored = self._pictures[within].as_py() or {}
        if stored.get("bytes") is None:
            raise DataError(f"{self.path}: row {row}: {self.column} holds no picture")
        return load_image(self.path / f"row {row}", stored["bytes"])

    def close(self) -> None:
        """Close the file."""
        self._file.close()
