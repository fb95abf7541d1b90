"""Voxels on their way to the page and back: the same grid, in one axis order, and nothing but the voxels.

The page gets every volume with its axes in the order left to right, back to front, feet to head, as nearly as its grid
allows: an exact flip and permutation, no resampling. Masks that come back, from the page or from another program's
file, may have any of the grid's 48 axis orders; anything that does not lie on the image's own voxels is refused.
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from vesalius.data.class_tables import ClassTable
from vesalius.errors import UnreadableImage, VesaliusError
from vesalius.images import Image, read_segmentation
from vesalius.images.nifti import RAS_TO_LPS
from vesalius.images.reading import quiet

OFF = 0.1
"""Part of a voxel's side by which a mask's corners may miss the image's: other programs round."""
_HEADER = 4096
"""Bytes that may come before a NIfTI's voxels."""
_WIDEST = 8
"""Bytes of the widest voxel that a label may have."""


class Refused(VesaliusError):
    """A file or an edit that does not fit; its message names no path and may be shown on the page."""


@dataclass(frozen=True)
class Grid:
    """How an image's voxels lie.

    Args:
        size: (D, H, W).
        affine: 4x4, from (column, row, slice) to RAS mm.
        placed: whether the file said where the patient's left is.
    """

    size: tuple[int, ...]
    affine: NDArray[np.float64]
    placed: bool

    @classmethod
    def of(cls, image: Image) -> Grid:
        """Of a volume; where it has no affine, only its spacing counts."""
        if image.affine is not None:
            return cls(image.size, RAS_TO_LPS @ image.affine, True)
        sides = (image.spacing or (1.0, 1.0, 1.0))[::-1]
        return cls(image.size, np.diag([*sides, 1.0]), False)

    def out(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """``[D, H, W]`` -> voxels (right, anterior, superior) as nearly as they go, and their affine to RAS mm."""
        orientation = io_orientation(self.affine)
        shape = self.size[::-1]
        return apply_orientation(values.T, orientation), self.affine @ inv_ornt_aff(orientation, shape)

    def back(self, voxels: NDArray[Any], affine: NDArray[np.float64] | None) -> NDArray[Any]:
        """Voxels of any axis order on this grid -> ``[D, H, W]``.

        Raises:
            Refused: they have another size or place.
        """
        if affine is None or not self.placed:
            if voxels.shape != self.size[::-1]:
                raise Refused(f"the mask has {_by(voxels.shape)} voxels, the image {_by(self.size[::-1])}")
            return voxels.T
        turn = ornt_transform(io_orientation(affine), io_orientation(self.affine))
        turned = apply_orientation(voxels, turn)
        if turned.shape != self.size[::-1]:
            raise Refused(
                f"the mask has {_by(voxels.shape)} voxels, the image {_by(self.size[::-1])}",
                remedy="save it on the image's own grid",
            )
        moved = affine @ inv_ornt_aff(turn, voxels.shape)
        corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
        corners[:, :3] *= np.array(self.size[::-1]) - 1
        away = np.linalg.norm(corners @ (moved - self.affine)[:3].T, axis=1).max()
        if away > OFF * np.linalg.norm(self.affine[:3, :3], axis=0).min():
            raise Refused(
                f"the mask lies up to {away:.1f} mm off the image", remedy="save it on the image's own grid, unmoved"
            )
        return turned.T


def encode(values: NDArray[Any], grid: Grid) -> bytes:
    """``[D, H, W]`` as an uncompressed NIfTI file whose header says size, dtype and place, and nothing else."""
    voxels, affine = grid.out(values)
    if voxels.dtype == bool:
        voxels = voxels.astype(np.uint8)
    elif voxels.dtype.kind in "iu" and voxels.dtype not in (np.uint8, np.int16):
        fits = voxels.size == 0 or (voxels.min() >= -(2**15) and voxels.max() < 2**15)
        voxels = voxels.astype(np.int16 if fits else np.float32)
    elif voxels.dtype.kind == "f":
        voxels = np.nan_to_num(voxels.astype(np.float32))
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def pack(values: NDArray[Any], grid: Grid) -> bytes:
    """`encode`, compressed quickly: a mask shrinks a hundredfold."""
    return gzip.compress(encode(values, grid), compresslevel=1)


def decode(data: bytes, grid: Grid) -> NDArray[Any]:
    """The labels ``[D, H, W]`` of a NIfTI file (.nii or .nii.gz) that somebody sent.

    Raises:
        Refused: it is damaged, or larger than it can be; it holds no integers; it lies on another grid.
    """
    most = _HEADER + int(np.prod(grid.size)) * _WIDEST
    if data[:2] == b"\x1f\x8b":
        data = _inflate(data, most)
    if len(data) > most:
        raise Refused("the file is larger than a mask of this image can be")
    try:
        with quiet():
            image = nibabel.Nifti1Image.from_bytes(data)
            shape = tuple(image.shape)
            while len(shape) > 3 and shape[-1] == 1:
                shape = shape[:-1]
            dtype = image.get_data_dtype()
    except Exception as error:  # whatever nibabel makes of bytes that are no NIfTI
        raise Refused("the file is no NIfTI", remedy="save the mask as .nii.gz") from error
    if sorted(shape) != sorted(grid.size):  # before any voxel is touched: the header may claim anything
        raise Refused(
            f"the mask has {_by(shape)} voxels, the image {_by(grid.size[::-1])}",
            remedy="save it on the image's own grid",
        )
    slope, inter = image.header.get_slope_inter()
    if dtype.kind not in "iu" or (slope or 1) != 1 or (inter or 0) != 0:
        raise Refused(f"the mask holds {dtype} voxels, not whole numbers", remedy="save it as a label map")
    try:
        voxels = np.asarray(image.dataobj).reshape(shape)
    except Exception as error:
        raise Refused("the file ends before its voxels do", remedy="send it again") from error
    coded = image.header["sform_code"] > 0 or image.header["qform_code"] > 0
    return grid.back(voxels, np.asarray(image.affine, dtype=np.float64) if coded else None)


def decode_mask(data: bytes, grid: Grid) -> NDArray[np.bool_]:
    """`decode` for a mask of 0 and 1.

    Raises:
        Refused: other values; or as `decode`.
    """
    labels = decode(data, grid)
    if labels.size and (labels.min() < 0 or labels.max() > 1):
        raise Refused(f"the mask holds values from {labels.min()} to {labels.max()}, not 0 and 1")
    return labels.astype(bool)


def read_file(data: bytes, image: Image, structure: str, table: ClassTable) -> NDArray[np.bool_]:
    """The mask of a structure in a file of 3D Slicer, ITK-SNAP or another program: NIfTI or DICOM-SEG.

    A file with one value or segment is taken to be the structure asked about; of several, the one with the structure's
    number in the project's classes, or its name, is taken.

    Raises:
        Refused: it does not lie on the image, or does not hold the structure.
    """
    if data[128:132] == b"DICM":
        labels, names = _segments(data, image)
        plain = [_plain(name) for name in names]
        wanted = plain.index(_plain(structure)) + 1 if _plain(structure) in plain else 0
    else:
        labels = decode(data, Grid.of(image))
        wanted = table.names.index(structure) + 1
    values = [int(value) for value in np.unique(labels) if value]
    if len(values) < 2:
        return labels != 0
    if wanted not in values:
        number = f"number {wanted}" if wanted else "by name"
        raise Refused(f"the file holds {len(values)} labels, and none is {structure} ({number})")
    return labels == wanted


def _segments(data: bytes, image: Image) -> tuple[NDArray[Any], tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "segmentation.dcm")
        path.write_bytes(data)
        try:
            return read_segmentation(path, image)
        except UnreadableImage as error:  # its message names files
            raise Refused("the file is no DICOM segmentation of this case's images") from error
        except VesaliusError as error:
            raise Refused("this case was not read from DICOM", remedy="save the mask as .nii.gz") from error


def _inflate(data: bytes, most: int) -> bytes:
    """Decompressed, but never more than `most` bytes: some kB can hold terabytes of zeros."""
    stream = zlib.decompressobj(wbits=31)
    try:
        whole = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise Refused("the file's compression is damaged", remedy="send it again") from error
    if len(whole) > most:
        raise Refused("the file is larger than a mask of this image can be")
    if not stream.eof:
        raise Refused("the file ends too early", remedy="send it again")
    return whole


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
