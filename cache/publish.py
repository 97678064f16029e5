"""From finished shards to the final file, and whether the disk has room for both."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from simv0.disk.files import check_room
from simv0.errors import CacheError
from simv0.features.info import FeatureInfo
from simv0.features.shards import Parts, Plan
from simv0.features.writer import write_features


@contextmanager
def mendable_write(path: Path) -> Iterator[None]:
    """Turn a failed write into a one-line error; finished shards stay."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{path}: cannot be written: {error.strerror or error}; finished shards are kept: fix this and run again"
        ) from None


def bytes_of(plan: Plan, windows: int) -> int:
    """About what this many windows take on disk, labels included."""
    F, dv, itemsize = plan.identity["F"], plan.identity["dv"], np.dtype(plan.identity["dtype"]).itemsize
    return windows * int(F * dv * itemsize + 256) + (1 << 14)


def room_for_both(parts: Parts, plan: Plan) -> bool:
    """Whether the disk has room for the missing shards and for the final file beside them.

    Raises:
        CacheError: not even for the shards.
    """
    shards = sum(bytes_of(plan, len(plan.windows(shard))) for shard in parts.missing(plan))
    free = check_room(parts.folder, shards, "cache.dir", "the features need")
    return shards + bytes_of(plan, plan.identity["N"]) <= free


class _DamagedShard(Exception):
    """Found while copying; it has been marked as not done."""


def publish(final: Path, parts: Parts, plan: Plan, info: FeatureInfo) -> bool:
    """Copy the finished shards into the final file; False if some were damaged: they must be encoded again.

    Raises:
        CacheError: disk full or failing.
    """
    records = [parts.record(shard) for shard in range(len(plan))]
    digests = [record.sha256 for record in records if record is not None]
    if len(digests) < len(plan):
        return False
    try:
        with mendable_write(final):
            info = replace(info, block_sha256=digests)
            write_features(final, info, _checked_blocks(parts, plan), parts.folder / "final.tmp")
    except _DamagedShard:
        return False
    return True


def _checked_blocks(parts: Parts, plan: Plan) -> Iterator[Float[np.ndarray, "_ F dv"]]:
    for shard in range(len(plan)):
        try:
            yield from parts.read_shard(shard, plan).blocks()
        except CacheError as error:
            parts.forget(shard, str(error))
            raise _DamagedShard from None
