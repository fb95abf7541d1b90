"""Augmentations are a function of their source of chance, keep labels labels, and mirror only where they may."""

from __future__ import annotations

import numpy as np
import pytest

from vesalius.adapt.masam_augment import augment, erase

IMAGE = np.random.default_rng(0).random((5, 24, 20), dtype=np.float32)
LABELS = np.random.default_rng(1).choice(np.array([0, 1, 2, 255], np.uint8), (6, 24, 20))


@pytest.mark.parametrize("side", [20, 24])
def test_the_same_chance_gives_the_same_stack(side: int) -> None:
    image, labels = IMAGE[:, :side], LABELS[:, :side]
    draws = [augment(image, labels, np.random.default_rng(seed)) for seed in [*range(40), 0]]
    assert all(np.array_equal(a, b) for a, b in zip(draws[0], draws[-1], strict=True))
    assert len({draw[0].tobytes() for draw in draws[:-1]}) > 35
    for pixels, marks in draws:
        assert pixels.shape == image.shape and pixels.dtype == np.float32 and 0 <= pixels.min() <= pixels.max() <= 1
        assert marks.shape == labels.shape and marks.dtype == np.uint8 and set(np.unique(marks)) <= {0, 1, 2, 255}
    assert np.array_equal(image, IMAGE[:, :side]) and np.array_equal(labels, LABELS[:, :side])


def test_image_and_labels_move_together() -> None:
    spot = np.zeros((1, 40, 40), np.float32)
    spot[:, 8:16, 22:30] = 1
    met = []
    for seed in range(60):
        pixels, marks = augment(spot, spot.astype(np.uint8), np.random.default_rng(seed))
        if marks.sum() > 20:
            met.append(pixels[marks > 0].mean() - np.median(pixels))
    assert len(met) > 30 and np.mean(np.array(met) > 0.2) > 0.9


@pytest.mark.parametrize("mirror", [False, True])
def test_left_stays_left_without_mirroring(mirror: bool) -> None:
    half = np.zeros((1, 40, 40), np.uint8)
    half[:, :, :18] = 1
    left = []
    for seed in range(60):
        _, marks = augment(half.astype(np.float32), half, np.random.default_rng(seed), mirror=mirror)
        left.append(marks[:, :, :20].sum() >= marks[:, :, 20:].sum())
    assert all(left) != mirror


def test_what_is_erased_is_the_same_in_every_slice_and_background() -> None:
    image, labels = erase(IMAGE, np.ones_like(LABELS), np.random.default_rng(3))
    gone = labels == 0
    assert 0.01 < gone.mean() < 0.06 and (gone == gone[:1]).all()
    assert np.array_equal(image[:, ~gone[0]], IMAGE[:, ~gone[0]])
    assert np.allclose(image[:, gone[0]].std(0), 0)
