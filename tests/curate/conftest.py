"""Six phantom CTs without labels, their truth, and three predictors that are wrong in different places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from vesalius.data.phantoms.torso import LABELS, ct
from vesalius.data.phantoms.volume_files import write_nifti
from vesalius.images import read_volume

CLASSES = {
    "classes": [
        "liver",
        "spleen",
        {"name": "kidney_right", "also": ["right kidney"]},
        {"name": "kidney_left", "also": ["left kidney"]},
        {"name": "liver_tumor", "kind": "tumor", "organs": ["liver"], "rule": "inside"},
    ],
    "pairs": {"kidney": ["kidney_right", "kidney_left"]},
}
LABELLED = dict(enumerate(LABELS, start=1))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """``cts`` of 6 patients, ``truth``, ``classes.yaml``, and ``a.yaml`` ... ``c.yaml`` with the masks they name.

    The first two cases are hard: there, two of the three predictors move their masks by two voxels.
    """
    root = tmp_path_factory.mktemp("phantoms")
    ct(root / "made", n=6, size=(28, 32, 32), workers=1)
    (root / "made" / "imagesTr").rename(root / "cts")
    (root / "made" / "labelsTr").rename(root / "truth-values")
    known = [
        name for name in LABELLED.values() if name in ("liver", "spleen", "right kidney", "left kidney", "liver tumor")
    ]
    values = {name: value for value, name in LABELLED.items()}
    (root / "classes.yaml").write_text(yaml.safe_dump(CLASSES))
    for number, path in enumerate(sorted((root / "truth-values").iterdir())):
        image = read_volume(path)
        truth = np.zeros(image.size, np.uint8)
        for value, name in enumerate(known, start=1):
            truth[image.array[0] == values[name]] = value
        write_nifti(truth, image.affine, root / "truth" / path.name)
        for predictor, axis in (("a", 0), ("b", 1), ("c", 2)):
            moved = 2 if number < 2 and predictor != "a" else 0
            write_nifti(np.roll(truth, moved, axis), image.affine, root / predictor / path.name)
    labels = dict(enumerate(known, start=1))
    for name in ("a", "b", "c", "truth"):
        (root / f"{name}.yaml").write_text(yaml.safe_dump({"masks": name, "labels": labels}))
    return root
