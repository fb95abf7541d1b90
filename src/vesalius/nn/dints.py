"""DiNTS (He 2021) with the one searched topology that the Universal Model took over, built from MONAI's cells."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
import torch
from monai.networks.nets.dints import DiNTS as MonaiDiNTS
from monai.networks.nets.dints import TopologyInstance
from torch import Tensor

from vesalius.nn.volumes import VolumeFeatures, VolumeTrunk

LEVELS = 4
# One row a block; a column a path between two of the four resolutions, 1 = in use.
PATHS = (
    "1011111010", "1111011011", "1111111011", "1011111110", "1111011111", "1011111111",
    "1111010111", "1111110011", "1111011111", "1111011111", "1110011111", "1100000111",
)  # fmt: skip
# The operation of the same paths: 0 skip, 1 3x3x3, 2 3x3x1, 3 3x1x3, 4 1x3x3 convolution.
OPERATIONS = (
    "1313212011", "1031021243", "3002101210", "4221211013", "1140041111", "2000444111",
    "4300240103", "1100340413", "1002000011", "1423443031", "2023020032", "4400143021",
)  # fmt: skip
# The resolutions that hold anything, before the first block and after the last, finest first.
ENTRY, EXIT = (True, True, True, False), (True, False, True, True)


@dataclass(frozen=True)
class DiNTSConfig:
    """The network's width.

    Args:
        in_channels: of the input.
        width: channels at full resolution; the four searched levels have 2, 4, 8 and 16 times as many.
    """

    in_channels: int = 1
    width: int = 32


class DiNTS(VolumeTrunk):
    """Twelve blocks over four resolutions, 1/2 to 1/16.

    >>> trunk = DiNTS(DiNTSConfig(width=8)).eval()
    >>> features = trunk(torch.zeros(1, 1, 32, 32, 64))
    >>> tuple(features.bottleneck.shape[1:]), tuple(features.decoder.shape[1:])
    ((128, 2, 2, 4), (8, 32, 32, 64))
    """

    def __init__(self, config: DiNTSConfig):
        super().__init__()
        self.config, self.in_channels, self.multiple = config, config.in_channels, 2 ** (LEVELS + 1)
        self.bottleneck_channels, self.decoder_channels = config.width * 2**LEVELS, config.width
        paths, operations = (np.array([[int(c) for c in row] for row in code]) for code in (PATHS, OPERATIONS))
        with redirect_stdout(io.StringIO()):  # it prints which sizes it likes
            topology = TopologyInstance(
                arch_code=[paths, operations],
                channel_mul=config.width / 32,
                num_blocks=len(PATHS),
                num_depths=LEVELS,
                use_downsample=True,
            )
        self.net = MonaiDiNTS(topology, in_channels=config.in_channels, num_classes=1, use_downsample=True)
        del self.net.stem_finals

    def features(self, volume: Tensor) -> VolumeFeatures:
        """``[B, C, D, H, W]`` -> the level at 1/16 and the features of the last upsampling."""
        stems = [self.net.stem_down[str(level)](volume) for level in range(LEVELS)]
        stems = [stem if used else torch.zeros_like(stem) for stem, used in zip(stems, ENTRY, strict=True)]
        maps = self.net.dints_space(stems)
        x: Tensor | None = None
        for level in reversed(range(LEVELS)):  # from the coarsest that the last block filled
            if x is not None or EXIT[level]:
                x = self.net.stem_up[str(level)](maps[level] if x is None else maps[level] + x)
        return VolumeFeatures(bottleneck=maps[-1], decoder=x, maps=maps)
