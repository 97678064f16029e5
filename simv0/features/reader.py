"""The feature file and its reader: HDF5 with digests, so that no damage goes unnoticed.

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
from typing import BinaryIO

import h5py
import numpy as np
from jaxtyping import Float

from simv0.errors import CacheError
from simv0.features.info import FORMAT_VERSION, MAGIC, REPAIR, USER_BLOCK, FeatureInfo, InfoReader


def sha256(block: np.ndarray) -> str:
    """Digest of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(block).data).hexdigest()


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
            CacheError: the file is gone or has been replaced.
        """
        try:
            with self.path.open("rb") as file:
                if file.read(USER_BLOCK).rstrip(b"\0") != self.seal:
                    raise CacheError(f"{self.path}: was replaced while in use; restart")
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
        """Human-readable name of a block."""
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
        raise CacheError(f"{path}: feature file not found; create it with `simv0 cache-vis`") from None
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
            return InfoReader(h5, path, file.seek(0, io.SEEK_END)).info(offset, nbytes)
    except CacheError:
        raise
    except Exception as error:  # whatever HDF5 or a forged file brings up
        raise CacheError(f"{path}: cannot be read as HDF5: {' '.join(str(error).split())[:200]}; {REPAIR}") from error
