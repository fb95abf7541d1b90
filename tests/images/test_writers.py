"""Masks and images go back onto the image they came from: same pixels, same place, read by other libraries."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow
from samples import dicom, nifti, pixels

from vesalius.errors import VesaliusError
from vesalius.images import Image, read, write_image, write_mask

CLASSES = ["lesion", "cyst"]
MASK = (pixels(12, 17) % 3).astype(np.int64)
PLACED = {
    "PixelSpacing": [0.5, 0.25],
    "SliceThickness": 3,
    "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
    "ImagePositionPatient": [10, 20, 30],
    "FrameOfReferenceUID": "1.2.3",
}
ORIENTATIONS = [
    np.diag([*signs, 1]) @ np.vstack([np.eye(4)[[*order]], [0, 0, 0, 1]])
    for signs, order in zip(
        itertools.product([-2.0, 2.0], repeat=3), itertools.cycle([(0, 1, 2), (1, 2, 0)]), strict=False
    )
]


@pytest.mark.parametrize("affine", ORIENTATIONS)
def test_nifti_mask_lies_on_its_volume(tmp_path: Path, affine: np.ndarray) -> None:
    affine = affine.copy()
    affine[:3, 3] = 5, -6, 7
    nifti(tmp_path / "v.nii.gz", pixels(5, 4, 3, dtype="int16"), affine)
    volume = read(tmp_path / "v.nii.gz")
    mask = (pixels(3, 4, 5) % 3).astype(np.uint8)
    write_mask(mask, volume, tmp_path / "m.nii.gz", classes=CLASSES)
    source, written = nibabel.load(tmp_path / "v.nii.gz"), nibabel.load(tmp_path / "m.nii.gz")
    assert written.shape == source.shape and written.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(written.dataobj), mask.T)
    for name in ("get_sform", "get_qform"):
        matrix, code = getattr(written, name)(coded=True)
        expected, expected_code = getattr(source, name)(coded=True)
        assert code == expected_code and (matrix is expected is None or np.allclose(matrix, expected))
    assert np.array_equal(read(tmp_path / "m.nii.gz").array[0], mask)

    write_mask(mask[1], read(tmp_path / "v.nii.gz", frame=1), tmp_path / "slice.nii", classes=CLASSES)
    assert np.allclose(nibabel.load(tmp_path / "slice.nii").affine @ [4, 2, 0, 1], affine @ [4, 2, 1, 1])


def test_nifti_mask_of_a_dicom_and_of_nothing(tmp_path: Path) -> None:
    dicom(tmp_path / "x.dcm", pixels(12, 17), **PLACED)
    image = read(tmp_path / "x.dcm")
    write_mask(MASK, image, tmp_path / "m.nii.gz", classes=CLASSES)
    again = read(tmp_path / "m.nii.gz")
    assert np.array_equal(again.array[0], MASK) and np.allclose(again.affine, image.affine)

    write_mask(MASK, Image(pixels(1, 12, 17), ("gray",)), tmp_path / "n.nii.gz", classes=CLASSES)
    header = nibabel.load(tmp_path / "n.nii.gz").header
    assert header["sform_code"] == header["qform_code"] == 0
    assert read(tmp_path / "n.nii.gz").spacing is None

    spaced = Image(pixels(1, 12, 17), ("gray",), spacing=(0.5, 0.25))
    write_mask(MASK, spaced, tmp_path / "s.nii.gz", classes=CLASSES)
    again = read(tmp_path / "s.nii.gz")
    assert again.affine is None and again.spacing == (0.5, 0.25)


def test_mask_of_a_2d_nifti_has_its_shape(tmp_path: Path) -> None:
    for shape in [(17, 12), (17, 12, 1)]:
        nifti(tmp_path / "flat.nii", pixels(*shape), np.eye(4))
        write_mask(MASK, read(tmp_path / "flat.nii"), tmp_path / "m.nii", classes=CLASSES)
        assert nibabel.load(tmp_path / "m.nii").shape == shape


def test_png_mask(tmp_path: Path) -> None:
    image = Image(pixels(1, 12, 17), ("gray",))
    mask = MASK.copy()
    mask[0, 0] = 255
    write_mask(mask, image, tmp_path / "m.png", classes=CLASSES)
    with Pillow.open(tmp_path / "m.png") as picture:
        assert picture.mode == "L" and np.array_equal(np.array(picture), mask)
        assert json.loads(picture.text["classes"]) == CLASSES


def check_segmentation(path: Path, image: Image, mask: np.ndarray) -> highdicom.seg.Segmentation:
    segmentation = highdicom.seg.segread(path)
    sop = image.tags["sop"]
    if image.frame is None:
        found = segmentation.get_pixels_by_source_instance([sop], combine_segments=True)
    else:
        found = segmentation.get_pixels_by_source_frame(sop, [image.frame + 1], combine_segments=True)
    assert np.array_equal(found[0], mask)
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == CLASSES
    assert segmentation.StudyInstanceUID == image.tags["study"] and segmentation.PatientID == image.tags["patient"]
    return segmentation


def test_dicom_segmentation_of_an_ultrasound_image(tmp_path: Path) -> None:
    dicom(tmp_path / "x.dcm", pixels(12, 17))
    image = read(tmp_path / "x.dcm")
    mask = MASK.copy()
    mask[0, 0] = 255  # not annotated: background in the segmentation
    write_mask(mask, image, tmp_path / "seg.dcm", classes=CLASSES, series_description="Lesions")
    segmentation = check_segmentation(tmp_path / "seg.dcm", image, np.where(mask == 255, 0, mask))
    assert segmentation.SeriesDescription == "Lesions"
    reference = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert reference.ReferencedSOPClassUID.name == "Ultrasound Image Storage"


def test_dicom_segmentation_of_a_clip_names_the_frame(tmp_path: Path) -> None:
    dicom(tmp_path / "x.dcm", pixels(3, 12, 17))
    image = read(tmp_path / "x.dcm", frame=2)
    write_mask(MASK, image, tmp_path / "seg.dcm", classes=CLASSES)
    check_segmentation(tmp_path / "seg.dcm", image, MASK)
    with pytest.raises(VesaliusError, match="one file per frame"):
        write_mask(np.stack([MASK] * 3), image, tmp_path / "all.dcm", classes=CLASSES)
    assert not (tmp_path / "all.dcm").exists()


def test_dicom_segmentation_keeps_the_place(tmp_path: Path) -> None:
    dicom(tmp_path / "x.dcm", pixels(12, 17), **PLACED)
    image = read(tmp_path / "x.dcm")
    write_mask(MASK, image, tmp_path / "seg.dcm", classes=CLASSES)
    segmentation = check_segmentation(tmp_path / "seg.dcm", image, MASK)
    assert segmentation.FrameOfReferenceUID == "1.2.3"
    # highdicom gives a single plane a slice spacing of its own; the plane itself is where it was.
    assert np.allclose(read(tmp_path / "seg.dcm", frame=0).affine[:, [0, 1, 3]], image.affine[:, [0, 1, 3]])


def test_empty_segmentation_can_be_written(tmp_path: Path) -> None:
    for tags in ({}, PLACED):
        dicom(tmp_path / "x.dcm", pixels(12, 17), **tags)
        image = read(tmp_path / "x.dcm")
        write_mask(np.zeros((12, 17), int), image, tmp_path / "seg.dcm", classes=CLASSES)
        assert not highdicom.seg.segread(tmp_path / "seg.dcm").pixel_array.any()


def test_segmentations_of_the_zoo(tmp_path: Path, shared_data) -> None:
    for name, frame in [("OBXXXX1A_rle_2frame.dcm", 1), ("eCT_Supplemental.dcm", 1), ("693_UNCI.dcm", None)]:
        image = read(shared_data("dicom_zoo") / name, frame)
        mask = np.zeros(image.size, np.uint8)
        mask[5:20, 3:9], mask[20:25, 3:30] = 1, 2
        write_mask(mask, image, tmp_path / name, classes=CLASSES)
        check_segmentation(tmp_path / name, image, mask)


@pytest.mark.parametrize(
    ("mask", "name", "says"),
    [
        (MASK[:5], "m.png", r"a mask of \(5, 17\) for an image of \(12, 17\); resize it"),
        (MASK + 7, "m.png", "holds .* there are 2 classes"),
        (MASK / 2, "m.png", "holds float64"),
        (MASK, "m.jpg", "cannot write a mask as '.jpg'; use .png"),
        (MASK, "m.dcm", "which the mask refers to, is not there; write .nii.gz"),
    ],
)
def test_mask_that_does_not_fit(tmp_path: Path, mask: np.ndarray, name: str, says: str) -> None:
    with pytest.raises(VesaliusError, match=says):
        write_mask(mask, Image(pixels(1, 12, 17), ("gray",)), tmp_path / name, classes=CLASSES)
    assert not any(tmp_path.iterdir())


def test_restored_images(tmp_path: Path) -> None:
    nifti(tmp_path / "v.nii.gz", pixels(5, 4, 3, dtype="int16"), ORIENTATIONS[3])
    volume = read(tmp_path / "v.nii.gz")
    values = np.random.default_rng(1).random(volume.array.shape, dtype=np.float32)
    write_image(values, volume, tmp_path / "out.nii.gz")
    again = read(tmp_path / "out.nii.gz")
    assert again.array.dtype == np.float32 and np.array_equal(again.array, values)
    assert np.allclose(again.affine, volume.affine)

    colour = np.random.default_rng(1).random((3, 12, 17))
    write_image(colour, Image(pixels(3, 12, 17), ("R", "G", "B")), tmp_path / "out.png")
    assert np.abs(read(tmp_path / "out.png").array / 255 - colour).max() <= 0.5 / 255 + 1e-6
    with pytest.raises(VesaliusError, match=r"use .png"):
        write_image(values, volume, tmp_path / "out2.png")
