"""The network of 3DSAM-adapter (Gong et al. 2024): SAM's image encoder, in which every operation becomes 3-D.

The frozen 2-D weights stay; a volume's crop is enlarged, cut into patches slice by slice, and the slices are merged by
a depthwise convolution. Every block, SAM's global ones too, then attends within shifted 3-D windows, with a third table
of relative positions, behind a light convolutional adapter. Maps of four depths go to a small 3-D decoder, the last one
through a sampler of the clicks.

Differences from the authors' code, which give the same numbers: the enlargement is folded into the frozen patch kernel
and into the slice kernel, since all three are linear, so that the enlarged crop of 512^3 voxels and its 512 embedded
slices are never made; any crop, slice number, width, depth and batch; masks are built from the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vesalius.errors import ConfigError
from vesalius.nn.sam import SamBlock, SamViT, install
from vesalius.nn.sam3d_heads import MLADecoder, VisualSampler

LEVELS = 4
"""Maps that the decoder reads, at equal distances of depth."""


@dataclass(frozen=True)
class Sam3DShape:
    """What 3DSAM-adapter builds around a SAM; the defaults are the authors' for ViT-B.

    Args:
        upsample: factor by which a crop is enlarged before it is cut into patches.
        slices: enlarged slices that become one layer of tokens.
        window: tokens of the side of the attention's windows; even blocks (from 0) are shifted by half of it.
        layers: entries of the table of depth positions, which is resized to the crop's.
        neck: channels of the maps.
        queries, sampler_layers, sampler_heads, sampler_hidden: of the sampler of clicks.
        hidden: channels of the decoder.
        image_channels: of the volume: 1, or SAM's three.
        classes: of the scores, with the background.
        prompted: take clicks; False is the automatic variant, without a sampler.
        labels, positions: of the sampler, which as published has neither.
        adapters: have the convolutional adapters.
        checkpointing: compute the blocks anew in the backward pass, for less memory and more time.
    """

    upsample: int = 4
    slices: int = 16
    window: int = 8
    layers: int = 32
    neck: int = 256
    queries: int = 10
    sampler_layers: int = 2
    sampler_heads: int = 8
    sampler_hidden: int = 2048
    hidden: int = 128
    image_channels: int = 1
    classes: int = 2
    prompted: bool = True
    labels: bool = False
    positions: bool = False
    adapters: bool = True
    checkpointing: bool = False


class ConvAdapter(nn.Module):
    """The adapter at the head of a block: down, a depthwise 3x3x3 convolution, up, and the residual.

    A ReLU comes last, too, so that what is added is never negative; nothing starts at zero.

    Args:
        width: channels of the tokens.  hidden: within; half of them by default.
    """

    def __init__(self, width: int, hidden: int | None = None):
        super().__init__()
        hidden = hidden or width // 2
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.conv = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, H, W, D, C]`` -> the same shape."""
        inner = self.linear1(x).relu().movedim(-1, 1)
        inner = self.conv(inner).relu().movedim(1, -1)
        return x + self.linear2(inner).relu()


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map ``[B, C, ...]``."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, ...]`` -> the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Sam3DEncoder(nn.Module):
    """SAM's image encoder on volumes. It takes over the tensors of the one given, under the same names.

    Args:
        sam: the 2-D encoder, whose neck is not used.
        shape: what is built around it.

    >>> from vesalius.nn.sam import SAM_PRESETS
    >>> encoder = Sam3DEncoder(SamViT(SAM_PRESETS["sam_tiny"]), Sam3DShape(window=4, layers=8, neck=32))
    >>> [tuple(level.shape) for level in encoder(torch.zeros(1, 1, 16, 32, 48))]
    [(1, 32, 8, 12, 4), (1, 32, 8, 12, 4), (1, 32, 8, 12, 4), (1, 32, 8, 12, 4)]
    """

    def __init__(self, sam: SamViT, shape: Sam3DShape):
        super().__init__()
        c, s = sam.config, shape
        if c.patch_size % s.upsample or s.slices % s.upsample:
            raise ConfigError(
                f"upsample = {s.upsample} with patches of {c.patch_size} and {s.slices} slices a layer",
                remedy="choose a divisor of both",
            )
        if c.depth < LEVELS:
            raise ConfigError(f"a SAM of {c.depth} blocks", remedy=f"give one of at least {LEVELS}")
        self.config, self.shape = c, s
        self.patch_embed, self.pos_embed = sam.patch_embed, sam.pos_embed
        self.depth_embed = nn.Parameter(torch.ones(1, s.layers, c.width))
        self.slice_embed = nn.Conv3d(c.width, c.width, (1, 1, s.slices), stride=(1, 1, s.slices), groups=c.width)
        self.blocks = nn.ModuleList(
            _inflated(
                cast(SamBlock, block),
                s,
                shifted=number % 2 == 0,
                side=c.grid if number in c.global_blocks else c.window,
                width=c.width,
                heads=c.heads,
                mlp_ratio=c.mlp_ratio,
            )
            for number, block in enumerate(sam.blocks)
        )
        if s.adapters:
            install(self, "pre_attn", lambda number, block: ConvAdapter(c.width))
        self.neck_3d = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(c.width, s.neck, 1, bias=False),
                ChannelNorm(s.neck, eps=1e-6),
                nn.Conv3d(s.neck, s.neck, 3, padding=1, bias=False),
                ChannelNorm(s.neck, eps=1e-6),
            )
            for _ in range(LEVELS)
        )

    @property
    def multiple(self) -> tuple[int, int, int]:
        """What the sides (d, h, w) of a crop must be multiples of."""
        side = self.config.patch_size // self.shape.upsample
        return self.shape.slices // self.shape.upsample, side, side

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Crops ``[B, c, D, H, W]`` -> four maps ``[B, neck, h, w, d]``.

        Raises:
            ConfigError: other channels, or a side that cannot be cut into patches.
        """
        if any(side % step for side, step in zip(volume.shape[2:], self.multiple, strict=True)):
            raise ConfigError(
                f"a crop of {list(volume.shape[2:])} voxels", remedy=f"choose multiples of {list(self.multiple)}"
            )
        x, maps = self.embed(volume), []
        every = len(self.blocks) / LEVELS
        for number, block in enumerate(self.blocks, start=1):
            if self.shape.checkpointing and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(block, x, use_reentrant=False))
            else:
                x = block(x)
            if number == round(every * (len(maps) + 1)):
                maps.append(self.neck_3d[len(maps)](x.movedim(-1, 1)))
        return maps

    def embed(self, volume: Tensor) -> Tensor:
        """Crops ``[B, c, D, H, W]`` -> tokens with positions ``[B, h, w, d, C]``."""
        factor = self.shape.upsample
        projection = cast(nn.Conv2d, self.patch_embed["proj"])
        if volume.shape[1] not in (1, projection.in_channels):
            raise ConfigError(
                f"{volume.shape[1]} channels for a network of {projection.in_channels}",
                remedy="give one, which stands for all, or as many",
            )
        taps = enlargement(projection.kernel_size[0], factor).to(projection.weight)
        kernel = torch.einsum("ocpq,pi,qj->ocij", projection.weight, taps, taps)
        if volume.shape[1] == 1:
            kernel = kernel.sum(1, keepdim=True)
        slices = F.pad(volume.transpose(1, 2).flatten(0, 1), (1, 1, 1, 1), mode="replicate")
        x = F.conv2d(slices, kernel, projection.bias, stride=projection.stride[0] // factor)
        x = x.unflatten(0, (len(volume), -1))  # [B, D, C, h, w]
        x = torch.cat([x[:, :1], x, x[:, -1:]], dim=1)
        taps = enlargement(self.shape.slices, factor).to(x)
        merge = self.slice_embed.weight.flatten(1) @ taps  # [C, taps]
        x = x.unfold(1, merge.shape[1], self.shape.slices // factor)
        x = torch.einsum("bdchwk,ck->bhwdc", x, merge.to(x)) + self.slice_embed.bias
        return x + self._places(x.shape[1:3]) + self._depths(x.shape[3])

    def _places(self, grid: Sequence[int]) -> Tensor:
        """SAM's positions on a grid ``[1, h, w, 1, C]``: means of those that fall together, or interpolated."""
        table = self.pos_embed.permute(0, 3, 1, 2)
        larger = grid[0] > table.shape[2] or grid[1] > table.shape[3]
        if larger:
            table = F.interpolate(table, size=tuple(grid), mode="bilinear", align_corners=False)
        else:
            table = F.adaptive_avg_pool2d(table, tuple(grid))
        return table.permute(0, 2, 3, 1).unsqueeze(3)

    def _depths(self, layers: int) -> Tensor:
        """Positions along the depth ``[1, d, C]``."""
        if layers == self.depth_embed.shape[1]:
            return self.depth_embed
        return F.interpolate(self.depth_embed.transpose(1, 2), size=layers, mode="linear").transpose(1, 2)


