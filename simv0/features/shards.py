"""A split's folder of shards, `<split>.h5.parts/`: the plan, the shards, and a record for each finished one.

plan.json            the identity, windows per shard, frames per encoder call
shard-000000.h5      a feature file with the windows of shard 0
shard-000000.json    its record, written after it: only with the record the shard is done
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simv0.disk.files import replacing
from simv0.errors import CacheError
from simv0.features.identity import compare_identity
from simv0.features.reader import FeatureFile, read_features

log = logging.getLogger("simv0")

START_AGAIN = "delete the folder to start over"

SHARDS = 64
"""Shards of a split whose config asks for no size: what a stopped run of a large one loses is a 64th of the work."""
SHARD_WINDOWS = range(64, 1025)
"""Their windows: a shard costs some 10 ms of syncs, more than a small tower takes for 8 windows, and 1024 windows are
little enough to lose (benchmarks/results/scaling_model_2026-11-23.md)."""

MAX_SHARDS = 1_000_000
"""More are refused: that many files are impractical, and a damaged plan may ask for any number."""


def shard_windows_of(windows: int, wanted: int | None) -> int:
    """Windows per shard of a split: the configured number, else one that grows with the split."""
    if wanted is not None:
        return wanted
    return min(max(windows // SHARDS, SHARD_WINDOWS[0]), SHARD_WINDOWS[-1])


@dataclass(frozen=True)
class Plan:
    """What all processes that work on a split agree on.

    Attributes:
        identity: what the features are made of; its `N` counts the windows.
        shard_windows: windows per shard; the last one may be shorter.
        batch_size: frames per encoder call, padded: other sizes give other last bits.
    """

    identity: dict[str, Any]
    shard_windows: int
    batch_size: int

    def __len__(self) -> int:
        """Number of shards."""
        return -(-int(self.identity["N"]) // self.shard_windows)

    def wanted_by(self, shard_windows: int | None, batch_size: int, path: object) -> "Plan":
        """This plan, which is on disk, if a config asks for the same; `shard_windows` None takes any.

        Raises:
            CacheError: it asks for another plan.
        """
        theirs = {"cache.shard_windows": self.shard_windows, "cache.batch_size": self.batch_size}
        ours = {"cache.shard_windows": shard_windows or self.shard_windows, "cache.batch_size": batch_size}
        compare_identity(theirs, ours, path)
        return self

    def windows(self, shard: int) -> range:
        """The windows of one shard."""
        first = shard * self.shard_windows
        return range(first, min(first + self.shard_windows, self.identity["N"]))


@dataclass(frozen=True)
class Record:
    """A finished shard: size of its file, and digest of its features."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Parts:
    """The folder; nothing is read until it is needed."""

    folder: Path

    def read_plan(self) -> Plan | None:
        """The plan, or None where there is none yet.

        Raises:
            CacheError: damaged, or not a plan that can be carried out.
        """
        path = self.folder / "plan.json"
        tree = self._read_json(path)
        if tree is None:
            return None
        identity = tree["identity"] if isinstance(tree["identity"], dict) else {}
        for name, number in (
            ("identity.N", identity.get("N")),
            *((key, tree[key]) for key in tree if key != "identity"),
        ):
            if type(number) is not int or number < 1:
                raise CacheError(f"{path}: {name}: expected an int >= 1, found {number!r:.60}; {START_AGAIN}")
        if -(-identity["N"] // tree["shard_windows"]) > MAX_SHARDS:
            raise CacheError(f"{path}: asks for more than {MAX_SHARDS} shards; {START_AGAIN}")
        return Plan(**tree)

    def write_plan(self, plan: Plan) -> None:
        """Write the plan.

        Raises:
            CacheError: more than `MAX_SHARDS` shards.
        """
        if -(-plan.identity["N"] // plan.shard_windows) > MAX_SHARDS:
            raise CacheError(f"{self.folder}: more than {MAX_SHARDS} shards; set a larger cache.shard_windows")
        self._write_json(self.folder / "plan.json", asdict(plan))

    def shard_path(self, shard: int) -> Path:
        """Name of a shard's feature file."""
        return self.folder / f"shard-{shard:06d}.h5"

    def record_path(self, shard: int) -> Path:
        """Name of a shard's record."""
        return self.folder / f"shard-{shard:06d}.json"

    def record(self, shard: int) -> Record | None:
        """The record of a finished shard; None while it is not done."""
        try:
            tree = self._read_json(self.record_path(shard))
            if tree is None or self.shard_path(shard).stat().st_size != tree["bytes"]:
                return None
            return Record(**tree)
        except (CacheError, FileNotFoundError):
            return None

    def write_record(self, shard: int, record: Record) -> None:
        """Mark a shard as done; its file must be on disk."""
        self._write_json(self.record_path(shard), asdict(record))

    def forget(self, shard: int, why: str) -> None:
        """Mark a finished shard as not done: it turned out to be damaged."""
        log.warning("shard %d is encoded again: %s", shard, why)
        self.record_path(shard).unlink(missing_ok=True)
        self.shard_path(shard).unlink(missing_ok=True)

    def missing(self, plan: Plan) -> list[int]:
        """The shards that are not done."""
        return [shard for shard in range(len(plan)) if self.record(shard) is None]

    def recorded(self) -> list[int]:
        """The shards that have a record; cheaper than `missing`."""
        numbers = (path.stem.removeprefix("shard-") for path in self.folder.glob("shard-*.json"))
        return [int(number) for number in numbers if number.isdecimal()]

    def read_shard(self, shard: int, plan: Plan) -> FeatureFile:
        """Open one shard and check that it is the one the plan means.

        Raises:
            CacheError: as `read_features`, or it belongs elsewhere.
        """
        file = read_features(self.shard_path(shard))
        windows = plan.windows(shard)
        if file.info.identity != plan.identity or file.info.first_window != windows.start:
            raise CacheError(f"{file.path}: does not belong to the plan beside it")
        record = self.record(shard)
        if record is None or file.info.block_sha256 != [record.sha256]:
            raise CacheError(f"{file.path}: differs from its record")
        if len(file.info.labels) != len(windows):
            raise CacheError(f"{file.path}: holds {len(file.info.labels)} windows, the plan says {len(windows)}")
        return file

    def _read_json(self, path: Path) -> dict[str, Any] | None:
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise CacheError(f"{path}: cannot be read: {error}; {START_AGAIN}") from None
        expected = {"identity", "shard_windows", "batch_size"} if path.name == "plan.json" else {"bytes", "sha256"}
        if not isinstance(tree, dict) or set(tree) != expected:
            raise CacheError(f"{path}: expected the keys {sorted(expected)}; {START_AGAIN}")
        return tree

    def _write_json(self, path: Path, tree: dict[str, Any]) -> None:
        with replacing(path) as file:
            file.write(json.dumps(tree).encode())


def parts_of(path: Path) -> Parts:
    """The folder of shards that belongs to a final file."""
    return Parts(path.with_name(path.name + ".parts"))


def open_features(path: Path) -> list[FeatureFile]:
    """The feature file at `path`, or the shards in the folder `path` or `path`.parts, in order of their windows.

    Raises:
        CacheError: missing, unfinished, damaged.
    """
    parts = Parts(path) if path.is_dir() else parts_of(path)
    plan = parts.read_plan() if path.is_dir() or not path.exists() else None
    if plan is None:
        if path.is_dir():
            raise CacheError(f"{path}: holds no plan.json; expected a feature file or its folder of shards")
        file = read_features(path)
        if len(file.info.labels) != file.info.identity.get("N"):
            raise CacheError(f"{path}: is a shard, not a whole split; give the folder")
        return [file]
    missing = parts.missing(plan)
    if missing:
        raise CacheError(
            f"{path}: cache-vis has not finished: {len(plan) - len(missing)} of {len(plan)} shards are done; "
            "run it again"
        )
    return [parts.read_shard(shard, plan) for shard in range(len(plan))]
