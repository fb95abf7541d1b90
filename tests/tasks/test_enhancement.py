from __future__ import annotations

import numpy as np
import pytest
import torch

from vesalius.data.contract import InputContract
from vesalius.errors import ConfigError, VesaliusError
from vesalius.images import Image, read
from vesalius.nn.convvit import ConvViT, ConvViTConfig
from vesalius.nn.vit import ViT, ViTConfig
from vesalius.tasks.enhancement import Enhancer

CONTRACT = InputContract(size=32, channels=1, mean=(0.4,), std=(0.2,))


def vit() -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(image_size=32, patch_size=8, in_channels=1, width=16, depth=3, heads=2))


def convvit() -> ConvViT:
    torch.manual_seed(0)
    return ConvViT(ConvViTConfig(image_size=32, in_channels=1, widths=(8, 8, 16), depths=(1, 1, 1), heads=2))


@pytest.mark.parametrize("trunk", [vit, convvit])
@pytest.mark.parametrize("head", ["pixel_shuffle", "pyramid"])
@pytest.mark.parametrize("residual", [True, False])
def test_restores_at_the_inputs_size_and_trains_everything(trunk, head, residual):
    model = Enhancer(trunk(), contract=CONTRACT, head=head, residual=residual, width=8)
    unit = torch.rand(2, 1, 32, 64)
    if residual:
        torch.testing.assert_close(model(CONTRACT.normalise(unit)), unit)
        torch.nn.init.normal_((model.head[0] if head == "pixel_shuffle" else model.head.last).weight)
    output = model(CONTRACT.normalise(unit))
    assert output.shape == unit.shape
    model.loss(output, {"target": unit}).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    first = next(p for n, p in model.encoder.named_parameters() if "patch_embed" in n)
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("head", ["pixel_shuffle", "pyramid"])
def test_learns_to_brighten(head):
    torch.manual_seed(0)
    model = Enhancer(vit(), contract=CONTRACT, head=head, width=8)
    unit = torch.rand(4, 1, 32, 32) * 0.5
    batch = {"target": unit + 0.3}
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        model.loss(model(CONTRACT.normalise(unit)), batch).backward()
        optimiser.step()
    after = model.metrics(list(model.predict(CONTRACT.normalise(unit)).numpy()), list(batch["target"].numpy()))
    before = model.metrics(list(unit.numpy()), list(batch["target"].numpy()))
    assert after["psnr"] > before["psnr"] + 5


def test_config_is_plain_and_rebuilds():
    model = Enhancer(vit(), contract=CONTRACT, head="pyramid", width=8)
    again = Enhancer(vit(), **model.config)
    again.load_state_dict(model.state_dict())
    assert again.contract == CONTRACT and isinstance(model.config["contract"], dict)
    image = torch.randn(1, 1, 32, 32)
    assert torch.equal(again.eval().predict(image), model.eval().predict(image))


def test_a_target_of_another_shape_and_another_contract_are_refused():
    model = Enhancer(vit(), contract=CONTRACT)
    with pytest.raises(VesaliusError, match=r"the target has shape \[1, 1, 32, 30\]"):
        model.loss(torch.zeros(1, 1, 32, 32), {"target": torch.zeros(1, 1, 32, 30)})
    with pytest.raises(ConfigError, match="3 channels for an encoder of 1"):
        Enhancer(vit(), contract=InputContract(size=32))


def test_writes_grey_at_the_images_own_size(tmp_path):
    model = Enhancer(vit(), contract=CONTRACT)
    image = Image(np.zeros((1, 50, 40), np.uint8), ("gray",))
    (path,) = model.write(torch.full((3, 32, 32), 0.5), image, tmp_path, "scan")
    restored = read(path).array
    assert restored.shape == (1, 50, 40) and set(np.unique(restored)) <= {127, 128}
