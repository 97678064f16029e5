"""Windows of a split read as training or cache-vis would read them: what is wrong with them, what they hold."""

import hashlib
import logging
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simv0.data.contract import CheckedDataset, SharesFrames, check_frame_count, check_sample, collate, place_of
from simv0.data.labels import Labels, check_labels
from simv0.data.user_class import calling, yields_features
from simv0.data.values import check_frames
from simv0.errors import DataError, Mistakes, SimError
from simv0.training.splits import evenly_spaced

log = logging.getLogger("simv0")

Watch = Callable[[list[int], str], Iterable[int]]
"""Goes through window numbers and shows how far it is; the text says of what."""

SAMPLED = 64
"""Windows read without `--full`, evenly spaced."""


def unwatched(indices: list[int], split: str) -> list[int]:
    """Show nothing."""
    return indices


@dataclass
class Walk:
    """What was read of a split.

    Attributes:
        rows: window -> its sample without frames and features.
        contents: digest of frames or features and telemetry -> the first window that has them.
        dv: feature width; None for frames.
        complete: whether every window was read, without a mistake.
    """

    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    contents: dict[bytes, int] = field(default_factory=dict)
    dv: int | None = None
    complete: bool = False

    def labels(self, split: str) -> Labels | None:
        """Of the whole split, if all of it was read.

        Raises:
            DataError: as `check_labels`.
        """
        return check_labels(list(self.rows.values()), split) if self.complete else None


class Reader:
    """Reads windows as cache-vis does where it may (`by_frame`: each shared frame once), else as training does.

    Args:
        checked: the split.
        by_frame: whether frames that have names are read by them.
    """

    def __init__(self, checked: CheckedDataset, by_frame: bool) -> None:
        self.checked = checked
        self.by_frame = by_frame and isinstance(checked.dataset, SharesFrames)
        self.digests: dict[Hashable, bytes] = {}

    def read(self, index: int) -> tuple[dict[str, Any], bytes]:
        """A window's checked sample, without frames where they have names, and the digest of its content.

        Raises:
            DataError: it breaks the contract.
        """
        if not self.by_frame:
            sample = self.checked[index]
            return sample, content_of(sample)
        dataset, split, F = self.checked.dataset, self.checked.split, self.checked.F
        where = place_of(dataset, split, index)
        with calling(where, 0, 0, index):
            given, names = dataset.labels_of(index), dataset.frame_ids(index)
        check_frame_count(names, where, F)
        sample = check_sample(given, split, index, F=F, frames=False, where=where)
        for name in names:
            if name not in self.digests:
                with calling(f"{split}, frame {name!r}", 0, 0, name):
                    frame = dataset.load_frame(name)
                self.digests[name] = _digest(check_frames(frame, f"{split}: frame {name!r}"))
        return sample, _joined([self.digests[name] for name in names], sample)


def walk(reader: Reader, windows: int, full: bool, batch: int, watch: Watch) -> tuple[Walk, Mistakes]:
    """Read windows of a split: all of them, or a batch of features and some of the others.

    Args:
        reader: of the split.
        windows: its length.
        full: read all.
        batch: windows of a training batch, which must be of one shape where they bring features.
        watch: shows progress.
    """
    found, mistakes, split = Walk(), Mistakes(), reader.checked.split
    indices = list(range(windows)) if full else evenly_spaced(windows, SAMPLED)
    with suppress(Exception):  # told below
        if not full and yields_features(reader.checked.dataset, split):
            indices = sorted({*indices, *range(min(batch, windows))})
    first: dict[str, Any] = {}
    for i in watch(indices, split):
        with mistakes, faults_told():
            sample, content = reader.read(i)
            if "vis_feats" in sample:
                first = first or sample
                collate([first, sample])
                found.dv = first["vis_feats"].shape[-1]
            found.contents.setdefault(content, i)
            found.rows[i] = {key: value for key, value in sample.items() if key not in ("frames", "vis_feats")}
        if mistakes.enough:
            break
    if not hasattr(reader.checked.dataset, "labels_of"):  # else all are read for their labels, and told there
        reader.checked.misspelt.warn()
    found.complete = len(found.rows) == windows
    return found, mistakes


def content_of(sample: dict[str, Any]) -> bytes:
    """A digest of a sample's frames or features and its telemetry."""
    pictures: Tensor = sample["frames"] if "frames" in sample else sample["vis_feats"]
    return _joined([_digest(one) for one in pictures], sample)


def _joined(digests: list[bytes], sample: dict[str, Any]) -> bytes:
    return hashlib.sha256(b"".join([*digests, _digest(sample["telemetry"])])).digest()


def _digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).digest()


@contextmanager
def faults_told() -> Iterator[None]:
    """For a `with` block that calls the user's class: an exception becomes a DataError, its traceback is logged."""
    try:
        yield
    except SimError:
        raise
    except Exception as error:
        raise fault_of(error) from error


def fault_of(error: Exception) -> DataError:
    """An exception of the user's class as one line; its traceback is logged."""
    log.error("".join(traceback.format_exception(error)).rstrip())
    places = [note.removeprefix("in ") for note in getattr(error, "__notes__", []) if note.startswith("in ")]
    files = [place for place in traceback.extract_tb(error.__traceback__) if Path(place.filename).is_file()]
    at = f" ({Path(files[-1].filename).name}:{files[-1].lineno})" if files else ""
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
    return DataError(f"{places[0] if places else 'dataset'}: {said}{at}")
