"""What every reader returns: pixels, where they lie in the patient, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from vesalius.errors import UnreadableImage


@dataclass(frozen=True)
class Image:
    """One image, frame or volume, with its geometry and provenance.

    Args:
        array: ``[C, H, W]`` or ``[C, D, H, W]``, the file's own dtype; stored values after the modality
            LUT (Hounsfield units for CT); bright is high (MONOCHROME1 is inverted, YBR is converted to RGB).
        channels: a name per channel, ``("gray",)`` or ``("R", "G", "B")``.
        spacing: mm per step along the spatial axes, in their order (H, W) or (D, H, W); None where the
            file does not say. Never invented.
        affine: 4x4, from (column, row, slice) to LPS mm as in DICOM; None where the file does not say.
        window: (centre, width) in the array's units for display, where the file has one.
        modality: DICOM's code (US, CT, MR, ...), where the file has one.
        path: the file.  frame: which frame of it, None when it holds one.  frames: how many it holds.
        tags: provenance by name, for those present: patient, study, series, sop, frame_of_reference, body_part.
        slices: (file, frame) of each slice of a volume that was put together from DICOM files; else empty.
    """

    array: np.ndarray
    channels: tuple[str, ...]
    spacing: tuple[float, ...] | None = None
    affine: np.ndarray | None = None
    window: tuple[float, float] | None = None
    modality: str | None = None
    path: Path = field(default_factory=lambda: Path("<memory>"))
    frame: int | None = None
    frames: int = 1
    tags: dict[str, str] = field(default_factory=dict)
    slices: tuple[tuple[Path, int], ...] = ()

    def __post_init__(self) -> None:
        if self.array.ndim not in (3, 4) or self.array.size == 0:
            raise UnreadableImage(f"has shape {self.array.shape}, not [C, H, W] or [C, D, H, W]", path=self.path)
        if len(self.channels) != self.array.shape[0]:
            raise UnreadableImage(
                f"{len(self.channels)} channel names for {self.array.shape[0]} channels", path=self.path
            )
        if self.spacing is not None and len(self.spacing) != self.array.ndim - 1:
            raise UnreadableImage(f"spacing {self.spacing} for {self.array.ndim - 1} spatial axes", path=self.path)

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial shape, (H, W) or (D, H, W)."""
        return self.array.shape[1:]

    def check(self) -> Image:
        """Itself, if its pixels can be learned from.

        Raises:
            UnreadableImage: NaN or infinite values, or the same value everywhere.
        """
        if self.array.dtype.kind == "f" and not np.isfinite(self.array).all():
            bad = int((~np.isfinite(self.array)).sum())
            raise UnreadableImage(
                f"{bad} of {self.array.size} pixels are NaN or infinite", path=self.path, remedy="re-export the image"
            )
        if self.array.min() == self.array.max():
            raise UnreadableImage(
                f"constant image (every pixel is {self.array.flat[0]})", path=self.path, remedy="leave it out"
            )
        return self

    def unit(self) -> np.ndarray:
        """Float32 in [0, 1], same shape: /255 for 8-bit, the file's window, or else its 0.5-99.5 percentiles."""
        array = self.array
        if array.dtype == np.uint8:
            return array.astype(np.float32) / 255
        if self.window is not None:
            centre, width = self.window
            low, high = centre - width / 2, centre + width / 2
        else:
            low, high = np.percentile(array, (0.5, 99.5))
            if low == high:
                low, high = array.min(), array.max()
        scale = max(float(high) - float(low), 1e-12)
        return np.clip((array.astype(np.float32) - float(low)) / scale, 0, 1)

    def with_array(self, array: np.ndarray, channels: tuple[str, ...] | None = None) -> Image:
        """The same place and provenance with other pixels (a mask, a restored image)."""
        return replace(self, array=array, channels=channels or self.channels)
