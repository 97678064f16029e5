"""Pictures as cameras and tools store them: turned, of 16 bits, with alpha, several in a file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simv0.data.images import STRIP, load_image
from simv0.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
GRAY = np.linspace(0, 255, 60).astype(np.uint8).reshape(6, 10)
STORED = {  # EXIF orientation -> the upright picture as the file holds it
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def shown(path: Path) -> np.ndarray:
    """[H,W,3]"""
    return load_image(path).permute(1, 2, 0).numpy()


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        load_image(path)
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_that_is_stored_turned_comes_upright(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = STORED[orientation](RGB)
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True}), ("a.tif", {})):
        assert (shown(save(tmp_path / name, stored, exif=exif, **options)) == RGB).all(), name
    tagged, plain = (save(tmp_path / name, stored, exif=e) for name, e in (("t.jpg", exif), ("p.jpg", Image.Exif())))
    assert (STORED[orientation](shown(tagged)) == shown(plain)).all()


def test_a_picture_of_more_rows_than_are_copied_at_a_time_is_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2 * STRIP + 5, 7, 3), np.uint8)
    assert (shown(save(tmp_path / "tall.png", noise)) == noise).all()


def test_a_jpeg_is_scaled_down_while_it_is_decoded_and_nothing_else_is(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None], (48, 64, 3))
    jpeg, png = save(tmp_path / "a.jpg", smooth, quality=95), save(tmp_path / "a.png", smooth)
    sizes = {24: (24, 32), 25: (48, 64), 13: (24, 32), 12: (12, 16), 7: (12, 16), 6: (6, 8), 1: (6, 8), 100: (48, 64)}
    for smallest, size in sizes.items():
        assert load_image(jpeg, smallest=smallest).shape == (3, *size), smallest
        assert load_image(png, smallest=smallest).shape == (3, 48, 64)
    halves = smooth.reshape(24, 2, 32, 2, 3).mean((1, 3))
    found = load_image(jpeg, smallest=24).permute(1, 2, 0).numpy()
    assert np.abs(found - halves).max() <= 3
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(save(tmp_path / "t.jpg", smooth, exif=exif), smallest=24).shape == (3, 32, 24)


def test_an_orientation_that_is_none_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    for wrong in (0, 9):
        exif = Image.Exif()
        exif[0x0112] = wrong
        assert (shown(save(tmp_path / "a.png", RGB, exif=exif)) == RGB).all()


def test_more_than_8_bits_are_scaled_by_what_white_is(tmp_path: Path) -> None:
    sixteen = GRAY.astype(np.uint16) * 257
    pgm = tmp_path / "a.pgm"
    pgm.write_bytes(b"P5 10 6 4095\n" + np.rint(GRAY / 255 * 4095).astype(">u2").tobytes())  # the file says: 12 bits
    for path in (
        save(tmp_path / "a.png", sixteen),
        save(tmp_path / "a.tif", sixteen),
        save(tmp_path / "b.tif", sixteen.astype(">u2")),
        save(tmp_path / "negative.tif", 65535 - sixteen, tiffinfo={262: 0}),
        save(tmp_path / "float.tif", (GRAY / 255).astype(np.float32)),
        save(tmp_path / "black.png", sixteen * 0),
        pgm,
    ):
        found = shown(path)
        assert found.dtype == np.uint8
        assert (found == (GRAY * 0 if path.stem == "black" else GRAY)[..., None]).all(), path


def test_pixels_whose_range_nothing_tells_are_refused(tmp_path: Path) -> None:
    for bits in (12, 14):
        highest = 2**bits - 1
        dim = np.rint(GRAY / 255 * highest).astype(np.uint16)
        for name in ("dim.png", "dim.tif"):
            assert refusal(save(tmp_path / name, dim)) == (
                f"16-bit pixels of at most {highest}, where white is 65535: is it 12-bit, 14-bit or depth? "
                "Save it as 8 bit, scaled as intended"
            )
    assert refusal(save(tmp_path / "int.tif", GRAY.astype(np.int32) * 100)) == (
        "32-bit integer pixels, found 0..25500: the white level is unknown; save it as 8 bit, or as 16 bit with white "
        "at 65535"
    )
    for values, found in ((GRAY, "0..255"), (GRAY - 1.0, "-1..254"), (GRAY * np.nan, "nan..nan")):
        assert refusal(save(tmp_path / "float.tif", values.astype(np.float32))) == (
            f"float pixels must lie in 0..1, found {found}; scale them, or save 8 bit"
        )


def test_colours_of_16_bits_are_refused_where_8_bits_would_be_all_but_black(tmp_path: Path) -> None:
    def written(path: Path, pixels: np.ndarray) -> Path:  # by hand: PIL writes no such TIFF
        data = pixels.astype("<u2").tobytes()
        tags = [(256, 3, 1, 10), (257, 3, 1, 6), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 140)]
        tags += [(277, 3, 1, 3), (278, 3, 1, 6), (279, 4, 1, len(data)), (284, 3, 1, 1)]
        head = b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little")
        for tag, kind, count, value in tags:
            head += b"".join(n.to_bytes(size, "little") for n, size in ((tag, 2), (kind, 2), (count, 4), (value, 4)))
        path.write_bytes((head + bytes(4)).ljust(134, b"\0") + b"\x10\0" * 3 + data)
        return path

    assert (shown(written(tmp_path / "a.tif", RGB.astype(np.uint16) * 257)) == RGB).all()
    assert refusal(written(tmp_path / "dim.tif", RGB.astype(np.uint16) * 16)).startswith("16-bit pixels of at most ")


def test_every_other_mode_shows_the_colours_that_the_file_holds(tmp_path: Path) -> None:
    alpha = np.full((6, 10, 1), 128, np.uint8)
    gray = np.repeat(GRAY[..., None], 3, 2)
    palette = Image.fromarray(RGB).quantize(16)
    few = np.asarray(palette.convert("RGB"))
    palette.save(tmp_path / "p.png", transparency=bytes(range(16)))
    palette.save(tmp_path / "p.gif", transparency=3)
    Image.fromarray(np.concatenate([gray[..., :1], alpha], 2), "LA").save(tmp_path / "la.png")
    save(tmp_path / "rgba.png", np.concatenate([RGB, alpha], 2))
    save(tmp_path / "l.png", GRAY)
    save(tmp_path / "1.png", GRAY > 99)
    for name, expected in (
        *(("p.png", few), ("p.gif", few), ("la.png", gray), ("rgba.png", RGB), ("l.png", gray)),
        ("1.png", np.repeat(255 * (GRAY > 99)[..., None], 3, 2)),
    ):
        assert (shown(tmp_path / name) == expected).all(), name
    red = shown(save(tmp_path / "cmyk.jpg", np.full((16, 16, 3), (250, 5, 5), np.uint8), "CMYK", quality=95))
    assert (abs(red.astype(int) - (250, 5, 5)) < 12).all()


def test_a_file_of_several_pictures_is_refused(tmp_path: Path) -> None:
    one, two = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    for name, kind in (("a.tif", "TIFF"), ("a.gif", "GIF"), ("a.png", "PNG"), ("a.webp", "WEBP")):
        one.save(tmp_path / name, save_all=True, append_images=[two])
        assert refusal(tmp_path / name) == f"holds 2 images ({kind}): write each frame to its own file"
    one.save(tmp_path / "a.mpo", save_all=True, append_images=[two])  # a phone's JPEG
    one.save(tmp_path / "a.jpg")
    assert (shown(tmp_path / "a.mpo") == shown(tmp_path / "a.jpg")).all()
