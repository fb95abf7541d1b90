"""The random crop and flip of pre-training, drawn once and applied to every image of a pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class CropFlip:
    """A crop of random area and aspect, resized to a square, and a horizontal flip half of the time.

    Args:
        size: pixels of the side that comes out.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width / height, drawn log-uniformly.
        interpolation: bicubic, bilinear or nearest.
        flip: flip left and right with probability 1/2.
    """

    size: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: bool = True

    def __call__(self, images: Sequence[Tensor], *, generator: torch.Generator) -> list[Tensor]:
        """``[C, H, W]`` images of one size in [0, 1] -> ``[C, size, size]``, all cropped and flipped alike."""
        top, left, height, width = self.box(images[0].shape[-2], images[0].shape[-1], generator=generator)
        flip = self.flip and torch.rand((), generator=generator).item() < 0.5
        mode = InterpolationMode(self.interpolation)
        antialias = mode is not InterpolationMode.NEAREST
        out = []
        for image in images:
            crop = F.resized_crop(image, top, left, height, width, [self.size] * 2, mode, antialias=antialias)
            out.append((crop.flip(-1) if flip else crop).clamp(0, 1))
        return out

    def box(self, height: int, width: int, *, generator: torch.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a crop; after ten draws that do not fit, the largest centred one that does."""
        low, high = (math.log(value) for value in self.ratio)
        for _ in range(10):
            area, aspect, y, x = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            area = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + aspect * (high - low))
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
        h = min(height, round(width / self.ratio[0]))
        w = min(width, round(height * self.ratio[1]))
        return (height - h) // 2, (width - w) // 2, h, w
