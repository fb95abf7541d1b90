"""Segmentation masks as datasets store them: several files, several codings, outlines, palettes.

All reading of masks goes through `read_mask`, so that 0/1, 0/100 and 0/255 mean the same everywhere. (USFM's published
loader passes masks through Pillow's ``convert("1")``, whose dithering empties a 0/1 mask and thins a 0/100 one.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from vesalius.data.table import MASK_SEPARATOR
from vesalius.errors import UnreadableImage, VesaliusError
from vesalius.images import Image, probe, read

IGNORE = 255
"""Mask value of pixels that count neither as a class nor as background."""
RASTER = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg", ".gif")
OUTLINE = "HC_Annotation.png"
"""HC18's masks are the outline of an ellipse, to be filled."""
WOBBLE = 0.25
"""Deviation from the fitted conic, whose value is 1 on the line, from which a drawing is no ellipse."""
MOST_CLASSES = 64
"""More values than this are taken for grey levels, not for classes nobody named."""


def read_mask(row: Mapping[str, Any]) -> np.ndarray:
    """The mask of a table's row, as classes.

    With one mask class, the higher of two values is 1 (0/1, 0/100 and 0/255 alike), a mask of one value is empty or
    full as the value is 0 or not, and 8-bit grey masks (smoothed, or JPEG) are cut at half. With several classes,
    values are kept: i + 1 is ``mask_classes[i]``, 255 is ignored. Several files of one mask are merged by maximum.

    Args:
        row: a row of the table, with ``path, frame, size, mask, mask_classes``.

    Returns:
        uint8 ``[H, W]``, or ``[D, H, W]`` for a row that is a volume.

    Raises:
        VesaliusError: the mask has another shape than the image, or values beyond its classes; names the files.
    """
    parts = []
    for path in map(Path, row["mask"].split(MASK_SEPARATOR)):
        values = read_values(path, row.get("frame"))
        if list(values.shape) != list(row["size"]):
            raise shape_error(path, values.shape, Path(row["path"]), row["size"])
        parts.append(classes_of(values, max(len(row["mask_classes"]), 1), path))
    return np.maximum.reduce(parts)


def shape_error(mask: Path, mask_size: Iterable[int], image: Path, size: Iterable[int]) -> VesaliusError:
    """The error of a mask, or a clean image, that does not lie on its image."""
    return VesaliusError(
        f"has the shape {tuple(mask_size)}, the image {image} that it belongs to {tuple(size)}",
        path=mask,
        remedy="pair them anew, or export the mask on the image's grid",
    )


def read_values(path: Path, frame: int | None = None) -> np.ndarray:
    """The stored values ``[H, W]`` (or ``[D, H, W]``); palette indices rather than colours; outlines filled.

    Args:
        path: a raster image, NIfTI or DICOM.
        frame: which slice or frame, in a file that holds several.

    Raises:
        UnreadableImage: damaged, or in colours.
    """
    raster = path.suffix.lower() in RASTER
    values = _raster(path, frame) if raster else read_companion(path, frame).array[0]
    if path.name.endswith(OUTLINE):
        values = fill_ellipse(values > 0, path)
    return values


def read_companion(path: str | Path, frame: int | None) -> Image:
    """The image that belongs to frame `frame` of another: that frame, or the only one."""
    return read(path, frame if probe(path).frames > 1 else None)


def class_count(values: set[int], path: Path) -> int:
    """How many classes masks hold of which only the values are known.

    Args:
        values: all that occur, in all masks of a dataset.
        path: of the dataset, for the error.

    Raises:
        VesaliusError: too many to be classes.
    """
    foreground = values - {0}
    if len(foreground) <= 1:
        return 1
    count = max(foreground - {IGNORE})
    if count > MOST_CLASSES:
        raise VesaliusError(
            f"the masks have {len(values)} values up to {max(values)}: grey levels rather than classes",
            path=path,
            remedy="name the classes with mask_classes (one name: cut at half)",
        )
    return count


def fill_ellipse(outline: np.ndarray, path: Path) -> np.ndarray:
    """The ellipse whose outline is drawn, even where the image's border cuts it; one that is filled stays.

    The conic ``a x^2 + b xy + c y^2 + d x + e y = 1`` is fitted to the drawn pixels by least squares.

    Args:
        outline: bool ``[H, W]``.
        path: the file, for the error.

    Returns:
        bool ``[H, W]``, up to the middle of the line.

    Raises:
        UnreadableImage: the drawing is no ellipse.
    """
    rows, columns = np.argwhere(outline).T
    no_ellipse = UnreadableImage("is not the outline of an ellipse", path=path, remedy="draw it again")
    if len(rows) < 6:
        raise no_ellipse
    centre, scale = np.array([columns.mean(), rows.mean()]), max(np.ptp(columns), np.ptp(rows), 1)
    if outline[round(centre[1]), round(centre[0])]:
        return outline

    def terms(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        x, y = (columns - centre[0]) / scale, (rows - centre[1]) / scale
        return np.stack([x * x, x * y, y * y, x, y], axis=-1)

    drawn = terms(rows, columns)
    conic, *_ = np.linalg.lstsq(drawn, np.ones(len(rows)), rcond=None)
    if 4 * conic[0] * conic[2] <= conic[1] ** 2 or np.std(drawn @ conic) > WOBBLE:
        raise no_ellipse
    return terms(*np.indices(outline.shape)) @ conic <= 1


def classes_of(values: np.ndarray, count: int, path: Path) -> np.ndarray:
    """Stored values as classes, uint8 of the same shape; see `read_mask`.

    Args:
        values: as stored.
        count: of classes.
        path: the file, for the error.

    Raises:
        VesaliusError: there are values beyond the classes.
    """
    found = np.unique(values)
    if count == 1:
        if len(found) == 1:
            return np.full(values.shape, found[0] != 0, np.uint8)
        # Two values of which 255 may be one: the higher is the class, whatever the coding.
        cut = found[-1] if len(found) == 2 else 128
        if len(found) > 2 and found[-1] <= cut:
            raise VesaliusError(
                f"has the values {found[:8].tolist()} but only one mask class",
                path=path,
                remedy="name all classes with mask_classes",
            )
        return (values >= cut).astype(np.uint8)
    wrong = found[(found < 0) | ((found > count) & (found != IGNORE)) | (found != np.rint(found))]
    if len(wrong):
        raise VesaliusError(
            f"has the value {wrong[0]} but {count} mask classes", path=path, remedy="name all classes with mask_classes"
        )
    return values.astype(np.uint8)


def _raster(path: Path, frame: int | None) -> np.ndarray:
    try:
        with Pillow.open(path) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                picture.seek(frame or 0)
            values = np.array(picture)
    except Exception as error:  # Pillow raises many kinds on damaged files
        reason = " ".join(str(error).split())
        raise UnreadableImage(f"mask cannot be read ({reason})", path=path, remedy="copy it again") from error
    if values.ndim == 3:
        colours = values[..., :3] if values.shape[2] > 2 else values[..., :1]  # without alpha
        if (colours != colours[..., :1]).any():
            raise UnreadableImage("is a mask in colours", path=path, remedy="store a class number per pixel")
        values = colours[..., 0]
    return values.astype(np.uint8) if values.dtype == bool else values
