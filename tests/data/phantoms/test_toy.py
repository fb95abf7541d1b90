"""The toy images: reproducible, and the texture hidden from intensity but there."""

from __future__ import annotations

import numpy as np

from vesalius.data.phantoms.toy import toy_organs, toy_ultrasound


def test_image_i_depends_on_seed_and_i_alone():
    few, many = toy_ultrasound(3, seed=5), toy_ultrasound(9, seed=5)
    for field in ("image", "nodule", "texture", "calcification"):
        assert np.array_equal(getattr(few, field), getattr(many, field)[:3])
    assert not np.array_equal(few.image, toy_ultrasound(3, seed=6).image)


def test_images_are_standardised_and_points_lie_in_the_nodule():
    batch = toy_ultrasound(200, seed=0)
    assert batch.image.shape == (200, 1, 32, 32) and batch.image.dtype == np.float32
    assert np.allclose(batch.image.mean((1, 2, 3)), 0, atol=1e-5)
    assert np.allclose(batch.image.std((1, 2, 3)), 1, atol=1e-4)
    assert not (batch.calcification & ~batch.nodule).any()
    counts = batch.calcification.sum((1, 2))
    assert counts.min() == 0 and counts.max() == 4


def test_nodule_is_darker_but_texture_shows_only_in_the_correlation():
    batch = toy_ultrasound(600, seed=1)
    image, quiet = batch.image[:, 0], batch.calcification.sum((1, 2)) == 0
    inside = np.array([x[m].mean() for x, m in zip(image, batch.nodule, strict=True)])
    spread = np.array([x[m].std() for x, m in zip(image, batch.nodule, strict=True)])
    step = np.array(
        [
            np.abs(np.diff(x, axis=1))[m[:, 1:] & m[:, :-1]].mean() / x[m].std()
            for x, m in zip(image, batch.nodule, strict=True)
        ]
    )
    coarse = batch.texture == 1
    assert inside[quiet].mean() < -0.5
    for visible in (inside, spread):
        assert abs(visible[coarse].mean() - visible[~coarse].mean()) < 0.15 * visible.std()
    assert ((step < np.median(step)) == coarse).mean() > 0.9


def test_organs_are_unequal_in_number_and_differ():
    batch = toy_organs(3000, seed=0)
    shares = np.bincount(batch.organ) / 3000
    assert np.allclose(shares, (0.90, 0.07, 0.03), atol=0.02)
    power = np.abs(np.fft.fft2(batch.image[:, 0])) ** 2
    means = np.array([power[batch.organ == k].mean(0) for k in range(3)])
    low = means[:, :4, :4].sum((1, 2)) / means.sum((1, 2))
    assert low.max() > 2 * low.min()
