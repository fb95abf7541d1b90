"""The volumes of the Universal Model's claim: six organs in 24^3 voxels, told apart by place and brightness together.

Organs are ellipsoids. Each brightness belongs to two of them, and each lies about a place of its own with room to move,
so that neither says alone which organ a voxel is of. Everything about volume ``i`` is a function of ``(seed, i)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ORGANS = ("liver", "spleen", "right kidney", "left kidney", "stomach", "pancreas")
SIDE = 24
_PLACES = np.array(
    [[0.72, 0.3, 0.68], [0.28, 0.7, 0.7], [0.72, 0.72, 0.3], [0.28, 0.72, 0.28], [0.28, 0.28, 0.68], [0.6, 0.28, 0.28]]
)
"""Middle of each organ, as shares of the volume's sides."""
_BRIGHTNESS = np.array([0.75, 0.75, 0.55, 0.55, 0.95, 0.95])
_GROUND, _NOISE = 0.3, 0.08


@dataclass(frozen=True)
class Labelled:
    """Volumes with the whole truth.

    Args:
        image: ``[N, 1, S, S, S]`` float32, about 0 to 1.
        mask: ``[N, S, S, S]`` uint8, value k + 1 being ``ORGANS[k]``.
    """

    image: Tensor
    mask: Tensor

    def knowing(self, organs: tuple[int, ...]) -> Tensor:
        """The mask of somebody who drew these organs only."""
        kept = torch.isin(self.mask, torch.tensor([organ + 1 for organ in organs]))
        return torch.where(kept, self.mask, 0).to(torch.uint8)


def organs(n: int, *, seed: int, size: int = SIDE) -> Labelled:
    """`n` volumes.

    >>> batch = organs(2, seed=0)
    >>> batch.image.shape, sorted(batch.mask.unique().tolist())
    (torch.Size([2, 1, 24, 24, 24]), [0, 1, 2, 3, 4, 5, 6])
    """
    axis = (np.arange(size) + 0.5) / size
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    images, masks = [], []
    for number in range(n):
        rng = np.random.default_rng((seed, number))
        image, mask = np.full((size,) * 3, _GROUND), np.zeros((size,) * 3, np.uint8)
        for organ in rng.permutation(len(ORGANS)):
            middle = _PLACES[organ] + rng.uniform(-0.09, 0.09, 3)
            radii = rng.uniform(0.13, 0.2, 3)
            inside = (((grid - middle[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0) < 1
            image[inside] = _BRIGHTNESS[organ] + rng.uniform(-0.06, 0.06)
            mask[inside] = organ + 1
        images.append(image + rng.normal(0, _NOISE, image.shape))
        masks.append(mask)
    return Labelled(torch.from_numpy(np.stack(images)[:, None].astype(np.float32)), torch.from_numpy(np.stack(masks)))
