"""A step on a local Ray cluster of two workers, one of which is killed in the middle."""

from __future__ import annotations

import sys

import pytest

from vesalius.curate.project import Atlas
from vesalius.curate.steps import run_step
from vesalius.data.class_tables import ClassTable
from vesalius.data.index import index

KILLER = """
import os, signal, sys
from pathlib import Path
image, out, marker = sys.argv[1:]
try:
    Path(marker).touch(exist_ok=False)
except FileExistsError:
    import nibabel
    volume = nibabel.load(image)
    mask = (volume.get_fdata() > 40).astype("uint8")
    nibabel.Nifti1Image(mask, volume.affine).to_filename(out + "/liver.nii.gz")
else:
    os.kill(os.getppid(), signal.SIGKILL)
"""


def test_a_step_outlives_a_worker_that_is_killed(phantoms, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason='Ray is not installed: pip install "vesalius[ray]"')

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "killer.py").write_text(KILLER)
    command = f"{sys.executable} {tmp_path}/killer.py {{image}} {{out}} {tmp_path}/killed"
    labels = {**dict.fromkeys(range(1, 6), ""), 1: "spleen"}
    predictors = {"a": {"masks": str(phantoms / "a"), "labels": labels}, "killer": {"command": command}}
    table = index(phantoms / "cts", tmp_path / "index.parquet", volumes=True)
    classes = ClassTable.from_dict({"classes": ["spleen", "liver"]})
    atlas = Atlas.create(tmp_path / "atlas", table.head(3), classes=classes, predictors=predictors)
    report = run_step(atlas, engine="ray", workers=2)
    assert (tmp_path / "killed").exists() and not report.failed
    assert all(atlas.done(name, case) for name in predictors for case in atlas.cases())
    assert all(atlas.map_path(case, "average", "liver") for case in atlas.cases())
