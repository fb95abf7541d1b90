"""The trunk: masking, prompts, other image sizes, and the identities that it rests on."""

from __future__ import annotations

import pytest
import torch

from vesalius.errors import ConfigError
from vesalius.nn.encoder import gather_tokens
from vesalius.nn.vit import ViT, ViTConfig

TINY = {"image_size": 32, "patch_size": 8, "in_channels": 1, "width": 16, "depth": 2, "heads": 2, "pool": "mean"}


def tiny(**changes) -> ViT:
    torch.manual_seed(0)
    vit = ViT(ViTConfig(**TINY | changes)).eval()
    for name, parameter in vit.named_parameters():
        if "relative" in name:
            torch.nn.init.normal_(parameter)
    return vit


@pytest.fixture
def image():
    return torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("relative", ["none", "shared", "per_block"])
def test_keeping_every_token_in_another_order_only_permutes(image, relative):
    vit = tiny(relative=relative)
    keep = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    torch.testing.assert_close(
        vit(image, keep=keep).patches, gather_tokens(vit(image).patches, keep), atol=1e-5, rtol=0
    )


def test_dropped_patches_have_no_influence(image):
    vit = tiny(positions="sincos")
    keep = torch.tensor([[0, 3, 7], [1, 2, 5]])
    changed = image.clone()
    changed[:, :, 24:, 24:] += 10  # patch 15, kept in neither image
    assert torch.equal(vit(image, keep=keep).patches, vit(changed, keep=keep).patches)


def test_replaced_patches_have_no_influence_and_need_a_mask_token(image):
    vit = tiny(mask_token=True)
    replace = torch.zeros(2, 16, dtype=torch.bool)
    replace[:, 15] = True
    changed = image.clone()
    changed[:, :, 24:, 24:] += 10
    assert torch.equal(vit(image, replace=replace).patches, vit(changed, replace=replace).patches)
    assert not torch.equal(vit(image).patches, vit(changed).patches)
    with pytest.raises(ConfigError, match="mask token"):
        tiny()(image, replace=replace)


def test_extra_tokens_get_no_relative_bias(image):
    vit = tiny(relative="per_block", positions="none")
    out = vit(image, extra=torch.zeros(2, 3, 16), layers=(1,))
    assert out.patches.shape == (2, 16, 16) and out.layers[1].shape == (2, 20, 16)
    minus_infinity = torch.zeros(1, 1, 20, 20)
    minus_infinity[..., 1:4] = float("-inf")  # nobody attends to the extra tokens: as if they were not there
    alone = vit(image, extra=torch.zeros(2, 3, 16), bias=minus_infinity)
    torch.testing.assert_close(alone.patches, vit(image).patches, atol=1e-5, rtol=0)


def test_key_bias_cancels_in_the_softmax(image):
    vit = tiny()
    before = vit(image).patches
    with torch.no_grad():
        vit.blocks[0].attn.qkv.bias[16:32] = 5.0
    torch.testing.assert_close(vit(image).patches, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", ["learned", "sincos", "none"])
def test_any_multiple_of_the_patch_size_works(positions):
    vit = tiny(positions=positions, relative="shared")
    out = vit(torch.randn(1, 1, 64, 48))
    assert out.grid == (8, 6) and out.patches.shape == (1, 48, 16) and out.patches.isfinite().all()


def test_wrong_inputs_are_named(image):
    with pytest.raises(ConfigError, match="patches of 8"):
        tiny()(torch.zeros(1, 1, 30, 32))
    with pytest.raises(ConfigError, match="3 input channels"):
        tiny()(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigError, match="multiple of patch_size"):
        ViTConfig(image_size=30, patch_size=8)


def test_residual_branches_start_smaller_with_depth_in_beit():
    blocks = tiny(init="beit", width=64, depth=8).blocks
    assert blocks[7].mlp.fc2.weight.std() < 0.5 * blocks[0].mlp.fc2.weight.std()
