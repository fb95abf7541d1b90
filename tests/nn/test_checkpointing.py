"""Recomputed blocks: the same gradients, less that is kept for them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vesalius.errors import ConfigError
from vesalius.nn.checkpointing import blocks, recompute
from vesalius.nn.convvit import ConvViT, ConvViTConfig
from vesalius.nn.dints import DiNTS, DiNTSConfig
from vesalius.nn.language_head import LanguageDriven
from vesalius.nn.swin_unetr import SwinConfig, SwinUNETR
from vesalius.nn.unet3d import NestedUNet3D, NestedUNet3DConfig, SegResNet, SegResNetConfig, UNet3D, UNet3DConfig
from vesalius.nn.vit import ViT, ViTConfig

TRUNKS = {
    "swin_unetr": lambda: SwinUNETR(SwinConfig(width=12, window=4, drop_path=0.2)),
    "unet3d": lambda: UNet3D(UNet3DConfig(width=4)),
    "segresnet": lambda: SegResNet(SegResNetConfig(width=8)),
    "nested_unet3d": lambda: NestedUNet3D(NestedUNet3DConfig(widths=(4, 4, 8, 8, 16, 4))),
    "dints": lambda: DiNTS(DiNTSConfig(width=4)),
}


def kept_and_gradients(network: nn.Module, image: torch.Tensor) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes that forward keeps for backward, each storage once, and the gradients."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(image)
        loss = (output if isinstance(output, torch.Tensor) else output.patches).square().mean()
    loss.backward()
    return sum(kept.values()), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def compare(network: nn.Module, image: torch.Tensor) -> None:
    other = copy.deepcopy(network)
    recompute(other)
    assert other.state_dict().keys() == network.state_dict().keys()
    (plain, wanted), (less, found) = (kept_and_gradients(one.train(), image) for one in (network, other))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert less < 0.7 * plain
    again = copy.deepcopy(other)  # as a moving average copies it
    first = blocks(again)[0]
    assert first.forward.args[0].__self__ is first


@pytest.mark.parametrize("name", TRUNKS)
def test_language_driven_networks(name: str):
    torch.manual_seed(0)
    network = LanguageDriven(TRUNKS[name](), classes=["liver", "spleen"], width=16)
    network.head.embedding.normal_()
    compare(network, torch.rand(1, 1, 64 if name == "swin_unetr" else 32, 32, 32))


def test_vision_transformers():
    torch.manual_seed(0)
    compare(ViT(ViTConfig(image_size=64, width=64, depth=4, heads=2, drop_path=0.2)), torch.rand(2, 3, 64, 64))


def test_norms_that_count_batches_are_not_run_twice_and_a_network_without_blocks_is_named():
    stage = ConvViT(ConvViTConfig(image_size=32, widths=(8, 16, 24), depths=(1, 1, 1), heads=2))
    assert all(not isinstance(part, nn.BatchNorm2d) for block in blocks(stage) for part in block.modules())
    with pytest.raises(ConfigError, match="finds no blocks"):
        recompute(nn.Linear(2, 2))
