"""Intensities of a data set as numbers: where to cut Hounsfield units, and their mean and deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vesalius.data.progress import track
from vesalius.data.volumes.cases import case_of
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import ClipZScore
from vesalius.data.volumes.prepare import prepare
from vesalius.errors import VesaliusError

TAILS = (0.5, 99.5)
"""Percentiles of the labelled voxels at which intensities are cut (Isensee 2021, nnU-Net)."""


def measured(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> ClipZScore:
    """Where nnU-Net, and after it 3DSAM-adapter, cut CT: by the labelled voxels of the training volumes.

    Up to 4096 voxels of each class of a volume are looked at, the same ones each time.

    Args:
        rows: of a table, with masks.
        classes: whose voxels count.

    Raises:
        VesaliusError: no volume has such a voxel.
    """
    values = [np.empty(0, np.float64)]
    for row in track(rows, len(rows), "measuring intensities"):
        image = case_of(row)
        contract = VolumeContract(image.channels)
        points = prepare(row, contract, classes=classes).points[:, 1:]
        values.append(contract.place(image)[0][tuple(points.T)].astype(np.float64))
    every = np.concatenate(values)
    if not every.size:
        raise VesaliusError(
            f"no training volume holds {', '.join(classes)}", remedy="choose another class, or name the intensities"
        )
    low, high = (float(value) for value in np.percentile(every, TAILS))
    cut = every.clip(low, high)
    return ClipZScore(low, max(high, low + 1), float(cut.mean()), float(cut.std()) or 1.0)
