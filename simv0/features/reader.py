"""The feature file and its reader: an HDF5 file that cannot be damaged unnoticed.

    byte 0    the seal: one line of JSON in HDF5's user block: format version, size of the file, where `vis_feats` lies,
              sha256 of everything else
    byte 512  ordinary HDF5: `vis_feats` [N,F,dv] contiguous, so that it can be memory-mapped; telemetry [N,8];
              risk_id, reason_id, action_id, weight, sample_id (and group, t) [N]; sha256 of each block of `vis_feats`

The seal is checked before HDF5 reads a byte: what chance has damaged never reaches its parser.
"""

import hashlib
import io
import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import h5py
import numpy as np
from jaxtyping import Float

from simv0.data.class_weights import check_class_weights
from simv0.data.labels import Labels
from simv0.errors import CacheError, DataError
from simv0.labels import HEADS

FORMAT_VERSION = 1
USER_BLOCK = 512
MAGIC = b"simv0 features "
REPAIR = "make it anew with `simv0 cache-vis --overwrite`"


def sha256(block: np.ndarray) -> str:
    """Digest of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(block).data).hexdigest()


@dataclass(frozen=True)
class FeatureInfo:
    """Everything of a feature file but its features.

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
        """Of vis_feats: [N,F,dv]."""
        return len(self.labels), self.identity["F"], self.identity["dv"]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of vis_feats."""
        dtype: np.dtype[Any] = np.dtype(self.identity["dtype"]).newbyteorder("<")
        return dtype


@dataclass(frozen=True)
class FeatureFile:
    """A feature file whose seal, layout and labels have been checked; its features have not.

    Attributes:
        offset: where vis_feats begins, in bytes.
        seal: the file's first line: two files with one seal and good blocks are equal.
    """

    path: Path
    info: FeatureInfo
    offset: int
    seal: bytes

    def map(self, random: bool = False) -> Float[np.ndarray, "N F dv"]:
        """vis_feats [N,F,dv], memory-mapped and read-only.

        Args:
            random: read from disk only what is touched. Otherwise the system reads some hundred kB around each window:
                right where the whole file will soon be in RAM, many times too much where it never fits.

        Raises:
            CacheError: the file is gone or another one by now.
        """
        try:
            with self.path.open("rb") as file:
                if file.read(USER_BLOCK).rstrip(b"\0") != self.seal:
                    raise CacheError(f"{self.path}: was replaced while in use; start again")
                size = self.offset + self.row_bytes * len(self.info.labels)
                mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
                if random:
                    mapped.madvise(mmap.MADV_RANDOM)
                return np.ndarray(self.info.shape, self.info.dtype, mapped, self.offset)
        except (OSError, ValueError) as error:
            raise CacheError(f"{self.path}: cannot be read: {error}") from None

    @property
    def row_bytes(self) -> int:
        """Size of one window's features."""
        _, F, dv = self.info.shape
        return F * dv * self.info.dtype.itemsize

    def ask_for(self, mapped: np.ndarray, row: int) -> None:
        """Let the system begin to read one window of what `map` gave, without waiting for it."""
        begin = self.offset + row * self.row_bytes
        start = begin - begin % mmap.PAGESIZE
        mapped.base.madvise(mmap.MADV_WILLNEED, start, begin + self.row_bytes - start)  # type: ignore[union-attr]

    def blocks(self) -> Iterator[Float[np.ndarray, "_ F dv"]]:
        """The blocks of vis_feats in order, as copies whose digests have been checked.

        Raises:
            CacheError: naming the first damaged block.
        """
        mapped, step = self.map(), self.info.block_windows
        for number, digest in enumerate(self.info.block_sha256):
            block = np.array(mapped[number * step : (number + 1) * step])
            if sha256(block) != digest:
                raise CacheError(f"{self.path}: {self.describe_block(number)} is damaged; {REPAIR}")
            yield block

    def bad_blocks(self) -> list[int]:
        """Numbers of the blocks whose bytes differ from their digests."""
        mapped, step = self.map(), self.info.block_windows
        return [
            number
            for number, digest in enumerate(self.info.block_sha256)
            if sha256(np.array(mapped[number * step : (number + 1) * step])) != digest
        ]

    def describe_block(self, number: int) -> str:
        """Name a block for people."""
        first = self.info.first_window + number * self.info.block_windows
        last = min(first + self.info.block_windows, self.info.first_window + len(self.info.labels)) - 1
        return f"block {number} (windows {first}..{last})"


def read_features(path: Path) -> FeatureFile:
    """Open a feature file, check seal, layout and labels; vis_feats stays on disk, unread.

    Raises:
        CacheError: missing, not a feature file, another format version, truncated, damaged, or with a layout that
            cache-vis does not write (links, external or virtual storage, filters, other types or shapes).
    """
    try:
        with path.open("rb") as file:
            seal, offset, nbytes = _check_seal(file, path)
            return FeatureFile(path, _read_info(file, path, offset, nbytes), offset, seal)
    except FileNotFoundError:
        raise CacheError(f"{path}: there is no such feature file; `simv0 cache-vis` makes it") from None
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error}") from None


