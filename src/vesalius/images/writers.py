"""Write masks and restored images so that they lie on the image that they belong to: PNG, NIfTI, DICOM-SEG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from vesalius.errors import UnreadableImage, VesaliusError
from vesalius.files import atomic
from vesalius.images.image import Image
from vesalius.images.nifti import RAS_TO_LPS, SUFFIXES
from vesalius.images.reading import quiet
from vesalius.images.segmentation import write_segmentation

IGNORE = 255
"""The mask value of pixels that nobody annotated."""


def write_mask(
    mask: np.ndarray,
    like: Image,
    path: str | PathLike[str],
    *,
    classes: Sequence[str],
    series_description: str = "Vesalius",
) -> Path:
    """Write a label mask in the geometry of the image it was drawn on; the suffix chooses the format.

    ``.png`` holds the label values in 8 bits (and the class names in its text chunk "classes"), ``.nii`` and
    ``.nii.gz`` too with the image's affine (the names in a comment extension), ``.dcm`` is a DICOM segmentation that
    refers to the source file or series, one segment per class, whose frames without foreground are left out.

    Args:
        mask: ``[H, W]`` or ``[D, H, W]`` integers of the image's size: 0 is background, i + 1 is ``classes[i]``, 255 is
            not annotated (background in a DICOM segmentation). For ``.dcm`` also ``[frames, H, W]`` of a multi-frame
            source, whichever of its frames `like` is.
        like: the image, as `read` returned it.
        path: the file to write.
        classes: the names of the values from 1.
        series_description: of the DICOM segmentation.

    Raises:
        VesaliusError: the mask does not fit the image or the classes, the format cannot hold it, or writing failed.
    """
    path, mask = Path(path), _checked(mask, like, Path(path), classes)
    name = path.name.lower()
    if name.endswith(".png"):
        if mask.ndim != 2 or len(classes) >= IGNORE:
            raise VesaliusError(
                "PNG holds one slice and 254 classes at most", path=path, remedy="write .nii.gz instead"
            )
        text = PngInfo()
        text.add_text("classes", json.dumps(list(classes)))
        with atomic(path) as temporary:
            Pillow.fromarray(mask.astype(np.uint8)).save(temporary, format="PNG", pnginfo=text)
    elif name.endswith(SUFFIXES):
        _write_nifti(mask, like, path, comment=json.dumps({"classes": list(classes)}))
    elif name.endswith(".dcm"):
        foreground = np.where(mask == IGNORE, 0, mask) if len(classes) < IGNORE else mask
        write_segmentation(foreground, like, path, classes=classes, series_description=series_description)
    else:
        raise VesaliusError(f"cannot write a mask as {path.suffix!r}", path=path, remedy="use .png, .nii.gz or .dcm")
    return path


def write_image(array: np.ndarray, like: Image, path: str | PathLike[str]) -> Path:
    """Write a restored image: 8-bit PNG, or float32 NIfTI in the geometry of the image it came from.

    Args:
        array: ``[C, H, W]`` in [0, 1] with 1 or 3 channels (clipped); for NIfTI ``[1, H, W]`` or ``[1, D, H, W]``.
        like: the image, as `read` returned it, of the same spatial size.
        path: the file to write.

    Raises:
        VesaliusError: the array does not fit the image or the format, or writing failed.
    """
    path, array = Path(path), np.asarray(array, dtype=np.float32)
    if array.shape[1:] != like.size:
        raise VesaliusError(f"pixels of {array.shape[1:]} for an image of {like.size}", path=path)
    if not np.isfinite(array).all():
        raise VesaliusError("pixels are NaN or infinite", path=path, remedy="check the model that made them")
    array = array.clip(0, 1)
    name = path.name.lower()
    if name.endswith(".png") and array.ndim == 3 and array.shape[0] in (1, 3):
        pixels = np.rint(array * 255).astype(np.uint8)
        with atomic(path) as temporary:
            Pillow.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)).save(temporary, "PNG")
    elif name.endswith(SUFFIXES) and array.shape[0] == 1:
        _write_nifti(array[0], like, path)
    else:
        raise VesaliusError(
            f"cannot write {array.shape[0]} x {array.shape[1:]} as {path.suffix!r}",
            path=path,
            remedy="use .png for one slice of 1 or 3 channels, .nii.gz for one channel",
        )
    return path


def _checked(mask: np.ndarray, like: Image, path: Path, classes: Sequence[str]) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype == bool:
        mask = mask.astype(np.uint8)
    if mask.dtype.kind not in "iu":
        raise VesaliusError(f"the mask holds {mask.dtype}", path=path, remedy="give integer labels")
    all_frames = (like.frames, *like.size) if path.suffix.lower() == ".dcm" and len(like.size) == 2 else like.size
    if mask.shape not in (like.size, all_frames):
        raise VesaliusError(
            f"a mask of {mask.shape} for an image of {like.size}", path=path, remedy="resize it to the image first"
        )
    values = np.unique(mask)
    strange = [int(value) for value in values if not (0 <= value <= len(classes) or value == IGNORE)]
    if strange:
        raise VesaliusError(
            f"the mask holds {strange[:5]}, there are {len(classes)} classes", path=path, remedy="name every value"
        )
    return mask.astype(np.uint8 if len(classes) < IGNORE else np.uint16)


def _write_nifti(values: np.ndarray, like: Image, path: Path, comment: str | None = None) -> None:
    """``[H, W]`` or ``[D, H, W]`` -> voxels (x, y[, z]), placed as the source is."""
    source = _source_nifti(like)
    voxels = values.T
    if voxels.ndim == 2 and (source is None or source.ndim > 2):
        voxels = voxels[:, :, None]  # many viewers open no 2-D NIfTI
    if source is not None:
        header = source.header.copy()
        codes = int(header["sform_code"]), int(header["qform_code"])
    else:
        header = nibabel.Nifti1Header()
        header.set_xyzt_units("mm" if like.spacing is not None else "unknown")
        codes = (1, 1) if like.affine is not None else (0, 0)
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header.extensions.clear()

    affine = None
    if like.affine is not None:
        header.set_xyzt_units("mm")
        affine = RAS_TO_LPS @ like.affine
    kind = nibabel.Nifti1Image if source is None else type(source)
    image = kind(voxels, affine, header)
    if affine is not None:
        image.set_sform(affine, codes[0])
        image.set_qform(affine, codes[1])
    elif source is None and like.spacing is not None:
        image.header.set_zooms([*like.spacing[::-1], 1.0][: voxels.ndim])
    if comment is not None:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", comment.encode()))
    with atomic(path) as temporary:
        image.to_filename(temporary)


def _source_nifti(like: Image) -> nibabel.Nifti1Image | None:
    """The header of the file `like` came from, if that is a NIfTI that is still there."""
    if not like.path.name.lower().endswith(SUFFIXES) or not like.path.is_file():
        return None
    try:
        with quiet():
            image = nibabel.load(like.path)
    except Exception as error:
        raise UnreadableImage("cannot be read again", path=like.path, remedy="do not move sources away") from error
    return image if isinstance(image, nibabel.Nifti1Image) else None
