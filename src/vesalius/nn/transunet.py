"""TransUNet: a ResNet and a vision transformer on its maps as the encoder of a U-Net (Chen et al., arXiv 2102.04306).

The convolutional part is timm's BiT bottleneck, the transformer timm's block; what differs from timm's own hybrid is
the pooling of the stem, which is not padded, and the normalisation of the shortcuts, which has a group a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from timm.layers import GroupNormAct, StdConv2d
from timm.models.resnetv2 import Bottleneck
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.errors import ConfigError

Convolution = partial(StdConv2d, eps=1e-5)
"""Its filters have a mean of 0 and a variance of 1 each."""
STAGES = 3


@dataclass(frozen=True)
class TransUNetConfig:
    """The network's shape; the defaults are the published R50-ViT-B/16.

    Args:
        classes: of the foreground; the network has an output more, for the background.
        image_size: pixels of the side that the learnt positions are for; images may have others.
        in_channels: of the stem; an image of one channel is repeated.
        width: channels of the stem; the three stages have 4, 8 and 16 times as many.
        stages: bottlenecks of the three stages.
        groups: of the group norms.
        hidden, depth, heads, mlp: of the transformer.
        middle, decoder: channels of the decoder's first convolution, and of its four steps.
        skips: maps of the ResNet that the decoder is given, coarsest first.
        dropout: of the transformer's tokens and MLPs.
    """

    patch_size: ClassVar[int] = 16

    classes: int = 8
    image_size: int = 224
    in_channels: int = 3
    width: int = 64
    stages: tuple[int, ...] = (3, 4, 9)
    groups: int = 32
    hidden: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    middle: int = 512
    decoder: tuple[int, ...] = (256, 128, 64, 16)
    skips: int = 3
    dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))  # a card's JSON has lists
        object.__setattr__(self, "decoder", tuple(self.decoder))
        if len(self.stages) != STAGES or len(self.decoder) != STAGES + 1 or not 0 <= self.skips <= STAGES:
            raise ConfigError(
                f"stages {self.stages}, decoder {self.decoder}, skips {self.skips}",
                remedy=f"give {STAGES} stages, {STAGES + 1} steps of the decoder, and 0 to {STAGES} skips",
            )
        if self.image_size % self.patch_size:
            raise ConfigError(f"image_size = {self.image_size}", remedy=f"give a multiple of {self.patch_size}")

    @property
    def grid(self) -> int:
        """Tokens of the side."""
        return self.image_size // self.patch_size


TRANSUNET_PRESETS = {
    "paper": TransUNetConfig(),
    "tiny": TransUNetConfig(
        image_size=128,
        width=16,
        stages=(1, 1, 1),
        groups=8,
        hidden=96,
        depth=2,
        heads=3,
        mlp=192,
        middle=64,
        decoder=(64, 32, 16, 8),
    ),
}
"""Preset -> shape; the tiny one has 0.8 million parameters."""


class Shortcut(nn.Module):
    """The projection beside the first bottleneck of a stage, each of whose channels is normalised by itself."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, **_: Any):
        super().__init__()
        self.conv = Convolution(in_channels, out_channels, 1, stride=stride)
        self.norm = nn.GroupNorm(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C', H / stride, W / stride]``."""
        return self.norm(self.conv(x))


class Stem(nn.Module):
    """The first convolution and three stages of bottlenecks (He 2016; Kolesnikov 2020)."""

    def __init__(self, config: TransUNetConfig):
        super().__init__()
        norm = partial(GroupNormAct, num_groups=config.groups, eps=1e-6)
        self.conv = Convolution(config.in_channels, config.width, 7, stride=2, padding=3)
        self.norm = norm(config.width)
        self.stages = nn.ModuleList()
        before = config.width
        for number, blocks in enumerate(config.stages):
            after = config.width * 4 * 2**number
            stage = [
                Bottleneck(
                    after if block else before,
                    after,
                    stride=2 if number and not block else 1,
                    conv_layer=Convolution,
                    norm_layer=norm,
                    proj_layer=None if block else Shortcut,
                )
                for block in range(blocks)
            ]
            self.stages.append(nn.Sequential(*stage))
            before = after

    def forward(self, image: Tensor) -> list[Tensor]:
        """``[B, C, H, W]`` -> maps at 1/2, 1/4, 1/8 and 1/16.

        Without padding the pooling leaves a row and a column less than a quarter; they are filled up with 0 in the map
        that is given out, not in what the next stage reads.
        """
        maps = [self.norm(self.conv(image))]
        x = F.max_pool2d(maps[0], 3, stride=2)
        for number, stage in enumerate(self.stages):
            x = stage(x)
            maps.append(x if number else F.pad(x, (0, 1, 0, 1)))
        return maps


class Up(nn.Module):
    """One step of the decoder: twice the size, the encoder's map beside it, two convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = _convolution(in_channels + skip_channels, out_channels)
        self.conv2 = _convolution(out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """``[B, C, H, W]`` and ``[B, C', 2 H, 2 W]`` -> ``[B, C'', 2 H, 2 W]``."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.conv2(self.conv1(x if skip is None else torch.cat([x, skip], dim=1)))


class Decoder(nn.Module):
    """From tokens and the maps of the stem to features at the image's own size."""

    def __init__(self, config: TransUNetConfig):
        super().__init__()
        self.conv_more = _convolution(config.hidden, config.middle)
        skips = [config.width * times for times in (8, 4, 1)][: config.skips]
        ins = (config.middle, *config.decoder[:-1])
        beside = (*skips, 0, 0, 0, 0)
        self.blocks = nn.ModuleList(map(Up, ins, beside, config.decoder))
        self.skips = config.skips

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """``[B, hidden, H / 16, W / 16]`` and maps, coarsest first -> ``[B, C, H, W]``."""
        x = self.conv_more(x)
        for number, block in enumerate(self.blocks):
            x = block(x, skips[number] if number < self.skips else None)
        return x


class TransUNet(nn.Module):
    """Class scores of every pixel.

    >>> network = TransUNet(TRANSUNET_PRESETS["tiny"]).eval()
    >>> network(torch.zeros(1, 1, 64, 96)).shape  # positions are interpolated
    torch.Size([1, 9, 64, 96])
    """

    def __init__(self, config: TransUNetConfig):
        super().__init__()
        self.config, self.classes = config, config.classes
        self.stem = Stem(config)
        self.embed = nn.Conv2d(config.width * 4 * 2 ** (STAGES - 1), config.hidden, 1)
        self.positions = nn.Parameter(torch.zeros(1, config.grid**2, config.hidden))
        self.dropout = nn.Dropout(config.dropout)
        norm = partial(nn.LayerNorm, eps=1e-6)
        options: dict[str, Any] = {"qkv_bias": True, "proj_drop": config.dropout, "norm_layer": norm}
        ratio = config.mlp / config.hidden
        blocks = [Block(config.hidden, config.heads, ratio, **options) for _ in range(config.depth)]
        for block in blocks:
            block.attn.proj_drop = nn.Identity()  # published without, unlike the MLPs
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(config.hidden)
        self.decoder = Decoder(config)
        self.segmentation_head = nn.Sequential(nn.Conv2d(config.decoder[-1], config.classes + 1, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """``[B, C, H, W]``, sides multiples of 16 -> logits ``[B, classes + 1, H, W]``, background first."""
        tokens, skips = self.encode(image)
        grid = [side // self.config.patch_size for side in image.shape[2:]]
        return self.segmentation_head(self.decoder(tokens.transpose(1, 2).unflatten(2, grid), skips))

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the decoder reads.

        Args:
            image: ``[B, C, H, W]``; one channel is repeated.

        Returns:
            Tokens ``[B, H W / 256, hidden]``, and the stem's maps at 1/8, 1/4 and 1/2.

        Raises:
            ConfigError: a side that is no multiple of 16, or another number of channels.
        """
        rows, columns = image.shape[2:]
        patch, channels = self.config.patch_size, self.config.in_channels
        if rows % patch or columns % patch or image.shape[1] not in (1, channels):
            raise ConfigError(
                f"the network reads [B, {channels}, H, W], not {list(image.shape)}",
                remedy=f"pad the sides to multiples of {patch}, or choose another frame",
            )
        *skips, last = self.stem(image.expand(-1, channels, -1, -1))
        tokens = self.embed(last).flatten(2).transpose(1, 2)
        x = self.dropout(tokens + resize_positions(self.positions, (rows // patch, columns // patch)))
        for block in self.blocks:
            x = block(x)
        return self.norm(x), skips[::-1]


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Learnt positions ``[1, n^2, C]`` of a square grid for another, linearly between them, corners on corners.

    This is what the published loading does (a spline of order 1).

    >>> resize_positions(torch.tensor([[[0.0], [1.0], [2.0], [3.0]]]), (2, 3)).flatten().tolist()
    [0.0, 0.5, 1.0, 2.0, 2.5, 3.0]
    """
    side = round(table.shape[1] ** 0.5)
    if (side, side) == tuple(grid):
        return table
    square = table.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(square, grid, mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3, batch norm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
