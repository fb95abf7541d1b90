"""Post-processing of organs and tumours, and lungs that hang together."""

from __future__ import annotations

import numpy as np
import pytest

from vesalius.tasks.lungs import lung_pair, separate_lungs
from vesalius.tasks.organs import clean, inside, largest

SHAPE = (24, 16, 12)


def _box(*slices, shape=SHAPE):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*bounds) for bounds in slices)] = True
    return mask


def test_largest_needs_more_than_the_least_size():
    mask = _box((0, 4), (0, 4), (0, 4)) | _box((10, 12), (0, 2), (0, 2)) | _box((20, 23), (0, 3), (0, 3))
    assert largest(mask).sum() == 64
    assert largest(mask, 3, least=8).sum() == 64 + 27
    assert not largest(np.zeros(SHAPE, dtype=bool)).any()


def test_a_tumour_far_from_its_organ_goes():
    liver, far = _box((0, 8), (0, 8), (0, 8)), _box((14, 16), (2, 4), (2, 4))
    close = _box((9, 10), (2, 4), (2, 4))
    assert np.array_equal(inside(far | close, liver), close)
    kept = clean(np.stack([liver, far | close]), ["liver", "liver_tumor"])[1]
    assert np.array_equal(kept, close)
    assert not clean(np.stack([liver, close]), ["liver", "liver_tumor"], rules="atlas")[1].any()  # 4 voxels of 20


def test_the_vein_starts_at_the_pancreas():
    vein, pancreas = _box((4, 6), (4, 6), (0, 12)), _box((8, 12), (4, 8), (5, 7))
    names = ["portal_vein_and_splenic_vein", "pancreas"]
    assert np.array_equal(clean(np.stack([vein, pancreas]), names)[0], _box((4, 6), (4, 6), (5, 12)))
    assert np.array_equal(clean(np.stack([vein, ~_box((0, 24), (0, 16), (0, 12))]), names)[0], vein)


def test_lungs_are_told_apart_whatever_the_prediction_called_them():
    left, right = _box((2, 9), (2, 14), (1, 11)), _box((14, 22), (2, 14), (1, 11))
    swapped = np.stack([left, right])  # lung_right, lung_left
    assert np.array_equal(clean(swapped, ["lung_right", "lung_left"]), np.stack([right, left]))
    assert lung_pair(left) is None
    assert not clean(np.stack([left, left]), ["lung_right", "lung_left"]).any()


@pytest.mark.parametrize(("start", "side"), [(1, 1), (14, 0)])
def test_a_single_lung_keeps_its_side(start, side):
    lung = _box((start, start + 9), (2, 14), (1, 11))
    speck = _box((start, start + 1), (0, 1), (0, 1))
    pair = separate_lungs(lung | speck)
    assert np.array_equal(pair[side], lung)
    assert not pair[1 - side].any()


def test_lungs_that_touch_are_eroded_apart():
    left, right = _box((2, 10), (2, 14), (1, 11)), _box((14, 22), (2, 14), (1, 11))
    bridge, speck = _box((10, 14), (7, 9), (5, 7)), _box((0, 1), (0, 1), (0, 1))
    parted = separate_lungs(left | right | bridge | speck)
    for ours, truth in zip(parted, (right, left), strict=True):
        assert (ours & truth).sum() > 0.99 * truth.sum()
    assert not (parted[0] & parted[1]).any()
