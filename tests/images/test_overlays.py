"""The overlay leaves the background alone, tints the inside and draws the contour solid."""

from __future__ import annotations

import numpy as np
import pytest
from samples import pixels

from vesalius.errors import VesaliusError
from vesalius.images import Image, overlay
from vesalius.images.overlays import COLOURS

IMAGE = Image(pixels(1, 40, 50), ("gray",))


def test_overlay() -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[10:20, 10:30], mask[25:30, 10:30], mask[0, 0] = 1, 2, 255
    drawn = overlay(IMAGE, mask, classes=["a", "b"], alpha=0.5)
    assert drawn.shape == (40, 50, 3) and drawn.dtype == np.uint8
    outside = (mask == 0) | (mask == 255)
    assert np.array_equal(drawn[outside], np.repeat(IMAGE.array[0][outside][:, None], 3, 1))
    assert (drawn[10, 10:30] == COLOURS[0]).all() and (drawn[25:30, 29] == COLOURS[1]).all()
    inside = drawn[15, 20]
    assert np.allclose(inside, 0.5 * IMAGE.array[0, 15, 20] + 0.5 * np.array(COLOURS[0]), atol=1)


def test_names_are_written_where_there_is_room() -> None:
    mask = np.zeros((100, 120), int)
    mask[60:80, 60:80] = 1
    plain = Image(np.full((1, 100, 120), 128, np.uint8), ("gray",))
    named, empty = (overlay(plain, mask, classes=["lésion", name]) for name in ("b", "c"))
    assert (named[:20, :60] != 128).any() and np.array_equal(named, empty)  # only classes that are there


def test_wrong_size() -> None:
    with pytest.raises(VesaliusError, match="cannot be drawn"):
        overlay(IMAGE, np.zeros((4, 5), int), classes=["a"])
