"""Slices know of each other through the adapters alone, the base keeps its tensors, and what trains gets a gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from vesalius.errors import ConfigError
from vesalius.nn.masam import MaSam, SliceAdapter, StackAdapters
from vesalius.nn.sam import SamConfig, SamDecoderConfig
from vesalius.nn.sam_decoder import Sam

SMALL = SamConfig(
    image_size=64,
    width=24,
    depth=2,
    heads=2,
    global_blocks=(1,),
    window=3,
    neck=32,
    decoder=SamDecoderConfig(mlp=32, iou_hidden=32),
)
PLAIN = {"width": 0, "rank": 0}
VOLUME = torch.rand(2, 5, 1, 64, 48, generator=torch.Generator().manual_seed(0))


def network(**adapters: object) -> MaSam:
    torch.manual_seed(0)
    return MaSam.on(Sam(SMALL), 2, StackAdapters(**{"width": 12, "rank": 4, **adapters})).eval()  # type: ignore[arg-type]


def scores(net: MaSam, volume: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(volume)


def test_only_slice_adapters_let_slices_know_of_each_other() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    flat = network(width=0)
    assert torch.allclose(scores(flat, VOLUME[:, order]), scores(flat, VOLUME)[:, order], atol=1e-5)
    deep = network()
    gaps = (scores(deep, VOLUME[:, order]) - scores(deep, VOLUME)[:, order]).abs().amax((0, 2, 3, 4))
    assert (gaps > 1e-4).all()


def test_a_batch_is_its_stacks_and_any_depth_runs() -> None:
    net = network()
    both = scores(net, VOLUME)
    assert both.shape == (2, 5, 3, 64, 48)
    assert torch.allclose(both[1:], scores(net, VOLUME[1:]), atol=1e-5)
    for depth in (1, 2, 4):
        assert scores(net, VOLUME[:, :depth]).shape[1] == depth


def test_an_adapter_mixes_as_far_as_its_kernel() -> None:
    adapter = SliceAdapter(8, 4)
    adapter.slices = 5
    x = torch.randn(10, 2, 2, 8, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[1] = changed[1].flip(-1)
    moved = (adapter(changed) - adapter(x)).abs().amax((1, 2, 3)) > 1e-6
    assert moved.tolist() == [True] * 3 + [False] * 7  # not the fourth slice, and not the second stack


def test_without_adapters_and_at_zero_the_features_are_those_of_sam() -> None:
    torch.manual_seed(0)
    sam = Sam(SMALL).eval()
    image = VOLUME.expand(-1, -1, 3, -1, -1)
    for options in (PLAIN, {"width": 12, "rank": 4, "identity": True}, {**PLAIN, "lora": 4}):
        net = MaSam.on(sam, 2, StackAdapters(**options)).eval()
        with torch.inference_mode():
            assert torch.allclose(net.encode(image), sam.image_encoder(image.flatten(0, 1)), atol=1e-6)
    assert not torch.allclose(network().encode(image), sam.image_encoder(image.flatten(0, 1)), atol=1e-2)


def test_the_base_keeps_its_names_and_its_values() -> None:
    torch.manual_seed(0)
    sam = Sam(SMALL)
    net = MaSam.on(sam, 2, StackAdapters(width=12, rank=4))
    state = net.state_dict()
    own = {name for name in sam.state_dict() if name.startswith("image_encoder.")}
    assert own == set(state) - set(net.adapted_state())
    assert all(torch.equal(state[name], sam.state_dict()[name]) for name in own)
    for name in ("mask_decoder.iou_token.weight", "mask_decoder.output_upscaling.3.weight"):
        assert torch.equal(state[name], sam.state_dict()[name])


@pytest.mark.parametrize("boxes", [False, True])
def test_all_that_trains_has_a_gradient_and_nothing_else_does(boxes: bool) -> None:
    net = network(dropout=0.0).freeze(boxes=boxes).train()
    torch.nn.init.normal_(net.fact.v.weight)  # at its start of zero, the inner factors have none
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    given = torch.tensor([4.0, 8.0, 40.0, 30.0]).expand(2, 5, 4) if boxes else None
    net(VOLUME, given).square().mean().backward()
    trains = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trains == {name for name, p in net.named_parameters() if p.grad is not None}
    assert trains < set(net.adapted_state())
    assert ("prompt_encoder.point_embeddings.2.weight" in trains) == boxes
    torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1).step()
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    # what is the same for all keys cancels in a softmax
    assert trains - moved <= {name for name in trains if name.endswith("k_proj.bias")} and moved <= trains


def test_lora_moves_query_and_value_alone() -> None:
    net = network(**PLAIN, lora=4)
    qkv, x = net.image_encoder.blocks[0].attn.qkv, torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    plain = qkv(x)
    torch.nn.init.normal_(qkv.q[1].weight)
    assert ((qkv(x) - plain).abs().unflatten(1, (3, 24)).amax((0, 2)) > 1e-3).tolist() == [True, False, False]
    trains = {name for name, p in net.freeze().named_parameters() if p.requires_grad}
    assert sum(".attn.qkv." in name for name in trains) == 8 and trains < set(net.adapted_state())
    with pytest.raises(ConfigError, match="set one of them to 0"):
        StackAdapters(lora=4)


def test_a_copy_shares_no_factor() -> None:
    net = network()
    other = copy.deepcopy(net)
    torch.nn.init.ones_(other.fact.v.weight)
    assert torch.equal(scores(net, VOLUME), scores(network(), VOLUME))
    assert not torch.allclose(scores(other, VOLUME), scores(net, VOLUME), atol=1e-3)


def test_a_box_is_read_as_columns_and_rows() -> None:
    net = network()
    with torch.inference_mode():
        wide, tall = (net(VOLUME, torch.tensor(box).expand(2, 5, 4)) for box in ([0.0, 0, 40, 9], [0.0, 0, 9, 40]))
    assert not torch.allclose(wide, tall, atol=1e-3)


def test_a_patch_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(ConfigError, match="patches of 12"):
        MaSam(SamConfig(image_size=48, patch_size=12, width=24, depth=1, heads=2, global_blocks=()), 1)
