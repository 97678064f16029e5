"""Checkpoints: saved whole, read only when sound, never executed."""

import io
import os
import pickle
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from export_world import checkpoint, summary
from torch import nn

from simv0.disk.files import keep_previous
from simv0.errors import CheckpointError, SimError
from simv0.model.checkpoint import check_frozen, load_checkpoint, load_state, save_checkpoint, seal


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_saved_is_loaded(saved: Path) -> None:
    loaded = load_checkpoint(saved)
    assert loaded.meta == checkpoint().meta
    assert torch.equal(loaded.state["heads.weight"], torch.arange(6.0).view(2, 3))
    plain = torch.load(saved, weights_only=True)  # a plain torch file, for everybody else
    assert plain["meta"]["dv"] == 4
    assert zipfile.ZipFile(saved).testzip() is None


def test_a_summary_of_the_training_data_is_kept(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", checkpoint().model_copy(update={"unlike": summary()}))
    loaded = load_checkpoint(tmp_path / "a.pt").unlike
    assert loaded is not None
    assert loaded.facts() == summary().facts()
    assert all(torch.equal(tensor, summary().tensors()[name]) for name, tensor in loaded.tensors().items())


def test_same_content_same_bytes(saved: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "b.pt", checkpoint())
    assert saved.read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_every_mutation_is_refused(saved: Path, tmp_path: Path) -> None:
    """Flips, cuts and splices at random: an error of ours in one line, nothing else, nothing accepted."""
    good, rng, path = saved.read_bytes(), random.Random(0), tmp_path / "m.pt"
    for _ in range(2000):
        data = bytearray(good)
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case _:
                start = rng.randrange(len(data))
                data[at : at + 40] = good[start : start + 40] + b"x"
        path.write_bytes(data)
        assert bytes(data) != good
        assert str(path) in refusal(path)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch PWNED",))


def test_hostile_pickles_run_nothing(tmp_path: Path) -> None:
    path, seen = tmp_path / "h.pt", []

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if listening and event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "import"):
            seen.append((event, args[0]))

    listening = False
    sys.addaudithook(audit)  # cannot be removed; `listening` silences it
    hostile: list[Any] = [Payload(), {"meta": Payload()}, [Payload()], nn.Linear(2, 2), Path("x"), print]
    for thing in [*hostile, {1, 2}]:
        buffer = io.BytesIO()
        torch.save(thing, buffer)
        path.write_bytes(seal(buffer.getvalue()))
        listening = True
        found = refusal(path)
        listening = False
        if thing == {1, 2}:  # plain values
            assert found.endswith("Input should be a valid dictionary or instance of Checkpoint, found set")
        else:
            assert found == f"{path}: refused: it holds more than tensors and plain values"
    raw = pickle.dumps(Payload())
    for data in (raw, seal(raw), b"", b"PK"):
        path.write_bytes(data)
        listening = True
        refusal(path)
        listening = False
    assert [event for event in seen if event[0] != "import"] == []
    assert not Path("PWNED").exists()


def with_meta(**changes: Any) -> dict[str, Any]:
    return {"meta": {**checkpoint().meta.model_dump(), **changes}, "state": {}, "training": None}


def with_state(tensor: torch.Tensor, name: str = "w") -> dict[str, Any]:
    return {**with_meta(), "state": {name: tensor}}


def with_unlike(**changes: Any) -> dict[str, Any]:
    return {**with_meta(), "unlike": {**summary().model_dump(), **changes}}


def endless() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"meta": 1, "state": {}}, "not a checkpoint this simv0 can read: meta: "),
        ([1], "not a checkpoint this simv0 can read: content: "),
        ({"state": {}}, "not a checkpoint this simv0 can read: meta: Field required"),
        (with_state(torch.zeros(1).expand(10**12)), "refused: w is not a plain tensor"),  # 4 bytes that claim 4 TB
        (with_state(torch.eye(2).to_sparse()), "refused: w is not a plain tensor"),
        (with_state(torch.zeros(2, device="meta")), "refused: w is not a plain tensor"),
        (with_state(torch.zeros(2).half()), "refused: w is not a plain tensor"),
        (with_state(torch.zeros(1), "feats_std"), "feats_std must be positive"),
        (with_state(torch.tensor(float("nan")), "a\nb"), "'a\\nb' holds NaN or inf"),
        (
            with_meta(F=10**9),
            "not a checkpoint this simv0 can read: meta.F: Input should be less than or equal to 4096",
        ),
        (
            with_unlike(std=torch.ones(1).expand(10**12)),
            "not a checkpoint this simv0 can read: unlike: Value error, std: expected [4], found [1000000000000]",
        ),
        (
            with_unlike(variance=torch.ones(1).expand(10**9), axes=torch.ones(1, 1).expand(10**9, 4)),
            "refused: unlike.axes is not a plain tensor",
        ),
        (with_unlike(std=torch.zeros(4)), "unlike.std must be positive"),
        (with_unlike(half_range=-torch.ones(8)), "unlike.half_range must be positive"),
        (with_unlike(mean=torch.full((4,), float("inf"))), "unlike.mean holds NaN or inf"),
        (with_unlike(frames_limit=0.0), "not a checkpoint this simv0 can read: unlike.frames_limit: Input should be"),
        (
            {**with_unlike(), **with_meta(dv=5)},
            "its summary is of features 4 wide, but it takes features of width 5",
        ),
        (with_meta(config={"a": []}), "not a checkpoint this simv0 can read: meta.config.a: Input should be a valid"),
        (
            with_meta(config={"a": {"b": endless()}}),
            "not a checkpoint this simv0 can read: meta.config.a.b.list.0: Rec",
        ),
        (
            with_meta(epoch=torch.zeros(1).expand(10**12)),
            "not a checkpoint this simv0 can read: meta.epoch: Input should",
        ),
        (
            with_meta(**{"x\ny": 1}),
            "not a checkpoint this simv0 can read: 'meta.x\\ny': Extra inputs are not permitted",
        ),
    ],
)
def test_foreign_content_names_the_field(tmp_path: Path, content: Any, message: str) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path = tmp_path / "f.pt"
    path.write_bytes(seal(buffer.getvalue()))
    assert refusal(path).startswith(f"{path}: {message}")


