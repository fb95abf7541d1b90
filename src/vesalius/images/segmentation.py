"""Masks as DICOM segmentations (DICOM-SEG) that refer to the file they were drawn on, through highdicom."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import highdicom
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.spatial import get_image_coordinate_system
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage

from vesalius.errors import UnreadableImage, VesaliusError
from vesalius.files import atomic
from vesalius.images.dicom import read_header
from vesalius.images.image import Image
from vesalius.images.reading import quiet, reading

_FORMATS = {"Date": r"(\d{8})?", "Time": r"(\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?)?"}


def write_segmentation(
    mask: np.ndarray, like: Image, path: Path, *, classes: Sequence[str], series_description: str
) -> None:
    """Write `mask` as a binary segmentation of the DICOM file that `like` was read from.

    Study, patient and frame of reference are the source's. Where that has a place in the patient, so has the
    segmentation, and may hold several frames; else it refers to one frame pixel for pixel. The segments carry the class
    names and the general code "Tissue": a name alone does not say which code is right.

    Args:
        mask: ``[H, W]``, or ``[frames, H, W]`` of a multi-frame source; value i + 1 is ``classes[i]``.
        like: an image that `read` read from a DICOM file.
        path: the file to write.
        classes: one name per segment, at least one.
        series_description: of the new series.

    Raises:
        VesaliusError: `like` is from no DICOM file, or that file lacks what a segmentation must refer to.
    """
    source = _source(like, path)
    if not classes:
        raise VesaliusError("a DICOM segmentation needs at least one class", path=path, remedy="name the classes")
    sop_class, flat = source.SOPClassUID, not _has_place(source)
    if flat:
        mask = _flatten(source, mask, like, path)
    elif mask.ndim == 2:
        frames = np.zeros((like.frames, *mask.shape), dtype=mask.dtype)
        frames[like.frame or 0] = mask
        mask = frames
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="Vesalius", family=codes.DCM.ArtificialIntelligence, version=_version()
    )
    segments = [
        SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(classes, start=1)
    ]
    try:
        with quiet():
            segmentation = Segmentation(
                source_images=[source],
                pixel_array=mask,
                segmentation_type=SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                series_instance_uid=highdicom.UID(),
                series_number=1,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="Vesalius",
                manufacturer_model_name="Vesalius",
                software_versions=_version(),
                device_serial_number="0",
                content_label="VESALIUS",
                series_description=series_description[:64],
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise VesaliusError(
            f"{like.path} cannot be referred to by a DICOM segmentation ({reason})",
            path=path,
            remedy="write .nii.gz or .png instead",
        ) from error
    if flat:
        _refer_back(segmentation, sop_class, like.frame)
    with atomic(path) as temporary:
        segmentation.save_as(temporary)


def _source(like: Image, path: Path) -> Dataset:
    remedy = "write .nii.gz or .png instead"
    if not like.path.is_file():
        raise VesaliusError(f"{like.path}, which the mask refers to, is not there", path=path, remedy=remedy)
    try:
        with reading(like.path), like.path.open("rb") as stream:
            source = read_header(like.path, stream)
    except UnreadableImage as error:
        raise VesaliusError(f"{like.path} is not a DICOM image", path=path, remedy=remedy) from error
    needed = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    missing = [name for name in needed if not source.get(name)]
    if missing:
        raise VesaliusError(f"{like.path} has no {', '.join(missing)} to refer to", path=path, remedy=remedy)
    # These are of type 2: they must be there but may be empty. De-identified files lack them, or spoil dates and times.
    for name in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "StudyID",
        "ReferringPhysicianName",
    ):
        value = str(source.get(name) or "")
        if name not in source or not re.fullmatch(_FORMATS.get(name[-4:], ".*"), value):
            setattr(source, name, "")
    return source


def _has_place(source: Dataset) -> bool:
    """Whether highdicom can place a segmentation of `source` in the patient: position, reference frame, thickness."""
    if get_image_coordinate_system(source) is None:
        return False
    return "SharedFunctionalGroupsSequence" in source or bool(source.get("SliceThickness"))


def _flatten(source: Dataset, mask: np.ndarray, like: Image, path: Path) -> np.ndarray:
    """Present a source without a place in the patient, such as an ultrasound clip, to highdicom as one plain frame.

    highdicom takes no more than one frame of such a source, and asks some classes for tags that the file lacks. The
    segmentation then refers to the source pixel for pixel and has no geometry of its own.
    """
    if mask.ndim == 3 and len(mask) > 1:
        raise VesaliusError(
            f"{like.path} has no position in the patient, so that a segmentation can hold one of its frames",
            path=path,
            remedy="write one file per frame",
        )
    source.SOPClassUID = SecondaryCaptureImageStorage
    geometry = ["ImagePositionPatient", "ImageOrientationPatient"]
    if not source.get("SliceThickness"):
        geometry.append("PixelSpacing")  # highdicom reads no pixel measures without a thickness
    for name in ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *geometry):
        if name in source:
            delattr(source, name)
    return mask if mask.ndim == 2 else mask[0]


def _refer_back(segmentation: Segmentation, sop_class: str, frame: int | None) -> None:
    """Name the source's true class and frame, which `_flatten` hid."""
    for element in segmentation.iterall():
        if element.keyword == "ReferencedSOPClassUID" and element.value == SecondaryCaptureImageStorage:
            element.value = sop_class
    if frame is not None:
        for group in segmentation.PerFrameFunctionalGroupsSequence:
            for derivation in group.DerivationImageSequence:
                derivation.SourceImageSequence[0].ReferencedFrameNumber = frame + 1


def _version() -> str:
    try:
        return version("vesalius")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"
