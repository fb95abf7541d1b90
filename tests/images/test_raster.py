"""PNG, JPEG, TIFF and BMP: what each mode becomes, orientation, pages, and no invented spacing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from samples import pixels

from vesalius.errors import UnreadableImage
from vesalius.images import probe, read

GREY, COLOUR = pixels(12, 17), pixels(12, 17, 3)
DEEP = pixels(12, 17, high=65536, dtype="uint16")


def palette(colours: np.ndarray) -> Pillow.Image:
    picture = Pillow.fromarray(GREY % len(colours), mode=None).convert("P")
    picture.putdata((GREY % len(colours)).ravel().tolist())
    picture.putpalette(colours.astype(np.uint8).ravel().tolist())
    return picture


@pytest.mark.parametrize(
    ("picture", "suffix", "expected"),
    [
        (Pillow.fromarray(GREY), "png", GREY[None]),
        (Pillow.fromarray(GREY), "bmp", GREY[None]),
        (Pillow.fromarray(COLOUR), "png", COLOUR.transpose(2, 0, 1)),
        (Pillow.fromarray(DEEP), "png", DEEP[None]),
        (Pillow.fromarray(DEEP), "tif", DEEP[None]),
        (Pillow.fromarray(GREY / np.float32(7)), "tif", (GREY / np.float32(7))[None]),
        (Pillow.fromarray(GREY > 99), "png", np.where(GREY > 99, 255, 0)[None]),
        (Pillow.fromarray(np.dstack([GREY, GREY // 2]), "LA"), "png", GREY[None]),
        (Pillow.fromarray(np.dstack([COLOUR, GREY])), "png", COLOUR.transpose(2, 0, 1)),
        (palette(np.repeat([[0], [40], [90]], 3, 1)), "png", np.array([0, 40, 90])[GREY % 3][None]),
        (
            palette(np.array([[9, 0, 0], [1, 2, 3]])),
            "png",
            np.array([[9, 0, 0], [1, 2, 3]])[GREY % 2].transpose(2, 0, 1),
        ),
    ],
    ids=["L", "L-bmp", "RGB", "I;16", "I;16-tif", "F", "1", "LA", "RGBA", "P-grey", "P-colour"],
)
def test_pixels_survive(tmp_path: Path, picture: Pillow.Image, suffix: str, expected: np.ndarray) -> None:
    path = tmp_path / f"image.{suffix}"
    picture.save(path, dpi=(300, 300))
    image = read(path)
    assert np.array_equal(image.array, expected)
    assert image.array.dtype.isnative and image.array.flags.writeable
    assert image.spacing is None and image.affine is None  # 300 dpi is a printer's, not the patient's
    header = probe(path)
    assert (header.size, header.channels, header.frames) == (image.size, image.channels, 1)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Pillow.fromarray(GREY).save(tmp_path / "turned.png", exif=exif)
    image = read(tmp_path / "turned.png")
    assert np.array_equal(image.array[0], np.rot90(GREY, -1))
    assert probe(tmp_path / "turned.png").size == image.size == (17, 12)


def test_pages_are_frames(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    pages = [Pillow.fromarray(GREY + step) for step in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert probe(path).frames == 3
    image = read(path, frame=2)
    assert np.array_equal(image.array[0], GREY + 2) and (image.frame, image.frames) == (2, 3)
    with pytest.raises(UnreadableImage, match=r"pages.tif: holds 3 frames \(0 to 2\); choose one"):
        read(path)
    with pytest.raises(UnreadableImage, match="no frame 3"):
        read(path, frame=3)


def test_cut_off_png_is_an_error_not_a_grey_half(tmp_path: Path) -> None:
    Pillow.fromarray(pixels(64, 64)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImage, match=r"cut.png: cannot be read .*copy"):
        read(tmp_path / "cut.png")


def test_jpeg_is_read_close_to_what_was_written(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))
    Pillow.fromarray(ramp).save(tmp_path / "ramp.jpg", quality=95)
    assert np.abs(read(tmp_path / "ramp.jpg").array[0].astype(int) - ramp).max() <= 4
