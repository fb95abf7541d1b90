"""Masks as DICOM segmentations (DICOM-SEG) that refer to the files they were drawn on, through highdicom."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.spatial import get_image_coordinate_system
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage
from pydicom.valuerep import format_number_as_ds

from vesalius.errors import UnreadableImage, VesaliusError
from vesalius.files import atomic
from vesalius.images.dicom import read_header
from vesalius.images.image import Image
from vesalius.images.reading import quiet, reading

_FORMATS = {"Date": r"(\d{8})?", "Time": r"(\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?)?"}


def write_segmentation(
    mask: np.ndarray, like: Image, path: Path, *, classes: Sequence[str], series_description: str
) -> None:
    """Write `mask` as a binary segmentation of the DICOM file, or series, that `like` was read from.

    Study, patient and frame of reference are the source's. Where that has a place in the patient, so has the
    segmentation, and may hold several frames; else it refers to one frame pixel for pixel. The segments carry the class
    names and the general code "Tissue": a name alone does not say which code is right.

    Args:
        mask: ``[H, W]``, ``[frames, H, W]`` of a multi-frame source, or ``[D, H, W]`` of a series; value i + 1 is
            ``classes[i]``.
        like: an image that `read` read from a DICOM file, or `read_series` from several.
        path: the file to write.
        classes: one name per segment, at least one.
        series_description: of the new series.

    Raises:
        VesaliusError: `like` is from no DICOM file, or that file lacks what a segmentation must refer to.
    """
    if not classes:
        raise VesaliusError("a DICOM segmentation needs at least one class", path=path, remedy="name the classes")
    sources = check_sources(like, path)
    source = sources[0]
    sop_class, flat = source.SOPClassUID, not like.slices and not _has_place(source)
    if like.slices:
        mask = _for_series(sources, mask, like)
    elif flat:
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
                source_images=sources,
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


def read_segmentation(path: str | PathLike[str], like: Image) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read a DICOM segmentation onto the image that it was drawn on, as `write_segmentation` takes it.

    Args:
        path: a DICOM-SEG of one segment or several that do not overlap, by whatever program.
        like: the series (`read_series`) or the single-frame DICOM file (`read`) that it refers to.

    Returns:
        ``[H, W]`` or ``[D, H, W]`` of uint8 or uint16, value i + 1 being the i-th name; and the segments' names.

    Raises:
        UnreadableImage: it is no segmentation, refers to other images than `like`, or its segments overlap.
    """
    path = Path(path)
    with reading(path):
        segmentation = highdicom.seg.segread(path)
        files = tuple(dict.fromkeys(file for file, _ in like.slices)) or (like.path,)
        uids = [str(_source(file, path).SOPInstanceUID) for file in files]
        names = tuple(str(segment.SegmentLabel) for segment in segmentation.SegmentSequence)
        referred = {uid for _, _, uid in segmentation.get_source_image_uids()}
        if not referred & set(uids):
            raise UnreadableImage(
                f"refers to other images than {like.path}", path=path, remedy="give the series that it was drawn on"
            )
        options: dict[str, Any] = {
            "combine_segments": True,
            "ignore_spatial_locations": True,
            "assert_missing_frames_are_empty": True,  # frames without foreground are left out by most writers
        }
        if len(files) == 1 and like.frames > 1:
            frames = [frame + 1 for _, frame in like.slices] or [(like.frame or 0) + 1]
            mask = segmentation.get_pixels_by_source_frame(uids[0], frames, **options)
        else:
            mask = segmentation.get_pixels_by_source_instance(uids, **options)
        mask = mask if like.slices else mask[0]
        if mask.shape != like.size:
            raise UnreadableImage(f"has the shape {mask.shape}, the image {like.size}", path=path)
        return mask, names


def check_sources(like: Image, path: Path) -> list[Dataset]:
    """The headers of the files that a segmentation of `like` at `path` would refer to.

    Raises:
        VesaliusError: one is no DICOM file, or lacks what a segmentation must refer to.
    """
    files = tuple(dict.fromkeys(file for file, _ in like.slices)) or (like.path,)
    return [_source(file, path) for file in files]


def _for_series(sources: list[Dataset], mask: np.ndarray, like: Image) -> np.ndarray:
    """The mask's slices in the order of the files, or of the frames of the one file; the thickness that is needed."""
    assert like.spacing is not None
    for source in sources:
        # highdicom reads no pixel measures without a thickness, and 0 stands for "unknown" in some files.
        if "SharedFunctionalGroupsSequence" not in source and not source.get("SliceThickness"):
            source.SliceThickness = format_number_as_ds(like.spacing[0])
    if len(sources) == len(like.slices):
        return mask
    ordered = np.zeros_like(mask)
    ordered[[frame for _, frame in like.slices]] = mask
    return ordered


def _source(file: Path, path: Path) -> Dataset:
    """The header of an image that a segmentation at `path` refers to."""
    remedy = "write .nii.gz or .png instead"
    if not file.is_file():
        raise VesaliusError(f"{file}, which the mask refers to, is not there", path=path, remedy=remedy)
    try:
        with reading(file), file.open("rb") as stream:
            source = read_header(file, stream)
    except UnreadableImage as error:
        raise VesaliusError(f"{file} is not a DICOM image", path=path, remedy=remedy) from error
    needed = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    missing = [name for name in needed if not source.get(name)]
    if missing:
        raise VesaliusError(f"{file} has no {', '.join(missing)} to refer to", path=path, remedy=remedy)
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
