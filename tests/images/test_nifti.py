"""NIfTI: axes, the RAS to LPS edge, slices, scales, and geometry that is there or None."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from samples import nifti, pixels

from vesalius.errors import UnreadableImage
from vesalius.images import probe, read

VOXELS = pixels(5, 4, 3, dtype="int16")
OBLIQUE = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 4.0, 30], [0, 0, 0, 1]])


def world(affine: np.ndarray, *index: float) -> np.ndarray:
    return affine @ [*index, 1]


def test_volume_axes_and_affine(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    nifti(path, VOXELS, OBLIQUE)
    image = read(path)
    assert image.array.shape == (1, 3, 4, 5) and image.array.dtype == np.int16
    assert image.array[0, 2, 1, 3] == VOXELS[3, 1, 2]
    assert image.spacing == (4.0, 2.0, 1.5)  # D, H, W
    # The same voxel, in RAS by nibabel and in LPS by us.
    assert np.allclose(world(image.affine, 3, 1, 2), np.diag([-1, -1, 1, 1]) @ world(OBLIQUE, 3, 1, 2))
    header = probe(path)
    assert (header.frames, header.size, header.spacing) == (3, (3, 4, 5), image.spacing)


def test_slice_knows_its_place(tmp_path: Path) -> None:
    path = tmp_path / "v.nii"
    nifti(path, VOXELS, OBLIQUE)
    volume, image = read(path), read(path, frame=2)
    assert np.array_equal(image.array, volume.array[:, 2]) and image.spacing == (2.0, 1.5)
    assert np.allclose(world(image.affine, 3, 1, 0), world(volume.affine, 3, 1, 2))
    with pytest.raises(UnreadableImage, match="no frame 3; choose one of 0 to 2"):
        read(path, frame=3)


def test_series_of_volumes_needs_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "t.nii.gz"
    series = pixels(5, 4, 3, 2)
    nifti(path, series, np.eye(4))
    with pytest.raises(UnreadableImage, match="holds 2 frames"):
        read(path)
    assert np.array_equal(read(path, frame=1).array[0], series[..., 1].T)
    assert probe(path).frames == 2 and probe(path).size == (3, 4, 5)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 1, 1)])
def test_two_dimensions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nifti(tmp_path / "flat.nii", VOXELS[..., 0].reshape(shape), np.diag([2.0, 3, 1, 1]))
    image = read(tmp_path / "flat.nii")
    assert np.array_equal(image.array[0], VOXELS[..., 0].T)
    assert image.spacing == (3.0, 2.0) and (image.frame, image.frames) == (None, 1)
    assert np.array_equal(read(tmp_path / "flat.nii", frame=0).array, image.array)


def test_scale_is_applied_and_rgb_is_three_channels(tmp_path: Path) -> None:
    scaled = nibabel.Nifti1Image(VOXELS, np.eye(4))
    scaled.header.set_slope_inter(0.5, -3)
    scaled.to_filename(tmp_path / "scaled.nii")
    raw = nibabel.load(tmp_path / "scaled.nii")
    image = read(tmp_path / "scaled.nii")
    assert image.array.dtype == np.float32 and np.allclose(image.array[0], raw.get_fdata().T)

    colour = np.zeros((5, 4, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["G"] = VOXELS
    nifti(tmp_path / "colour.nii", colour, np.eye(4))
    image = read(tmp_path / "colour.nii")
    assert image.channels == ("R", "G", "B") and np.array_equal(image.array[1], VOXELS.T)


def test_geometry_is_not_invented(tmp_path: Path) -> None:
    nifti(tmp_path / "none.nii", VOXELS, None)
    image = read(tmp_path / "none.nii")
    assert image.affine is None and image.spacing is None

    spaced = nibabel.Nifti1Image(VOXELS, None)
    spaced.header.set_zooms((0.5, 0.6, 7))
    spaced.header.set_xyzt_units("mm")
    spaced.to_filename(tmp_path / "spaced.nii")
    image = read(tmp_path / "spaced.nii")
    assert image.affine is None and image.spacing == pytest.approx((7, 0.6, 0.5))

    metres = nibabel.Nifti1Image(VOXELS, np.diag([0.002, 0.002, 0.003, 1]))
    metres.header.set_xyzt_units("meter")
    metres.to_filename(tmp_path / "metres.nii")
    assert read(tmp_path / "metres.nii").spacing == pytest.approx((3, 2, 2))


def test_singular_affine_is_an_error(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS, np.eye(4))
    image.header["srow_x"] = 0
    image.header["srow_y"] = (1, 0, 0, 0)
    image.header["srow_z"] = 0
    image.header["qform_code"] = 0
    (tmp_path / "bad.nii").write_bytes(image.header.binaryblock + bytes(4) + VOXELS.tobytes("F"))
    with pytest.raises(UnreadableImage, match=r"bad.nii: .*singular"):
        read(tmp_path / "bad.nii")


@pytest.mark.parametrize("dimension", [30_000, 2_000])
def test_lying_header_allocates_nothing(tmp_path: Path, dimension: int) -> None:
    nifti(tmp_path / "lie.nii", VOXELS, np.eye(4))
    content = bytearray((tmp_path / "lie.nii").read_bytes())
    content[42:48] = np.array([dimension] * 3, "<i2").tobytes()
    (tmp_path / "lie.nii").write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"decodes to|announces"):
        read(tmp_path / "lie.nii")
