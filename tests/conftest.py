"""Where the tests find the small real image sets and the parity fixtures; both are optional."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test workers on two cores; set before torch is imported

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("VESALIUS_SHARED", ROOT.parent / "shared"))


@pytest.fixture
def shared_data():
    """A function from a set's name to its folder; the test is skipped where the set is not on this machine."""

    def find(name: str) -> Path:
        folder = SHARED / "data" / name
        if not folder.exists():
            pytest.skip(f"the image set {name} is not on this machine (set VESALIUS_SHARED)")
        return folder

    return find
