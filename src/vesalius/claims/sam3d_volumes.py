"""The volumes of 3DSAM-adapter's claim: bright ellipsoids in noise, alone, or two that look alike.

Everything about volume ``i`` is a function of ``(seed, i)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIDE = 32
"""Voxels of a side."""
_RADII, _CONTRAST, _NOISE, _GAP = (4.5, 7.5), (0.5, 0.8), 0.15, 1.0
"""Voxels, and shares of a grey level from 0 to 1."""


@dataclass(frozen=True)
class Lesions:
    """Volumes and their ellipsoids.

    Args:
        image: ``[N, 1, S, S, S]`` float32, mean about 0.
        mask: ``[N, K, S, S, S]`` bool, of each ellipsoid.
    """

    image: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.image)


def lesions(n: int, *, seed: int, count: int = 1, side: int = SIDE) -> Lesions:
    """`n` volumes with `count` ellipsoids each, of the same radii and brightness, which do not touch.

    >>> two = lesions(3, seed=0, count=2)
    >>> two.image.shape, bool(two.mask.all(1).any())
    (torch.Size([3, 1, 32, 32, 32]), False)
    """
    made = [_volume(np.random.default_rng([seed, number]), count, side) for number in range(n)]
    image, mask = (np.stack(part) for part in zip(*made, strict=True))
    return Lesions(torch.from_numpy(image)[:, None], torch.from_numpy(mask))


def _volume(chance: np.random.Generator, count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """One volume ``[S, S, S]`` and the masks ``[K, S, S, S]``."""
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1)
    contrast = chance.uniform(*_CONTRAST)
    while True:  # until they lie apart; the radii are drawn again, too, since large ones may not fit
        radii = chance.uniform(*_RADII, 3)
        centres = chance.uniform(radii, side - 1 - radii, (count, 3))
        masks = np.stack([(((grid - centre) / radii) ** 2).sum(-1) < 1 for centre in centres])
        grown = np.stack([(((grid - centre) / (radii + _GAP)) ** 2).sum(-1) < 1 for centre in centres])
        if grown.sum(0).max() == 1:
            break
    image = contrast * masks.any(0) + chance.normal(0, _NOISE, (side,) * 3)
    return (image - contrast / 4).astype(np.float32), masks
