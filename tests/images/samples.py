"""Small image files of every family, made from seeded pixels, for the tests of the readers and writers."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)


def pixels(*shape: int, high: int = 256, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def dicom(path: Path, array: np.ndarray, *, deflated: bool = False, **tags: object) -> Dataset:
    """Write ``[H, W]``, ``[H, W, 3]`` or ``[frames, H, W]`` as an ultrasound file; `tags` are added by keyword."""
    frames = array.shape[0] if array.ndim == 3 and array.shape[-1] != 3 else 1
    rows, columns = array.shape[1:3] if frames > 1 else array.shape[:2]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = UltrasoundMultiFrameImageStorage if frames > 1 else UltrasoundImageStorage
    dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (generate_uid() for _ in range(3))
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientID, dataset.PatientName, dataset.Modality = "p7", "", "US"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel = 3 if array.shape[-1] == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if array.shape[-1] == 3 else "MONOCHROME2"
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.BitsAllocated = dataset.BitsStored = array.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    dataset.PixelData = array.tobytes()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    if deflated:
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def region(*, delta_x: float, delta_y: float, units: int = 3, kind: int = 1) -> Dataset:
    """An item of the Sequence of Ultrasound Regions; deltas in cm when `units` is 3."""
    item = Dataset()
    item.RegionSpatialFormat = kind
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta_x, delta_y
    return item


def nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None) -> None:
    nibabel.Nifti1Image(voxels, affine).to_filename(path)


def one_of_each(folder: Path) -> dict[str, bytes]:
    """The bytes of a small valid file of each family and coding, by file name."""
    grey, colour = pixels(12, 17), pixels(12, 17, 3)
    Pillow.fromarray(grey).save(folder / "grey.png")
    Pillow.fromarray(pixels(12, 17, high=65536, dtype="uint16")).save(folder / "deep.png")
    Pillow.fromarray(colour).quantize(16).save(folder / "palette.png")
    Pillow.fromarray(colour).save(folder / "colour.jpg")
    Pillow.fromarray(colour).save(folder / "colour.bmp")
    Pillow.fromarray(grey).save(folder / "pages.tif", save_all=True, append_images=[Pillow.fromarray(grey)] * 2)
    Pillow.fromarray(grey).save(folder / "packed.tif", compression="tiff_deflate")
    nifti(folder / "volume.nii", pixels(5, 4, 3, dtype="int16"), np.diag([2.0, 3, 4, 1]))
    nifti(folder / "volume.nii.gz", pixels(5, 4, 3, dtype="int16"), np.diag([2.0, 3, 4, 1]))
    dicom(folder / "grey.dcm", grey, SequenceOfUltrasoundRegions=[region(delta_x=0.02, delta_y=0.03)])
    dicom(folder / "clip.dcm", pixels(3, 12, 17))
    dicom(folder / "deflated.dcm", grey, deflated=True)
    dataset = dicom(folder / "rle.dcm", colour)
    dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    dataset.save_as(folder / "rle.dcm")
    dataset = dicom(folder / "j2k.dcm", pixels(64, 64))
    dataset.compress("1.2.840.10008.1.2.4.90", generate_instance_uid=False)
    dataset.save_as(folder / "j2k.dcm")
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
