"""Convolutional 3-D trunks: the U-Net of Models Genesis, UNet++ and SegResNet, all with one output contract."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.networks.nets import BasicUNetPlusPlus
from monai.networks.nets import SegResNet as MonaiSegResNet
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.nn.volumes import VolumeFeatures, VolumeTrunk


@dataclass(frozen=True)
class UNet3DConfig:
    """The U-Net's width.

    Args:
        in_channels: of the input.
        width: channels of the first convolution; the decoder has twice, the bottleneck 16 times as many.
    """

    in_channels: int = 1
    width: int = 32


class UNet3D(VolumeTrunk):
    """U-Net (Zhou 2021, Models Genesis), which always normalises by the statistics of the batch at hand.

    What it computes for a volume therefore depends on what else is in the batch. Predict with batches of one.

    >>> features = UNet3D(UNet3DConfig(width=4))(torch.zeros(1, 1, 16, 16, 24))
    >>> tuple(features.bottleneck.shape[1:]), tuple(features.decoder.shape[1:])
    ((64, 2, 2, 3), (8, 16, 16, 24))
    """

    def __init__(self, config: UNet3DConfig):
        super().__init__()
        width = config.width
        self.config, self.in_channels, self.multiple = config, config.in_channels, 8
        self.bottleneck_channels, self.decoder_channels = 16 * width, 2 * width
        self.down = nn.ModuleList(
            nn.Sequential(*_convolution(ins, mid), *_convolution(mid, 2 * mid))
            for ins, mid in (
                (config.in_channels, width),
                (2 * width, 2 * width),
                (4 * width, 4 * width),
                (8 * width, 8 * width),
            )
        )
        coarse = (16 * width, 8 * width, 4 * width)
        self.up = nn.ModuleList(nn.ConvTranspose3d(c, c, 2, stride=2) for c in coarse)
        self.join = nn.ModuleList(
            nn.Sequential(*_convolution(c + c // 2, c // 2), *_convolution(c // 2, c // 2)) for c in coarse
        )

    def features(self, volume: Tensor) -> VolumeFeatures:
        """``[B, C, D, H, W]`` -> bottleneck at 1/8 and the decoder's features."""
        maps: list[Tensor] = []
        x = volume
        for level, block in enumerate(self.down):
            x = block(F.max_pool3d(x, 2) if level else x)
            maps.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(maps[:-1]), strict=True):
            x = join(torch.cat([up(x), skip], dim=1))
        return VolumeFeatures(bottleneck=maps[-1], decoder=x, maps=maps)


def _convolution(ins: int, outs: int) -> list[nn.Module]:
    """Convolution, norm by batch statistics (nothing is tracked, so eval mode uses them too), ReLU."""
    return [nn.Conv3d(ins, outs, 3, padding=1), nn.BatchNorm3d(outs, track_running_stats=False), nn.ReLU(inplace=True)]


@dataclass(frozen=True)
class NestedUNet3DConfig:
    """UNet++'s widths.

    Args:
        in_channels: of the input.
        widths: channels of the five levels, finest first, and of the output.
    """

    in_channels: int = 1
    widths: tuple[int, ...] = (32, 32, 64, 128, 256, 32)


class NestedUNet3D(VolumeTrunk):
    """UNet++ (Zhou 2018), MONAI's, without its class convolutions.

    >>> trunk = NestedUNet3D(NestedUNet3DConfig(widths=(4, 4, 8, 8, 16, 4))).eval()
    >>> features = trunk(torch.zeros(1, 1, 32, 32, 32))
    >>> tuple(features.bottleneck.shape[1:]), tuple(features.decoder.shape[1:])
    ((16, 2, 2, 2), (4, 32, 32, 32))
    """

    def __init__(self, config: NestedUNet3DConfig):
        super().__init__()
        self.config, self.in_channels, self.multiple = config, config.in_channels, 16
        *_, self.bottleneck_channels, self.decoder_channels = config.widths
        self.nodes = BasicUNetPlusPlus(in_channels=config.in_channels, features=tuple(config.widths))
        for column in range(1, 5):
            delattr(self.nodes, f"final_conv_0_{column}")

    def features(self, volume: Tensor) -> VolumeFeatures:
        """``[B, C, D, H, W]`` -> bottleneck at 1/16 and the last node's features."""
        levels = 5
        maps: list[Tensor] = []
        for row in range(levels):
            maps.append(self.nodes.get_submodule(f"conv_{row}_0")(maps[-1] if maps else volume))
        nodes = [[level] for level in maps]
        for column in range(1, levels):
            for row in range(levels - column):
                up = self.nodes.get_submodule(f"upcat_{row}_{column}")
                nodes[row].append(up(nodes[row + 1][column - 1], torch.cat(nodes[row][:column], dim=1)))
        return VolumeFeatures(bottleneck=maps[-1], decoder=nodes[0][-1], maps=maps)


@dataclass(frozen=True)
class SegResNetConfig:
    """SegResNet's width and depth.

    Args:
        in_channels: of the input.
        width: channels at full resolution; they double at every level.
        down, up: residual blocks of the levels, finest first, and of the decoder's steps, coarsest first.
    """

    in_channels: int = 1
    width: int = 16
    down: tuple[int, ...] = (1, 2, 2, 4)
    up: tuple[int, ...] = (1, 1, 1)


class SegResNet(VolumeTrunk):
    """Residual encoder and decoder (Myronenko 2018), MONAI's, up to its class convolution.

    >>> trunk = SegResNet(SegResNetConfig(width=8)).eval()
    >>> features = trunk(torch.zeros(1, 1, 16, 16, 24))
    >>> tuple(features.bottleneck.shape[1:]), tuple(features.decoder.shape[1:])
    ((64, 2, 2, 3), (8, 16, 16, 24))
    """

    def __init__(self, config: SegResNetConfig):
        super().__init__()
        self.config, self.in_channels = config, config.in_channels
        self.multiple = 2 ** (len(config.down) - 1)
        self.bottleneck_channels, self.decoder_channels = config.width * self.multiple, config.width
        self.net = MonaiSegResNet(
            init_filters=config.width,
            in_channels=config.in_channels,
            blocks_down=tuple(config.down),
            blocks_up=tuple(config.up),
        )
        norm, activation, _ = self.net.conv_final
        self.net.conv_final = nn.Sequential(norm, activation)

    def features(self, volume: Tensor) -> VolumeFeatures:
        """``[B, C, D, H, W]`` -> the coarsest level and the decoder's features."""
        bottleneck, maps = self.net.encode(volume)
        decoded = self.net.decode(bottleneck, maps[::-1])
        return VolumeFeatures(bottleneck=bottleneck, decoder=decoded, maps=maps)
