"""What is hidden from a network in pre-training: blocks of pixels, rings of the Fourier spectrum, tokens.

Every draw comes from the generator that is handed in, for a whole batch or for one image (`batch` = 1), so a view
built in a loader's worker is a pure function of its seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from vesalius.errors import ConfigError


def choose(batch: int, n: int, k: int, *, generator: torch.Generator) -> Tensor:
    """`k` of `n` without replacement, uniformly, for each of `batch` rows: bool ``[B, n]``.

    >>> choose(3, 10, 4, generator=torch.Generator().manual_seed(0)).sum(1)
    tensor([4, 4, 4])
    """
    order = torch.rand(batch, n, generator=generator).argsort(1)
    return torch.zeros(batch, n, dtype=torch.bool).scatter_(1, order[:, :k], True)


def random_keep(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens a masked autoencoder's encoder sees (He 2022).

    Args:
        noise: ``[B, N]``; the ``int(N (1 - mask_ratio))`` lowest stay.
        mask_ratio: share of the tokens that is removed.

    Returns:
        keep ``[B, K]`` indices in the order of the noise; mask ``[B, N]`` float, 1 = removed; restore ``[B, N]``, the
        place of each token among the kept ones followed by the removed ones.
    """
    if not 0 <= mask_ratio < 1:
        raise ConfigError(f"mask_ratio = {mask_ratio}", remedy="use a number from 0 up to, not including, 1")
    count = int(noise.shape[1] * (1 - mask_ratio))
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    return order[:, :count], (restore >= count).to(noise.dtype), restore


def block_mask(batch: int, grid: tuple[int, int], *, block: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Masked tokens in square blocks, as SimMIM and USFM draw them: bool ``[B, rows, columns]``, True = masked.

    ``ceil(ratio * blocks)`` blocks of ``block x block`` tokens are masked, uniformly without replacement.

    Raises:
        ConfigError: the grid cannot be cut into such blocks.
    """
    rows, columns = grid
    if rows % block or columns % block:
        raise ConfigError(
            f"a grid of {rows} x {columns} tokens cannot be cut into blocks of {block}",
            remedy="choose mask_block and image_size so that it can",
        )
    blocks = (rows // block) * (columns // block)
    mask = choose(batch, blocks, math.ceil(ratio * blocks), generator=generator)
    mask = mask.view(batch, rows // block, columns // block)
    return mask.repeat_interleave(block, 1).repeat_interleave(block, 2)


def pixel_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A token mask ``[B, rows, columns]`` at the pixels' size, ``[B, 1, H, W]``."""
    rows, columns = mask.shape[-2:]
    mask = mask.repeat_interleave(size[0] // rows, 1).repeat_interleave(size[1] // columns, 2)
    return mask.unsqueeze(1)


def mean_padded(image: Tensor, mask: Tensor) -> Tensor:
    """``image [B, C, H, W]`` with the pixels of masked tokens (``[B, rows, columns]``) set to the image's channel mean.

    The mean is that of the whole image, hidden pixels included, as in USFM's own generator.
    """
    mean = image.mean((-2, -1), keepdim=True)
    return torch.where(pixel_mask(mask, (image.shape[-2], image.shape[-1])), mean, image)


@dataclass(frozen=True)
class Rings:
    """USFM's schedule of band-stop rings.

    The radii are ``r_1 = base`` and ``r_(k+1) = r_k + min(floor(r_k * increase), max_increase)``, up to half the
    image side, in bins of a `reference`-pixel image; at other sizes they are scaled in proportion. Ring k stops the
    bins at ``r_k < distance <= r_(k+1)``; ring 0 stops nothing (it protects the centre), and no ring reaches the
    corners. The values are not published: the defaults are **[rec]**.

    Args:
        ratio: share of the rings (ring 0 counted) that is drawn for each image.
        base: radius of the protected centre, bins.
        increase: growth of the radius from one ring to the next.
        max_increase: the widest ring, bins.
        protect: CenterProtect of the published code. Any value but `base` puts zeros into ring 0, and twos, which
            amplify, where it is larger: refused unless `as_published`.
        reference: the image side for which the radii are given, pixels.
        as_published: allow the above, and restore images as magnitudes, which makes negative pixels positive.
    """

    ratio: float = 0.4
    base: int = 10
    increase: float = 0.3
    max_increase: int = 10
    protect: int | None = None
    reference: int = 224
    as_published: bool = False

    def __post_init__(self) -> None:
        if self.increase * self.base < 1 or self.max_increase < 1:
            raise ConfigError(
                f"rings of base {self.base}, increase {self.increase} and max_increase {self.max_increase} never grow",
                remedy="choose increase * base >= 1 and max_increase >= 1",
            )
        if self.protect not in (None, self.base) and not self.as_published:
            raise ConfigError(
                f"protect = {self.protect} beside base = {self.base} would stop or double bins of the centre",
                remedy="leave protect out, or set as_published to copy the published code",
            )
        if not 0 <= self.ratio <= 1:
            raise ConfigError(f"ratio of rings = {self.ratio}", remedy="use a number from 0 to 1")

    def radii(self, size: int) -> list[float]:
        """The radii for an image of `size` pixels.

        >>> Rings().radii(224)[:6]
        [10.0, 13.0, 16.0, 20.0, 26.0, 33.0]
        """
        radii, radius = [], self.base
        while radius <= self.reference // 2:
            radii.append(radius)
            radius += min(math.floor(radius * self.increase), self.max_increase)
        return [radius * size / self.reference for radius in radii]

    def masks(self, size: int) -> Tensor:
        """One factor map a ring, ``[R, size, size]`` float in the fft-shifted layout: 0 = stopped. Built once per size.

        Rings that hold no bin at this size (small images) are left out.
        """
        return _masks(self, size)

    def draw(self, batch: int, size: int, *, generator: torch.Generator) -> Tensor:
        """The product of ``int(ratio * R)`` random rings for each image, ``[B, size, size]``, fft-shifted."""
        masks = self.masks(size)
        chosen = choose(batch, len(masks), int(self.ratio * len(masks)), generator=generator)
        return torch.where(chosen[:, :, None, None], masks, 1.0).prod(1)


@cache
def _masks(rings: Rings, size: int) -> Tensor:
    x = torch.arange(size, dtype=torch.float64) - size // 2
    distance = torch.hypot(x[:, None], x[None])
    radii = rings.radii(size)
    masks = []
    for inner, outer in pairwise(radii):
        stopped = (distance > inner) & (distance <= outer)
        if stopped.any():
            masks.append(1 - stopped.float())
    scale = size / rings.reference
    protect = radii[0] if rings.protect is None else rings.protect * scale
    disc = distance <= radii[0]
    annulus = (distance >= protect - radii[0]) & (distance <= protect)
    return torch.stack([1 - (disc.float() - annulus.float()), *masks])


def band_stopped(image: Tensor, factor: Tensor, *, magnitude: bool = False) -> Tensor:
    """``image [B, C, S, S]`` with its spectrum multiplied by ``factor [B, S, S]`` (fft-shifted layout).

    Args:
        magnitude: return magnitudes, as the published code does; they rectify the negative pixels of a normalised
            image. The real part loses nothing, because the factors are centrally symmetric.
    """
    factor = torch.fft.ifftshift(factor, dim=(-2, -1)).unsqueeze(1)
    filtered = torch.fft.ifft2(torch.fft.fft2(image) * factor)
    return filtered.abs() if magnitude else filtered.real
