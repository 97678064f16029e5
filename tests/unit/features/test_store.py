"""Feature files that are broken, forged or foreign are refused by name; a sound one reads back as written."""

import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from attacks import attack

from simv0.data.labels import Labels
from simv0.errors import CacheError
from simv0.features.info import FORMAT_VERSION, MAGIC, USER_BLOCK, FeatureInfo
from simv0.features.reader import read_features, sha256
from simv0.features.writer import write_features
from simv0.labels import HEADS

N, F, DV, ROWS = 11, 2, 6, 4


def make(n: int = N, dtype: str = "float16", group: bool = True) -> tuple[FeatureInfo, list[np.ndarray]]:
    draw = np.random.default_rng(0)
    labels = Labels(
        telemetry=draw.normal(size=(n, 8)).astype(np.float32),
        ids={head: draw.integers(0, len(names), n) for head, names in HEADS.items()},
        weight=draw.random(n, np.float32),
        sample_id=[f"fenêtre-{i}" for i in range(n)],
        group=["a"] * n if group else None,
    )
    feats = draw.normal(size=(n, F, DV)).astype(dtype)
    blocks = [feats[i : i + ROWS] for i in range(0, n, ROWS)]
    identity = {"F": F, "dv": DV, "dtype": dtype, "N": n, "dataset_kwargs": {"a": [1, None]}}
    return FeatureInfo(
        identity, labels, {"risk": [1.0, 2.0, 3.0, 4.0]}, ROWS, [sha256(block) for block in blocks]
    ), blocks


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    info, blocks = make()
    path = tmp_path / "sound.h5"
    write_features(path, info, blocks, tmp_path / "tmp")
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("group", [True, False])
def test_round_trip(tmp_path: Path, dtype: str, group: bool) -> None:
    info, blocks = make(dtype=dtype, group=group)
    path = tmp_path / "x.h5"
    write_features(path, info, iter(blocks), tmp_path / "tmp")
    file = read_features(path)
    assert file.info.identity == info.identity
    assert file.info.class_weights == info.class_weights
    assert file.info.labels.sample_id == info.labels.sample_id
    assert file.info.labels.group == info.labels.group
    for one, other in ((file.info.labels.telemetry, info.labels.telemetry), (file.map(), np.concatenate(blocks))):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    for head in HEADS:
        np.testing.assert_array_equal(file.info.labels.ids[head], info.labels.ids[head])
    assert file.bad_blocks() == []
    assert not file.map().flags.writeable
    assert os.listdir(tmp_path) == ["x.h5"]


def test_same_input_same_bytes_at_any_time(sound: Path, tmp_path: Path) -> None:
    info, blocks = make()
    write_features(tmp_path / "again.h5", info, blocks, tmp_path / "tmp")
    assert (tmp_path / "again.h5").read_bytes() == sound.read_bytes()
    with h5py.File(sound) as h5:
        objects = {name: h5py.h5o.get_info(h5[name].id) for name in ("/", *h5)}
    assert "vis_feats" in objects
    for name, stamps in objects.items():  # HDF5's own, which count seconds
        assert (stamps.btime, stamps.ctime, stamps.mtime) == (0, 0, 0), name


def test_the_hole_for_features_takes_no_memory(tmp_path: Path) -> None:
    """A header for 8 TB of features is laid out at once; no block is given, so the writer stops there."""
    info, _ = make()
    huge = replace(info, identity={**info.identity, "F": 2**20, "dv": 2**18})
    with pytest.raises(AssertionError, match="wrote 0 bytes of vis_feats"):
        write_features(tmp_path / "x.h5", huge, [], tmp_path / "tmp")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(tmp_path: Path, failing: BaseException) -> None:
    info, blocks = make()

    def break_off() -> Any:
        yield blocks[0]
        raise failing

    with pytest.raises(type(failing)):
        write_features(tmp_path / "x.h5", info, break_off(), tmp_path / "tmp")
    assert os.listdir(tmp_path) == []


