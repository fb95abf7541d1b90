"""Striped images with a table; lets the tests here import `setups` (importlib mode puts no test folder on the path)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vesalius.data.table import make_table, save_table

sys.path.insert(0, str(Path(__file__).parent))

SIZE = 32
COUNTS = {"train": 6, "val": 3, "test": 4}
"""Images of each class."""


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    """A table of 39 images of three classes: stripes of three widths in noise, one patient each."""
    folder = tmp_path_factory.mktemp("stripes")
    rng = np.random.default_rng(0)
    rows = []
    for split, count in COUNTS.items():
        for number in range(count):
            for label, period in (("fine", 3), ("medium", 6), ("coarse", 12)):
                stripes = np.sin(2 * np.pi * (np.arange(SIZE) + rng.integers(period)) / period)
                pixels = 128 + 60 * stripes[None] + 25 * rng.standard_normal((SIZE, SIZE))
                path = folder / f"{split}{number}{label}.png"
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
                rows.append({"path": str(path), "patient": path.stem, "labels": [label], "split": split})
    return save_table(make_table(rows), folder / "stripes.parquet")
