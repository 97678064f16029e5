"""One image file as an upright 8-bit RGB frame, or refused by name."""

import io
import re
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from simv0.errors import DataError

MAX_PIXELS = 64_000_000
"""Larger images are refused unread: a small file can declare an image that fills the memory."""

DIM = 2**14
"""16-bit pixels that stay below are 12-bit, 14-bit or depth: by the range of their type they would be all but black."""

STRIP = 64
"""Rows copied at a time: the memory of a whole picture would come from the kernel and go back to it, again and again,
which takes longer than decoding the JPEG."""

WHITE_IS_ZERO = 0
PHOTOMETRIC, BITS_PER_SAMPLE = 262, 258  # tags of TIFF


def load_image(path: Path, content: bytes | None = None, smallest: int | None = None) -> UInt8[Tensor, "3 H W"]:
    """Read one image file as RGB.

    It is turned as its EXIF orientation says. 16-bit pixels are scaled by the range of their type, float ones from
    0..1; alpha is left out: the colours are those that the file holds. Colour profiles are not applied.

    Args:
        path: of the file.
        content: its bytes, where they lie in another file, and `path` only names it.
        smallest: decode a JPEG at the smallest of its own scales that leaves no side shorter.

    Raises:
        DataError: missing, not an image, truncated, larger than `MAX_PIXELS`, several pictures in one file, pixels
            of unknown range.
    """
    try:
        with warnings.catch_warnings():
            # MAX_PIXELS is stricter; what is damaged in the EXIF data says nothing of the pixels
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(path if content is None else io.BytesIO(content))
            with image:
                pixels = _pixels(image, path, smallest)
    except FileNotFoundError:
        raise DataError(f"{path}: image not found") from None
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error),  # of PIL's many readers
    ) as error:
        raise DataError(f"{path}: cannot be read as an image: {' '.join(str(error).split())}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _pixels(image: Image.Image, path: Path, smallest: int | None) -> UInt8[np.ndarray, "H W 3"]:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{path}: {image.width}x{image.height} pixels; the largest image read is {MAX_PIXELS}")
    pictures = getattr(image, "n_frames", 1)
    if pictures > 1 and image.format != "MPO":  # a phone's JPEG: what follows are previews of the first
        raise DataError(f"{path}: holds {pictures} images ({image.format}): write each frame to its own file")
    sixteen = _of_16_bits(image)
    if smallest is not None and image.format == "JPEG":
        image.draft(None, (smallest, smallest))
    image.load()  # some formats hold their EXIF data behind the pixels
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    upright = ImageOps.exif_transpose(image) if turned else image
    if upright.mode == "F" or upright.mode.startswith("I"):
        gray = _gray(upright, image, path)
        return np.repeat(gray[..., None], 3, axis=2)
    if upright.mode in ("P", "PA", "La", "RGBa"):
        upright = upright.convert("RGBA")
    pixels = _in_strips(upright if upright.mode == "RGB" else upright.convert("RGB"))
    if sixteen:
        _refuse_dim(int(pixels.max()) << 8, path)
    return pixels


def _in_strips(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of an RGB image."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP):
        bottom = min(top + STRIP, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _gray(image: Image.Image, file: Image.Image, path: Path) -> UInt8[np.ndarray, "H W"]:
    """Grey pixels of more than 8 bits, scaled to 0..255.

    Args:
        image: upright.
        file: as it was opened.
        path: of it, for messages.
    """
    values = np.asarray(image)
    tags = getattr(file, "tag_v2", {})
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"{path}: float pixels must lie in 0..1, found {low:.4g}..{high:.4g}; scale them, or save 8 bit"
            )
        part = values.astype(np.float64)
    elif image.mode == "I" and file.format not in ("PNG", "PPM"):
        raise DataError(
            f"{path}: 32-bit integer pixels, found {values.min()}..{values.max()}: the white level is unknown; "
            "save it as 8 bit, or as 16 bit with white at 65535"
        )
    elif tags.get(BITS_PER_SAMPLE) == (12,):
        part = values / 4095
    else:
        if file.format != "PPM":  # it declares its range
            _refuse_dim(int(values.max()), path)
        part = values / 65535
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        part = 1 - part
    return np.rint(part * 255).astype(np.uint8)


def _of_16_bits(image: Image.Image) -> bool:
    """Whether the file holds 16 bits a channel, of which PIL keeps the upper 8 (`RGB;16B`; but `BGR;16` is 5-6-5)."""
    return any(re.search(r";16[BLN]", str(tile.args)) for tile in getattr(image, "tile", []))


def _refuse_dim(highest: int, path: Path) -> None:
    if 0 < highest < DIM:
        raise DataError(
            f"{path}: 16-bit pixels of at most {highest}, where white is 65535: is it 12-bit, 14-bit or depth? "
            "Save it as 8 bit, scaled as intended"
        )


def turned(picture: UInt8[Tensor, "3 H W"], matrix: Int32[np.ndarray, "9"]) -> UInt8[Tensor, "3 h w"]:
    """A picture as players show it: phones store it as the sensor lies, and beside it how to turn or mirror it.

    The matrix (ISO/IEC 14496-12, `tkhd`: a b u, c d v, x y w) takes (x, y) to (a x + c y, b x + d y). Right angles
    only: what lies at any other angle is left as it is.
    """
    a, b, _, c, d = np.sign(matrix[:5]).tolist()
    if b and c and not (a or d):
        picture, a, d = picture.transpose(1, 2), c, b
    elif not (a and d) or b or c:
        return picture
    return picture.flip([axis for axis, sign in ((1, d), (2, a)) if sign < 0])
