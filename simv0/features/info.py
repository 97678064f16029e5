"""What a feature file holds beside its features, read and checked table by table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np

from simv0.data.class_weights import check_class_weights
from simv0.data.labels import Labels
from simv0.errors import CacheError, DataError
from simv0.labels import HEADS

FORMAT_VERSION = 1

USER_BLOCK = 512
MAGIC = b"simv0 features "
REPAIR = "recreate it with `simv0 cache-vis --overwrite`"
TABLES = {
    "telemetry": "<f4",
    **{f"{head}_id": "<i8" for head in HEADS},
    "weight": "<f4",
    "sample_id": "S",
    "group": "S",
    "t": "<f8",
}
"""Names and types of the tables of labels; `group` and `t` may be missing."""


@dataclass(frozen=True)
class FeatureInfo:
    """Everything in a feature file except its features.

    Attributes:
        identity: what the features were made of; `F`, `dv` and `dtype` describe them, `N` counts the whole split.
        labels: of the windows in this file.
        class_weights: the dataset's own, head -> one float a class.
        block_windows: windows per block; the last one may be shorter.
        block_sha256: digest of each block's bytes.
        first_window: index in the split of the file's first window: 0 but for shards.
        frame_spacing: seconds between the frames of a window; None: unknown, as in files of older versions.
    """

    identity: dict[str, Any]
    labels: Labels
    class_weights: dict[str, list[float]] | None
    block_windows: int
    block_sha256: list[str]
    first_window: int = 0
    frame_spacing: float | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of vis_feats: [N,F,dv]."""
        return len(self.labels), self.identity["F"], self.identity["dv"]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of vis_feats."""
        dtype: np.dtype[Any] = np.dtype(self.identity["dtype"]).newbyteorder("<")
        return dtype


class InfoReader:
    """Reads the small datasets of one file; trusts neither types nor sizes."""

    def __init__(self, h5: h5py.File, path: Path, size: int) -> None:
        self.h5, self.path, self.size = h5, path, size

    def info(self, offset: int, nbytes: int) -> FeatureInfo:
        """Everything but the features."""
        identity = self.attribute("identity", dict)
        for key, kind in (("N", int), ("F", int), ("dv", int), ("dtype", str)):
            if type(identity.get(key)) is not kind:
                self.refuse(f"identity: {key} is missing or of a wrong type")
        feats = self.dataset("vis_feats", "f", 3)
        windows, F, dv = feats.shape
        for key, found in (("F", F), ("dv", dv), ("dtype", feats.dtype.name)):
            if identity.get(key) != found:
                self.refuse(f"vis_feats: {key} is {found}, its identity says {identity.get(key)}")
        if (feats.id.get_offset(), feats.id.get_storage_size()) != (offset, nbytes):
            self.refuse("vis_feats is not where the seal says")
        block_windows, first = self.attribute("block_windows", int), self.attribute("first_window", int)
        digests = self.array("block_sha256", "u1", (-(-windows // max(block_windows, 1)), 32))
        if block_windows < 1 or first < 0:
            self.refuse(f"block_windows is {block_windows} and first_window {first}")
        if first + windows > identity["N"]:
            self.refuse(f"holds windows {first}..{first + windows - 1}, its identity says N = {identity['N']}")
        if not self.h5.attrs.get("complete", False):
            self.refuse("is not marked complete")
        return FeatureInfo(
            identity,
            self.labels(windows),
            self.class_weights(),
            block_windows,
            [row.tobytes().hex() for row in digests],
            first,
            self.frame_spacing(),
        )

    def frame_spacing(self) -> float | None:
        """Seconds between a window's frames, where the file tells it."""
        value = self.h5.attrs.get("frame_spacing")
        if value is not None and not (isinstance(value, np.floating) and 0 < value < np.inf):
            self.refuse(f"frame_spacing: expected seconds > 0, found {value!r:.60}")
        return None if value is None else float(value)

    def class_weights(self) -> dict[str, list[float]] | None:
        """The dataset's own class weights."""
        try:
            return check_class_weights(self.attribute("class_weights", (dict, type(None))), HEADS)
        except DataError as error:
            self.refuse(str(error))

    def labels(self, windows: int) -> Labels:
        """The tables of labels and telemetry."""
        columns: dict[str, Any] = {}
        for key, dtype in TABLES.items():
            if key in self.h5 or key not in ("group", "t"):
                column = self.array(key, dtype, (windows, 8) if key == "telemetry" else (windows,))
                columns[key] = [text.decode("utf-8") for text in column.tolist()] if dtype == "S" else column
        for head, names in HEADS.items():
            ids = columns[f"{head}_id"]
            if ids.min() < 0 or ids.max() >= len(names):
                self.refuse(f"{head}_id: expected 0..{len(names) - 1}, found {ids.min()}..{ids.max()}")
        telemetry, weight = columns["telemetry"], columns["weight"]
        if not (np.isfinite(telemetry).all() and np.isfinite(weight).all() and (weight >= 0).all()):
            self.refuse("telemetry or weight: holds NaN, inf or a negative weight")
        if "t" in columns and not np.isfinite(columns["t"]).all():
            self.refuse("t: holds NaN or inf")
        return Labels.of_columns(columns)

    def attribute(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """A root attribute of one of these kinds, JSON decoded."""
        value = self.h5.attrs.get(name)
        if isinstance(value, str):
            value = json.loads(value)
        elif isinstance(value, np.integer):
            value = int(value)
        if not isinstance(value, kind) or (value is None and name not in self.h5.attrs):
            self.refuse(f"root attribute {name}: missing or of a wrong type")
        return value

    def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """A table of this type and shape."""
        dataset = self.dataset(name, "S" if dtype == "S" else np.dtype(dtype).kind, len(shape))
        if dataset.shape != shape or (dtype != "S" and dataset.dtype != np.dtype(dtype)):
            self.refuse(f"{name}: expected {dtype} {list(shape)}, found {dataset.dtype.str} {list(dataset.shape)}")
        values: np.ndarray = dataset[()]
        return values

    def dataset(self, name: str, kind: str, rank: int) -> Any:
        """The dataset, after all that could make reading it unsafe has been refused."""
        link = self.h5.get(name, getlink=True)
        if link is None:
            self.refuse(f"{name}: missing")
        if not isinstance(link, h5py.HardLink):
            self.refuse(f"{name}: is a link to elsewhere")
        dataset = self.h5[name]
        if not isinstance(dataset, h5py.Dataset):
            self.refuse(f"{name}: is not a dataset")
        if dataset.is_virtual or dataset.external:
            self.refuse(f"{name}: its data are in another file")
        plist = dataset.id.get_create_plist()
        if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters():
            self.refuse(f"{name}: expected contiguous, unfiltered storage")
        if dataset.dtype.kind != kind or dataset.dtype.hasobject:
            self.refuse(f"{name}: has the type {dataset.dtype}")
        if len(dataset.shape) != rank or 0 in dataset.shape:
            self.refuse(f"{name}: has the shape {list(dataset.shape)}; expected rank {rank}")
        nbytes = dataset.dtype.itemsize * int(np.prod(dataset.shape, dtype=object))
        begin = (
            dataset.id.get_offset() or 0
        )  # of a dataset without storage: None, or a place before the user block's end
        if dataset.id.get_storage_size() != nbytes or begin < USER_BLOCK or begin + nbytes > self.size:
            self.refuse(f"{name}: declares {nbytes} bytes that the file does not hold")
        return dataset

    def refuse(self, what: str) -> NoReturn:
        """Raise a `CacheError` that names the file and the way out."""
        raise CacheError(f"{self.path}: {what}; {REPAIR}")