def _check_seal(file: BinaryIO, path: Path) -> tuple[bytes, int, int]:
    """Returns the seal, and offset and size of vis_feats; everything else has been compared with its digest."""
    head = file.read(USER_BLOCK)
    if not head.startswith(MAGIC):
        kind = "an HDF5 file, but not one that cache-vis wrote" if head.startswith(b"\x89HDF") else "not a feature file"
        raise CacheError(f"{path}: {kind}; if cache-vis was to make it, {REPAIR}")
    seal = head.rstrip(b"\0")
    try:
        said = json.loads(seal[len(MAGIC) :])
        version, size, digest = said["format_version"], said["bytes"], said["sha256"]
        offset, nbytes = said["vis_feats"]
        if not all(type(number) is int for number in (version, size, offset, nbytes)):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CacheError(f"{path}: its first {USER_BLOCK} bytes are damaged; {REPAIR}") from None
    if version != FORMAT_VERSION:
        raise CacheError(f"{path}: format_version is {version}, this simv0 reads {FORMAT_VERSION}; {REPAIR}")
    found = file.seek(0, io.SEEK_END)
    if found != size:
        raise CacheError(f"{path}: holds {found} bytes, {size} were written: truncated or damaged; {REPAIR}")
    if not (offset >= USER_BLOCK and nbytes > 0 and offset + nbytes <= size):
        raise CacheError(f"{path}: its first {USER_BLOCK} bytes are damaged; {REPAIR}")
    computed = hashlib.sha256()
    for start, stop in ((USER_BLOCK, offset), (offset + nbytes, size)):
        file.seek(start)
        while start < stop and (chunk := file.read(min(1 << 20, stop - start))):
            computed.update(chunk)
            start += len(chunk)
    if computed.hexdigest() != digest:
        raise CacheError(f"{path}: labels or header are damaged (sha256 differs); {REPAIR}")
    return seal, offset, nbytes


def _read_info(file: BinaryIO, path: Path, offset: int, nbytes: int) -> FeatureInfo:
    try:
        file.seek(0)
        with h5py.File(file, "r") as h5:
            return _Reader(h5, path, file.seek(0, io.SEEK_END)).info(offset, nbytes)
    except CacheError:
        raise
    except Exception as error:  # whatever HDF5 or a forged file brings up
        raise CacheError(f"{path}: cannot be read as HDF5: {' '.join(str(error).split())[:200]}; {REPAIR}") from error


class _Reader:
    """Reads the small datasets of one file; trusts neither types nor sizes."""

    def __init__(self, h5: h5py.File, path: Path, size: int) -> None:
        self.h5, self.path, self.size = h5, path, size

    def info(self, offset: int, nbytes: int) -> FeatureInfo:
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
            self.refuse("vis_feats does not lie where the seal says")
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
        value = self.h5.attrs.get("frame_spacing")
        if value is not None and not (isinstance(value, np.floating) and 0 < value < np.inf):
            self.refuse(f"frame_spacing: expected seconds > 0, found {value!r:.60}")
        return None if value is None else float(value)

    def class_weights(self) -> dict[str, list[float]] | None:
        try:
            return check_class_weights(self.attribute("class_weights", (dict, type(None))), HEADS)
        except DataError as error:
            self.refuse(str(error))

    def labels(self, windows: int) -> Labels:
        ids = {head: self.array(f"{head}_id", "<i8", (windows,)) for head in HEADS}
        for head, names in HEADS.items():
            if ids[head].min() < 0 or ids[head].max() >= len(names):
                self.refuse(f"{head}_id: expected 0..{len(names) - 1}, found {ids[head].min()}..{ids[head].max()}")
        telemetry, weight = self.array("telemetry", "<f4", (windows, 8)), self.array("weight", "<f4", (windows,))
        if not (np.isfinite(telemetry).all() and np.isfinite(weight).all() and (weight >= 0).all()):
            self.refuse("telemetry or weight: holds NaN, inf or a negative weight")
        group = self.texts("group", windows) if "group" in self.h5 else None
        t = self.array("t", "<f8", (windows,)) if "t" in self.h5 else None
        if t is not None and not np.isfinite(t).all():
            self.refuse("t: holds NaN or inf")
        return Labels(telemetry, ids, weight, self.texts("sample_id", windows), group, t)

    def attribute(self, name: str, kind: type | tuple[type, ...]) -> Any:
        value = self.h5.attrs.get(name)
        if isinstance(value, str):
            value = json.loads(value)
        elif isinstance(value, np.integer):
            value = int(value)
        if not isinstance(value, kind) or (value is None and name not in self.h5.attrs):
            self.refuse(f"root attribute {name}: missing or of a wrong type")
        return value

    def texts(self, name: str, windows: int) -> list[str]:
        array: list[bytes] = self.array(name, "S", (windows,)).tolist()
        return [text.decode("utf-8") for text in array]

    def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
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
            self.refuse(f"{name}: is no dataset")
        if dataset.is_virtual or dataset.external:
            self.refuse(f"{name}: its data lie in another file")
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
        raise CacheError(f"{self.path}: {what}; {REPAIR}")
