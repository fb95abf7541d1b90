"""Read and write medical images: one `Image`, one file per format family.

>>> import tempfile
>>> from pathlib import Path
>>> from PIL import Image as Pillow
>>> path = Path(tempfile.mkdtemp()) / "scan.png"
>>> Pillow.new("L", (40, 30), 7).save(path)
>>> read(path).array.shape, probe(path).size, is_image(path)
((1, 30, 40), (30, 40), True)
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from vesalius.errors import UnreadableImage
from vesalius.images import dicom, nifti, raster
from vesalius.images.image import Image
from vesalius.images.overlays import overlay
from vesalius.images.reading import Header
from vesalius.images.segmentation import read_segmentation
from vesalius.images.series import group_series, probe_series, read_series
from vesalius.images.writers import write_image, write_mask

__all__ = [
    "Header",
    "Image",
    "group_series",
    "is_image",
    "overlay",
    "probe",
    "probe_series",
    "read",
    "read_segmentation",
    "read_series",
    "read_volume",
    "write_image",
    "write_mask",
]

_SUFFIXES = (*dicom.SUFFIXES, *nifti.SUFFIXES, *raster.SUFFIXES)


def read(path: str | PathLike[str], frame: int | None = None) -> Image:
    """Read a DICOM, NIfTI, PNG, JPEG, TIFF or BMP file; the content decides which, then the name.

    Args:
        path: the file.
        frame: which one, from 0, of a multi-frame DICOM or multi-page TIFF (required there); a slice along the last
            axis of a NIfTI volume (None reads the volume ``[C, D, H, W]``); which volume of a 4-D NIfTI.

    Raises:
        UnreadableImage: whatever is wrong with the file, in one line that says what to do. Nothing else is raised.

    >>> import tempfile
    >>> import numpy as np
    >>> from PIL import Image as Pillow
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Pillow.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(f"{folder}/small.png")
    ...     image = read(f"{folder}/small.png")
    >>> image.size, image.channels, image.spacing is None
    ((3, 4), ('gray',), True)
    """
    path = Path(path)
    return {"dicom": dicom.read_dicom, "nifti": nifti.read_nifti, "raster": raster.read_raster}[_family(path)](
        path, frame
    )


def read_volume(path: str | PathLike[str], frame: int | None = None) -> Image:
    """Read one volume: a NIfTI file, or a DICOM series by its folder, one of its files or its multi-frame file.

    Args:
        path: the file or folder.
        frame: which volume of a 4-D NIfTI, from 0.

    Raises:
        UnreadableImage: as `read` and `read_series`; or it is 2-D.
    """
    path = Path(path)
    if path.is_dir() or _family(path) == "dicom":
        return read_series(path)
    image = read(path, frame)
    if len(image.size) != 3:
        raise UnreadableImage(f"is 2-D {image.size}, not a volume", path=path, remedy="give a volume")
    return image


def probe(path: str | PathLike[str]) -> Header:
    """Frames, size, channels, spacing, modality and provenance of a file, without decoding its pixels.

    Raises:
        UnreadableImage: the header cannot be read. Damaged pixels show only in `read`.
    """
    path = Path(path)
    return {"dicom": dicom.probe_dicom, "nifti": nifti.probe_nifti, "raster": raster.probe_raster}[_family(path)](path)


def is_image(path: str | PathLike[str]) -> bool:
    """Whether a file presents itself as an image that `read` reads: by its suffix, or by content if it has another.

    Exports of DICOM often have no suffix, and old ones no preamble either. A DICOMDIR is an index, not an image.
    """
    path = Path(path)
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    if path.name.lower().endswith(_SUFFIXES):
        return True
    start = _start(path)
    return _is_dicom(start) or start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))


def _family(path: Path) -> str:
    name, start = path.name.lower(), _start(path)
    if start[128:132] == b"DICM":
        return "dicom"
    if name.endswith(nifti.SUFFIXES):
        return "nifti"
    if name.endswith(raster.SUFFIXES):
        return "raster"
    return "dicom" if name.endswith(dicom.SUFFIXES) or _is_dicom(start) else "raster"


def _start(path: Path) -> bytes:
    """The first bytes; none where there is no such file, of which the readers will say more."""
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as stream:
            return stream.read(132)
    except OSError:
        return b""


def _is_dicom(start: bytes) -> bool:
    """DICM after the preamble, or a first element of group 0002 or 0008 as a file without preamble has."""
    if start[128:132] == b"DICM":
        return True
    if len(start) < 132 or start[:2] not in (b"\x02\x00", b"\x08\x00") or start[3:4] != b"\x00":
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or int.from_bytes(start[4:8], "little") <= 64
