"""Manifests on disk, and hostile images."""

import json
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_world import write_manifest

from simv0.data.contract import check_sample
from simv0.data.manifest import ManifestDataset, load_image
from simv0.errors import ConfigError, DataError


def manifest(folder: Path, *rows: Any) -> Path:
    path = folder / "m.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        ManifestDataset(path)
    return str(error.value).replace(str(path.parent), "DIR")


def test_manifest_problems_name_file_and_line(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    inside = tmp_path / "sub"
    inside.mkdir()
    Image.new("RGB", (4, 4)).save(inside / "b.png")
    (inside / "link.png").symlink_to(tmp_path / "a.png")
    assert refusal(tmp_path / "none.jsonl") == "DIR/none.jsonl: manifest not found"
    assert refusal(manifest(tmp_path, {"frames": ["a.png"]}, "{oops")).startswith("DIR/m.jsonl:2: not JSON: ")
    assert refusal(manifest(tmp_path, [1])) == "DIR/m.jsonl:1: expected a JSON object, found list"
    no_list = "DIR/m.jsonl:1: frames: expected a list of image paths, found "
    assert refusal(manifest(tmp_path, {"frames": "a.png"})) == no_list + "'a.png'"
    lacking = "DIR/m.jsonl:1: frames is missing, and so is video; found the keys "
    assert refusal(manifest(tmp_path, {})) == lacking + "none"
    assert refusal(manifest(tmp_path, {"frame": ["a.png"], "t": 1})) == lacking + "frame, t"
    missing = "DIR/m.jsonl:2: frames: no file 'c.png' found beside the manifest"
    assert refusal(manifest(tmp_path, {"frames": ["a.png"]}, {"frames": ["a.png", "c.png"]})) == missing
    link = " by a link; if you trust it: data.dataset_kwargs={follow_links: true}"
    for name, by in (("../a.png", ""), ("..\\a.png", ""), ("link.png", link), (str(tmp_path / "a.png"), "")):
        outside = f"DIR/m.jsonl:1: frames: {name!r} leads outside the manifest's folder{by}"
        assert refusal(manifest(inside, {"frames": [name]})) == outside.replace(str(inside), "DIR")


def test_links_lead_outside_only_where_that_is_allowed(tmp_path: Path) -> None:
    nas, data = tmp_path / "nas", tmp_path / "data"
    for folder in (nas / "cam", data):
        folder.mkdir(parents=True)
    for path in (nas / "cam" / "a.png", nas / "b.png", tmp_path / "c.png"):
        Image.new("RGB", (4, 4)).save(path)
    (data / "images").symlink_to(nas / "cam")
    path = manifest(data, {"frames": ["images/a.png"]})
    assert "leads outside the manifest's folder by a link; if you trust it: " in refusal(path)
    followed = ManifestDataset(path, follow_links=True)
    assert followed[0]["frames"].shape == (1, 3, 4, 4)
    assert followed.frame_ids(0) == [str((nas / "cam" / "a.png").resolve())]
    assert len(followed.content_digest()) == 64
    for name in ("images/../b.png", "../c.png", "images\\..\\..\\c.png", str(tmp_path / "c.png")):
        with pytest.raises(DataError, match="leads outside the manifest's folder$"):
            ManifestDataset(manifest(data, {"frames": [name]}), follow_links=True)
    with pytest.raises(ConfigError, match="^data.dataset_kwargs: follow_links: expected true or false, found 'yes'$"):
        ManifestDataset(path, follow_links="yes")


def test_names_that_another_system_wrote_are_found(tmp_path: Path) -> None:
    """Accents composed in the other way, backslashes; of two candidates neither is guessed."""
    composed, taken_apart = (unicodedata.normalize(form, "Straße_ü") for form in ("NFC", "NFD"))
    for folder, file in ((composed, "é.png"), (taken_apart + "2", "a.png")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / folder / file)
    for name, file in (
        (f"{taken_apart}/{unicodedata.normalize('NFD', 'é.png')}", f"{composed}/é.png"),
        (f"{composed}2/a.png", f"{taken_apart}2/a.png"),
        (f"{composed}\\é.png", f"{composed}/é.png"),
        (f".\\{taken_apart}\\é.png", f"{composed}/é.png"),
    ):
        dataset = ManifestDataset(manifest(tmp_path, {"frames": [name]}))
        assert dataset.frame_ids(0) == [str((tmp_path / file).resolve())]
        assert dataset[0]["frames"].shape == (1, 3, 4, 4)
        assert len(dataset.content_digest()) == 64
    for form in ("NFC", "NFD"):
        Image.new("RGB", (4, 4)).save(tmp_path / unicodedata.normalize(form, "ệ.png"))
    mixed = unicodedata.normalize("NFC", "ê") + "\N{COMBINING DOT BELOW}.png"
    assert "no file " in refusal(manifest(tmp_path, {"frames": [mixed]}))
    for name in ("C:\\data\\0.jpg", "d:/data/0.jpg", "\\\\nas\\data\\0.jpg"):
        assert refusal(manifest(tmp_path, {"frames": [name]})) == (
            f"DIR/m.jsonl:1: frames: {name!r} is an absolute path of Windows; write it relative to the manifest, with "
            "slashes, such as 'images/0.jpg'"
        )


def test_the_mistakes_of_a_manifest_come_together(tmp_path: Path) -> None:
    """Each once, and each file: windows share frames. At most eight."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [{"frames": ["a.png", "b.png"]}, {"frames": ["b.png"]}, {"frames": 5}, {"frames": ["c.png"]}, {"frames": 5}]
    assert refusal(manifest(tmp_path, *rows)).splitlines() == [
        "DIR/m.jsonl:1: frames: no file 'b.png' found beside the manifest",
        "DIR/m.jsonl:3: frames: expected a list of image paths, found 5 (and 1 more like it)",
        "DIR/m.jsonl:4: frames: no file 'c.png' found beside the manifest",
    ]
    many = refusal(manifest(tmp_path, *({"frames": [f"{i}.png"]} for i in range(20)))).splitlines()
    assert many[7:] == [
        "DIR/m.jsonl:8: frames: no file '7.png' found beside the manifest",
        "(there may be more)",
    ]


def test_frames_labels_and_ids_come_as_written(manifests: Path) -> None:
    dataset = ManifestDataset(manifests / "train.jsonl")
    row = json.loads((manifests / "train.jsonl").read_text().splitlines()[3])
    sample = dataset[3]
    assert sample["frames"].shape == (4, 3, 24, 40)
    assert (sample["frames"][1] == load_image(manifests / row["frames"][1])).all()
    assert {key: sample[key] for key in ("telemetry", "risk_id", "sample_id")} == {
        key: row[key] for key in ("telemetry", "risk_id", "sample_id")
    }
    assert dataset.frame_ids(3)[1:] == dataset.frame_ids(4)[:3]  # neighbours share frames by name


def test_whole_numbers_are_telemetry_too(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    dataset = ManifestDataset(manifest(tmp_path, {"frames": ["a.png"], "telemetry": [0, 1, 2.5, 0, 0, 0, 0, 0]}))
    assert dataset.labels_of(0)["telemetry"] == [0.0, 1.0, 2.5, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_what_json_allows_but_no_file_system_or_float_does(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for name, shown in (
        ("a\0.png", r"'a\x00.png'"),
        ("x" * 300, "'" + "x" * 200 + "'..."),
        ("\ud800.png", r"'\ud800.png'"),
    ):
        expected = f"DIR/m.jsonl:1: frames: no file {shown} found beside the manifest"
        assert refusal(manifest(tmp_path, {"frames": [name]})) == expected
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    assert "no file 'circle.png'" in refusal(manifest(tmp_path, {"frames": ["circle.png"]}))
    assert refusal(manifest(tmp_path, "[" * 100_000)).startswith("DIR/m.jsonl:1: not JSON: maximum recursion depth")
    late = refusal(manifest(tmp_path, {"video": "a.png", "timestamps": [0, 10**400]}))
    assert late.startswith("DIR/m.jsonl:1: timestamps: expected a list of seconds >= 0, found [0, 1000")
    dataset = ManifestDataset(manifest(tmp_path, {"frames": ["a.png"], "telemetry": [0] * 7 + [-(10**400)]}))
    with pytest.raises(DataError, match=r"t\[0\]: telemetry: holds NaN or inf in w"):
        check_sample(dataset[0], "t", 0, F=1, labels=False)


def test_a_byte_order_mark_is_no_part_of_the_manifest(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    path = manifest(tmp_path, {"frames": ["a.png"]})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(ManifestDataset(path)) == 1


def test_two_sizes_in_one_window(tmp_path: Path) -> None:
    for i in (4, 5):
        Image.new("RGB", (i, 4)).save(tmp_path / f"{i}.png")
    dataset = ManifestDataset(manifest(tmp_path, {"frames": ["4.png", "5.png"]}))
    with pytest.raises(
        DataError, match=r"m.jsonl:1: frames: one window needs one size, found \[\(3, 4, 4\), \(3, 4, 5\)\]"
    ):
        dataset[0]


def test_content_digest_follows_every_byte(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "a.jsonl", 3, seed=0)
    before = ManifestDataset(path).content_digest()
    assert ManifestDataset(path).content_digest() == before
    image = next((tmp_path / "a_images").iterdir())
    image.write_bytes(image.read_bytes() + b"\0")
    changed = ManifestDataset(path).content_digest()
    path.write_text(path.read_text().replace('"risk_id": 0', '"risk_id": 1', 1))
    assert len({before, changed, ManifestDataset(path).content_digest()}) == 3


def png_that_declares(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_bombs_truncated_and_foreign_images_are_refused_by_name(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(good)
    bytes_ = good.read_bytes()
    path = tmp_path / "bad.jpg"
    for content, reason in [
        (png_that_declares(12000, 9000), "12000x9000 pixels; the largest image read is 64000000"),
        (png_that_declares(60000, 60000), "cannot be read as an image: "),
        (bytes_[: len(bytes_) // 2], "cannot be read as an image: image file is truncated"),
        (b"hello", "cannot be read as an image: cannot identify image file"),
        (b"", "cannot be read as an image: cannot identify image file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            load_image(path)
        assert str(error.value).startswith(f"{path}: {reason}")
        assert "\n" not in str(error.value)


def test_a_manifest_in_another_encoding_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes('{"sample_id": "ä"}'.encode("utf-16"))
    with pytest.raises(DataError) as error:
        ManifestDataset(path)
    assert str(error.value) == f"{path}: is not UTF-8 text (byte 0); save it as UTF-8"
