"""A mask drawn on its image, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from vesalius.errors import VesaliusError
from vesalius.images.image import Image

COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
"""Okabe and Ito's colours, which colour-blind readers can tell apart; class i has ``COLOURS[i % 7]``."""

_NAMED = 96  # pixels; a smaller image has no room for names


def overlay(image: Image, mask: np.ndarray, *, classes: Sequence[str], alpha: float = 0.3) -> np.ndarray:
    """The image in grey or colour, each class tinted with a solid contour, and the names of the classes present.

    Args:
        image: 2-D, with 1 or 3 channels.
        mask: ``[H, W]`` integers: 0 is background, i + 1 is ``classes[i]``; other values are not drawn.
        classes: the names of the values from 1; written in the corner of images of 96 pixels and more.
        alpha: opacity of the tint in [0, 1].

    Returns:
        uint8 RGB ``[H, W, 3]``.

    Raises:
        VesaliusError: the image is a volume, or the mask has another size.
    """
    if len(image.size) != 2 or mask.shape != image.size:
        raise VesaliusError(
            f"a mask of {mask.shape} cannot be drawn on an image of {image.size}",
            path=image.path,
            remedy="give a 2-D image and a mask of its size",
        )
    grey = np.moveaxis(image.unit(), 0, -1)[:, :, :3]
    canvas = np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey.copy()
    present = []
    for index, name in enumerate(classes):
        inside = mask == index + 1
        if not inside.any():
            continue
        present.append((name, COLOURS[index % len(COLOURS)]))
        colour = np.array(present[-1][1], dtype=np.float32) / 255
        canvas[inside] = (1 - alpha) * canvas[inside] + alpha * colour
        canvas[_contour(inside)] = colour
    pixels = np.rint(canvas * 255).astype(np.uint8)
    return _named(pixels, present) if min(image.size) >= _NAMED else pixels


def _contour(inside: np.ndarray) -> np.ndarray:
    """Pixels of a region with a neighbour (of four) outside of it; the image's edge counts as outside."""
    padded = np.pad(inside, 1)
    interior = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~interior


def _named(pixels: np.ndarray, present: list[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
    picture = Pillow.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for row, (name, colour) in enumerate(present):
        # Pillow's built-in font may lack letters beyond Latin-1.
        text = name.encode("latin-1", "replace").decode("latin-1")
        draw.text((3, 2 + 12 * row), text, fill=colour, stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(picture).copy()
