"""The U-Net of nnU-Net (Isensee 2021), MONAI's DynUNet, as a trunk: the baseline that is trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from monai.networks.nets import DynUNet as MonaiDynUNet
from torch import Tensor

from vesalius.nn.volumes import VolumeFeatures, VolumeTrunk


@dataclass(frozen=True)
class DynUNetConfig:
    """The widths of the levels.

    Args:
        in_channels: of the input.
        widths: channels of the levels, finest first; each is half as fine as the one before.
    """

    in_channels: int = 1
    widths: tuple[int, ...] = (32, 64, 128, 256, 320)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # a card's JSON has lists


DYNUNET_PRESETS = {"paper": DynUNetConfig(), "tiny": DynUNetConfig(widths=(16, 32, 64, 128))}
"""Preset -> widths; the tiny one trains on a CPU."""


class DynUNet(VolumeTrunk):
    """Two convolutions a level with instance norm and leaky ReLU, up to the class convolution.

    >>> import torch
    >>> trunk = DynUNet(DynUNetConfig(widths=(4, 8, 16))).eval()
    >>> features = trunk(torch.zeros(1, 1, 16, 16, 24))
    >>> tuple(features.bottleneck.shape[1:]), tuple(features.decoder.shape[1:])
    ((16, 4, 4, 6), (4, 16, 16, 24))
    """

    def __init__(self, config: DynUNetConfig):
        super().__init__()
        steps = len(config.widths) - 1
        self.config, self.in_channels, self.multiple = config, config.in_channels, 2**steps
        self.bottleneck_channels, self.decoder_channels = config.widths[-1], config.widths[0]
        self.net = MonaiDynUNet(
            spatial_dims=3,
            in_channels=config.in_channels,
            out_channels=1,
            kernel_size=[3] * (steps + 1),
            strides=[1, *[2] * steps],
            upsample_kernel_size=[2] * steps,
            filters=config.widths,
        )
        del self.net.skip_layers, self.net.output_block  # the same layers once more, and the class convolution

    def features(self, volume: Tensor) -> VolumeFeatures:
        """``[B, C, D, H, W]`` -> the coarsest level and the decoder's features."""
        maps = [self.net.input_block(volume)]
        for down in (*self.net.downsamples, self.net.bottleneck):
            maps.append(down(maps[-1]))
        x = maps[-1]
        for up, skip in zip(self.net.upsamples, reversed(maps[:-1]), strict=True):
            x = up(x, skip)
        return VolumeFeatures(bottleneck=maps[-1], decoder=x, maps=maps)
