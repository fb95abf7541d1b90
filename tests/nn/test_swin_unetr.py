"""Swin UNETR: both orders of patch merging, and the parts that must agree with MONAI's."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR

from vesalius.errors import ConfigError
from vesalius.nn.swin_ssl import SwinSSL
from vesalius.nn.swin_unetr import LEGACY_OFFSETS, LegacyPatchMerging, SwinConfig, SwinEncoder, SwinUNETR


@pytest.fixture
def volume():
    return torch.rand(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_two_orders_of_patch_merging_are_two_functions_of_the_same_weights(volume):
    torch.manual_seed(0)
    repaired = SwinEncoder(SwinConfig(width=12, window=4)).eval()
    legacy = SwinEncoder(SwinConfig(width=12, window=4, merging="legacy")).eval()
    legacy.load_state_dict(repaired.state_dict())  # every key and shape fits
    with torch.no_grad():
        new, old = repaired(volume).maps, legacy(volume).maps
    torch.testing.assert_close(new[0], old[0])  # before the first merging
    for level in range(1, 5):
        assert 0.05 < (new[level] - old[level]).norm() / new[level].norm()


def test_legacy_merging_reads_two_neighbours_twice_and_two_never():
    merging = LegacyPatchMerging(dim=1, spatial_dims=3)
    cube = torch.zeros(1, 2, 2, 2, 1)
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    seen = {}
    for at in [(d, h, w) for d in (0, 1) for h in (0, 1) for w in (0, 1)]:
        one = cube.clone()
        one[(0, *at, 0)] = 1
        seen[at] = int(merging(one).sum())
    assert {at for at, times in seen.items() if times == 0} == {(1, 1, 0), (0, 1, 1)}
    assert {at for at, times in seen.items() if times == 2} == {(0, 1, 0), (0, 0, 1)}
    assert len(LEGACY_OFFSETS) == 8


def test_decoder_is_monais(volume):
    published = MonaiSwinUNETR(in_channels=1, out_channels=2, feature_size=12, window_size=4).eval()
    ours = SwinUNETR(SwinConfig(width=12, window=4)).eval()
    names = {"swinViT": "encoder.swin", "encoder10": "bottleneck"}
    names |= {f"encoder{n}": f"skips.{n - 1}" for n in range(1, 5)} | {
        f"decoder{n}": f"ups.{5 - n}" for n in range(1, 6)
    }
    state = {}
    for name, tensor in published.state_dict().items():
        head, _, rest = name.partition(".")
        if head in names and "relative_position_index" not in name:
            state[f"{names[head]}.{rest}"] = tensor
    ours.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(published.out(ours(volume).decoder), published(volume))


def test_a_pretrained_encoder_gets_a_decoder(volume):
    encoder = SwinEncoder(SwinConfig(width=12, window=4, merging="legacy")).eval()
    trunk = SwinUNETR.on(encoder).eval()
    assert trunk.config.merging == "legacy"
    torch.testing.assert_close(trunk.encoder(volume).bottleneck, encoder(volume).bottleneck)


def test_sizes_and_channels_are_checked(volume):
    encoder = SwinEncoder(SwinConfig(width=12, window=4))
    with pytest.raises(ConfigError, match="multiples of 32"):
        encoder(torch.zeros(1, 1, 64, 48, 32))
    with pytest.raises(ConfigError, match=r"reads \[B, 1, D, H, W\]"):
        encoder(torch.zeros(1, 2, 64, 32, 32))
    with pytest.raises(ConfigError, match="64 x 32 x 32"):
        SwinSSL(encoder)(volume[:, :, :32])


def test_index_buffers_are_not_stored():
    assert not [name for name in SwinEncoder(SwinConfig(width=12, window=4)).state_dict() if "index" in name]
