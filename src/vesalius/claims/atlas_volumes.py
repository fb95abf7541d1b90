"""The volumes of AbdomenAtlas's claim: four ellipsoids in 28^3 voxels, and a scanner that makes some of them strange.

Everything about volume ``i`` is a function of ``(seed, i)``. A strange volume is brighter or darker, has less contrast,
and its organs lie elsewhere: what networks trained on the ordinary ones get wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vesalius.data.class_tables import ClassTable

TABLE = ClassTable.from_dict({"classes": ["liver", "spleen", "stomach", "pancreas"]})
SIDE, SPACING = 28, (3.0, 3.0, 3.0)
_PLACES = np.array([[0.7, 0.5, 0.7], [0.27, 0.65, 0.7], [0.35, 0.3, 0.4], [0.6, 0.6, 0.25]])
"""Middle of each organ, as shares of the volume's sides."""
_RADII = np.array([[0.2, 0.26, 0.2], [0.13, 0.16, 0.16], [0.16, 0.15, 0.17], [0.22, 0.12, 0.1]])
_BRIGHTNESS = np.array([0.72, 0.6, 0.38, 0.5])
_GROUND, _NOISE = 0.2, 0.06


@dataclass(frozen=True)
class Volumes:
    """Volumes with the whole truth.

    Args:
        image: ``[N, 1, S, S, S]`` float32, about 0 to 1.
        mask: ``[N, K, S, S, S]`` bool, of ``TABLE.names``.
    """

    image: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: Sequence[int]) -> Volumes:
        return Volumes(self.image[list(rows)], self.mask[list(rows)])

    def __add__(self, other: Volumes) -> Volumes:
        return Volumes(torch.cat([self.image, other.image]), torch.cat([self.mask, other.mask]))


def volumes(strange: Sequence[bool], *, seed: int) -> Volumes:
    """A volume for each of `strange`.

    >>> batch = volumes([False, True], seed=0)
    >>> batch.image.shape, batch.mask.shape, bool(batch.mask.flatten(2).any(2).all())
    (torch.Size([2, 1, 28, 28, 28]), torch.Size([2, 4, 28, 28, 28]), True)
    """
    axis = (np.arange(SIDE) + 0.5) / SIDE
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    images, masks = [], []
    for number, is_strange in enumerate(strange):
        rng = np.random.default_rng((seed, number))
        image = np.full((SIDE,) * 3, _GROUND)
        mask = np.zeros((len(TABLE.names), *image.shape), np.bool_)
        for organ in rng.permutation(len(mask)):
            middle = _PLACES[organ] + rng.uniform(-0.05, 0.05, 3) + is_strange * rng.uniform(-0.1, 0.1, 3)
            radii = _RADII[organ] * rng.uniform(0.85, 1.15, 3)
            inside = (((grid - middle[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0) < 1
            image[inside] = _BRIGHTNESS[organ] + rng.uniform(-0.03, 0.03)
            mask[:, inside] = False
            mask[organ] = inside
        if is_strange:
            image = image * rng.uniform(0.7, 0.9) + rng.choice([-1, 1]) * rng.uniform(0.08, 0.15)
        images.append(image + rng.normal(0, _NOISE, image.shape))
        masks.append(mask)
    pixels = torch.from_numpy(np.stack(images)[:, None].astype(np.float32))
    return Volumes(pixels, torch.from_numpy(np.stack(masks)))
