"""Small image files for the tests of tables and layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture() -> Callable[..., Path]:
    """A function that writes an image file: speckle drawn from the path's name, or the array given."""

    def write(path: Path, array: np.ndarray | None = None, size: tuple[int, int] = (12, 16)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if array is None:
            array = np.random.default_rng(list(str(path).encode())).integers(0, 255, size, dtype=np.uint8)
        if path.name.endswith((".nii", ".nii.gz")):
            nibabel.save(nibabel.Nifti1Image(array, np.diag([0.5, 0.5, 2.0, 1.0])), path)
        else:
            Image.fromarray(array).save(path)
        return path

    return write
