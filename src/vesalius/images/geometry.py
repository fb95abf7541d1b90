"""Where a DICOM frame lies: spacing and affine from the tags that hold them, frame by frame; wrong tags are errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from vesalius.errors import UnreadableImage

_CENTIMETRES = 3  # Physical Units X/Y Direction, PS3.3 C.8.5.5.1.15
_2D_REGION = 1  # Region Spatial Format, PS3.3 C.8.5.5.1.1


@dataclass(frozen=True)
class Geometry:
    """Spacing (mm down a column, mm along a row) and the 4x4 affine to LPS mm, each None where the file is silent."""

    spacing: tuple[float, float] | None
    affine: np.ndarray | None


def lookup(dataset: Dataset, frame: int, group: str, keyword: str) -> Any:
    """An attribute of one frame: from its functional group, else the shared one, else the dataset; None if absent."""
    places = []
    if per_frame := dataset.get("PerFrameFunctionalGroupsSequence"):
        places += [per_frame[frame]] if frame < len(per_frame) else []
    if shared := dataset.get("SharedFunctionalGroupsSequence"):
        places += [shared[0]]
    for place in places:
        if (items := place.get(group)) and items[0].get(keyword) is not None:
            return items[0].get(keyword)
    return dataset.get(keyword)


def geometry(path: Path, dataset: Dataset, frame: int) -> Geometry:
    """Spacing and affine of one frame.

    Spacing is Pixel Spacing; else the delta of the ultrasound regions, if all 2-D regions agree; else Imager Pixel
    Spacing, which is at the detector, not in the patient. The affine needs spacing, position and orientation; its third
    column is the slice normal, as long as Spacing Between Slices, else Slice Thickness, else 1 mm (a single slice has
    no step, and an affine must be invertible).

    Raises:
        UnreadableImage: the tags are there but cannot be true (an orientation that is not two orthogonal unit vectors).
    """
    pixel_spacing = _pair(lookup(dataset, frame, "PixelMeasuresSequence", "PixelSpacing"))
    spacing = pixel_spacing or _ultrasound(dataset) or _pair(dataset.get("ImagerPixelSpacing"))
    position = lookup(dataset, frame, "PlanePositionSequence", "ImagePositionPatient")
    orientation = lookup(dataset, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
    if not position or not orientation or pixel_spacing is None:
        return Geometry(spacing, None)

    origin, cosines = _numbers(position, 3), _numbers(orientation, 6)
    if origin is None or cosines is None or not _orthonormal(along_row := cosines[:3], down_column := cosines[3:]):
        raise UnreadableImage(
            "ImagePositionPatient or ImageOrientationPatient is not a point and two orthogonal unit vectors",
            path=path,
            remedy="repair these tags, or remove them if the position does not matter",
        )
    step = lookup(dataset, frame, "PixelMeasuresSequence", "SpacingBetweenSlices")
    thickness = lookup(dataset, frame, "PixelMeasuresSequence", "SliceThickness")
    affine = np.eye(4)
    affine[:3, 0] = along_row * pixel_spacing[1]
    affine[:3, 1] = down_column * pixel_spacing[0]
    affine[:3, 2] = np.cross(along_row, down_column) * abs(float(step or thickness or 1) or 1)
    affine[:3, 3] = origin
    return Geometry(spacing, affine)


def _numbers(values: Any, count: int) -> np.ndarray | None:
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    return array if array.shape == (count,) and np.isfinite(array).all() else None


def _pair(values: Any) -> tuple[float, float] | None:
    """Two positive numbers; zeros, which some exporters write for "unknown", are None."""
    pair = None if not values else _numbers(values, 2)
    return (float(pair[0]), float(pair[1])) if pair is not None and (pair > 0).all() else None


def _orthonormal(first: np.ndarray, second: np.ndarray) -> bool:
    """Within 1 %: files round their cosines to a few digits."""
    gram = np.array([first @ first, second @ second, first @ second])
    return bool(np.allclose(gram, [1, 1, 0], atol=0.01))


def _ultrasound(dataset: Dataset) -> tuple[float, float] | None:
    """Millimetres per pixel of the 2-D regions in centimetres, None if there is none or they differ."""
    found = set()
    for region in dataset.get("SequenceOfUltrasoundRegions") or ():
        units = {region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection")}
        if region.get("RegionSpatialFormat") == _2D_REGION and units == {_CENTIMETRES}:
            # Six digits, so that one scale written twice counts once.
            deltas = [abs(float(region.get(f"PhysicalDelta{axis}") or 0)) * 10 for axis in "YX"]
            found.add(_pair([float(f"{delta:.6g}") for delta in deltas]))
    return found.pop() if len(found) == 1 else None
