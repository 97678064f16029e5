"""Exported folders: read as they were written, refused file by file, never executed; folders are replaced whole."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from export_world import checkpoint, summary

from simv0.disk.files import DIGESTS
from simv0.disk.folders import check_target, write_folder
from simv0.errors import CheckpointError, ConfigError, ModelError, SimError
from simv0.export.folder import export, without_folders
from simv0.model.checkpoint import load_checkpoint, save_checkpoint
from simv0.model.exported import CHECKED, FILES, digest_lines
from simv0.runtime.hub import pretrained_folder


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "best.pt", checkpoint().model_copy(update={"unlike": summary()}))
    return export(tmp_path / "best.pt", tmp_path / "robot")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def sealed(folder: Path, **changed: bytes) -> None:
    """Change files and their digests with them, as somebody would who means harm."""
    files = {name: changed.get(name.split(".")[0], (folder / name).read_bytes()) for name in CHECKED}
    for name, data in {**files, DIGESTS: digest_lines(files)}.items():
        (folder / name).write_bytes(data)


def test_what_is_exported_is_read_bit_for_bit(exported: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == sorted(FILES)
    read, saved = load_checkpoint(exported), load_checkpoint(tmp_path / "best.pt")
    assert read.meta == saved.meta
    assert read.tensors().keys() == saved.tensors().keys()
    for name, tensor in saved.tensors().items():
        assert read.tensors()[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    assert read.unlike is not None
    assert read.unlike.facts() == summary().facts()
    assert read.training is None


def test_without_a_summary_there_is_none(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", checkpoint())
    assert load_checkpoint(export(tmp_path / "best.pt", tmp_path / "robot")).unlike is None


def test_the_same_checkpoint_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    again = export(tmp_path / "best.pt", tmp_path / "again")
    assert all((again / name).read_bytes() == (exported / name).read_bytes() for name in (*CHECKED, DIGESTS))


@pytest.mark.parametrize("name", [*CHECKED, DIGESTS])
def test_every_changed_byte_is_refused_by_file(exported: Path, name: str) -> None:
    path, rng = exported / name, random.Random(0)
    good = path.read_bytes()
    for _ in range(60):
        data = bytearray(good)
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data[:at] if rng.random() < 0.3 else data)
        told = refusal(exported)
        assert str(path) in told or (name == DIGESTS and DIGESTS in told)
    path.unlink()
    assert refusal(exported).startswith(f"{path}: file not found: {exported} is not a folder of simv0 export, or not")


def test_the_card_is_the_readers_to_change(exported: Path) -> None:
    (exported / "README.md").write_text("# Ours")
    load_checkpoint(exported)


def test_what_is_forged_with_its_digests_is_checked_like_a_checkpoint(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"config": b"[" * 100_000}, "config.json: is not JSON: RecursionError"),
        ({"config": b"[]"}, "config.json: expected a JSON object"),
        ({"config": json.dumps({**config, "format_version": 2}).encode()}, "config.json: is not of a format that this"),
        ({"config": json.dumps({**config, "meta": {**config["meta"], "K": 0}}).encode()}, "meta.K"),
        ({"config": json.dumps({**config, "unlike": {**config["unlike"], "frames_limit": -1}}).encode()}, "unlike"),
        ({"labels": b'{"risk": []}'}, "labels.json: says {'risk': []}, but this simv0 knows"),
        ({"model": b"\x80\x04N."}, "model.safetensors: is not a safetensors file"),
    ]
    good = {name: (exported / name).read_bytes() for name in CHECKED}
    for changed, told in cases:
        sealed(exported, **changed)
        assert told in refusal(exported)
        sealed(exported, **{name.split(".")[0]: data for name, data in good.items()})
    load_checkpoint(exported)


def test_the_config_loses_the_folders_of_the_machine_but_not_the_networks() -> None:
    config = {
        "data": {"train_split_path": "/home/me/secret/train.jsonl", "dataset_kwargs": {"token": "x"}, "batch_size": 8},
        "model": {"llm_name_or_path": "/models/llm"},
        "output": {"output_dir": "/home/me/runs/a"},
    }
    assert without_folders(config) == {
        "data": {"train_split_path": "train.jsonl", "dataset_kwargs": {}, "batch_size": 8},
        "model": {"llm_name_or_path": "/models/llm"},
        "output": {"output_dir": "a"},
    }


def test_a_folder_is_only_replaced_when_asked_and_when_it_is_ours(exported: Path, tmp_path: Path) -> None:
    best = tmp_path / "best.pt"
    with pytest.raises(ConfigError, match=f"--to: {exported}: exists; replace it with --overwrite, or name another"):
        export(best, exported)
    export(best, exported, overwrite=True)
    (exported / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds thesis.tex, which --overwrite would remove; name another folder"):
        export(best, exported, overwrite=True)
    for target, told in ((tmp_path / "a" / "b", "the folder .* does not exist; create it first"), (best, "is a file")):
        with pytest.raises(ConfigError, match=told):
            check_target(target, FILES, True, "--to")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "robot"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rename in turn dies: the old folder or the new one is there, and the next try ends well."""
    old, new = {"a": b"1", "b": b"2"}, {"a": b"3", "b": b"4"}
    folder, real = tmp_path / "f", Path.rename
    for fatal in range(2):
        write_folder(folder, old)
        calls = iter(range(10))

        def dying(self: Path, target: Path, fatal: int = fatal, calls: Any = calls) -> Path:
            if self.name.startswith((".f", "f")) and next(calls) == fatal:
                raise OSError(28, "No space left on device")
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying)
            with pytest.raises(SimError, match=r"cannot be written: No space left on device; what was there before"):
                write_folder(folder, new)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
        assert [path.name for path in tmp_path.iterdir()] == ["f"]
    real(folder, tmp_path / ".f.replaced")  # killed between the two renames
    (tmp_path / ".f.new").mkdir()
    (tmp_path / ".f.new" / "a.tmp").write_bytes(b"")
    write_folder(folder, new)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == new
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_name_of_the_hub_leads_to_its_cache(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, commit = tmp_path / "hub" / "models--lab--robot", "0123456789" * 4
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    exported.rename(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    files = (*CHECKED, DIGESTS)
    assert pretrained_folder("lab/robot", None, files) == repository / "snapshots" / commit
    assert pretrained_folder("lab/robot", commit, files) == repository / "snapshots" / commit
    assert torch.equal(load_checkpoint(pretrained_folder("lab/robot", None, files)).state["bias"], torch.tensor([1.5]))
    told = (
        f"from_pretrained: lab/other is not a local folder, and its files are not on this machine ({tmp_path}/hub) and "
        "HF_HUB_OFFLINE is set; check the name, run `hf download lab/other` where there is a network, or give a local "
        "folder"
    )
    with pytest.raises(ModelError, match=re.escape(told)):
        pretrained_folder("lab/other", None, files)
    (repository / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="its files are not on this machine"):
        pretrained_folder("lab/robot", None, files)
    with pytest.raises(ModelError, match="its files are not on this machine"):
        pretrained_folder("lab/robot", "v2", files)
