"""PNG, JPEG, TIFF and BMP through Pillow: grey or RGB, 8 or 16 bits, upright, transparency dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from vesalius.errors import UnreadableImage
from vesalius.images.image import Image
from vesalius.images.reading import DEFLATE, Header, check_claim, choose_frame, reading

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
GRAY, RGB = ("gray",), ("R", "G", "B")

_TO_GRAY = {"1": "L", "LA": "L", "La": "L"}
_AS_STORED = ("L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112  # EXIF; values 5 to 8 exchange rows and columns


def read_raster(path: Path, frame: int | None = None) -> Image:
    """One image, or page `frame` of a TIFF, as ``[1, H, W]`` or ``[3, H, W]``.

    Grey keeps its 8, 16 or 32 bits; a palette becomes its colours (grey, if all of them are grey); 1 bit becomes 0 and
    255; alpha is dropped; CMYK and YCbCr become RGB; EXIF orientation is applied. 16-bit RGB becomes 8-bit, as
    Pillow reads no other. There is no spacing: the resolution that such files carry is of a screen or printer.

    Raises:
        UnreadableImage: for any reason.
    """
    with reading(path), _open(path) as picture:
        frames = _frames(picture)
        index = choose_frame(path, frame, frames)
        if index:
            picture.seek(index)
            _check_size(path, picture)
        mode = _mode(picture)
        # Orientation before the conversion, which loses the EXIF block.
        upright = ImageOps.exif_transpose(picture)
        array = np.array(upright if mode == upright.mode else upright.convert(mode))
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        channels = RGB if mode == "RGB" else GRAY
        array = np.ascontiguousarray(np.moveaxis(array, -1, 0)) if mode == "RGB" else array[None]
        return Image(array, channels, path=path, frame=None if frames == 1 else index, frames=frames)


def probe_raster(path: Path) -> Header:
    """The header, without decoding.

    Raises:
        UnreadableImage: the file is none of PNG, JPEG, TIFF and BMP.
    """
    with reading(path), _open(path) as picture:
        width, height = picture.size
        if picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
            width, height = height, width
        return Header(_frames(picture), (height, width), RGB if _mode(picture) == "RGB" else GRAY)


def _open(path: Path) -> Pillow.Image:
    try:
        picture = Pillow.open(path, formats=FORMATS)
    except Pillow.UnidentifiedImageError as error:
        raise UnreadableImage(
            "is not an image, whatever its name says",
            path=path,
            remedy="Vesalius reads DICOM, NIfTI, PNG, JPEG, TIFF and BMP",
        ) from error
    except Pillow.DecompressionBombError as error:
        raise UnreadableImage("is too large to be decoded safely", path=path, remedy="crop or tile it") from error
    _check_size(path, picture)
    return picture


def _check_size(path: Path, picture: Pillow.Image) -> None:
    depth = 4 if picture.mode in ("I", "F") else len(picture.getbands())
    # One byte of deflate can hold 8 one-bit pixels for each byte it stands for.
    check_claim(path, picture.width * picture.height * depth, stored=path.stat().st_size, ratio=8 * DEFLATE)


def _frames(picture: Pillow.Image) -> int:
    # Previews in a JPEG (MPO) and the frames of an animated PNG are not images of the patient.
    return getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1


def _mode(picture: Pillow.Image) -> str:
    """The Pillow mode to convert to: L, RGB, or the stored one of deep grey."""
    if picture.mode in ("P", "PA"):
        colours = np.reshape(picture.getpalette("RGB") or [0, 0, 0], (-1, 3))
        return "L" if (colours == colours[:, :1]).all() else "RGB"
    if picture.mode in _AS_STORED:
        return picture.mode
    return _TO_GRAY.get(picture.mode, "RGB")
