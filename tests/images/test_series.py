"""A DICOM series is one volume in its place, whatever the order of its files; its masks go back voxel for voxel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage
from samples import dicom, nifti, pixels
from scipy.spatial.transform import Rotation

from vesalius.errors import UnreadableImage, VesaliusError
from vesalius.images import read_segmentation, read_series, read_volume, write_mask

CLASSES = ["lesion", "cyst"]
DEPTH, HEIGHT, WIDTH = 5, 6, 7
VOXELS = pixels(DEPTH, HEIGHT, WIDTH, high=900, dtype="int16")
MASK = (pixels(DEPTH, HEIGHT, WIDTH) % 3).astype(np.uint8)
AXIAL = np.eye(3)
OBLIQUE = Rotation.from_euler("xyz", [25, -40, 70], degrees=True).as_matrix()
CORONAL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
PLACES = {
    "axial": (AXIAL, (1, 1, 1)),
    "oblique, anisotropic": (OBLIQUE, (0.7, 1.3, 4.5)),
    "coronal, flipped": (CORONAL * [-1, 1, -1], (0.5, 0.5, 3)),
    "feet first": (AXIAL * [1, -1, -1], (0.8, 0.8, 2.5)),
    "left-handed": (OBLIQUE * [1, 1, -1], (0.8, 0.8, 2.5)),
}


def write_series(folder: Path, axes: np.ndarray, steps: tuple[float, ...]) -> np.ndarray:
    """The voxels as a CT series under file names that tell nothing; returns the affine (column, row, slice) -> LPS."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * steps, (-31.5, 12.25, 80)
    names = np.random.default_rng(3).permutation(DEPTH)
    for k in range(DEPTH):
        dicom(
            folder / f"IM{names[k]}.dcm",
            VOXELS[k],
            Modality="CT",
            SOPClassUID=CTImageStorage,
            SeriesInstanceUID="1.2.3.4",
            StudyInstanceUID="1.2.3",
            FrameOfReferenceUID="1.2.3.9",
            PixelSpacing=[steps[1], steps[0]],
            SliceThickness=steps[2],
            InstanceNumber=int(names[k]),
            ImageOrientationPatient=[round(float(v), 6) for v in affine[:3, :2].T.ravel() / np.repeat(steps[:2], 3)],
            ImagePositionPatient=[round(float(v), 4) for v in affine[:3] @ [0, 0, k, 1]],
            RescaleSlope=1,
            RescaleIntercept=-100,
        )
    return affine


def change(file: Path, **tags: object) -> None:
    dataset = dcmread(file)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file)


def file_of(folder: Path, k: int) -> Path:
    return folder / f"IM{np.random.default_rng(3).permutation(DEPTH)[k]}.dcm"


@pytest.mark.parametrize("place", PLACES)
def test_masks_of_a_series_come_back_voxel_for_voxel(tmp_path: Path, place: str) -> None:
    axes, steps = PLACES[place]
    affine = write_series(tmp_path / "s", axes, steps)
    image = read_series(tmp_path / "s")
    assert image.array.shape == (1, DEPTH, HEIGHT, WIDTH) and image.modality == "CT" and "sop" not in image.tags
    # A left-handed affine is read with its slices the other way round, for D always goes along the normal.
    turned = np.linalg.det(affine[:3, :3]) < 0
    values, mask = (VOXELS[::-1], MASK[::-1]) if turned else (VOXELS, MASK)
    assert np.array_equal(image.array[0], values - 100) and np.linalg.det(image.affine[:3, :3]) > 0
    corner = np.array([2, 3, DEPTH - 1 if turned else 0, 1])
    assert np.allclose(image.affine @ [2, 3, 0, 1], affine @ corner, atol=1e-3)
    assert np.allclose(image.spacing, steps[::-1], atol=1e-4)

    write_mask(mask, image, tmp_path / "m.dcm", classes=CLASSES)
    write_mask(mask, image, tmp_path / "m.nii.gz", classes=CLASSES)
    again, names = read_segmentation(tmp_path / "m.dcm", image)
    assert np.array_equal(again, mask) and list(names) == CLASSES

    # An independent reader's volumes of both files agree in patient space.
    volume = highdicom.seg.segread(tmp_path / "m.dcm").get_volume(combine_segments=True)
    label = nibabel.load(tmp_path / "m.nii.gz")
    rows = np.argwhere(volume.array > 0)
    lps = volume.affine @ np.c_[rows, np.ones(len(rows))].T
    at = np.linalg.inv(label.affine) @ (np.diag([-1, -1, 1, 1]) @ lps)
    assert np.abs(at - np.rint(at)).max() < 1e-2
    x, y, z = np.rint(at[:3]).astype(int)
    stored = np.asarray(label.dataobj)
    assert np.array_equal(stored[x, y, z], volume.array[tuple(rows.T)])
    assert len(rows) == np.count_nonzero(mask) == np.count_nonzero(stored)


