"""The weights that overlapping windows are blended with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

SIGMA, FLOOR = 0.125, 1e-3


def legacy_gaussian(roi: Sequence[int]) -> Tensor:
    """MONAI 0.9's Gaussian weights of a window, for the results that were published with them.

    Later versions sample the bell at the voxels and centre it between the two middle ones; this one integrates it over
    each voxel and is centred on the later of the two, half a voxel off: 3 % of the outputs at 16 voxels a side, less at
    96.

    Args:
        roi: voxels of the window.

    Returns:
        ``roi``-shaped weights in [0.001, 1], for `vesalius.evaluation.sliding.sliding_window`.

    >>> legacy_gaussian((4,)).argmax().item(), legacy_gaussian((16, 16, 16)).min().item() > 9e-4
    (2, True)
    """
    sides = []
    for n in roi:
        at = (torch.arange(n) - n // 2) / (n * SIGMA * 2**0.5)
        half = 0.5 / (n * SIGMA * 2**0.5)
        sides.append(torch.erf(at + half) - torch.erf(at - half))
    weights = reduce(lambda grid, side: grid.unsqueeze(-1) * side, sides)
    return (weights / weights.max()).clamp(min=FLOOR)
