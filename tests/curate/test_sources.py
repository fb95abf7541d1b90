"""Data sets that come with masks, and DICOM series: what was drawn stays, and nothing of a patient gets out."""

from __future__ import annotations

import csv

import numpy as np
import pydicom
import pytest
import yaml

from vesalius.cli import main
from vesalius.curate.project import Atlas
from vesalius.curate.release import release
from vesalius.curate.steps import run_step
from vesalius.data.phantoms.torso import LABELS, ct
from vesalius.data.phantoms.volume_files import write_dataset_json
from vesalius.images import read_segmentation, read_volume, write_mask


def begin(phantoms, volumes, where, predictors) -> Atlas:
    words = ["curate", "atlas", "init", str(where), "--volumes", str(volumes), "--classes", f"{phantoms}/classes.yaml"]
    assert main([*words, "--predictors", *map(str, predictors)]) == 0
    atlas = Atlas.open(where)
    assert run_step(atlas).failed == {}
    return atlas


def test_public_masks_are_not_asked_about_and_are_released(phantoms, tmp_path):
    """A set that draws livers and kidneys, whose sides it does not tell; the models are wrong about them."""
    folder = tmp_path / "set"
    (folder / "imagesTr").mkdir(parents=True)
    for name in ("ct_001.nii.gz", "ct_002.nii.gz"):
        (folder / "imagesTr" / name).symlink_to(phantoms / "cts" / name)
        truth = read_volume(phantoms / "truth" / name)
        right, left, liver = 2, 3, 4
        drawn = np.zeros(truth.size, np.uint8)
        drawn[truth.array[0] >= liver] = 1
        drawn[np.isin(truth.array[0], (right, left))] = 2
        write_mask(drawn, truth, folder / "labelsTr" / name, classes=("liver", "kidney"))
    write_dataset_json(folder, name="set", description="", modality="CT", labels=["liver", "kidney"], cases=[])
    atlas = begin(phantoms, folder, tmp_path / "atlas", [phantoms / f"{name}.yaml" for name in "abc"])
    assert {item.structure for item in atlas.queue()} == {"spleen", "liver_tumor"}
    release(atlas, tmp_path / "dataset")
    rows = list(csv.DictReader((tmp_path / "dataset" / "provenance.csv").open()))
    kinds = {(row["structure"], row["source"]) for row in rows}
    public = {("liver", "original"), ("kidney_right", "original"), ("kidney_left", "original")}
    assert kinds == {*public, ("spleen", "proposal"), ("liver_tumor", "proposal")}
    names = ["", *atlas.classes.names]
    for case in atlas.cases():
        (path,) = (tmp_path / "dataset").glob(f"labels*/{case}.nii.gz")
        values = read_volume(path).array[0]
        truth = read_volume(phantoms / "truth" / atlas.image_path(case).name).array[0]
        assert np.array_equal(values == names.index("kidney_right"), truth == 2)
        assert np.array_equal(values == names.index("kidney_left"), truth == 3)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    ct(folder / "dicom", n=2, size=(16, 24, 24), tumors=0, format="dicom", workers=1)
    for path in folder.glob("dicom/ct_*/*.dcm"):
        data = pydicom.dcmread(path)
        data.PatientName, data.PatientID = "Doe^Jane", f"MRN-{path.parent.name}"
        data.save_as(path)
    (folder / "dicom" / "labels").rename(folder / "truth")
    (folder / "dicom" / "index.csv").unlink()
    labels = {value: "" for value, _ in enumerate(LABELS, start=1)}
    labels |= {1 + LABELS.index("liver"): "liver", 1 + LABELS.index("spleen"): "spleen"}
    (folder / "truth.yaml").write_text(yaml.safe_dump({"masks": str(folder / "truth"), "labels": labels}))
    return folder


def test_a_dicom_series_goes_in_and_comes_out_without_its_patient(series, phantoms, tmp_path, capsys):
    atlas = begin(phantoms, series / "dicom", tmp_path / "atlas", [series / "truth.yaml"])
    case = atlas.cases()[0]
    assert case.startswith("ct-") and atlas.row(case)["patient"].startswith("MRN-")
    image = atlas.image(case)
    edited = atlas.current(case, "liver")[1]
    edited[0, 0, :3] = True
    back = tmp_path / f"{case}.dcm"
    write_mask(edited.astype(np.uint8), image, back, classes=("Liver",))
    assert main(["curate", "atlas", "import", str(atlas.path), str(back), "--who", "KB"]) == 0
    assert "liver version 1, corrected, 3 voxels" in capsys.readouterr().out
    assert main(["curate", "atlas", "assemble", str(atlas.path), "--out", str(tmp_path / "out"), "--dicom_seg"]) == 0
    mask, names = read_segmentation(tmp_path / "out" / "segmentations" / f"{case}.dcm", image)
    assert np.array_equal(mask == 1 + names.index("liver"), edited)
    written = [*atlas.path.rglob("*"), *(tmp_path / "out").rglob("*")]
    for path in written:
        assert "MRN" not in path.name and "ct_00" not in path.name
        if path.is_file() and path.suffix != ".dcm" and path.name != "cases.parquet":
            assert b"Doe" not in path.read_bytes() and b"MRN" not in path.read_bytes()