def test_a_file_stands_for_its_series_and_a_scout_beside_it_is_left_alone(tmp_path: Path) -> None:
    write_series(tmp_path, *PLACES["axial"])
    dicom(tmp_path / "scout.dcm", pixels(9, 9), PixelSpacing=[1, 1], SeriesInstanceUID="9.9")
    (tmp_path / "readme.txt").write_text("exported by hand")
    image = read_volume(file_of(tmp_path, 2))
    assert np.array_equal(image.array[0], VOXELS - 100)
    assert image.slices[0] == (file_of(tmp_path, 0), 0)
    listed = read_series([file_of(tmp_path, k) for k in (3, 1, 2)])
    assert np.array_equal(listed.array[0], VOXELS[1:4] - 100)
    change(tmp_path / "scout.dcm", ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    with pytest.raises(UnreadableImage, match=r"holds 2 series: 1.2.3.4 \(5 slices\), 9.9 .*; name one file"):
        read_series(tmp_path)


def test_an_enhanced_file_whose_frames_are_out_of_order(tmp_path: Path) -> None:
    order = [3, 0, 4, 2, 1]
    shared, frames = Dataset(), []
    shared.PixelMeasuresSequence = Sequence([Dataset()])
    shared.PixelMeasuresSequence[0].PixelSpacing = [1.5, 0.5]
    shared.PixelMeasuresSequence[0].SliceThickness = 2
    shared.PlaneOrientationSequence = Sequence([Dataset()])
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for k in order:
        item = Dataset()
        item.PlanePositionSequence = Sequence([Dataset()])
        item.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2.0 * k]
        frames.append(item)
    dicom(
        tmp_path / "e.dcm",
        VOXELS[order],
        SOPClassUID=EnhancedCTImageStorage,
        FrameOfReferenceUID="1.2.3.9",
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )
    image = read_volume(tmp_path / "e.dcm")
    assert np.array_equal(image.array[0], VOXELS) and image.spacing == (2, 1.5, 0.5)
    write_mask(MASK, image, tmp_path / "m.dcm", classes=CLASSES)
    assert np.array_equal(read_segmentation(tmp_path / "m.dcm", image)[0], MASK)


