"""Windows of a split read as training or cache-vis would read them: what is wrong with them, what they hold."""

import hashlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simv0.checks.collector import faults_told
from simv0.data.contract import CheckedDataset, collate
from simv0.data.labels import Rows, read_rows
from simv0.errors import Mistakes
from simv0.training.splits import evenly_spaced

Watch = Callable[[list[int], str], Iterable[int]]
"""Goes through window numbers and shows its progress; the text says of what."""

SAMPLED = 64
"""Windows read without `--full`, evenly spaced."""


def unwatched(indices: list[int], split: str) -> list[int]:
    """Show nothing."""
    return indices


class Reader:
    """Reads windows as cache-vis does where it may (`by_frame`: each shared frame once), else as training does.

    Args:
        checked: the split.
        by_frame: whether frames that have names are read by them.
    """

    def __init__(self, checked: CheckedDataset, by_frame: bool) -> None:
        self.checked, self.by_frame = checked, by_frame and checked.shares
        self.digests: dict[Hashable, bytes] = {}

    def read(self, index: int) -> tuple[dict[str, Any], bytes]:
        """A window's checked sample, without frames where they have names, and the digest of its content.

        Raises:
            DataError: it breaks the contract.
        """
        if not self.by_frame:
            sample = self.checked[index]
            return sample, content_of(sample)
        sample, names = self.checked.labels_of(index), self.checked.frame_ids(index)
        for name in names:
            if name not in self.digests:
                self.digests[name] = _digest(self.checked.load_frame(name))
        return sample, _joined([self.digests[name] for name in names], sample)


@dataclass
class Walk:
    """What was read of a split.

    Attributes:
        rows: window -> its sample without frames and features.
        contents: digest of frames or features and telemetry -> the first window that has them.
        dv: feature width; None for frames.
    """

    rows: Rows = field(default_factory=dict)
    contents: dict[bytes, int] = field(default_factory=dict)
    dv: int | None = None


def walk(reader: Reader, windows: int, full: bool, watch: Watch) -> tuple[Walk, Mistakes]:
    """Read windows of a split: all of them, or some.

    Args:
        reader: of the split.
        windows: its length.
        full: read all.
        watch: shows progress.
    """
    found = Walk()
    first: dict[str, Any] = {}

    def read(i: int) -> dict[str, Any]:
        with faults_told():
            sample, content = reader.read(i)
            if "vis_feats" in sample:
                first.update(first or sample)
                collate([first, sample])
                found.dv = first["vis_feats"].shape[-1]
        found.contents.setdefault(content, i)
        return {key: value for key, value in sample.items() if key not in ("frames", "vis_feats")}

    indices = evenly_spaced(windows, windows if full else SAMPLED)
    found.rows, mistakes = read_rows(read, watch(indices, reader.checked.split))
    if not hasattr(reader.checked.dataset, "labels_of"):  # else all are read for their labels, and told there
        reader.checked.misspelt.warn()
    return found, mistakes


def content_of(sample: dict[str, Any]) -> bytes:
    """A digest of a sample's frames or features and its telemetry."""
    pictures: Tensor = sample["frames"] if "frames" in sample else sample["vis_feats"]
    return _joined([_digest(one) for one in pictures], sample)


def _joined(digests: list[bytes], sample: dict[str, Any]) -> bytes:
    return hashlib.sha256(b"".join([*digests, _digest(sample["telemetry"])])).digest()


def _digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).digest()
