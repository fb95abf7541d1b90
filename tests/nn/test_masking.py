from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vesalius.errors import ConfigError
from vesalius.nn.masking import Rings, band_stopped, block_mask, mean_padded, pixel_mask, random_keep

PARITY = Path(__file__).parents[1] / "parity"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 3),
    st.floats(0, 1),
    st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_blocks_are_whole_and_as_many_as_asked(batch, rows, columns, block, ratio, seed):
    mask = block_mask(batch, (rows * block, columns * block), block=block, ratio=ratio, generator=generator(seed))
    cells = mask.view(batch, rows, block, columns, block)
    assert (cells == cells[:, :, :1, :, :1]).all()
    assert (cells[:, :, 0, :, 0].sum((1, 2)) == math.ceil(ratio * rows * columns)).all()


def test_published_block_mask():
    mask = block_mask(2, (14, 14), block=2, ratio=0.6, generator=generator())
    assert mask.sum((1, 2)).tolist() == [120, 120]
    assert not torch.equal(mask[0], mask[1])
    with pytest.raises(ConfigError, match="cannot be cut into blocks of 4"):
        block_mask(1, (14, 14), block=4, ratio=0.6, generator=generator())


def test_mean_padding_uses_the_mean_of_the_whole_image():
    image = torch.rand(2, 3, 8, 12)
    mask = torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[0, 0, 1] = True
    padded = mean_padded(image, mask)
    torch.testing.assert_close(padded[0, :, :4, 4:8], image[0].mean((1, 2))[:, None, None].expand(3, 4, 4))
    assert torch.equal(padded[1], image[1])
    hidden = pixel_mask(mask, (8, 12))[0, 0]
    assert torch.equal(padded[0][:, ~hidden], image[0][:, ~hidden])


def test_rings_are_the_published_ones():
    fixture = np.load(PARITY / "usfm_frequency_mask_a.npz")
    rings = Rings(ratio=0.4, base=4, increase=0.3, max_increase=4, protect=4, reference=64)
    masks = rings.masks(64)
    assert list(masks.shape) == fixture["out/rings/shape"].tolist()
    assert (masks == 0).sum((1, 2)).tolist() == fixture["out/ring_zero_count/value"].tolist()
    np.testing.assert_array_equal(masks.numpy().reshape(-1)[fixture["out/rings/index"]], fixture["out/rings/value"])


def test_stopped_rings_are_empty_and_the_rest_is_untouched():
    image = torch.randn(3, 1, 64, 64, dtype=torch.float64)
    factor = Rings().draw(3, 64, generator=generator(1)).double()
    before, after = (
        torch.fft.fftshift(torch.fft.fft2(x, norm="ortho"), dim=(-2, -1)) for x in (image, band_stopped(image, factor))
    )
    stopped = (factor == 0).unsqueeze(1)
    assert stopped.any()
    assert after[stopped].abs().max() < 1e-12
    torch.testing.assert_close(after[~stopped], before[~stopped])


@pytest.mark.parametrize("size", [32, 64, 224])
def test_rings_scale_with_the_image(size):
    rings = Rings()
    masks = rings.masks(size)
    stopped = masks == 0
    assert not stopped[0].any()
    assert (stopped[1:].sum((1, 2)) > 0).all()
    assert stopped.sum(0).max() == 1
    far = rings.radii(size)[-1] / size
    assert far == pytest.approx(rings.radii(224)[-1] / 224)
    drawn = (rings.draw(50, size, generator=generator()) == 0).float().mean((1, 2))
    assert 0.1 < drawn.mean() < 0.5


def test_magnitude_rectifies_and_the_real_part_does_not():
    image = torch.randn(1, 1, 32, 32)
    ones = torch.ones(1, 32, 32)
    torch.testing.assert_close(band_stopped(image, ones), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(band_stopped(image, ones, magnitude=True), image.abs(), atol=1e-5, rtol=0)


def test_faulty_schedules_are_refused():
    with pytest.raises(ConfigError, match="never grow"):
        Rings(base=3, increase=0.3)
    with pytest.raises(ConfigError, match="as_published"):
        Rings(protect=14)
    first = Rings(protect=14, as_published=True).masks(224)[0]
    assert first.unique().tolist() == [0, 1, 2]


def test_random_keep():
    noise = torch.rand(5, 49, generator=generator())
    keep, mask, restore = random_keep(noise, 0.75)
    assert keep.shape == (5, 12)
    assert (mask.sum(1) == 37).all()
    assert (mask.gather(1, keep) == 0).all()
    assert (noise.gather(1, keep).diff(dim=1) > 0).all()
    tokens = torch.arange(49).expand(5, -1)
    shuffled = tokens.gather(1, noise.argsort(1))
    assert torch.equal(shuffled.gather(1, restore), tokens)
    with pytest.raises(ConfigError, match="mask_ratio"):
        random_keep(noise, 1.0)
