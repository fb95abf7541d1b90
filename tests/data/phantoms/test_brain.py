"""Brain phantoms: anatomy on any grid, contrasts as physics has them, gliomas as in BraTS, files as indexed."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from vesalius import index
from vesalius.data.masks import read_mask
from vesalius.data.phantoms.brain import BRAIN_VIEW, brain, brain_volume
from vesalius.data.phantoms.brain_anatomy import NUMBER
from vesalius.errors import ConfigError
from vesalius.images import Image
from vesalius.images.series import read_series


@pytest.fixture(scope="module")
def glioma():
    return brain_volume(0, 3, size=(72, 80, 72), lesions=1)


def _mean(volume, channel, tissue):
    inside = (volume["tissues"] == NUMBER[tissue]) & (volume["labels"] == 0)
    return float(np.median(volume["images"][volume["channels"].index(channel)][inside]))


def test_contrasts_are_those_of_the_sequences(glioma):
    white, gray, csf = (
        {channel: _mean(glioma, channel, tissue) for channel in glioma["channels"]}
        for tissue in ("white matter", "gray matter", "csf")
    )
    assert white["t1"] > 1.2 * gray["t1"] > 1.2 * csf["t1"]
    assert white["t2"] < gray["t2"] < csf["t2"]
    assert csf["flair"] < 0.75 * white["flair"] and white["flair"] < 1.05 * gray["flair"]


def test_gliomas_look_as_they_are_labelled(glioma):
    images = dict(zip(glioma["channels"], glioma["images"], strict=True))
    labels = glioma["labels"]
    healthy = (glioma["tissues"] == NUMBER["white matter"]) & (labels == 0)
    assert set(np.unique(labels)) == {0, 1, 2, 4}
    core, oedema, rim = labels == 1, labels == 2, labels == 4
    assert np.median(images["t1ce"][rim]) > 1.5 * np.median(images["t1"][rim]) * (
        np.median(images["t1ce"][healthy]) / np.median(images["t1"][healthy])
    )
    assert np.median(images["flair"][oedema]) > 1.2 * np.median(images["flair"][healthy])
    assert np.median(images["t1ce"][core]) < 0.6 * np.median(images["t1ce"][rim])
    assert (glioma["tissues"][oedema] == NUMBER["white matter"]).mean() > 0.9


def test_the_same_person_on_any_grid():
    coarse = brain_volume(2, 1, size=32, lesions=1)
    fine = brain_volume(2, 1, size=56, lesions=1)
    tilted = brain_volume(2, 1, size=48, lesions=1, oblique=20)

    def millilitres(volume, mask):
        return mask.sum() * np.prod(volume["spacing"]) / 1000

    for key in ("labels", "tissues"):
        volumes = [millilitres(one, one[key] > 0) for one in (coarse, fine, tilted)]
        assert max(volumes) < 1.12 * min(volumes), (key, volumes)
    whole = millilitres(fine, np.isin(fine["tissues"], [NUMBER["gray matter"], NUMBER["white matter"]]))
    assert 900 < whole < 1500  # an adult's brain
    assert (np.array(fine["spacing"]) * 56).tolist() == list(BRAIN_VIEW)


def test_a_function_of_seed_and_number_alone():
    first, again = (brain_volume(1, 4, size=32, lesions=2) for _ in range(2))
    assert np.array_equal(first["images"], again["images"]) and np.array_equal(first["labels"], again["labels"])
    other = brain_volume(1, 5, size=32, lesions=2)
    assert not np.array_equal(first["tissues"], other["tissues"])
    one = brain_volume(1, 4, size=32, lesions=2, channels=["flair"])
    assert np.array_equal(one["tissues"], first["tissues"]) and one["images"].shape == (1, 32, 32, 32)


def test_skull_is_kept_when_asked_and_background_is_zero_otherwise():
    head = brain_volume(0, size=32, skull=True, channels=["t1"])
    assert (head["tissues"] == NUMBER["fat"]).sum() > 500 and (head["images"] > 0).all()  # Rician noise everywhere
    stripped = brain_volume(0, size=32, channels=["t1"])
    assert not stripped["images"][0][stripped["tissues"] == 0].any()
    assert set(np.unique(stripped["tissues"])) <= {NUMBER[n] for n in list(NUMBER)[:6]}


def test_any_label_map_gives_images(tmp_path):
    values = np.zeros((40, 44, 36), dtype=np.int16)
    values[4:36, 4:40, 4:32] = 1002
    values[12:28, 14:30, 10:26] = 17
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    affine[:3, 3] = (-40, -44, -45)
    given = Image(values.T[None], ("labels",), spacing=(2.5, 2.0, 2.0), affine=np.diag([-1, -1, 1, 1]) @ affine)
    made = brain_volume(3, size=32, label_map=given, contrast="random", lesions=1, channels=["a", "b"])
    assert set(np.unique(made["tissues"])) == {0, 17, 1002} and {1, 2, 4} & set(np.unique(made["labels"]))
    inner, outer = (np.median(made["images"][:, made["tissues"] == value], axis=1) for value in (17, 1002))
    assert np.all(np.abs(inner - outer) > 10)
    share = (made["tissues"] == 17).sum() / (made["tissues"] > 0).sum()
    assert share == pytest.approx(16 * 16 * 16 / (32 * 36 * 28), rel=0.15)
    with pytest.raises(ConfigError, match="1002 is no tissue"):
        brain_volume(3, size=32, label_map=given)
    with pytest.raises(ConfigError, match="affine"):
        brain_volume(3, size=32, label_map=Image(values.T[None], ("labels",)), contrast="random")


def test_files_are_named_as_in_brats_and_indexed(tmp_path):
    table = brain(tmp_path / "a", n=2, seed=5, size=(24,), orientation="RAS", tissues=True)
    brain(tmp_path / "b", n=2, seed=5, size=(24,), workers=2)
    assert table["case"].to_list() == ["brain_001", "brain_002"] and (table["lesions"] > 0).all()
    ras = nibabel.load(tmp_path / "a" / "brain_001" / "brain_001_seg.nii.gz")
    lps = nibabel.load(tmp_path / "b" / "brain_001" / "brain_001_seg.nii.gz")
    assert nibabel.aff2axcodes(ras.affine) == ("R", "A", "S") and nibabel.aff2axcodes(lps.affine) == ("L", "P", "S")
    same = nibabel.as_closest_canonical(lps)
    assert np.array_equal(same.dataobj, ras.dataobj) and np.allclose(same.affine, ras.affine)
    found = index(tmp_path / "a", tmp_path / "a.parquet", volumes=True)
    assert found.height == 2 and found["channels"][0].to_list() == ["flair", "t1", "t1ce", "t2"]
    assert found["mask"][0].endswith("brain_001_seg.nii.gz")


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (("t1",), {}),
        (("t2", "flair"), {"tissues": True}),
        (("t1ce",), {"lesions": 0.0, "tissues": True}),
        (("first", "t1"), {"contrast": "random"}),
    ],
)
def test_any_channels_are_indexed_by_name_with_their_labels(tmp_path, channels, options):
    brain(tmp_path / "a", n=2, size=(16,), channels=channels, **options)
    found = index(tmp_path / "a", tmp_path / "a.parquet", volumes=True)
    assert [set(row) for row in found["channels"]] == [set(channels)] * 2
    lesions = {"necrotic core", "oedema", "enhancing tumour"} if options.get("lesions", 1) else set()
    assert [set(row) for row in found["annotated"]] == [lesions] * 2
    for row in found.to_dicts() if lesions else ():
        marked = {row["mask_classes"][value - 1] for value in np.unique(read_mask(row)) if value}
        assert "oedema" in marked and marked <= lesions


def test_dicom_series_of_one_person_lie_on_each_other(tmp_path):
    brain(tmp_path, n=1, size=(20, 24, 28), format="dicom", oblique=15, channels=["t1", "flair"])
    t1, flair = (read_series(tmp_path / "brain_001" / name) for name in ("t1", "flair"))
    made = brain_volume(0, 1, size=(20, 24, 28), oblique=15, channels=["t1", "flair"])
    assert t1.affine == pytest.approx(made["affine"], abs=1e-4) and flair.affine == pytest.approx(
        made["affine"], abs=1e-4
    )
    assert t1.tags["study"] == flair.tags["study"] and t1.tags["series"] != flair.tags["series"]
    labels = nibabel.load(tmp_path / "brain_001" / "brain_001_seg.nii.gz")
    assert np.diag([-1, -1, 1, 1]) @ labels.affine == pytest.approx(t1.affine, abs=1e-4)
    assert labels.shape[::-1] == t1.size
    found = index(tmp_path, tmp_path / "t.parquet", volumes=True)
    assert found["channels"][0].to_list() == ["t1", "flair"] and found["size"][0].to_list() == [20, 24, 28]
    assert found["mask_classes"][0].to_list() == ["necrotic core", "oedema", "enhancing tumour"]


def test_what_is_asked_for_wrongly_is_named(tmp_path):
    for options, says in (
        ({"channels": ["t1c"]}, "did you mean 't1ce'"),
        ({"contrast": "mr"}, "did you mean 'mri'"),
        ({"lesions": 2.0}, "between 0 and 1"),
        ({"orientation": "RAR"}, "RAS"),
        ({"format": "nii"}, "nifti"),
        ({"size": (3,)}, "4 or more"),
    ):
        with pytest.raises(ConfigError, match=says):
            brain(tmp_path / "no", n=1, **options)
    assert not (tmp_path / "no" / "lesions.csv").exists()
