from __future__ import annotations

import torch

from vesalius.data.augment import CropFlip


def test_a_pair_is_cropped_and_flipped_alike():
    image = torch.rand(1, 70, 90)
    crop = CropFlip(32, interpolation="bilinear")
    flips = set()
    for seed in range(8):
        first, second = crop([image, 1 - image], generator=torch.Generator().manual_seed(seed))
        assert first.shape == (1, 32, 32)
        torch.testing.assert_close(first + second, torch.ones_like(first))
        (again,) = crop([image], generator=torch.Generator().manual_seed(seed))
        assert torch.equal(first, again)
        ramp = crop([torch.linspace(0, 1, 90).expand(1, 70, 90)], generator=torch.Generator().manual_seed(seed))[0]
        flips.add(bool(ramp[0, 0, 0] > ramp[0, 0, -1]))
    assert flips == {True, False}


def test_boxes_have_the_area_and_aspect_asked_for():
    crop = CropFlip(32, scale=(0.5, 0.6), ratio=(0.9, 1.1))
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        top, left, height, width = crop.box(200, 240, generator=generator)
        assert 0 <= top <= 200 - height
        assert 0 <= left <= 240 - width
        assert 0.48 < height * width / (200 * 240) < 0.62
        assert 0.88 < width / height < 1.12


def test_an_image_too_narrow_for_the_aspect_gives_its_centre():
    assert CropFlip(8, scale=(1.0, 1.0)).box(100, 10, generator=torch.Generator()) == (43, 0, 13, 10)
