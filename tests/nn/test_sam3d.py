"""3DSAM-adapter's network: the folded stem, batches, any grid, what clicks do, and the base's own names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vesalius.errors import ConfigError
from vesalius.nn.checkpointing import recompute
from vesalius.nn.sam import SAM_PRESETS, SamViT
from vesalius.nn.sam3d import Sam3D, Sam3DShape
from vesalius.nn.sam3d_heads import ABSENT

TINY = replace(SAM_PRESETS["sam_tiny"], width=24, image_size=64, heads=2, neck=16)
SHAPE = Sam3DShape(TINY, window=4, layers=8, neck=16, sampler_heads=2, sampler_hidden=32, hidden=8)


def build(**changes) -> Sam3D:
    torch.manual_seed(0)
    network = Sam3D.on(SamViT(changes.pop("sam", TINY)), replace(SHAPE, **changes)).eval()
    for parameter in network.parameters():  # tables and embeddings start at constants, which would hide their order
        if parameter.std() == 0 or parameter.numel() < 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize("channels", [1, 3])
def test_the_folded_stem_is_enlarging_cutting_and_merging(channels):
    encoder = build(in_channels=channels).encoder
    volume = torch.randn(2, channels, 8, 16, 24)
    large = F.interpolate(volume, scale_factor=4, mode="trilinear").expand(-1, 3, -1, -1, -1)
    slices = large.transpose(1, 2).flatten(0, 1)
    x = encoder.patch_embed["proj"](slices).unflatten(0, (2, -1)).permute(0, 2, 3, 4, 1)
    x = encoder.slice_embed(x).permute(0, 2, 3, 4, 1)
    places = F.interpolate(encoder.pos_embed.permute(0, 3, 1, 2), (4, 6), mode="bilinear").permute(0, 2, 3, 1)
    depths = F.interpolate(encoder.depth_embed.mT, 2, mode="linear").mT
    torch.testing.assert_close(encoder.embed(volume), x + places.unsqueeze(3) + depths, rtol=1e-4, atol=1e-5)


def test_a_batch_with_clicks_of_different_number_is_its_crops_one_by_one():
    network, volume = build(), torch.randn(2, 1, 16, 16, 32)
    points = torch.tensor([[[3.0, 4, 5], [9, 9, 20]], [[8, 8, 8], [0, 0, 0]]])
    labels = torch.tensor([[1, 1], [1, ABSENT]])
    both = network(volume, points, labels)
    first, second = network(volume[:1], points[:1]), network(volume[1:], points[1:, :1])
    torch.testing.assert_close(both, torch.cat([first, second]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "sam"),
    [((12, 20, 28), TINY), ((4, 4, 8), TINY), ((16, 16, 16), replace(TINY, depth=7, heads=3, global_blocks=(6,)))],
)
def test_any_grid_and_any_sam(size, sam):
    network = build(sam=sam)
    scores = network(torch.randn(1, 1, *size), torch.zeros(1, 1, 3))
    assert scores.shape == (1, 2, *size)
    assert scores.isfinite().all()


def test_a_crop_that_cannot_be_cut_is_an_error():
    with pytest.raises(ConfigError, match=r"choose multiples of \[4, 4, 4\]"):
        build()(torch.zeros(1, 1, 16, 18, 16), torch.zeros(1, 1, 3))
    with pytest.raises(ConfigError, match="3 channels for a network of 1"):
        build()(torch.zeros(1, 3, 16, 16, 16), torch.zeros(1, 1, 3))
    with pytest.raises(ConfigError, match="2 channels on a SAM of 3"):
        replace(SHAPE, in_channels=2)
    with pytest.raises(ConfigError, match="no clicks"):
        build()(torch.zeros(1, 1, 16, 16, 16))


def test_clicks_are_a_set_whose_places_matter():
    network, volume = build(), torch.randn(1, 1, 16, 16, 16)
    points = torch.tensor([[[2.0, 3, 4], [12, 10, 8]]])
    scores = network(volume, points)
    torch.testing.assert_close(network(volume, points.flip(1)), scores, rtol=1e-4, atol=1e-5)
    for other in (points[:, :1], points[:, [0, 1, 1]], points.flip(2)):
        assert not torch.allclose(network(volume, other), scores, atol=1e-5)


def test_labels_and_positions_are_options():
    """As published, a click on the background says the same as one on the foreground."""
    volume, points = torch.zeros(1, 1, 16, 16, 16), torch.tensor([[[4.0, 8, 8]]])
    plain, aware, placed = build(), build(labels=True), build(positions=True)
    hit, miss = torch.tensor([[1]]), torch.tensor([[0]])
    assert torch.equal(plain(volume, points, hit), plain(volume, points, miss))
    assert not torch.allclose(aware(volume, points, hit), aware(volume, points, miss), atol=1e-6)

    def lean(network: Sam3D) -> float:
        """How much differs between a click on the left and one on the right of a crop without contents."""
        near, far = network(volume, points), network(volume, points.flip(2) + 3)
        return float((near - far).abs().max())

    with torch.no_grad():
        assert lean(placed) > 10 * lean(plain)


def test_blocks_can_be_recomputed():
    network = build()
    volume, points = torch.randn(1, 1, 16, 16, 16), torch.tensor([[[4.0, 8, 8]]])
    network(volume, points).square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    recompute(network)
    network(volume, points).square().mean().backward()
    assert all(torch.equal(network.get_parameter(name).grad, value) for name, value in gradients.items())


def test_the_base_keeps_its_names_and_values():
    torch.manual_seed(0)
    sam = SamViT(TINY)
    torch.nn.init.normal_(sam.blocks[1].attn.rel_pos_h)
    encoder = Sam3D.on(sam, SHAPE).encoder
    own = {name: tensor for name, tensor in sam.state_dict().items() if not name.startswith("neck.")}
    state = encoder.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in own.items())
    table = (own["blocks.1.attn.rel_pos_h"] + own["blocks.1.attn.rel_pos_w"]) / 2
    assert torch.equal(state["blocks.1.attn.rel_pos_d"], table)
    with pytest.raises(ConfigError, match="another SAM"):
        encoder.take_over(SamViT(replace(TINY, depth=6)).state_dict())
