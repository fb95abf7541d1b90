"""Phantom volumes as files: NIfTI in any orientation, CT and MR series of DICOM slices, and collections of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from vesalius.data.progress import track
from vesalius.errors import ConfigError, nearest
from vesalius.files import atomic, write_text
from vesalius.images.nifti import RAS_TO_LPS

FORMATS = ("nifti", "dicom")
STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage}
AIR = -1024
"""Rescale intercept of the CT series, in HU."""


def check_collection(n: int, format: str, orientation: str, **shares: float) -> None:
    """What every collection of volumes can be asked for wrongly.

    Raises:
        ConfigError: a count below 1, an unknown format or orientation, or a share outside 0 to 1.
    """
    if n < 1:
        raise ConfigError(f"n = {n}", remedy="give n of 1 or more")
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}", remedy=nearest(format, FORMATS))
    pairs = ("LR", "AP", "IS")
    if sorted(next((i for i, pair in enumerate(pairs) if code in pair), 3) for code in orientation) != [0, 1, 2]:
        raise ConfigError(f"orientation {orientation!r}", remedy="give one letter each of L or R, A or P, I or S: RAS")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"{name} = {share}", remedy="give a share between 0 and 1")


def write_cases(
    write: Callable[[int], list[dict[str, Any]]], n: int, *, workers: int, text: str
) -> list[dict[str, Any]]:
    """The rows of cases 1 to `n`, written by `write(number)` in so many processes, with a bar."""
    numbers = range(1, n + 1)
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            done = list(track(pool.map(write, numbers), n, text))
    else:
        done = list(track(map(write, numbers), n, text))
    return [row for rows in done for row in rows]


def write_nifti(values: np.ndarray, affine: np.ndarray, path: Path, *, orientation: str = "LPS") -> None:
    """Write ``[D, H, W]`` with its affine (from column, row, slice to LPS mm) as voxels in the given orientation.

    Args:
        values: of a type that NIfTI holds.
        affine: 4x4.
        path: the file.
        orientation: where the file's three axes run to, such as RAS; voxels are turned and flipped, never resampled.
    """
    image = nibabel.Nifti1Image(values.T, RAS_TO_LPS @ affine)
    image = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(orientation)))
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    with atomic(path) as temporary:
        image.to_filename(temporary)


def write_series(
    values: np.ndarray,
    affine: np.ndarray,
    folder: Path,
    *,
    modality: str,
    identity: str,
    series: str,
    number: int = 1,
    window: tuple[float, float] | None = None,
    tags: Mapping[str, Any] | None = None,
) -> None:
    """Write ``[D, H, W]`` as a series of one CT or MR image a slice (PS3.3 A.3, A.4), uncompressed.

    As in a scanner's export, the files' names do not follow the slices' order: only positions do.

    Args:
        values: integers: HU, or MR's arbitrary units from 0.
        affine: 4x4, from (column, row, slice) to LPS mm.
        folder: where to put the files.
        modality: CT or MR.
        identity: the patient; series of one patient share a study and a frame of reference.
        series: its description.
        number: its number in the study.
        window: (centre, width) for display.
        tags: further attributes by keyword.
    """
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / steps
    intercept = AIR if modality == "CT" else 0
    stored = np.clip(values.astype(np.int32) - intercept, 0, 4095).astype(np.uint16)
    for index, pixels in enumerate(stored):
        data = Dataset()
        data.file_meta = meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = data.SOPClassUID = STORAGE[modality]
        meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = _uid(identity, series, str(index))
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.StudyInstanceUID, data.FrameOfReferenceUID = _uid(identity, "study"), _uid(identity, "frame")
        data.SeriesInstanceUID = _uid(identity, series)
        data.PatientID, data.PatientName, data.PatientSex, data.PatientBirthDate = identity, "Phantom", "O", ""
        data.StudyDate = data.StudyTime = data.AccessionNumber = data.ReferringPhysicianName = data.StudyID = ""
        data.Modality, data.Manufacturer, data.SeriesDescription = modality, "Vesalius phantom", series
        data.PatientPosition, data.PositionReferenceIndicator, data.Laterality = "HFS", "", ""
        data.SeriesNumber, data.InstanceNumber = number, index + 1
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY", "M"]
        data.ImageOrientationPatient = _decimals(directions[:, :2].T.ravel())
        data.ImagePositionPatient = _decimals(affine[:3, 3] + index * affine[:3, 2])
        data.PixelSpacing = _decimals((steps[1], steps[0]))
        data.SliceThickness = data.SpacingBetweenSlices = _decimals(steps[2:])[0]
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        if modality == "CT":
            data.RescaleIntercept, data.RescaleSlope, data.RescaleType = intercept, 1, "HU"
        if window is not None:
            data.WindowCenter, data.WindowWidth = _decimals(window)
        for keyword, value in (tags or {}).items():
            setattr(data, keyword, value)
        data.PixelData = pixels.tobytes()
        data["PixelData"].VR = "OW"
        name = hashlib.sha256(f"{identity} {series} {index}".encode()).hexdigest()[:12]
        with atomic(folder / f"{modality}.{name}.dcm") as temporary:
            data.save_as(temporary, enforce_file_format=True)


def write_dataset_json(
    folder: Path, *, name: str, description: str, modality: str, labels: Sequence[str], cases: Sequence[str]
) -> None:
    """The Decathlon's ``dataset.json`` for ``imagesTr`` and ``labelsTr``; value i + 1 is ``labels[i]``."""
    text = {
        "name": name,
        "description": description,
        "tensorImageSize": "3D",
        "modality": {"0": modality},
        "labels": {str(value): label for value, label in enumerate(["background", *labels])},
        "numTraining": len(cases),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases],
        "test": [],
    }
    write_text(folder / "dataset.json", json.dumps(text, indent=1) + "\n")


def _uid(*words: str) -> UID:
    return generate_uid(entropy_srcs=list(words))


def _decimals(values: Sequence[float] | np.ndarray) -> list[str]:
    """Decimal strings, of 16 characters at most."""
    return [f"{float(value):.9g}" if abs(value) > 1e-6 else "0" for value in values]
