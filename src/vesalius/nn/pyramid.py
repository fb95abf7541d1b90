"""Feature pyramids: tokens of a plain transformer, or the maps of a hierarchical one, at the strides a decoder reads.

Sub-modules carry the names of the published files (``fpn1.0`` ... ``fpn2.0``; ``fpn.0``), so keys map one to one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vesalius.errors import ConfigError


def token_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens ``[B, prefix + N, width]`` of a grid (rows, columns), N = rows * columns -> ``[B, width, rows, columns]``.

    Tokens in front of the patches (class token, prompts) are dropped.

    >>> import torch
    >>> token_map(torch.zeros(2, 7, 16), (2, 3)).shape
    torch.Size([2, 16, 2, 3])
    """
    rows, columns = grid
    if tokens.shape[1] < rows * columns:
        raise ConfigError(
            f"{tokens.shape[1]} tokens cannot fill a grid of {rows} x {columns}", remedy="encode without masking"
        )
    patches = tokens[:, tokens.shape[1] - rows * columns :]
    return patches.transpose(1, 2).unflatten(2, grid)


class FeaturePyramid(nn.Module):
    """Tokens of some blocks at 4x, 2x, 1x and (with 4 maps) half the patch grid's resolution.

    With patches of 16 pixels the strides are 4, 8, 16 and 32: USFM's UPerNet and the plain-MAE U-Net++ read 4 maps
    of blocks 3, 5, 7, 11; SegViT reads 3 of blocks 5, 7, 11.

    Args:
        width: channels of a token, and of every map.
        maps: 4 or 3.

    >>> import torch
    >>> pyramid = FeaturePyramid(8, maps=3)
    >>> [tuple(m.shape[2:]) for m in pyramid([torch.zeros(1, 7, 8)] * 3, (2, 3))]
    [(8, 12), (4, 6), (2, 3)]
    """

    def __init__(self, width: int, *, maps: int = 4):
        super().__init__()
        if maps not in (3, 4):
            raise ConfigError(f"a feature pyramid of {maps} maps", remedy="use 3 or 4")
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(width, width, 2, stride=2))
        self.fpn3 = nn.Identity()
        if maps == 4:
            self.fpn4 = nn.MaxPool2d(2)
        self.channels = (width,) * maps

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """Raw tokens ``[B, prefix + N, width]``, one per map, shallowest block first -> maps, finest first."""
        if len(layers) != len(self.channels):
            raise ConfigError(f"{len(layers)} layers for a pyramid of {len(self.channels)} maps")
        if len(self.channels) == 4 and min(grid) < 2:
            raise ConfigError(
                f"a patch grid of {grid[0]} x {grid[1]} cannot be halved for the coarsest map",
                remedy="use larger images or smaller patches",
            )
        stages = [module for name, module in self.named_children() if name.startswith("fpn")]
        return [stage(token_map(tokens, grid)) for stage, tokens in zip(stages, layers, strict=True)]


class DownLevel(nn.Module):
    """Adds one coarser map to those of a hierarchical trunk: 3x3 convolution of stride 2, batch norm, GELU.

    It is level 4 of Deblurring MIM's U-Net++ on the ConvMAE encoder.

    Args:
        channels: of the trunk's maps, finest first; the new map has as many as the last.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        last = channels[-1]
        self.fpn = nn.Sequential(nn.Conv2d(last, last, 3, stride=2, padding=1), nn.BatchNorm2d(last), nn.GELU())
        self.channels = (*channels, last)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``[B, C, h, w]``, finest first -> the same and one of half the last one's size."""
        return [*maps, self.fpn(maps[-1])]