def duplicate(folder: Path) -> None:
    (folder / "copy.dcm").write_bytes(file_of(folder, 2).read_bytes())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda f: file_of(f, 2).unlink(),
            r"slices are missing: 1 between IM\d.dcm and IM\d.dcm \(9 instead of 4.5 mm",
        ),
        (duplicate, r"two slices in one place: (copy.dcm and IM\d.dcm|IM\d.dcm and copy.dcm)"),
        (
            lambda f: change(file_of(f, 1), ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
            r"slices of different orientations .*IM\d.dcm differ from the other 4",
        ),
        (
            lambda f: change(file_of(f, 1), PixelSpacing=[2, 2]),
            r"different pixel sizes \(\(0.7, 1.3\) and \(2.0, 2.0\)\)",
        ),
        (lambda f: change(file_of(f, 1), ImagePositionPatient=[0, 0, 0]), r"missing|unevenly|one place"),
        (lambda f: delete(file_of(f, 1), "ImagePositionPatient"), r"IM\d.dcm: has no place in the patient"),
        (lambda f: [file_of(f, k).unlink() for k in range(4)], "holds one slice"),
        (lambda f: [file_of(f, k).unlink() for k in range(5)], "holds no DICOM images"),
        (lambda f: dicom(file_of(f, 1), pixels(9, 9), **header(file_of(f, 1))), r"different shapes \(\(6, 7\) and"),
    ],
)
def test_a_series_that_is_no_volume(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    write_series(tmp_path, *PLACES["oblique, anisotropic"])
    spoil(tmp_path)
    with pytest.raises(UnreadableImage, match=says) as caught:
        read_series(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def delete(file: Path, keyword: str) -> None:
    dataset = dcmread(file)
    delattr(dataset, keyword)
    dataset.save_as(file)


def header(file: Path) -> dict[str, object]:
    dataset = dcmread(file)
    names = ("SeriesInstanceUID", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
    return {name: dataset.get(name) for name in names}


def test_a_segmentation_of_another_series_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        write_series(tmp_path / name, *PLACES["axial"])
    write_mask(MASK, read_series(tmp_path / "a"), tmp_path / "m.dcm", classes=CLASSES)
    with pytest.raises(UnreadableImage, match="refers to other images"):
        read_segmentation(tmp_path / "m.dcm", read_series(tmp_path / "b"))
    with pytest.raises(VesaliusError, match=r"a mask of \(2, 6, 7\) for an image of \(5, 6, 7\)"):
        write_mask(MASK[:2], read_series(tmp_path / "a"), tmp_path / "n.dcm", classes=CLASSES)


def test_a_mask_is_not_a_volume(tmp_path: Path) -> None:
    nifti(tmp_path / "flat.nii", pixels(5, 4), np.eye(4))
    with pytest.raises(UnreadableImage, match=r"is 2-D \(4, 5\), not a volume"):
        read_volume(tmp_path / "flat.nii")


def test_a_real_series_lies_where_its_nifti_label_does(tmp_path: Path, shared_data) -> None:
    folder = shared_data("ct_totalseg_examples") / "ct_dicom_series"
    image, label = read_series(folder / "dicom"), read_volume(folder / "seg.nii.gz")
    assert sorted(image.size) == sorted(label.size)
    # The label was converted from the series: its corners are the series' corners, in some order.
    corners = np.array(list(np.ndindex(2, 2, 2)))
    ends = [np.c_[corners * (np.array(one.size[::-1]) - 1), np.ones(8)] @ one.affine.T for one in (image, label)]
    assert all(np.abs(end - ends[0]).max(axis=1).min() < 1e-2 for end in ends[1])

    mask = (image.array[0] > 200).astype(np.uint8)
    with pytest.raises(VesaliusError, match=r"has no SOPClassUID, SOPInstanceUID.* to refer to; write .nii.gz"):
        write_mask(mask, image, tmp_path / "bone.dcm", classes=["bone"])  # de-identification took its UIDs
    for number, file in enumerate(sorted((folder / "dicom").iterdir())):
        (tmp_path / file.name).write_bytes(file.read_bytes())
        uids = {"SOPInstanceUID": f"1.2.{number + 1}", "StudyInstanceUID": "1.3", "SeriesInstanceUID": "1.4"}
        change(tmp_path / file.name, SOPClassUID=CTImageStorage, FrameOfReferenceUID="1.5", **uids)
    image = read_series(tmp_path)
    write_mask(mask, image, tmp_path / "bone.dcm", classes=["bone"])
    assert mask.any() and np.array_equal(read_segmentation(tmp_path / "bone.dcm", image)[0], mask)
