"""TransUNet's parts that differ from timm's hybrid, and images of other sizes than the positions are for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import ndimage

from vesalius.errors import ConfigError
from vesalius.nn.transunet import TRANSUNET_PRESETS, TransUNet, TransUNetConfig, resize_positions

TINY = TRANSUNET_PRESETS["tiny"]


def test_the_published_network_has_as_many_parameters():
    with torch.device("meta"):
        network = TransUNet(TransUNetConfig())
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == 105.28


def test_maps_of_the_stem_fit_the_decoder_and_are_filled_up():
    network = TransUNet(TINY).eval()
    tokens, skips = network.encode(torch.rand(2, 3, 64, 96))
    assert [tuple(skip.shape[1:]) for skip in skips] == [(128, 8, 12), (64, 16, 24), (16, 32, 48)]
    assert tokens.shape == (2, 24, 96)
    quarter = skips[1]
    assert not quarter[..., -1, :].any()
    assert not quarter[..., -1].any()
    assert quarter[..., -2, :-1].any()


@pytest.mark.parametrize("skips", [0, 2])
def test_maps_that_the_decoder_is_not_given_change_nothing(skips: int):
    network = TransUNet(replace(TINY, skips=skips)).eval()
    assert TransUNet(TINY).decoder.skips == 3  # a network with fewer leaves the next one as it is
    tokens, maps = network.encode(torch.rand(1, 1, 32, 32))
    square = tokens.transpose(1, 2).unflatten(2, (2, 2))
    others = [one if number < skips else torch.zeros_like(one) for number, one in enumerate(maps)]
    assert torch.equal(network.decoder(square, maps), network.decoder(square, others))


def test_positions_are_resized_as_scipy_does():
    table = torch.rand(1, 14 * 14, 3)
    square = table[0].reshape(14, 14, 3).numpy()
    expected = ndimage.zoom(square, (8 / 14, 20 / 14, 1), order=1).reshape(1, 160, 3)
    assert resize_positions(table, (8, 20)).numpy() == pytest.approx(expected, abs=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="multiples of 16"):
        TransUNet(TINY)(torch.zeros(1, 1, 40, 64))
    with pytest.raises(ConfigError, match=r"not \[1, 2, 64, 64\]"):
        TransUNet(TINY)(torch.zeros(1, 2, 64, 64))
    with pytest.raises(ConfigError, match="0 to 3 skips"):
        TransUNetConfig(skips=4)
