"""The input contract: what pixels a network expects, applied to an image rather than left to memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vesalius.data.blur import Blur
from vesalius.errors import ConfigError
from vesalius.images import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputContract:
    """Size, channels and intensities of the input ``[B, channels, size, size]``.

    Args:
        size: pixels of the side; the image is resized to size x size, its aspect not kept (as both papers do).
        channels: 1, or 3 (a grey image is repeated).
        mean, std: per channel, of intensities in [0, 1].
        interpolation: bicubic, bilinear or nearest.
        blur: the low-pass step before everything else (deblurring models), at the image's own size, or None.
    """

    size: int = 224
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    blur: Blur | None = None

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"channels = {self.channels}", remedy="use 1 or 3")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ConfigError(
                f"{len(self.mean)} means and {len(self.std)} stds for {self.channels} channels",
                remedy="give one of each per channel",
            )

    def unit(self, image: Image) -> Tensor:
        """Pixels of a 2-D image as ``[channels, H, W]`` in [0, 1], blurred if the contract says so, not resized."""
        pixels = torch.from_numpy(image.unit())
        if pixels.ndim != 3:
            raise ConfigError(
                f"{image.path} is a volume of {tuple(image.size)}; this network reads 2-D images",
                remedy="choose a frame",
            )
        if pixels.shape[0] not in (1, 3):
            raise ConfigError(f"{image.path} has {pixels.shape[0]} channels", remedy="give grey or RGB images")
        if pixels.shape[0] == 3 and self.channels == 1:
            pixels = F.rgb_to_grayscale(pixels)
        if self.blur is not None:
            pixels = torch.from_numpy(self.blur(pixels.numpy()))
        return pixels.expand(self.channels, -1, -1)

    def resize(self, pixels: Tensor) -> Tensor:
        """``[C, H, W]`` in [0, 1] -> ``[C, size, size]`` in [0, 1]."""
        mode = InterpolationMode(self.interpolation)
        antialias = mode is not InterpolationMode.NEAREST
        return F.resize(pixels, [self.size, self.size], mode, antialias=antialias).clamp(0, 1)

    def normalise(self, pixels: Tensor) -> Tensor:
        """``[..., C, H, W]`` in [0, 1] -> the network's intensities."""
        return (pixels - self._tensor(self.mean, pixels)) / self._tensor(self.std, pixels)

    def denormalise(self, pixels: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return pixels * self._tensor(self.std, pixels) + self._tensor(self.mean, pixels)

    def __call__(self, image: Image) -> Tensor:
        """What the network reads: ``[channels, size, size]`` float32."""
        return self.normalise(self.resize(self.unit(image)))

    @staticmethod
    def _tensor(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InputContract:
        """The inverse of `to_dict`."""
        values = dict(values)
        values["mean"], values["std"] = tuple(values["mean"]), tuple(values["std"])
        if values.get("blur") is not None:
            values["blur"] = Blur(**values["blur"])
        return cls(**values)
