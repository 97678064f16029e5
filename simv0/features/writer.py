"""The writer of feature files (`features.py` says what they look like).

HDF5 never writes to disk here: killed it would leave an unreadable file, and out of space it takes the process down.
It lays the file out in memory, with a hole for the features; plain writes put it on disk, the seal last.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float

from simv0.disk.files import replacing
from simv0.features.info import FORMAT_VERSION, MAGIC, TABLES, USER_BLOCK, FeatureInfo
from simv0.labels import HEADS


def write_features(
    path: Path, info: FeatureInfo, blocks: Iterable[Float[np.ndarray, "_ F dv"]], temporary: Path
) -> None:
    """Write a whole feature file and publish it by rename.

    Args:
        path: the final name.
        info: everything but the features.
        blocks: the features, in blocks of `info.block_windows` windows.
        temporary: name to write under meanwhile.

    Raises:
        OSError: disk full, no permission, a failing disk. `path` is untouched then.
    """
    image, offset = _lay_out(info)
    nbytes = int(np.prod(info.shape)) * info.dtype.itemsize
    digest = hashlib.sha256()
    for chunk in [*image.chunks(USER_BLOCK, offset), *image.chunks(offset + nbytes, image.size)]:
        digest.update(chunk)
    seal = {
        "format_version": FORMAT_VERSION,
        "bytes": image.size,
        "vis_feats": [offset, nbytes],
        "sha256": digest.hexdigest(),
    }
    with replacing(path, temporary) as file:
        file.seek(offset)
        for block in blocks:
            file.write(np.ascontiguousarray(block, info.dtype).view(np.uint8).data)
        if file.tell() != offset + nbytes:
            raise AssertionError(f"{path}: wrote {file.tell() - offset} bytes of vis_feats, expected {nbytes}")
        for chunk in image.chunks(offset + nbytes, image.size):
            file.write(chunk)
        file.seek(USER_BLOCK)
        for chunk in image.chunks(USER_BLOCK, offset):
            file.write(chunk)
        file.seek(0)
        file.write((MAGIC + json.dumps(seal).encode() + b"\n").ljust(USER_BLOCK, b"\0"))


HEADER_BYTES = 10_000
"""About what HDF5's own structures and the attributes take in a feature file."""


def file_bytes(windows: int, F: int, dv: int, dtype: str, block_windows: int, text_bytes: int) -> int:
    """Size of a feature file that is yet to be written; `text_bytes` is the longest sample_id and group together."""
    per_window = F * dv * np.dtype(dtype).itemsize + 4 * 8 + 8 * len(HEADS) + 4 + text_bytes
    return windows * per_window + 32 * -(-windows // block_windows) + HEADER_BYTES


def _lay_out(info: FeatureInfo) -> tuple["_Image", int]:
    """The file in memory, with a hole where vis_feats goes, and the offset of that hole."""
    image = _Image()
    with h5py.File(image, "w", userblock_size=USER_BLOCK, alignment_threshold=1, alignment_interval=64) as file:
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["identity"] = json.dumps(info.identity)
        file.attrs["class_weights"] = json.dumps(info.class_weights)
        file.attrs["block_windows"] = info.block_windows
        file.attrs["first_window"] = info.first_window
        if info.frame_spacing is not None:
            file.attrs["frame_spacing"] = info.frame_spacing
        file.attrs["complete"] = True
        for name, array in _tables(info).items():
            file.create_dataset(name, data=array)
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.CONTIGUOUS)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        plist.set_obj_track_times(False)  # same input, same bytes
        space, dtype = h5py.h5s.create_simple(info.shape), h5py.h5t.py_create(info.dtype)
        offset: int = h5py.h5d.create(file.id, b"vis_feats", dtype, space, plist).get_offset()
    return image, offset


def _tables(info: FeatureInfo) -> dict[str, np.ndarray]:
    """The labels, and the digests of the blocks."""
    digests = [list(bytes.fromhex(digest)) for digest in info.block_sha256]
    tables: dict[str, np.ndarray] = {"block_sha256": np.array(digests, np.uint8)}
    for key, column in info.labels.columns().items():
        tables[key] = np.char.encode(column, "utf-8") if TABLES[key] == "S" else np.asarray(column, TABLES[key])
    return tables


class _Image(io.RawIOBase):
    """A file in memory that stores only what is written: the hole for vis_feats costs nothing."""

    PAGE = 1 << 16

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.at = self.size = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As for any file."""
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        """As for any file."""
        return self.at

    def truncate(self, size: int | None = None) -> int:
        """As for any file."""
        self.size = self.at if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        """As for any file."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            page, start = divmod(self.at + done, self.PAGE)
            count = min(self.PAGE - start, len(view) - done)
            self.pages.setdefault(page, bytearray(self.PAGE))[start : start + count] = view[done : done + count]
            done += count
        self.at += done
        self.size = max(self.size, self.at)
        return done

    def readinto(self, buffer: Any) -> int:
        """As for any file."""
        view = memoryview(buffer).cast("B")
        data = b"".join(self.chunks(self.at, min(self.at + len(view), self.size)))
        view[: len(data)] = data
        self.at += len(data)
        return len(data)

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to `stop`, holes as zeros, in pieces."""
        while start < stop:
            page, offset = divmod(start, self.PAGE)
            count = min(self.PAGE - offset, stop - start)
            yield bytes(self.pages[page][offset : offset + count]) if page in self.pages else bytes(count)
            start += count
