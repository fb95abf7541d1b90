"""The pyramids: strides, what each map sees, published key names."""

from __future__ import annotations

import pytest
import torch

from vesalius.errors import ConfigError
from vesalius.nn.pyramid import DownLevel, FeaturePyramid, token_map


def test_tokens_keep_their_place():
    tokens = torch.arange(2 * 3 + 1.0).view(1, 7, 1)  # one class token, then rows of three
    assert token_map(tokens, (2, 3))[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_strides_of_a_non_square_grid_and_one_layer_per_map():
    torch.manual_seed(0)
    pyramid = FeaturePyramid(6).eval()
    layers = [torch.randn(2, 1 + 4 * 6, 6) for _ in range(4)]
    maps = pyramid(layers, (4, 6))
    assert [tuple(m.shape) for m in maps] == [(2, 6, 16, 24), (2, 6, 8, 12), (2, 6, 4, 6), (2, 6, 2, 3)]
    torch.testing.assert_close(maps[2], token_map(layers[2], (4, 6)))
    layers[0] = layers[0] + 1
    changed = [not torch.equal(a, b) for a, b in zip(maps, pyramid(layers, (4, 6)), strict=True)]
    assert changed == [True, False, False, False]


def test_names_are_the_published_ones():
    names = {name.rsplit(".", 1)[0] for name in FeaturePyramid(4).state_dict()}
    assert names == {"fpn1.0", "fpn1.1", "fpn1.3", "fpn2.0"}
    assert {name.rsplit(".", 1)[0] for name in DownLevel((2, 4)).state_dict()} == {"fpn.0", "fpn.1"}


@pytest.mark.parametrize(
    ("make", "about"),
    [
        (lambda: FeaturePyramid(4, maps=2), "use 3 or 4"),
        (lambda: FeaturePyramid(4)([torch.zeros(1, 1, 4)] * 4, (1, 1)), "cannot be halved"),
        (lambda: FeaturePyramid(4, maps=3)([torch.zeros(1, 4, 4)] * 4, (2, 2)), "4 layers for a pyramid of 3"),
        (lambda: token_map(torch.zeros(1, 3, 4), (2, 2)), "cannot fill a grid"),
    ],
)
def test_what_cannot_be_a_pyramid_says_why(make, about):
    with pytest.raises(ConfigError, match=about):
        make()