def _inflated(
    block: SamBlock, shape: Sam3DShape, *, shifted: bool, side: int, width: int, heads: int, mlp_ratio: float
) -> SamBlock:
    """A block of an image encoder with windows along three axes, and its weights."""
    shift = shape.window // 2 if shifted else 0
    grown = SamBlock(width, heads, mlp_ratio, window=shape.window, side=side, shift=shift, axes=3)
    state = block.state_dict()
    state["attn.rel_pos_d"] = (state["attn.rel_pos_h"] + state["attn.rel_pos_w"]) / 2
    grown.load_state_dict({**state, "attn.lr": torch.ones(())})
    return grown


def enlargement(count: int, factor: int) -> Tensor:
    """How `count` enlarged positions are made of the original ones, with one neighbour on either side.

    Enlarging an axis is linear (align_corners False): position o is a mean of its two nearest originals. At the ends
    the neighbour is the end itself.

    Returns:
        ``[count, count / factor + 2]``.

    >>> enlargement(2, 2)
    tensor([[0.2500, 0.7500, 0.0000],
            [0.0000, 0.7500, 0.2500]])
    """
    unit = torch.eye(count // factor + 2)[None]
    return F.interpolate(unit, scale_factor=factor, mode="linear")[0, :, factor : factor + count].T


class Sam3D(nn.Module):
    """Clicks on a volume's crop to scores of its voxels.

    Args:
        sam: the image encoder whose tensors it takes over.
        shape: what is built around it.

    >>> from vesalius.nn.sam import SAM_PRESETS
    >>> shape = Sam3DShape(window=4, layers=8, neck=32, sampler_heads=4, sampler_hidden=64, hidden=16)
    >>> network = Sam3D(SamViT(SAM_PRESETS["sam_tiny"]), shape)
    >>> crops, clicks = torch.zeros(2, 1, 16, 32, 32), torch.tensor([[[4.0, 9, 20]], [[3, 0, 1]]])
    >>> network(crops, clicks, torch.ones(2, 1)).shape
    torch.Size([2, 2, 16, 32, 32])
    """

    def __init__(self, sam: SamViT, shape: Sam3DShape | None = None):
        super().__init__()
        s = self.shape = shape or Sam3DShape()
        self.encoder = Sam3DEncoder(sam, s)
        self.sampler = (
            VisualSampler(
                s.neck,
                heads=s.sampler_heads,
                hidden=s.sampler_hidden,
                queries=s.queries,
                layers=s.sampler_layers,
                labels=s.labels,
                positions=s.positions,
            )
            if s.prompted
            else None
        )
        self.decoder = MLADecoder(s.neck, s.hidden, image_channels=s.image_channels, classes=s.classes)

    def forward(self, volume: Tensor, points: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Scores of a crop.

        Args:
            volume: ``[B, c, D, H, W]``.
            points: ``[B, N, 3]``, voxels (d, h, w) of the crop; None for the automatic variant.
            labels: ``[B, N]``, 1 foreground, 0 background, -1 no click; None for 1.

        Returns:
            Logits ``[B, classes, D, H, W]``.
        """
        return self.decode(self.encoder(volume), volume, points, labels)

    def decode(
        self, maps: Sequence[Tensor], volume: Tensor, points: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Scores from the encoder's maps, which serve any number of clicks on the same crop; see `forward`."""
        if (points is None) == self.shape.prompted:
            raise ConfigError(
                "a network that takes clicks, and none given"
                if self.shape.prompted
                else "clicks for a network without",
                remedy="see prompted of Sam3DShape",
            )
        *early, last = maps
        if self.sampler is not None and points is not None:
            if labels is None:
                labels = torch.ones(points.shape[:2], dtype=torch.long, device=points.device)
            last = self.sampler(last, points, labels.long(), size=volume.shape[2:])
        scores = self.decoder([*early, last], volume.permute(0, 1, 3, 4, 2))
        return scores.permute(0, 1, 4, 2, 3)
