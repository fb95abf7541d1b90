"""Torso phantoms: Hounsfield units, tumours and look-alikes as asked, one patient on any grid, files as indexed."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import polars as pl
import pydicom
import pytest
from scipy.ndimage import binary_erosion

from vesalius import index
from vesalius.data.phantoms.torso import LABELS, ct, mr, torso_volume
from vesalius.errors import ConfigError
from vesalius.images.series import read_series


def _label(volume, name):
    return volume["labels"] == LABELS.index(name) + 1


def test_hounsfield_units_and_volumes_of_organs_are_typical():
    volume = torso_volume(4, size=(48, 80, 80))
    hu = volume["images"][0]
    millilitres = float(np.prod(volume["spacing"])) / 1000
    for name, low, high, least, most in (
        ("liver", 85, 130, 900, 2000),
        ("spleen", 90, 140, 100, 350),
        ("left kidney", 100, 200, 80, 250),
        ("pancreas", 50, 115, 25, 90),
        ("aorta", 110, 185, 20, 80),
        ("right lung", -880, -780, 500, 2500),
        ("gall bladder", 0, 40, 8, 70),
    ):
        inside = _label(volume, name)
        assert low < np.median(hu[inside]) < high, (name, np.median(hu[inside]))
        assert least < inside.sum() * millilitres < most, (name, inside.sum() * millilitres)
    assert np.median(hu[:2, :4, :4]) == pytest.approx(-1000, abs=40)
    plain = torso_volume(4, size=(48, 80, 80), agent=0.0)
    assert np.median(plain["images"][0][_label(plain, "liver")]) == pytest.approx(57, abs=15)
    assert np.array_equal(plain["labels"], volume["labels"])


def test_left_is_left():
    volume = torso_volume(1, size=48)
    middle = {name: np.argwhere(_label(volume, name)).mean(0) for name in ("liver", "spleen", "right kidney", "aorta")}
    x = {name: float((volume["affine"] @ [at[2], at[1], at[0], 1])[0]) for name, at in middle.items()}
    assert x["liver"] < -20 < 0 < x["aorta"] < x["spleen"] and x["right kidney"] < -40  # LPS: the left is positive


@pytest.mark.parametrize("contrast", [-60.0, 40.0])
def test_contrast_is_what_was_asked_for_and_look_alikes_have_it_too(contrast):
    volume = torso_volume(
        0, size=(48, 80, 80), tumors=["liver"] * 2, lookalikes=2, contrast=contrast, radius=(16, 20), noise=5.0
    )
    hu = volume["images"][0]
    assert [(one.organ, one.tumor) for one in volume["lesions"]] == [("liver", True)] * 2 + [("liver", False)] * 2
    liver = np.median(hu[_label(volume, "liver") & (volume["instances"] == 0)])
    for one in volume["lesions"]:
        here = volume["instances"] == one.value
        assert one.voxels == here.sum() > 40
        assert np.median(hu[binary_erosion(here)]) - liver == pytest.approx(
            contrast, abs=12
        )  # few voxels, each with grain and noise
        assert _label(volume, "liver tumor" if one.tumor else "liver")[here].all()


def test_tumours_grow_in_every_organ_and_in_the_right_places():
    seen = set()
    for number in range(2):
        volume = torso_volume(2, number, size=(40, 64, 64), tumors=["liver", "kidney", "pancreas", "colon"])
        bare = torso_volume(2, number, size=(40, 64, 64))
        for one in volume["lesions"]:
            under = bare["labels"][volume["instances"] == one.value]
            names = {LABELS[value - 1] for value in np.unique(under) if value}
            if one.voxels > 10:
                seen.add(one.organ)
                own = [value for value in range(1, len(LABELS) + 1) if one.organ in LABELS[value - 1] or value == 15]
                assert np.isin(under, own).mean() > 0.35, (one.organ, names)
    assert seen == {"liver", "kidney", "pancreas", "colon"}


def test_the_same_patient_on_any_grid():
    sizes = [torso_volume(3, size=size, oblique=tilt) for size, tilt in ((40, 0), (64, 0), (52, 12))]
    for name in ("liver", "left kidney", "spleen"):
        volumes = [_label(one, name).sum() * np.prod(one["spacing"]) for one in sizes]
        assert max(volumes) < 1.15 * min(volumes), (name, volumes)


def test_thick_slices_show_partial_volume():
    thick = torso_volume(3, size=(20, 64, 64), noise=0.0, blur=0.0)
    thin = torso_volume(3, size=(60, 64, 64), noise=0.0, blur=0.0)
    middles = thin["labels"][1::3]
    assert np.mean(middles == thick["labels"]) > 0.98

    def between(volume):  # neither air nor tissue nor lung
        return np.mean((volume["images"] > -700) & (volume["images"] < -200))

    assert between(thick) > 1.2 * between(thin)


def test_mr_weightings_differ_as_they_should():
    t1, t2 = (torso_volume(5, size=48, weighting=name) for name in ("t1", "t2"))
    assert np.array_equal(t1["labels"], t2["labels"]) and (t1["images"] >= 0).all()

    def ratio(volume):  # bile against liver
        image = volume["images"][0]
        return np.median(image[_label(volume, "gall bladder")]) / np.median(image[_label(volume, "liver")])

    assert ratio(t1) < 0.8 and ratio(t2) > 2


def test_decathlon_layout_with_some_classes_annotated(tmp_path):
    table = ct(tmp_path / "a", n=2, size=(24, 32, 32), tumors=1.0, classes=["liver tumor", "liver"], orientation="RAS")
    ct(tmp_path / "b", n=2, size=(24, 32, 32), tumors=1.0, workers=2)
    assert set(table["organ"]) <= {"liver", "kidney", "pancreas", "colon"} and table["tumor"].all()
    about = json.loads((tmp_path / "a" / "dataset.json").read_text())
    assert about["labels"] == {"0": "background", "1": "liver", "2": "liver tumor"}
    image, label = (nibabel.load(tmp_path / "a" / part / "ct_002.nii.gz") for part in ("imagesTr", "labelsTr"))
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S") and np.allclose(image.affine, label.affine)
    assert image.get_data_dtype() == np.int16 and set(np.unique(label.dataobj)) == {0, 1, 2}
    whole = nibabel.as_closest_canonical(nibabel.load(tmp_path / "b" / "labelsTr" / "ct_002.nii.gz"))
    assert np.array_equal(np.asarray(whole.dataobj) == LABELS.index("liver tumor") + 1, np.asarray(label.dataobj) == 2)
    found = index(tmp_path / "b", tmp_path / "b.parquet", volumes=True)
    assert found["modality"].to_list() == ["CT"] * 2 and found["mask_classes"][0].to_list() == list(LABELS)


@pytest.mark.parametrize(("kind", "modality"), [(ct, "CT"), (mr, "MR")])
def test_a_series_holds_what_the_nifti_holds(kind, modality, tmp_path):
    options = {"n": 1, "size": (18, 24, 28), "spacing": (12.0, 11.0, 10.0), "oblique": 20.0, "seed": 7}
    kind(tmp_path / "nifti", **options)
    kind(tmp_path / "dicom", format="dicom", **options)
    name = f"{modality.lower()}_001"
    image = read_series(tmp_path / "dicom" / name)
    nifti = nibabel.load(tmp_path / "nifti" / "imagesTr" / f"{name}.nii.gz")
    assert np.array_equal(image.array[0], np.asarray(nifti.dataobj).T)
    assert image.affine == pytest.approx(np.diag([-1, -1, 1, 1]) @ nifti.affine, abs=1e-4)
    assert image.modality == modality and image.spacing == pytest.approx((12.0, 11.0, 10.0))
    files = sorted((tmp_path / "dicom" / name).iterdir())
    positions = [_position(file) for file in files]
    assert positions != sorted(positions)  # the names give nothing away
    listed = pl.read_csv(tmp_path / "dicom" / "index.csv")
    assert listed["path"].to_list() == [name] and listed["modality"].to_list() == [modality]
    found = index(tmp_path / "dicom", tmp_path / "t.parquet", volumes=True)
    assert found["size"][0].to_list() == [18, 24, 28] and found["mask"][0].endswith(f"{name}.nii.gz")


def _position(file):
    return float(pydicom.dcmread(file, stop_before_pixels=True).ImagePositionPatient[2])


def test_what_is_asked_for_wrongly_is_named(tmp_path):
    for options, says in (
        ({"organs": ["livr"]}, "did you mean 'liver'"),
        ({"classes": ["livers"]}, "did you mean 'liver'"),
        ({"radius": (9,)}, "two numbers"),
        ({"tumors": 1.5}, "between 0 and 1"),
        ({"size": (16, 16)}, "size has 2 numbers"),
        ({"n": 0}, "n = 0"),
    ):
        with pytest.raises(ConfigError, match=says):
            ct(tmp_path / "no", **{"n": 1, **options})
    with pytest.raises(ConfigError, match="did you mean 't2'"):
        mr(tmp_path / "no", weighting="t3")
    assert not (tmp_path / "no").exists()
