"""Masks of every axis order come to lie where they were; other grids do not pass."""

from __future__ import annotations

import gzip
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from vesalius.data.class_tables import ClassTable
from vesalius.data.phantoms.torso import torso_volume
from vesalius.images import Image, write_mask
from vesalius.images.nifti import RAS_TO_LPS
from vesalius.images.series import read_series
from vesalius.review.edits import Grid, Refused, decode, decode_mask, encode, pack, read_file

TABLE = ClassTable.from_dict({"classes": ["liver", "spleen", "kidney_left"]})


def _image(oblique: float = 20.0) -> Image:
    volume = torso_volume(1, size=(5, 6, 7), oblique=oblique)
    return Image(volume["images"], ("ct",), spacing=volume["spacing"], affine=volume["affine"])


@pytest.mark.parametrize("oblique", [0.0, 20.0])
def test_there_and_back_is_the_same_mask(oblique):
    image = _image(oblique)
    mask = np.random.default_rng(0).random(image.size) > 0.5
    grid = Grid.of(image)
    sent = nibabel.Nifti1Image.from_bytes(gzip.decompress(pack(mask, grid)))
    assert "".join(nibabel.aff2axcodes(sent.affine)) == "RAS"
    np.testing.assert_array_equal(decode_mask(pack(mask, grid), grid), mask)


def test_all_48_axis_orders_are_taken():
    image = _image()
    grid = Grid.of(image)
    mask = np.random.default_rng(1).random(image.size) > 0.5
    ras = RAS_TO_LPS @ image.affine
    for axes, signs in product(permutations(range(3)), product((-1, 1), repeat=3)):
        order = np.stack([axes, signs], axis=1).astype(float)
        voxels = apply_orientation(mask.T.astype(np.int16), order)
        turned = nibabel.Nifti1Image(voxels, ras @ inv_ornt_aff(order, mask.T.shape))
        np.testing.assert_array_equal(decode(turned.to_bytes(), grid), mask)


def test_a_mask_off_by_half_a_voxel_is_refused_and_by_rounding_is_not():
    image = _image()
    grid = Grid.of(image)
    for part, fits in ((0.01, True), (0.5, False)):
        moved = grid.affine.copy()
        moved[:3, 3] += part * grid.affine[:3, 0]
        data = nibabel.Nifti1Image(np.zeros(image.size[::-1], np.uint8), moved).to_bytes()
        if fits:
            assert not decode_mask(data, grid).any()
        else:
            with pytest.raises(Refused, match="mm off the image"):
                decode_mask(data, grid)


def test_an_image_without_a_place_goes_by_its_size():
    image = Image(np.zeros((1, 3, 4, 5), np.int16), ("ct",), spacing=(2.0, 1.0, 1.0))
    grid = Grid.of(image)
    mask = np.random.default_rng(2).random(image.size) > 0.5
    np.testing.assert_array_equal(decode_mask(pack(mask, grid), grid), mask)
    with pytest.raises(Refused, match="5 x 4 x 3"):
        decode_mask(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)).to_bytes(), grid)


@pytest.mark.parametrize(("dtype", "sent"), [("int16", "int16"), ("uint16", "int16"), ("float64", "float32")])
def test_pixels_keep_their_values(dtype, sent):
    image = _image()
    values = (image.array[0] > 0).astype(dtype) * 100
    out = nibabel.Nifti1Image.from_bytes(encode(values, Grid.of(image)))
    assert out.get_data_dtype() == np.dtype(sent)
    assert np.asarray(out.dataobj).sum() == values.sum()


def test_of_a_label_map_the_structure_asked_about_is_taken():
    image = _image()
    grid = Grid.of(image)
    labels = np.arange(np.prod(image.size)).reshape(image.size) % 4
    sent = nibabel.Nifti1Image(labels.T.astype(np.uint8), grid.affine).to_bytes()
    np.testing.assert_array_equal(read_file(sent, image, "spleen", TABLE), labels == 2)
    alone = nibabel.Nifti1Image((labels == 1).T.astype(np.uint8) * 7, grid.affine).to_bytes()
    np.testing.assert_array_equal(read_file(alone, image, "spleen", TABLE), labels == 1)
    few = nibabel.Nifti1Image((labels % 3).T.astype(np.uint8), grid.affine).to_bytes()
    with pytest.raises(Refused, match="none is kidney_left"):
        read_file(few, image, "kidney_left", TABLE)


def test_a_dicom_segmentation_of_the_series_is_taken(tmp_path):
    from vesalius.data.phantoms.torso import ct

    ct(tmp_path / "ct", n=2, size=(4, 24, 24), format="dicom")
    first, other = sorted({path.parent for path in (tmp_path / "ct").rglob("*.dcm")})[:2]
    image = read_series(first)
    labels = np.zeros(image.size, np.uint8)
    labels[1:3, 4:9, 5:12], labels[2, 12:15, 5:12] = 1, 2
    path = write_mask(labels, image, tmp_path / "edited.dcm", classes=["Spleen", "Kidney (left)"])
    np.testing.assert_array_equal(read_file(path.read_bytes(), image, "spleen", TABLE), labels == 1)
    with pytest.raises(Refused, match="none is liver"):
        read_file(path.read_bytes(), image, "liver", TABLE)
    with pytest.raises(Refused, match="no DICOM segmentation of this case") as refused:
        read_file(path.read_bytes(), read_series(other), "spleen", TABLE)
    assert str(tmp_path) not in str(refused.value)
