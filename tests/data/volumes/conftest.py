"""Small volumes on disk for the tests of cases, indexes and datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest


@pytest.fixture
def volume() -> Callable[..., Path]:
    """A function that writes a NIfTI volume: noise drawn from the path's name, or the (x, y, z) array given."""

    def write(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if array is None:
            array = np.random.default_rng(list(path.name.encode())).integers(1, 900, (7, 6, 5)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine), path)
        return path

    return write


@pytest.fixture
def labels() -> np.ndarray:
    """(x, y, z) uint8 with the values 0 to 4."""
    return np.random.default_rng(1).integers(0, 5, (7, 6, 5)).astype(np.uint8)
