"""The hierarchical encoder: nothing of a hidden patch leaks, any size works, every output has its shape."""

from __future__ import annotations

import pytest
import torch

from vesalius.errors import ConfigError
from vesalius.nn.convvit import ConvViT, ConvViTConfig

TINY = {"image_size": 64, "widths": (8, 12, 16), "depths": (1, 1, 2), "heads": 2}


def _encoder(**options):
    torch.manual_seed(0)
    return ConvViT(ConvViTConfig(**{**TINY, **options})).eval()


def test_hidden_patches_have_no_influence_on_kept_tokens():
    encoder = _encoder(image_size=96)
    keep = torch.tensor([[0, 7, 22]])
    image = torch.rand(1, 3, 96, 96)
    changed = torch.rand(1, 3, 96, 96)
    for token in keep[0].tolist():
        row, column = divmod(token, 6)
        place = (slice(None), slice(None), slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
        changed[place] = image[place]
    with torch.no_grad():
        assert torch.equal(encoder(image, keep=keep).patches, encoder(changed, keep=keep).patches)
        everything = torch.arange(36)[None]
        assert not torch.equal(encoder(image, keep=everything).patches, encoder(changed, keep=everything).patches)


def test_keeping_everything_in_order_is_not_masking():
    encoder = _encoder()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        whole, kept = encoder(image), encoder(image, keep=torch.arange(16).expand(2, -1))
        torch.testing.assert_close(whole.patches, kept.patches)
    assert [tuple(m.shape[1:]) for m in whole.maps] == [(8, 16, 16), (12, 8, 8), (16, 4, 4)]
    assert kept.maps == []


def test_fusion_adds_the_fine_stages():
    with_fusion, without = _encoder(), _encoder(fusion=False)
    without.load_state_dict(with_fusion.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(with_fusion(image).patches, without(image).patches)
        torch.testing.assert_close(with_fusion(image).maps[2], without(image).maps[2])


def test_other_sizes_extra_tokens_and_bias():
    encoder = _encoder(relative="per_block", layer_scale=1.0, eps=1e-5, final_norm=False, fusion=False)
    for bias in encoder.relative:
        torch.nn.init.normal_(bias.table)
    image = torch.rand(1, 3, 32, 80)
    with torch.no_grad():
        plain = encoder(image, layers=(1,))
        assert plain.grid == (2, 5)
        hidden = torch.zeros(1, 1, 12, 12)
        hidden[..., :2] = float("-inf")  # nobody looks at the two extra tokens
        prompted = encoder(image, extra=torch.rand(1, 2, 16), bias=hidden, layers=(1,))
    assert prompted.layers[1].shape == (1, 12, 16)
    torch.testing.assert_close(prompted.patches, plain.patches)


def test_config_rebuilds_it_and_gradients_reach_everything():
    encoder = _encoder(relative="per_block", layer_scale=0.1)
    again = type(encoder)(encoder.config)
    again.load_state_dict(encoder.state_dict())
    again(torch.rand(1, 3, 64, 64), keep=torch.tensor([[1, 2, 5]])).patches.square().sum().backward()
    assert [name for name, p in again.named_parameters() if p.grad is None] == []


def test_what_does_not_fit_is_named():
    encoder = _encoder()
    with pytest.raises(ConfigError, match="60 x 64 cannot be cut into patches of 16"):
        encoder(torch.zeros(1, 3, 60, 64))
    with pytest.raises(ConfigError, match="1 input channels for a network of 3"):
        encoder(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ConfigError, match="no mask token"):
        encoder(torch.zeros(1, 3, 64, 64), replace=torch.zeros(1, 16, dtype=torch.bool))
    with pytest.raises(ConfigError, match="image_size = 60"):
        ConvViTConfig(image_size=60)
