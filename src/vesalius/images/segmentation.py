"""Masks as DICOM segmentations (DICOM-SEG) that refer to the file they were drawn on, through highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import highdicom
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from vesalius.errors import UnreadableImage, VesaliusError
from vesalius.files import atomic
from vesalius.images.dicom import read_header
from vesalius.images.image import Image
from vesalius.images.reading import quiet, reading


def write_segmentation(
    mask: np.ndarray, like: Image, path: Path, *, classes: Sequence[str], series_description: str
) -> None:
    """Write `mask` as a binary segmentation of the DICOM file that `like` was read from.

    Study, patient and frame of reference are the source's; where it has geometry, so has the segmentation. The
    segments carry the class names and the general code "Tissue": a name alone does not say which code is right.

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
    if mask.ndim == 2:
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
    # Attributes of type 2 must be there but may be empty; de-identified files often lack them altogether.
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"):
        source.setdefault(name, "")
    for name in ("AccessionNumber", "StudyID", "ReferringPhysicianName"):
        source.setdefault(name, "")
    return source


def _version() -> str:
    try:
        return version("vesalius")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"
