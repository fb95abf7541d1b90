"""What volumes a network expects (channels, axes, voxel size, intensities), applied rather than remembered.

Right weights on a volume of other axes, spacing or channel order give no error, only wrong masks. A `VolumeContract`
travels with the weights; it takes any image to the network's voxels, and labels back to the image's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vesalius.data.volumes.intensity import Intensity, ZScore, intensity_from_dict, intensity_to_dict
from vesalius.data.volumes.memory import check_memory
from vesalius.data.volumes.transforms import Box, Grid, check_orientation, foreground_box, grid_of
from vesalius.errors import ConfigError, UnreadableImage, VesaliusError, nearest
from vesalius.images import Image

UNNAMED = "gray"
"""The channel of a file that says nothing about it: fits any contract of one channel."""
DEFAULT = ZScore()
SYNONYMS = {
    "fla": "flair",
    "t2f": "flair",
    "t2flair": "flair",
    "t1n": "t1",
    "t1w": "t1",
    "t1c": "t1ce",
    "t1gd": "t1ce",
    "t1post": "t1ce",
    "t2w": "t2",
}
"""Names of MR sequences in data sets, and the one that they are known by here."""


@dataclass(frozen=True)
class VolumeContract:
    """Channels, axes, voxel size and intensities of the input ``[B, C, D, H, W]``.

    Args:
        channels: their names in the network's order; an image's are matched by name, whatever their order.
        spacing: mm along the network's axes, None for the image's own.
        orientation: where the network's axes D, H, W go, a letter each: "RAS", as MONAI's transforms leave volumes, or
            "SPL" for slices from below as radiologists see them.
        intensity: `Window`, `ZScore`, `Percentiles` or `ClipZScore`.
        roi: voxels of a patch or window along the network's axes.

    >>> from vesalius.data.volumes.intensity import Window
    >>> contract = VolumeContract(("CT",), spacing=(1.5, 1.5, 1.5), intensity=Window(-175, 250), roi=(4, 4, 4))
    >>> affine = np.diag([-3.0, -3.0, 3.0, 1.0])  # in LPS mm: columns go right, rows to the front, 3 mm voxels
    >>> image = Image(np.full((1, 5, 6, 7), 250, np.int16), ("gray",), spacing=(3, 3, 3), affine=affine)
    >>> pixels = contract(image)
    >>> pixels.shape, pixels.max().item()
    (torch.Size([1, 13, 11, 9]), 1.0)
    >>> contract.restore(np.ones((13, 11, 9), np.uint8), image).shape
    (5, 6, 7)
    """

    channels: tuple[str, ...] = ("image",)
    spacing: tuple[float, float, float] | None = None
    orientation: str = "RAS"
    intensity: Intensity = DEFAULT
    roi: tuple[int, int, int] = (96, 96, 96)

    def __post_init__(self) -> None:
        keys = [channel_key(name) for name in self.channels]
        if not keys or len(set(keys)) < len(keys):
            raise ConfigError(f"channels {', '.join(self.channels) or 'none'}", remedy="name each once")
        check_orientation(self.orientation)
        for name, values in (("spacing", self.spacing), ("roi", self.roi)):
            if values is not None and (len(values) != 3 or min(values) <= 0):
                raise ConfigError(f"{name} {values}", remedy="give three positive numbers")

    def grid(self, image: Image) -> Grid:
        """How the voxels of `image` lie on the network's axes."""
        return grid_of(image, orientation=self.orientation, spacing=self.spacing)

    def pick(self, image: Image) -> list[int]:
        """Which of the image's channels is each of the contract's.

        Raises:
            UnreadableImage: one is not there by name.
        """
        if image.channels == (UNNAMED,) and len(self.channels) == 1:
            return [0]
        found = [channel_key(name) for name in image.channels]
        for name in self.channels:
            if channel_key(name) not in found:
                raise UnreadableImage(
                    f"has no channel {name!r} ({nearest(name, image.channels)})",
                    path=image.path,
                    remedy="name the channels of the case, or use weights that were trained on these",
                )
        return [found.index(channel_key(name)) for name in self.channels]

    def place(self, image: Image) -> np.ndarray:
        """The volume on the network's voxels, ``[C, D, H, W]`` in the image's own dtype and intensities.

        Raises:
            UnreadableImage: NaN or infinite values, a channel is missing, or the image does not say how it lies.
            VesaliusError: the result does not fit into memory.
        """
        picked, grid = self.pick(image), self.grid(image)
        if image.array.dtype.kind == "f" and not np.isfinite(image.array[picked]).all():
            bad = int((~np.isfinite(image.array[picked])).sum())
            raise UnreadableImage(f"{bad} voxels are NaN or infinite", path=image.path, remedy="re-export the image")
        check_memory(self.memory(image.size, image.spacing, image.array.dtype), image.path)
        return np.stack([grid.apply(image.array[channel]) for channel in picked])

    def place_mask(self, mask: np.ndarray, image: Image) -> np.ndarray:
        """A label mask ``[D, H, W]`` of the image on the network's voxels."""
        if mask.shape != image.size:
            raise VesaliusError(
                f"a mask of {mask.shape} for a volume of {image.size}", path=image.path, remedy="pair them anew"
            )
        return self.grid(image).apply(mask, labels=True)

    def limits(self, placed: np.ndarray) -> Tensor:
        """What `normalise` needs to know of the whole volume: ``[C, 2]`` float32."""
        return torch.tensor([self.intensity.fit(channel) for channel in placed], dtype=torch.float32)

    def foreground(self, placed: np.ndarray) -> Box:
        """The box of a placed volume in which some channel is not background."""
        return foreground_box(np.logical_or.reduce([self.intensity.foreground(channel) for channel in placed]))

    def normalise(self, placed: Tensor, limits: Tensor) -> Tensor:
        """A placed volume, or a part of it, in the network's intensities: float32 of the same shape."""
        return self.intensity(placed.float(), limits)

    def __call__(self, image: Image) -> Tensor:
        """What the network reads: ``[C, D, H, W]`` float32 on its own axes, voxels and intensities."""
        placed = self.place(image)
        return self.normalise(torch.from_numpy(placed), self.limits(placed))

    def restore(self, labels: np.ndarray | Tensor, like: Image) -> np.ndarray:
        """From the network's voxels back to the image's.

        Args:
            labels: ``[D, H, W]`` (or ``[K, D, H, W]``) on the network's voxels; integers come from the nearest voxel,
                anything else is interpolated linearly.
            like: the image that the network saw.

        Returns:
            ``[D, H, W]`` of ``like.size`` (or ``[K, ...]``), the same dtype.

        Raises:
            VesaliusError: `labels` has not the size that the network saw.
        """
        array, grid = np.asarray(labels), self.grid(like)
        if array.shape[-3:] != grid.size or array.ndim not in (3, 4):
            raise VesaliusError(f"labels of {array.shape} for a network input of {grid.size}", path=like.path)
        if array.ndim == 3:
            return grid.invert(array)
        return np.stack([grid.invert(one) for one in array])

    def memory(
        self, size: Sequence[int], spacing: Sequence[float] | None, dtype: np.dtype[Any] | type = np.int16
    ) -> int:
        """Bytes at the peak of a call: the image, the placed volume, and its float32 intensities twice.

        Args:
            size, spacing, dtype: of the image, as an index's row has them; without spacing, or where it is that of the
                network, nothing is resampled.
        """
        source = float(np.prod(size, dtype=np.float64))
        placed = source
        if self.spacing is not None and spacing is not None:
            placed *= float(np.prod(spacing) / np.prod(self.spacing))
        item = np.dtype(dtype).itemsize
        return int(len(self.channels) * (source * item + placed * (item + 2 * 4)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        return {**asdict(self), "intensity": intensity_to_dict(self.intensity)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VolumeContract:
        """The inverse of `to_dict`."""
        values = dict(values)
        values["intensity"] = intensity_from_dict(values["intensity"])
        for name in ("channels", "spacing", "roi"):
            values[name] = None if values[name] is None else tuple(values[name])
        return cls(**values)


def channel_key(name: str) -> str:
    """What a channel's name is compared by: without case and punctuation, and with one name for each MR sequence.

    >>> channel_key("T1Gd"), channel_key("T2-FLAIR"), channel_key("CT")
    ('t1ce', 'flair', 'ct')
    """
    key = re.sub(r"[\W_]+", "", name.lower())
    return SYNONYMS.get(key, key)
