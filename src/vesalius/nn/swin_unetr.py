"""Swin UNETR (Hatamizadeh 2022) from MONAI's blocks: the encoder, which pre-training trains, and the whole.

MONAI changed the order in which patch merging joins eight neighbours, in place and under the same keys (1.5, pull
request 8285): until then two of the eight were taken twice and two never. Weights trained before are right only with
that order, so it is part of the configuration (`SwinConfig.merging`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from monai.networks.blocks import UnetrBasicBlock, UnetrUpBlock
from monai.networks.nets.swin_unetr import PatchMerging, PatchMergingV2, SwinTransformer
from torch import Tensor, nn

from vesalius.errors import ConfigError
from vesalius.nn.volumes import VolumeFeatures, VolumeTrunk

# Offsets along (D, H, W) of the voxels that MONAI <= 1.4 joins: (0,1,0) and (0,0,1) twice, (1,1,0) and (0,1,1) never.
LEGACY_OFFSETS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
PATCH, STAGES = 2, 4


class LegacyPatchMerging(PatchMergingV2):
    """Patch merging with the neighbours of MONAI <= 1.4, for weights that were trained with them."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D, H, W, C]`` of even sides -> ``[B, D / 2, H / 2, W / 2, 2 C]``."""
        joined = torch.cat([x[:, d::2, h::2, w::2] for d, h, w in LEGACY_OFFSETS], dim=-1)
        return self.reduction(self.norm(joined))


@dataclass(frozen=True)
class SwinConfig:
    """The encoder's shape; the defaults are the published 62 million parameters.

    Args:
        in_channels: of the input.
        width: channels at half resolution; they double four times. Each stage's heads divide them.
        depths, heads: blocks and attention heads of the four stages.
        window: side of the attention windows, in tokens.
        merging: "repaired" joins all eight neighbours; "legacy" is for weights from MONAI <= 1.4.
        dropout, drop_path: rates.
    """

    in_channels: int = 1
    width: int = 48
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    merging: Literal["repaired", "legacy"] = "repaired"
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(self.depths))  # a card's JSON has lists
        object.__setattr__(self, "heads", tuple(self.heads))
        if len(self.depths) != STAGES or len(self.heads) != STAGES:
            raise ConfigError(
                f"depths {self.depths} and heads {self.heads} for {STAGES} stages", remedy="give four of each"
            )
        if self.merging not in ("repaired", "legacy"):
            raise ConfigError(f"merging = {self.merging!r}", remedy="use repaired or legacy")


class SwinEncoder(VolumeTrunk):
    """The hierarchical transformer: five maps at 1/2 ... 1/32, layer-normed over channels without learned affine.

    >>> encoder = SwinEncoder(SwinConfig(width=12))
    >>> features = encoder(torch.zeros(1, 1, 64, 32, 32))
    >>> [tuple(level.shape[1:]) for level in features.maps][:2], tuple(features.bottleneck.shape)
    ([(12, 32, 16, 16), (24, 16, 8, 8)], (1, 192, 2, 1, 1))
    """

    def __init__(self, config: SwinConfig):
        super().__init__()
        self.config, self.in_channels = config, config.in_channels
        self.bottleneck_channels, self.decoder_channels = config.width * 2**STAGES, 0
        self.multiple = PATCH ** (STAGES + 1)
        self.swin = SwinTransformer(
            in_chans=config.in_channels,
            embed_dim=config.width,
            window_size=(config.window,) * 3,
            patch_size=(PATCH,) * 3,
            depths=config.depths,
            num_heads=config.heads,
            drop_rate=config.dropout,
            drop_path_rate=config.drop_path,
            downsample=LegacyPatchMerging if config.merging == "legacy" else PatchMerging,
        )
        for module in self.swin.modules():
            if "relative_position_index" in dict(module.named_buffers(recurse=False)):
                # It follows from the window; kept in a file it costs a megabyte a block.
                index = module.get_buffer("relative_position_index")
                module.register_buffer("relative_position_index", index, persistent=False)

    def features(self, volume: Tensor) -> VolumeFeatures:
        """``[B, C, D, H, W]`` -> maps at 1/2, 1/4, 1/8, 1/16 and 1/32, the last also as the bottleneck."""
        maps = self.swin(volume, normalize=True)
        return VolumeFeatures(bottleneck=maps[-1], decoder=None, maps=maps)


class SwinUNETR(VolumeTrunk):
    """The encoder and its convolutional decoder, up to the last features.

    >>> trunk = SwinUNETR(SwinConfig(in_channels=2, width=12)).eval()
    >>> features = trunk(torch.zeros(1, 2, 64, 32, 32))
    >>> tuple(features.bottleneck.shape[1:]), tuple(features.decoder.shape[1:])
    ((192, 2, 1, 1), (12, 64, 32, 32))
    """

    def __init__(self, config: SwinConfig):
        super().__init__()
        width = config.width
        self.config, self.in_channels = config, config.in_channels
        self.encoder = SwinEncoder(config)
        self.bottleneck_channels, self.decoder_channels = self.encoder.bottleneck_channels, width
        self.multiple = self.encoder.multiple
        residual = partial(
            UnetrBasicBlock, spatial_dims=3, kernel_size=3, stride=1, norm_name="instance", res_block=True
        )
        up = partial(
            UnetrUpBlock, spatial_dims=3, kernel_size=3, upsample_kernel_size=2, norm_name="instance", res_block=True
        )
        ins, outs = (config.in_channels, width, 2 * width, 4 * width), (width, width, 2 * width, 4 * width)
        self.skips = nn.ModuleList(residual(in_channels=i, out_channels=o) for i, o in zip(ins, outs, strict=True))
        self.bottleneck = residual(in_channels=16 * width, out_channels=16 * width)
        steps = (16, 8, 4, 2, 1, 1)
        self.ups = nn.ModuleList(up(in_channels=i * width, out_channels=o * width) for i, o in pairwise(steps))

    @classmethod
    def on(cls, encoder: SwinEncoder) -> SwinUNETR:
        """A fresh decoder on an encoder that was pre-trained (a copy: the given one stays as it is)."""
        trunk = cls(encoder.config)
        trunk.encoder.load_state_dict(encoder.state_dict())
        return trunk

    def features(self, volume: Tensor) -> VolumeFeatures:
        """``[B, C, D, H, W]`` -> the residual block's bottleneck at 1/32 and the decoder's features."""
        maps = self.encoder(volume).maps
        skips = [block(x) for block, x in zip(self.skips, [volume, *maps[:3]], strict=True)]
        bottleneck = x = self.bottleneck(maps[-1])
        for up, skip in zip(self.ups, [maps[3], *reversed(skips)], strict=True):
            x = up(x, skip)
        return VolumeFeatures(bottleneck=bottleneck, decoder=x, maps=maps)
