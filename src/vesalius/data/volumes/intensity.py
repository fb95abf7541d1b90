"""From stored intensities to those of a network: limits found once in the whole volume, applied to any part of it.

Each way is a pair: `fit` reads two numbers from a channel of the whole volume, and the call applies them, so that a
patch out of a cache has the very intensities that it has in the volume.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vesalius.errors import ConfigError, nearest


@dataclass(frozen=True)
class Window:
    """``(x - low) / (high - low)``, clipped to [0, 1]: for Hounsfield units.

    Args:
        low, high: in the image's units (HU for CT).
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"a window from {self.low} to {self.high}", remedy="give low < high")

    def fit(self, channel: np.ndarray) -> tuple[float, float]:
        """The window itself, whatever the volume holds."""
        return self.low, self.high

    def __call__(self, pixels: Tensor, limits: Tensor) -> Tensor:
        """``[C, ...]`` float with ``limits [C, 2]`` -> [0, 1]."""
        low, high = _columns(limits, pixels)
        return ((pixels - low) / (high - low)).clamp(0, 1)

    def foreground(self, channel: np.ndarray) -> np.ndarray:
        """Where the result is above 0."""
        return np.asarray(channel > self.low)


@dataclass(frozen=True)
class ZScore:
    """``(x - mean) / std`` of each channel: for MR, whose units mean nothing across scanners.

    Args:
        nonzero: mean and standard deviation of the voxels that are not 0, which stay 0 (skull-stripped brains).
    """

    nonzero: bool = True

    def fit(self, channel: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation (1 where it would be 0)."""
        values = channel[channel != 0] if self.nonzero else channel
        if not values.size:
            return 0.0, 1.0
        return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)) or 1.0

    def __call__(self, pixels: Tensor, limits: Tensor) -> Tensor:
        """``[C, ...]`` float with ``limits [C, 2]`` -> zero mean, unit deviation."""
        mean, std = _columns(limits, pixels)
        scores = (pixels - mean) / std
        return scores * (pixels != 0) if self.nonzero else scores

    def foreground(self, channel: np.ndarray) -> np.ndarray:
        """Where the image is not 0."""
        return np.asarray(channel != 0)


@dataclass(frozen=True)
class Percentiles:
    """``(x - a) / (b - a)``, clipped to [0, 1], with a and b percentiles of each channel: MR as [0, 1].

    Args:
        low, high: percentiles, 0 to 100.
        nonzero: of the voxels that are not 0, which become 0.
    """

    low: float = 0.5
    high: float = 99.5
    nonzero: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 100:
            raise ConfigError(f"percentiles {self.low} and {self.high}", remedy="give 0 <= low < high <= 100")

    def fit(self, channel: np.ndarray) -> tuple[float, float]:
        """The two percentiles, apart from each other in any case."""
        values = channel[channel != 0] if self.nonzero else channel
        if not values.size:
            return 0.0, 1.0
        low, high = (float(value) for value in np.percentile(values, (self.low, self.high)))
        return (low, high) if low < high else (low, low + 1)

    def __call__(self, pixels: Tensor, limits: Tensor) -> Tensor:
        """``[C, ...]`` float with ``limits [C, 2]`` -> [0, 1]."""
        low, high = _columns(limits, pixels)
        unit = ((pixels - low) / (high - low)).clamp(0, 1)
        return unit * (pixels != 0) if self.nonzero else unit

    def foreground(self, channel: np.ndarray) -> np.ndarray:
        """Where the image is not 0."""
        return np.asarray(channel != 0)


@dataclass(frozen=True)
class ClipZScore:
    """``(clip(x, low, high) - mean) / std`` with numbers of a whole data set: CT as nnU-Net and its heirs have it.

    Args:
        low, high: where intensities are cut, in the image's units (HU for CT).
        mean, std: of the set's labelled voxels.

    >>> import torch
    >>> ClipZScore(-54, 247, 59.5, 55.5)(torch.tensor([[-1000.0, 59.5, 115.0]]), torch.zeros(1, 2)).tolist()[0][1:]
    [0.0, 1.0]
    """

    low: float
    high: float
    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (self.low < self.high and self.std > 0):
            raise ConfigError(
                f"clip from {self.low} to {self.high}, deviation {self.std}", remedy="give low < high, std > 0"
            )

    def fit(self, channel: np.ndarray) -> tuple[float, float]:
        """The set's mean and deviation, whatever the volume holds."""
        return self.mean, self.std

    def __call__(self, pixels: Tensor, limits: Tensor) -> Tensor:
        """``[C, ...]`` float -> the set's zero mean and unit deviation; ``limits`` say nothing more."""
        return (pixels.clamp(self.low, self.high) - self.mean) / self.std

    def foreground(self, channel: np.ndarray) -> np.ndarray:
        """Where the result is above its lowest value."""
        return np.asarray(channel > self.low)


Intensity = Window | ZScore | Percentiles | ClipZScore
KINDS: dict[str, type[Intensity]] = {
    "window": Window,
    "zscore": ZScore,
    "percentiles": Percentiles,
    "clip-zscore": ClipZScore,
}


def intensity_to_dict(intensity: Intensity) -> dict[str, Any]:
    """Plain values with the name of the kind.

    >>> intensity_to_dict(Window(-175, 250))
    {'kind': 'window', 'low': -175, 'high': 250}
    """
    kind = next(name for name, one in KINDS.items() if isinstance(intensity, one))
    return {"kind": kind, **asdict(intensity)}


def intensity_from_dict(values: dict[str, Any]) -> Intensity:
    """The inverse of `intensity_to_dict`.

    Raises:
        ConfigError: there is no such kind.
    """
    values = dict(values)
    kind = str(values.pop("kind", ""))
    if kind not in KINDS:
        raise ConfigError(f"unknown intensity {kind!r}", remedy=nearest(kind, KINDS))
    return KINDS[kind](**values)


def _columns(limits: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    shape = (-1, *[1] * (pixels.ndim - 1))
    limits = limits.to(pixels)
    return limits[:, 0].view(shape), limits[:, 1].view(shape)
