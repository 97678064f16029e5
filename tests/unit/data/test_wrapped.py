"""Subset and ConcatDataset: what is kept of what the datasets in them say of themselves."""

import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from simv0.data.class_weights import class_weights_of
from simv0.data.contract import CheckedDataset, SharesFrames, place_of
from simv0.data.labels import find_leakage, read_labels
from simv0.data.source import check_decode
from simv0.data.wrapped import FrameOf, unwrapped
from simv0.errors import ConfigError, DataError
from simv0.labels import HEADS


class Drive(Dataset[Any]):
    """Windows of two frames; frame n is black but for n, and only the drive that holds it can load it."""

    frame_spacing: float | None = 0.2

    def __init__(self, first: int, windows: int = 4) -> None:
        self.first, self.windows = first, windows

    def __len__(self) -> int:
        return self.windows

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**self.labels_of(i), "frames": torch.stack([self.load_frame(name) for name in self.frame_ids(i)])}

    def frame_ids(self, i: int) -> list[int]:
        return [self.first + i, self.first + i + 1]

    def load_frame(self, name: int) -> torch.Tensor:
        assert self.first <= name <= self.first + self.windows
        return torch.full((3, 1, 1), name, dtype=torch.uint8)

    def labels_of(self, i: int) -> dict[str, Any]:
        own = {"group": f"drive{self.first}", "t": i / 5, "sample_id": f"{self.first}-{i}"}
        return {**own, "telemetry": [0.5] * 8, "risk_id": 0, "reason_id": 0, "action_id": 0}

    def where_is(self, i: int) -> str:
        return f"drive{self.first}:{i}"

    def content_digest(self) -> str:
        return f"drive {self.first}"


class Plain(Dataset[Any]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> dict[str, Any]:
        return Drive(70)[i]


def some() -> Any:
    """Windows 1 and 3 of drive 10, and 0 of drive 20."""
    return Subset(ConcatDataset([Drive(10), Drive(20)]), torch.tensor([1, 3, 4]))  # type: ignore[arg-type]


@pytest.mark.parametrize("reopened", [False, True], ids=["here", "in another process"])
def test_every_window_and_frame_is_found_where_it_is(reopened: bool) -> None:
    dataset = pickle.loads(pickle.dumps(unwrapped(some()))) if reopened else unwrapped(some())
    assert isinstance(dataset, SharesFrames)
    checked = CheckedDataset(dataset, "train", F=2)
    names = [checked.frame_ids(i) for i in range(3)]
    assert names == [[11, 12], [13, 14], [20, 21]]
    for i in range(3):
        assert torch.stack([checked.load_frame(name) for name in names[i]]).flatten(1)[:, 0].tolist() == names[i]
        assert torch.equal(checked[i]["frames"], torch.stack([checked.load_frame(name) for name in names[i]]))
    labels = read_labels(dataset, "train", 2)
    assert (labels.group, labels.sample_id) == (["drive10", "drive10", "drive20"], ["10-1", "10-3", "20-0"])
    assert labels.t is not None
    assert labels.t.tolist() == [0.2, 0.6, 0.0]
    assert [place_of(dataset, "train", i) for i in range(3)] == ["drive10:1", "drive10:3", "drive20:0"]
    assert dataset.frame_spacing == 0.2


def test_a_part_inside_a_part_keeps_its_frames() -> None:
    dataset = unwrapped(ConcatDataset([Drive(10), some(), ConcatDataset([Drive(30)])]))
    assert [dataset.frame_ids(i) for i in (0, 5, 6, 7)] == [[10, 11], [13, 14], [20, 21], [30, 31]]
    assert [int(dataset.load_frame(name)[0]) for i in (5, 6, 7) for name in dataset.frame_ids(i)] == [
        *(13, 14, 20, 21, 30, 31)
    ]


def test_a_frame_of_two_parts_is_one_frame_and_leakage_is_found() -> None:
    train, val = unwrapped(ConcatDataset([Drive(10), Drive(12)])), unwrapped(Subset(Drive(12), [0]))
    assert len({name for i in range(8) for name in train.frame_ids(i)}) == 7  # 10 to 16
    assert find_leakage(train, val, None, None) == [
        "LEAKAGE: 2 frames appear in both train and val (first: 12); the val figures will flatter the model. Split by "
        "recording."
    ]
    assert (FrameOf("a", 0), repr(FrameOf("a", 1))) == (FrameOf("a", 1), "'a'")
    assert FrameOf("a", 0) != FrameOf("b", 0)


def test_the_digest_tells_the_windows() -> None:
    digests = [
        unwrapped(given).content_digest()
        for given in (some(), Subset(Drive(10), [0]), Subset(Drive(10), [1]), ConcatDataset([Drive(10), Drive(20)]))
    ]
    assert len(set(digests)) == 4
    assert digests[0] == unwrapped(some()).content_digest()


def test_what_one_part_lacks_the_whole_lacks() -> None:
    dataset = unwrapped(ConcatDataset([Drive(10), Plain()]))
    for name in ("frame_ids", "load_frame", "labels_of", "where_is", "content_digest"):
        assert not hasattr(dataset, name)
    assert not isinstance(dataset, SharesFrames)
    assert place_of(dataset, "train", 5) == "train[5]"
    assert dataset.frame_spacing == 0.2
    assert CheckedDataset(dataset, "train", F=2)[5]["sample_id"] == "70-1"


def test_class_weights_are_those_of_a_subset() -> None:
    weighted = Drive(10)
    weighted.class_weights = {"risk": [1, 2, 3, 4]}  # type: ignore[attr-defined]
    assert class_weights_of(unwrapped(Subset(weighted, [0])), HEADS) == {"risk": [1.0, 2.0, 3.0, 4.0]}
    assert class_weights_of(unwrapped(ConcatDataset([weighted, Drive(20)])), HEADS) is None


def test_parts_of_two_spacings_are_refused() -> None:
    other = Drive(20)
    other.frame_spacing = 0.1
    with pytest.raises(DataError) as error:
        _ = unwrapped(ConcatDataset([Drive(10), other])).frame_spacing
    assert str(error.value) == (
        "frame_spacing: the parts of a ConcatDataset differ: 0.1, 0.2 s; the windows of a split need one"
    )
    other.frame_spacing = None
    assert unwrapped(ConcatDataset([other])).frame_spacing is None


def test_a_subclass_and_anything_else_stay_what_they_are() -> None:
    class Mirrored(ConcatDataset[Any]):
        def __getitem__(self, i: Any) -> Any:
            return {**super().__getitem__(i), "mirrored": True}

    for given in (Mirrored([Drive(10)]), Drive(10)):
        assert unwrapped(given) is given


def test_what_cannot_be_scaled_is_named_as_the_user_wrote_it() -> None:
    for given in (ConcatDataset([Drive(0)]), Drive(0)):
        with pytest.raises(ConfigError, match=rf"of pictures; [\w.]+\.{type(given).__name__} decodes its own: write"):
            check_decode("scaled", unwrapped(given))