def test_what_is_no_file_or_grows_when_read_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # would wait for ever
    assert refusal(tmp_path / "pipe").endswith("pipe: is not a file; name a .pt such as checkpoints/best.pt")
    assert refusal(tmp_path).endswith("is a folder, not a checkpoint; name a .pt such as checkpoints/best.pt")
    with (tmp_path / "huge.pt").open("wb") as file:
        file.truncate(1 << 40)
    assert "not a simv0 checkpoint: larger than" in refusal(tmp_path / "huge.pt")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"\0" * 10**6)
    (tmp_path / "bomb.pt").write_bytes(seal(packed.getvalue()))
    assert refusal(tmp_path / "bomb.pt").endswith("bomb.pt: refused: it unpacks to more than its size")


def test_other_versions_labels_and_nan_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    later = checkpoint()
    object.__setattr__(later.meta, "format_version", 2)
    save_checkpoint(path, later)
    assert "meta.format_version: Input should be 1, found 2" in refusal(path)
    save_checkpoint(path, checkpoint(labels={"risk": ["safe"]}))
    assert "its labels are {'risk': ['safe']}, but this simv0 knows" in refusal(path)
    broken = checkpoint()
    broken.state["bias"][0] = float("nan")
    save_checkpoint(path, broken)
    assert refusal(path) == f"{path}: bias holds NaN or inf"
    assert refusal(tmp_path / "none.pt") == f"{tmp_path / 'none.pt'}: checkpoint not found"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))

    def trainable_state(self) -> dict[str, torch.Tensor]:
        return self.state_dict()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "it lacks weight"),
        ({"weight": torch.ones(2, 3), "x": torch.ones(1)}, "it has the unknown x"),
        ({"weight": torch.ones(3, 2)}, "weight: expected torch.float32 [2, 3], found torch.float32 [3, 2]"),
        ({"weight": torch.ones(2, 3).double()}, "weight: expected torch.float32 [2, 3], found torch.float64 [2, 3]"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(state: dict[str, torch.Tensor], message: str) -> None:
    model = Small()
    with pytest.raises(CheckpointError) as error:
        load_state(model, state, "c.pt")
    assert str(error.value) == f"c.pt: does not fit the model: {message}"
    assert not model.weight.any()


def test_another_frozen_network_is_refused_by_name() -> None:
    stored = {"llm_name": "a", "llm_weights": "1"}
    check_frozen("LLM", stored, dict(stored), "c.pt")
    with pytest.raises(CheckpointError) as error:
        check_frozen("LLM", stored, {"llm_name": "a", "llm_weights": "2"}, "c.pt")
    assert str(error.value) == "c.pt: belongs to another LLM: llm_weights: trained with '1', found '2'"


def test_the_previous_file_is_kept_and_a_failed_save_changes_nothing(saved: Path, tmp_path: Path) -> None:
    previous = tmp_path / "prev.pt"
    first = saved.read_bytes()
    save_checkpoint(saved, checkpoint(epoch=2), previous=previous)
    assert previous.read_bytes() == first
    assert load_checkpoint(saved).meta.epoch == 2
    second = saved.read_bytes()
    for _ in range(2):  # as after a kill before the new file was there
        keep_previous(saved, previous)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "prev.pt"]
    folder_in_the_way = tmp_path / "a.pt.tmp"
    folder_in_the_way.mkdir()
    with pytest.raises(SimError, match=r"a.pt: cannot be written: Is a directory; what was there before is intact"):
        save_checkpoint(saved, checkpoint(epoch=3), previous=previous)
    assert saved.read_bytes() == second
