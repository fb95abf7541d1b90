"""Volumes onto a network's axes and voxel size, and labels back onto the image's own voxels.

The grid is that of MONAI's ``Orientation`` and ``Spacing``, with which the published networks were trained: the axes
are permuted and flipped to the nearest anatomical ones, the first voxel's centre stays, and so does the last one's to
within half a voxel. (In rotated volumes MONAI's origin jumps by up to half a voxel with the affine's last digits; here
it does not.) MONAI makes a float64 coordinate for every voxel and axis, 24 bytes a voxel; SciPy goes axis by axis in
the volume's own dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

from vesalius.errors import ConfigError, UnreadableImage
from vesalius.images import Image

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME = 1e-3
"""Relative difference of voxel sizes below which nothing is resampled."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Grid:
    """How an image's voxels lie on a network's axes.

    Args:
        order: which of the image's spatial axes (D, H, W) becomes each of the network's.
        flip: whether it is reversed, for each of the network's axes.
        scale: image voxels per voxel of the network's, along its axes.
        source: the image's size along the network's axes, before resampling.
        size: the size that the network sees.
        spacing: mm between its voxels, along the network's axes.
    """

    order: tuple[int, ...]
    flip: tuple[bool, ...]
    scale: tuple[float, ...]
    source: tuple[int, ...]
    size: tuple[int, ...]
    spacing: tuple[float, ...]

    def apply(self, array: np.ndarray, *, labels: bool = False) -> np.ndarray:
        """``[D, H, W]`` of the image -> the network's voxels, in the same dtype.

        Intensities are interpolated linearly (and rounded, in an integer dtype), labels from the nearest voxel.
        """
        return _resampled(self._turned(array), self.scale, self.size, order=0 if labels else 1)

    def invert(self, array: np.ndarray) -> np.ndarray:
        """``[D, H, W]`` on the network's voxels -> the image's: labels (integers) from the nearest, others linearly."""
        order = 0 if array.dtype.kind in "iub" else 1
        back = _resampled(array, [1 / scale for scale in self.scale], self.source, order=order)
        back = np.flip(back, self._flipped)
        return np.ascontiguousarray(back.transpose(np.argsort(self.order)))

    def ends(self, image: Image) -> np.ndarray:
        """``[3, 2]``, LPS mm of the first and the last voxel along the network's axes, of the image that it is for."""
        assert image.affine is not None
        ends = np.array([[0, side - 1] for side in self.source])
        ends[list(self._flipped)] = ends[list(self._flipped), ::-1]
        voxels = ends[np.argsort(self.order)]
        place: np.ndarray = (image.affine @ np.vstack([voxels[::-1], np.ones(2)]))[:3]
        return place

    @property
    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(3) if self.flip[axis])

    def _turned(self, array: np.ndarray) -> np.ndarray:
        """A view with the network's axes."""
        turned = array.transpose(self.order)
        return np.flip(turned, self._flipped)


def grid_of(image: Image, *, orientation: str, spacing: tuple[float, ...] | None) -> Grid:
    """The grid on which a network of this orientation and spacing sees `image`.

    Args:
        image: a volume ``[C, D, H, W]`` with an affine.
        orientation: three letters of R/L, A/P, S/I: where each of the network's axes goes ("RAS": the first spatial
            axis from left to right, as MONAI's transforms leave it; "SPL": slices from below, as a DICOM series lies).
        spacing: mm along the network's axes, None to leave the voxels as they are.

    Raises:
        UnreadableImage: `image` is no volume, or does not say how it lies.
        ConfigError: `orientation` is no orientation.
    """
    check_orientation(orientation)
    if len(image.size) != 3:
        raise UnreadableImage(f"is 2-D {image.size}, not a volume", path=image.path, remedy="give a volume")
    if image.affine is None:
        raise UnreadableImage(
            "does not say how it lies in the patient (no affine)",
            path=image.path,
            remedy="export it with its orientation, or set the affine of the Image",
        )
    # The columns of an affine are for (column, row, slice); the array's axes are the other way round.
    affine = (LPS_TO_RAS @ image.affine)[:, [2, 1, 0, 3]]
    transform = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    order = np.argsort(transform[:, 0])
    flip = [bool(transform[axis, 1] < 0) for axis in order]
    source = np.array(image.size)[order]
    found = np.linalg.norm(affine[:3, :3], axis=0)[order]
    scale, size = np.ones(3), source
    if spacing is not None:
        scale = np.array(spacing) / found
        scale[np.abs(scale - 1) < SAME] = 1
        size = np.rint((source - 1) / scale).astype(int) + 1
    return Grid(
        tuple(int(axis) for axis in order),
        tuple(flip),
        tuple(float(step) for step in scale),
        tuple(int(side) for side in source),
        tuple(int(side) for side in size),
        tuple(float(step) for step in found * scale),
    )


def check_orientation(orientation: str) -> str:
    """Itself, if it is three letters, one of each of R/L, A/P and S/I.

    Raises:
        ConfigError: it is not.
    """
    if sorted(min(pair) for letter in orientation for pair in ("RL", "AP", "SI") if letter in pair) != ["A", "I", "L"]:
        raise ConfigError(f"orientation {orientation!r}", remedy="use one of R/L, A/P and S/I each, such as RAS")
    return orientation


def foreground_box(foreground: np.ndarray) -> Box:
    """The smallest box that holds all of a bool ``[D, H, W]``; all of it where there is no foreground.

    >>> mask = np.zeros((4, 5, 6), bool)
    >>> mask[1:3, 2, 4:6] = True
    >>> foreground_box(mask)
    (slice(1, 3, None), slice(2, 3, None), slice(4, 6, None))
    """
    spans = []
    for axis in range(3):
        where = np.flatnonzero(foreground.any(axis=tuple(other for other in range(3) if other != axis)))
        spans.append(slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, foreground.shape[axis]))
    return spans[0], spans[1], spans[2]


def _resampled(array: np.ndarray, scale: Sequence[float], size: Sequence[int], *, order: int) -> np.ndarray:
    if all(step == 1 for step in scale):
        return np.ascontiguousarray(array)
    if array.dtype.kind == "b" or array.dtype == np.float16:  # which SciPy does not take
        return _resampled(array.astype(np.float32), scale, size, order=order).astype(array.dtype)
    # A one-dimensional matrix is a diagonal one: position in the input = scale * position in the output.
    resampled: np.ndarray = ndimage.affine_transform(
        array, np.asarray(scale, np.float64), output_shape=tuple(size), output=array.dtype, order=order, mode="nearest"
    )
    return resampled