def test_cut_short_at_any_length(sound: Path, tmp_path: Path) -> None:
    data = sound.read_bytes()
    cut = tmp_path / "cut.h5"
    for length in [0, 1, 15, 100, 511, 512, 513, *range(1000, len(data), 997), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(CacheError, match=r"not a feature file|truncated or damaged|bytes are damaged"):
            read_features(cut)
    cut.write_bytes(data + b"\0")
    with pytest.raises(CacheError, match=f"holds {len(data) + 1} bytes, {len(data)} were written"):
        read_features(cut)


def test_not_ours(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as h5:
        h5["vis_feats"] = np.zeros((2, 2, 2))
    with pytest.raises(CacheError, match=r"x.h5: an HDF5 file, but not one that cache-vis wrote; if cache-vis was to"):
        read_features(path)
    path.write_text("hello")
    with pytest.raises(CacheError, match="x.h5: not a feature file"):
        read_features(path)
    path.write_bytes(sound.read_bytes().replace(b'"format_version": 1', b'"format_version": 7', 1))
    with pytest.raises(CacheError, match=rf"format_version is 7, this simv0 reads {FORMAT_VERSION}; recreate it with"):
        read_features(path)
    with pytest.raises(CacheError, match="cannot be read: "):
        read_features(tmp_path)


def test_mutated_files_are_refused_or_read_right(sound: Path, tmp_path: Path) -> None:
    info, blocks = make()
    truth = b"".join(block.tobytes() for block in blocks)
    refused, right = attack(tmp_path / "x.h5", sound.read_bytes(), info, truth, 400, seed=0)
    assert refused > 200
    assert right > 0  # padding behind the seal; a piece copied onto its like


def forge(path: Path, change: Callable[[h5py.File], None]) -> None:
    """Change a sound file by plain h5py, and put a true seal on it, as an attacker could."""
    image = io.BytesIO(path.read_bytes())
    with h5py.File(image, "r+") as h5:
        change(h5)
        feats = h5.get("vis_feats") if isinstance(h5.get("vis_feats", getlink=True), h5py.HardLink) else None
        dataset = isinstance(feats, h5py.Dataset)
        offset, nbytes = (feats.id.get_offset() or 0, feats.id.get_storage_size()) if dataset else (0, 0)
    data = image.getvalue()
    if not (offset >= USER_BLOCK and offset + nbytes <= len(data)):  # it has no features of its own
        offset, nbytes = USER_BLOCK, 1
    digest = hashlib.sha256(data[USER_BLOCK:offset] + data[offset + nbytes :]).hexdigest()
    seal = {"format_version": 1, "bytes": len(data), "vis_feats": [offset, nbytes], "sha256": digest}
    path.write_bytes((MAGIC + json.dumps(seal).encode() + b"\n").ljust(USER_BLOCK, b"\0") + data[USER_BLOCK:])


def replaced(name: str, **kwargs: Any) -> Callable[[h5py.File], None]:
    def change(h5: h5py.File) -> None:
        del h5[name]
        h5.create_dataset(name, **kwargs)

    return change


def linked(link: Any) -> Callable[[h5py.File], None]:
    def change(h5: h5py.File) -> None:
        del h5["telemetry"]
        h5["telemetry"] = link

    return change


def virtual(h5: h5py.File) -> None:
    layout = h5py.VirtualLayout((N, 8), "<f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (N, 8))
    del h5["telemetry"]
    h5.create_virtual_dataset("telemetry", layout)


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda h5: h5.attrs.__setitem__(name, value)


HOSTILE: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "external storage": (
        replaced("telemetry", shape=(N, 8), dtype="<f4", external=[("/etc/passwd", 0, 32 * N)]),
        "telemetry: its data are in another file",
    ),
    "external link": (linked(h5py.ExternalLink("elsewhere.h5", "/x")), "telemetry: is a link to elsewhere"),
    "soft link": (linked(h5py.SoftLink("/weight")), "telemetry: is a link to elsewhere"),
    "virtual": (virtual, "telemetry: its data are in another file"),
    "virtual features": (
        lambda h5: (
            h5.move("vis_feats", "x"),
            h5.create_virtual_dataset("vis_feats", h5py.VirtualLayout((N, F, DV), "<f2")),
        )[0],
        "vis_feats: its data are in another file",
    ),
    "filter": (
        replaced("weight", data=np.zeros(N, "<f4"), chunks=(N,), compression="gzip"),
        "weight: expected contiguous, unfiltered storage",
    ),
    "chunks": (replaced("weight", data=np.zeros(N, "<f4"), chunks=(N,)), "weight: expected contiguous"),
    "huge and empty": (
        replaced("vis_feats", shape=(10**9, 1000, 1000), dtype="<f2"),
        "vis_feats: declares 2000000000000000 bytes that the file does not hold",
    ),
    "never written": (replaced("weight", shape=(N,), dtype="<f4"), "weight: declares 44 bytes that the file does not"),
    "object type": (
        replaced("sample_id", data=["a"] * N, dtype=h5py.string_dtype()),
        "sample_id: has the type object",
    ),
    "ragged type": (replaced("sample_id", shape=(N,), dtype=h5py.vlen_dtype("i4")), "sample_id: has the type object"),
    "integer features": (replaced("vis_feats", data=np.zeros((N, F, DV), "i2")), "vis_feats: has the type int16"),
    "wrong rank": (replaced("vis_feats", data=np.zeros((N, F * DV), "<f2")), "vis_feats: has the shape [11, 12]"),
    "wrong shape": (
        replaced("telemetry", data=np.zeros((N, 7), "<f4")),
        "telemetry: expected <f4 [11, 8], found <f4 [11, 7]",
    ),
    "wrong width": (
        replaced("vis_feats", data=np.zeros((N, F, DV + 1), "<f2")),
        "vis_feats: dv is 7, its identity says 6",
    ),
    "wrong type": (
        replaced("vis_feats", data=np.zeros((N, F, DV), "<f4")),
        "vis_feats: dtype is float32, its identity says float16",
    ),
    "big-endian": (replaced("weight", data=np.zeros(N, ">f4")), "weight: expected <f4 [11], found >f4 [11]"),
    "fewer labels": (replaced("risk_id", data=np.zeros(N - 1, "<i8")), "risk_id: expected <i8 [11]"),
    "label out of range": (replaced("risk_id", data=np.full(N, 4)), "risk_id: expected 0..3, found 4..4"),
    "NaN telemetry": (
        replaced("telemetry", data=np.full((N, 8), np.nan, "<f4")),
        "telemetry or weight: holds NaN, inf or a negative weight",
    ),
    "missing": (lambda h5: h5.__delitem__("weight"), "weight: missing"),
    "group instead of dataset": (
        lambda h5: (h5.__delitem__("weight"), h5.create_group("weight"))[0],
        "weight: is not a dataset",
    ),
    "not UTF-8": (replaced("sample_id", data=np.full(N, b"\xff")), "cannot be read as HDF5: 'utf-8' codec"),
    "no identity": (lambda h5: h5.attrs.__delitem__("identity"), "root attribute identity: missing or of a wrong type"),
    "identity is a list": (attribute("identity", "[]"), "root attribute identity: missing or of a wrong type"),
    "deep identity": (attribute("identity", "[" * 30000), "cannot be read as HDF5: maximum recursion depth"),
    "no N": (
        attribute("identity", json.dumps({"F": F, "dv": DV, "dtype": "float16"})),
        "identity: N is missing or of a wrong type",
    ),
    "F is no int": (
        attribute("identity", json.dumps({"F": float(F), "dv": DV, "dtype": "float16", "N": N})),
        "identity: F is missing or of a wrong type",
    ),
    "more windows than N": (
        attribute("identity", json.dumps({"F": F, "dv": DV, "dtype": "float16", "N": N - 1})),
        "holds windows 0..10, its identity says N = 10",
    ),
    "class weights": (
        attribute("class_weights", '{"risk": [1, 2]}'),
        "class_weights: risk: expected 4 floats, found 2",
    ),
    "no blocks": (attribute("block_windows", 0), "block_sha256: expected u1 [11, 32]"),
    "incomplete": (attribute("complete", False), "is not marked complete"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_layouts_are_refused_by_name(sound: Path, name: str) -> None:
    change, message = HOSTILE[name]
    forge(sound, change)
    with pytest.raises(CacheError) as caught:
        read_features(sound)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_forged_seal_cannot_point_the_map_elsewhere(sound: Path) -> None:
    data = sound.read_bytes()
    offset = read_features(sound).offset
    nbytes = N * F * DV * 2
    digest = hashlib.sha256(data[USER_BLOCK : offset - 64] + data[offset - 64 + nbytes :]).hexdigest()
    seal = {"format_version": 1, "bytes": len(data), "vis_feats": [offset - 64, nbytes], "sha256": digest}
    sound.write_bytes((MAGIC + json.dumps(seal).encode() + b"\n").ljust(USER_BLOCK, b"\0") + data[USER_BLOCK:])
    with pytest.raises(CacheError, match="vis_feats is not where the seal says"):
        read_features(sound)
