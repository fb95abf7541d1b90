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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.errors import ConfigError
from vesalius.nn.sam import SamBlock, SamConfig, SamViT, install
from vesalius.nn.sam3d_heads import MLADecoder, VisualSampler

LEVELS = 4
"""Maps that the decoder reads, at equal distances of depth."""


@dataclass(frozen=True)
class Sam3DShape:
    """What 3DSAM-adapter builds around a SAM; the defaults are the authors' for ViT-B.

    Args:
        sam: of the image encoder within; what else it says is not used.
        upsample: factor by which a crop is enlarged before it is cut into patches.
        slices: enlarged slices that become one layer of tokens.
        window: tokens of the side of the attention's windows; even blocks (from 0) are shifted by half of it.
        layers: entries of the table of depth positions, which is resized to the crop's.
        neck: channels of the maps.
        queries, sampler_layers, sampler_heads, sampler_hidden: of the sampler of clicks.
        hidden: channels of the decoder.
        in_channels: of the volume: 1, or SAM's three.
        classes: of the scores, with the background.
        prompted: take clicks; False is the automatic variant, without a sampler.
        labels, positions: of the sampler, which as published has neither: clicks say whether they hit, and where.
        adapters: have the convolutional adapters.
    """

    sam: SamConfig = field(default_factory=SamConfig)
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
    in_channels: int = 1
    classes: int = 2
    prompted: bool = True
    labels: bool = False
    positions: bool = False
    adapters: bool = True

    def __post_init__(self) -> None:
        if self.sam.patch_size % self.upsample or self.slices % self.upsample:
            raise ConfigError(
                f"upsample = {self.upsample} with patches of {self.sam.patch_size} and {self.slices} slices a layer",
                remedy="choose a divisor of both",
            )
        if self.in_channels not in (1, self.sam.in_channels):
            raise ConfigError(
                f"volumes of {self.in_channels} channels on a SAM of {self.sam.in_channels}",
                remedy="use one, which stands for all, or as many",
            )
        if self.sam.depth < LEVELS:
            raise ConfigError(f"a SAM of {self.sam.depth} blocks", remedy=f"give one of at least {LEVELS}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sam3DShape:
        """The inverse of `dataclasses.asdict`, also after JSON."""
        return cls(**{**values, "sam": SamConfig.from_dict(values["sam"])})

    @property
    def multiple(self) -> tuple[int, int, int]:
        """What the sides (d, h, w) of a crop must be multiples of: a token's voxels."""
        side = self.sam.patch_size // self.upsample
        return self.slices // self.upsample, side, side


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
    """SAM's image encoder on volumes; what it has of SAM it has under the same names.

    Args:
        shape: of the network.

    >>> from vesalius.nn.sam import SAM_PRESETS
    >>> encoder = Sam3DEncoder(Sam3DShape(SAM_PRESETS["sam_tiny"], window=4, layers=8, neck=32))
    >>> [tuple(level.shape) for level in encoder(torch.zeros(1, 1, 16, 32, 48))]
    [(1, 32, 8, 12, 4), (1, 32, 8, 12, 4), (1, 32, 8, 12, 4), (1, 32, 8, 12, 4)]
    """

    def __init__(self, shape: Sam3DShape):
        super().__init__()
        s, c = shape, shape.sam
        self.shape = shape
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(c.in_channels, c.width, c.patch_size, stride=c.patch_size)})
        self.pos_embed = nn.Parameter(torch.zeros(1, c.grid, c.grid, c.width))
        self.depth_embed = nn.Parameter(torch.ones(1, s.layers, c.width))
        self.slice_embed = nn.Conv3d(c.width, c.width, (1, 1, s.slices), stride=(1, 1, s.slices), groups=c.width)
        self.blocks = nn.ModuleList(
            SamBlock(
                c.width,
                c.heads,
                c.mlp_ratio,
                window=s.window,
                side=c.grid if number in c.global_blocks else c.window,
                shift=0 if number % 2 else s.window // 2,
                axes=3,
            )
            for number in range(c.depth)
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

    def take_over(self, sam: Mapping[str, Tensor]) -> None:
        """Start from an image encoder's tensors; each third table starts as the mean of the other two.

        Args:
            sam: of `SamViT`, whose neck is left out.
        """
        state = {name: tensor for name, tensor in sam.items() if not name.startswith("neck.")}
        for number in range(len(self.blocks)):
            name = f"blocks.{number}.attn.rel_pos_"
            state[f"{name}d"] = (state[f"{name}h"] + state[f"{name}w"]) / 2
        _, unexpected = self.load_state_dict(state, strict=False)
        if unexpected:
            raise ConfigError(f"another SAM than this network's ({unexpected[0]})", remedy="build it on that one")

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Crops ``[B, c, D, H, W]`` -> four maps ``[B, neck, h, w, d]``.

        Raises:
            ConfigError: other channels, or a side that cannot be cut into patches.
        """
        if any(side % step for side, step in zip(volume.shape[2:], self.shape.multiple, strict=True)):
            raise ConfigError(
                f"a crop of {list(volume.shape[2:])} voxels", remedy=f"choose multiples of {list(self.shape.multiple)}"
            )
        x = self.embed(volume)
        maps: list[Tensor] = []
        every = len(self.blocks) / LEVELS
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number == round(every * (len(maps) + 1)):
                maps.append(self.neck_3d[len(maps)](x.movedim(-1, 1)))
        return maps

    def embed(self, volume: Tensor) -> Tensor:
        """Crops ``[B, c, D, H, W]`` -> tokens with positions ``[B, h, w, d, C]``."""
        factor = self.shape.upsample
        projection = cast(nn.Conv2d, self.patch_embed["proj"])
        if volume.shape[1] != self.shape.in_channels:
            raise ConfigError(
                f"{volume.shape[1]} channels for a network of {self.shape.in_channels}", remedy="apply its contract"
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
        x = torch.einsum("bdchwk,ck->bhwdc", x, merge.to(x)) + cast(Tensor, self.slice_embed.bias)
        return x + self._places((x.shape[1], x.shape[2])) + self._depths(x.shape[3])

    def _places(self, grid: tuple[int, int]) -> Tensor:
        """SAM's positions on a grid ``[1, h, w, 1, C]``: means of those that fall together, or interpolated."""
        table = self.pos_embed.permute(0, 3, 1, 2)
        if grid[0] > table.shape[2] or grid[1] > table.shape[3]:
            table = F.interpolate(table, size=grid, mode="bilinear", align_corners=False)
        else:
            table = F.adaptive_avg_pool2d(table, grid)
        return table.permute(0, 2, 3, 1).unsqueeze(3)

    def _depths(self, layers: int) -> Tensor:
        """Positions along the depth ``[1, d, C]``."""
        if layers == self.depth_embed.shape[1]:
            return self.depth_embed
        return F.interpolate(self.depth_embed.transpose(1, 2), size=layers, mode="linear").transpose(1, 2)


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
        config: its shape.

    >>> from vesalius.nn.sam import SAM_PRESETS
    >>> sizes = {"window": 4, "layers": 8, "neck": 32, "sampler_heads": 4, "sampler_hidden": 64, "hidden": 16}
    >>> network = Sam3D.on(SamViT(SAM_PRESETS["sam_tiny"]), Sam3DShape(**sizes))
    >>> crops, clicks = torch.zeros(2, 1, 16, 32, 32), torch.tensor([[[4.0, 9, 20]], [[3, 0, 1]]])
    >>> network(crops, clicks, torch.ones(2, 1)).shape
    torch.Size([2, 2, 16, 32, 32])
    """

    def __init__(self, config: Sam3DShape):
        super().__init__()
        s = self.config = config
        self.encoder = Sam3DEncoder(s)
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
        self.decoder = MLADecoder(s.neck, s.hidden, in_channels=s.in_channels, classes=s.classes)

    @classmethod
    def on(cls, sam: SamViT, shape: Sam3DShape) -> Sam3D:
        """The network on an image encoder's weights, which are copied; the rest starts anew."""
        network = cls(replace(shape, sam=sam.config))
        network.encoder.take_over(sam.state_dict())
        return network

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
        if (points is None) == self.config.prompted:
            wrong = "no clicks for a network that needs them" if points is None else "clicks for a network without them"
            raise ConfigError(wrong, remedy="give points to a network that was built with prompted")
        *early, last = maps
        if self.sampler is not None and points is not None:
            if labels is None:
                labels = torch.ones(points.shape[:2], dtype=torch.long, device=points.device)
            last = self.sampler(last, points, labels.long(), size=volume.shape[2:])
        slices_last = volume.permute(0, 1, 3, 4, 2)
        scores = self.decoder([*early, last], slices_last, size=slices_last.shape[2:])
        return scores.permute(0, 1, 4, 2, 3)
