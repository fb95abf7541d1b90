from __future__ import annotations

import pytest
import torch

from vesalius.errors import ConfigError
from vesalius.nn.unetpp import UNetPlusPlus

CHANNELS = (4, 6, 8, 8)


def test_published_layout_and_both_sizes():
    head = UNetPlusPlus(CHANNELS, 1, widths=(8, 6, 4, 4)).eval()
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert shapes["decoder.blocks.x_0_0.conv1.0.weight"] == (8, 16, 3, 3)
    assert shapes["decoder.blocks.x_2_2.conv2.0.weight"] == (4, 4, 3, 3)
    assert shapes["segmentation_head.0.weight"] == (1, 4, 3, 3)
    maps = [torch.randn(1, c, 16 // 2**i, 24 // 2**i) for i, c in enumerate(CHANNELS)]
    assert head(maps).shape == (1, 1, 32, 48)
    assert head(maps, (64, 96)).shape == (1, 1, 64, 96)


def test_maps_that_do_not_halve_say_what_to_do():
    head = UNetPlusPlus(CHANNELS, 1, widths=(8, 6, 4, 4))
    sizes = (12, 6, 3, 1)
    with pytest.raises(ConfigError, match="patch grid is even"):
        head([torch.zeros(1, c, s, s) for c, s in zip(CHANNELS, sizes, strict=True)])
