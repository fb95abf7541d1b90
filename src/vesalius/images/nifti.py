"""NIfTI through nibabel, whose RAS millimetres become the LPS millimetres of `Image` here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from vesalius.errors import UnreadableImage
from vesalius.images.image import Image
from vesalius.images.reading import DEFLATE, Header, check_claim, choose_frame, native, reading

SUFFIXES = (".nii", ".nii.gz")
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}  # "unknown" is mm in every writer we know


def read_nifti(path: Path, frame: int | None = None) -> Image:
    """A volume, a slice of it, or a 2-D image; the file's voxel axes (x, y, z) become ``[C, D=z, H=y, W=x]``.

    ========  =====================================  ===============================================
    file      ``frame=None``                         ``frame=k``
    ========  =====================================  ===============================================
    2-D       ``[C, H, W]``                          only 0: the same
    3-D       ``[C, D, H, W]``                       slice k along z: ``[C, H, W]``
    4-D       error: which volume?                   volume k along the fourth axis: ``[C, D, H, W]``
    ========  =====================================  ===============================================

    Axes of length 1 at the end do not count: (x, y, 1) is 2-D. No voxel is reoriented or resampled. The stored dtype
    is kept, float32 where the header has a scale. The affine comes from the sform, else the qform, else is None.

    Raises:
        UnreadableImage: for any reason.
    """
    with reading(path):
        image = _open(path)
        shape = _shape(image)
        frames = shape[-1] if len(shape) > 2 else 1
        whole = len(shape) == 3 and frame is None
        index = 0 if whole else choose_frame(path, frame, frames)
        # Full rank in the index: trailing axes of length 1 that the file has are taken at 0.
        inside: list[slice | int] = [slice(None)] * len(shape)
        if frames > 1 and not whole:
            inside[-1] = index
        stored: Any = image.dataobj
        voxels = np.asarray(stored[(*inside, *[0] * (len(image.shape) - len(shape)))])
        if stored.slope != 1 or stored.inter != 0:
            voxels = voxels.astype(np.float32)
        array = _channels(voxels)

        affine = _affine(image)
        spacing = _spacing(image, affine, array.ndim - 1)
        if affine is not None and len(shape) == 3 and not whole:
            affine = affine.copy()
            affine[:3, 3] += index * affine[:3, 2]
        return Image(
            array,
            _names(image),
            spacing=spacing,
            affine=affine,
            path=path,
            frame=None if whole or frames == 1 else index,
            frames=frames,
        )


def probe_nifti(path: Path) -> Header:
    """The header; the voxels are not read.

    Raises:
        UnreadableImage: for any reason.
    """
    with reading(path):
        image = _open(path)
        shape = _shape(image)
        size = shape[:3][::-1]
        frames = shape[-1] if len(shape) > 2 else 1
        spacing = _spacing(image, _affine(image), len(size))
        return Header(frames, size, _names(image), spacing, volumes=frames if len(shape) == 4 else 1)


def _open(path: Path) -> nibabel.Nifti1Image:
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):  # Nifti2Image is a subclass
        raise UnreadableImage(f"is {type(image).__name__}, not NIfTI", path=path, remedy="convert it to .nii.gz")
    dtype = image.get_data_dtype()
    if dtype.kind not in "iufb" and dtype.names is None:
        raise UnreadableImage(f"holds {dtype} voxels", path=path, remedy="store real numbers")
    if min(image.shape, default=0) < 1:
        raise UnreadableImage(f"has shape {image.shape}", path=path, remedy="export it again")
    claimed = int(np.prod(image.shape, dtype=object)) * dtype.itemsize
    length = path.stat().st_size
    if path.suffix.lower() == ".gz":
        check_claim(path, claimed, stored=length, ratio=DEFLATE)
    else:
        proxy: Any = image.dataobj
        check_claim(path, claimed, stored=max(length - proxy.offset, 0), ratio=1)
    return image


def _shape(image: nibabel.Nifti1Image) -> tuple[int, ...]:
    """The voxel shape without axes of length 1 after the second."""
    shape = list(image.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    if not 2 <= len(shape) <= 4:
        raise UnreadableImage(
            f"has {len(shape)} axes {image.shape}",
            path=image.get_filename(),
            remedy="split it into files of two to four axes",
        )
    return tuple(shape)


def _names(image: nibabel.Nifti1Image) -> tuple[str, ...]:
    return ("R", "G", "B") if image.get_data_dtype().names else ("gray",)


def _channels(voxels: np.ndarray) -> np.ndarray:
    """(x, y[, z]) -> ``[1, (D,) H, W]``, and NIfTI's RGB(A) records -> ``[3, (D,) H, W]``."""
    if voxels.dtype.names:
        return native(np.stack([voxels[name].T for name in "RGB"]))
    return native(voxels.T[None])


def _affine(image: nibabel.Nifti1Image) -> np.ndarray | None:
    """(column, row, slice) to LPS mm, if the file has a coded transform."""
    header = image.header
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        return None
    affine = RAS_TO_LPS @ np.asarray(image.affine, dtype=np.float64)
    affine[:3] *= _unit(image)
    sides = np.linalg.norm(affine[:3, : min(len(_shape(image)), 3)], axis=0)
    if not np.isfinite(affine).all() or (sides == 0).any():
        raise UnreadableImage(
            "its affine is singular or not finite", path=image.get_filename(), remedy="repair its sform or qform"
        )
    return affine


def _spacing(image: nibabel.Nifti1Image, affine: np.ndarray | None, axes: int) -> tuple[float, ...] | None:
    """Millimetres along (D,) H, W: from the affine, which viewers go by, else from pixdim."""
    if affine is not None:
        sides = np.linalg.norm(affine[:3, :axes], axis=0)
    else:
        sides = np.asarray(image.header["pixdim"][1 : axes + 1], dtype=np.float64) * _unit(image)
        # 1 in unknown units is what a writer leaves that was told nothing.
        untold = image.header.get_xyzt_units()[0] == "unknown" and (sides == 1).all()
        if untold or not np.isfinite(sides).all() or (sides <= 0).any():
            return None
    return tuple(float(side) for side in sides[::-1])


def _unit(image: nibabel.Nifti1Image) -> float:
    return _MILLIMETRES[image.header.get_xyzt_units()[0]]
