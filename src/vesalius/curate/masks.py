"""Masks as files of an annotation project: on the image's own voxels, with its geometry and nothing else of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from vesalius.data.class_tables import ClassTable
from vesalius.data.volumes.prepare import check_on
from vesalius.data.volumes.transforms import grid_of
from vesalius.errors import UnreadableImage
from vesalius.files import atomic
from vesalius.images import Image, probe, read_segmentation, read_volume
from vesalius.images.nifti import RAS_TO_LPS


def member_mask(table: ClassTable, labels: NDArray[Any], structure: str) -> NDArray[np.bool_]:
    """Where a label map of the table's classes has a structure; a tumour is part of its organ, of the nearer side.

    Args:
        table: whose class i has the value i + 1.
        labels: ``[D, H, W]``.
        structure: one of its classes.

    >>> table = ClassTable.from_dict({"classes": ["liver", {"name": "cyst", "kind": "cyst", "organs": ["liver"]}]})
    >>> member_mask(table, np.array([[[0, 1, 2]]], np.uint8), "liver").tolist()
    [[[False, True, True]]]
    """
    told = table.sides(labels.astype(np.uint8), ())
    return np.asarray(table.members[:, table.names.index(structure)][told])


def read_values(path: Path) -> NDArray[Any]:
    """The voxels ``[D, H, W]`` of a file of the project."""
    return read_volume(path).array[0]


def read_labels(path: Path, image: Image) -> tuple[NDArray[Any], tuple[str, ...]]:
    """The labels in a file that another program wrote, on the image's voxels.

    Args:
        path: NIfTI with whole numbers, along any axes of the image's grid; or a DICOM segmentation of its series.
        image: that they were drawn on.

    Returns:
        ``[D, H, W]``; and the segments' names of a DICOM segmentation, value i + 1 being name i.

    Raises:
        UnreadableImage: it lies elsewhere, has another size, or holds no labels.
    """
    if probe(path).modality == "SEG":
        return read_segmentation(path, image)
    part = read_volume(path)
    values = part.array[0]
    if not np.array_equal(values, np.rint(values)) or values.min() < 0:
        raise UnreadableImage("holds no labels, which are whole numbers from 0", path=path, remedy="save a label map")
    values = values.astype(np.uint16)
    if part.affine is None or image.affine is None:
        if part.size != image.size:
            raise UnreadableImage(f"has {part.size} voxels, the image {image.size}", path=path)
        return values, ()
    grid, own = grid_of(image, orientation="RAS", spacing=None), grid_of(part, orientation="RAS", spacing=None)
    check_on(part, own, image, grid)
    return grid.invert(own.apply(values, labels=True)), ()


def write_values(values: NDArray[Any], image: Image, path: Path) -> Path:
    """Write ``[D, H, W]``, a mask or values of 0 to 255, where the image lies; nothing else of its file is copied."""
    return write_volume(values.astype(np.uint8), image, path)


def write_volume(values: NDArray[Any], image: Image, path: Path) -> Path:
    """Write ``[D, H, W]`` of a type that NIfTI holds, where the image lies; nothing else of its file is copied."""
    affine = None if image.affine is None else RAS_TO_LPS @ image.affine
    volume = nibabel.Nifti1Image(values.T, affine)
    if affine is not None:
        volume.set_sform(affine, 1)
        volume.set_qform(affine, 1)
        volume.header.set_xyzt_units("mm")
    elif image.spacing is not None:
        volume.header.set_zooms(image.spacing[::-1])
        volume.header.set_xyzt_units("mm")
    with atomic(path) as temporary:
        volume.to_filename(temporary)
    return path
