"""What every 3-D trunk gives, and the plainest network that stands on one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vesalius.data.volumes.contract import channel_key
from vesalius.errors import ConfigError


@dataclass
class VolumeFeatures:
    """The outputs of a 3-D trunk.

    Args:
        bottleneck: ``[B, C, d, h, w]``, the coarsest features: what a whole volume is summed up from.
        decoder: ``[B, C', D, H, W]`` at the input's own resolution, or None for a trunk without a decoder.
        maps: the encoder's maps ``[B, C_i, d_i, h_i, w_i]``, finest first.
    """

    bottleneck: Tensor
    decoder: Tensor | None
    maps: list[Tensor]


class VolumeTrunk(nn.Module, ABC):
    """Base class of 3-D trunks.

    Attributes:
        in_channels: of the input, one a modality.
        bottleneck_channels: of `VolumeFeatures.bottleneck`.  decoder_channels: of its decoder, 0 without one.
        multiple: voxels; every side of the input must be a multiple of it.
        config: the frozen dataclass it was built from; `type(trunk)(trunk.config)` is the same network.
    """

    in_channels: int
    bottleneck_channels: int
    decoder_channels: int
    multiple: int
    config: Any

    def forward(self, volume: Tensor) -> VolumeFeatures:
        """Encode (and decode) ``volume [B, C, D, H, W]``.

        Raises:
            ConfigError: another number of channels, or a side that is not a multiple of `multiple`.
        """
        if volume.ndim != 5 or volume.shape[1] != self.in_channels:
            raise ConfigError(
                f"the network reads [B, {self.in_channels}, D, H, W], not {list(volume.shape)}",
                remedy="give the channels that its card names, in that order",
            )
        sides = volume.shape[2:]
        if any(side % self.multiple for side in sides):
            raise ConfigError(
                f"sides of {list(sides)} voxels are not multiples of {self.multiple}",
                remedy="pad the volume, or choose another window",
            )
        return self.features(volume)

    @abstractmethod
    def features(self, volume: Tensor) -> VolumeFeatures:
        """Encode a volume whose shape was checked."""


class VolumeSegmenter(nn.Module):
    """A trunk with a decoder, and class scores a voxel from a 1x1x1 convolution.

    Args:
        encoder: the trunk.
        classes: output channels.

    >>> import torch
    >>> from vesalius.nn.unet3d import UNet3D, UNet3DConfig
    >>> network = VolumeSegmenter(UNet3D(UNet3DConfig(width=4)), classes=3)
    >>> network(torch.zeros(2, 1, 16, 16, 24)).shape
    torch.Size([2, 3, 16, 16, 24])
    """

    def __init__(self, encoder: VolumeTrunk, *, classes: int):
        super().__init__()
        if not encoder.decoder_channels:
            raise ConfigError("this trunk has no decoder", remedy="choose one that has, such as swin_unetr")
        self.encoder = encoder
        self.head = nn.Conv3d(encoder.decoder_channels, classes, 1)

    def forward(self, volume: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` -> logits ``[B, classes, D, H, W]``."""
        return self.head(self.encoder(volume).decoder)


def match_channels(weight: Tensor, have: Sequence[str], want: Sequence[str], *, dim: int = 1) -> Tensor:
    """A convolution's weight for another set of modalities, matched by name.

    A modality that the weight does not know starts at zero, so that a network first computes what it did without; its
    weights train like any others. If nothing matches, every modality starts as the mean of those that were there.

    Args:
        weight: with ``len(have)`` entries along `dim`: 1 for an input convolution, 0 for one that restores the input.
        have, want: names; see `channel_key` for what counts as the same.

    >>> match_channels(torch.tensor([[1.0, 2.0]]), ["T1", "T2-FLAIR"], ["flair", "t1ce", "t1", "t2"]).tolist()
    [[2.0, 0.0, 1.0, 0.0]]
    """
    known = [channel_key(name) for name in have]
    wanted = [channel_key(name) for name in want]
    if not set(known) & set(wanted):
        return torch.stack([weight.mean(dim)] * len(wanted), dim)
    empty = torch.zeros_like(weight.select(dim, 0))
    return torch.stack([weight.select(dim, known.index(key)) if key in known else empty for key in wanted], dim)
