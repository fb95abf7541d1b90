"""Every decoder on both trunks: sizes, gradients, losses, files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vesalius.errors import ConfigError, VesaliusError
from vesalius.images import Image, read
from vesalius.nn.convvit import ConvViT, ConvViTConfig
from vesalius.nn.vit import ViT, ViTConfig
from vesalius.tasks.segmentation import Segmenter

WIDTHS = {"linear": None, "upernet": 12, "segvit": 32, "unetpp": 16}


def vit() -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(image_size=32, patch_size=8, in_channels=1, width=16, depth=3, heads=2))


def convvit() -> ConvViT:
    torch.manual_seed(0)
    return ConvViT(ConvViTConfig(image_size=64, in_channels=1, widths=(8, 8, 16), depths=(1, 1, 1), heads=2))


def build(trunk, decoder: str, classes: tuple[str, ...]) -> Segmenter:
    torch.manual_seed(1)
    return Segmenter(trunk(), classes, decoder=decoder, width=WIDTHS[decoder])


@pytest.mark.parametrize("trunk", [vit, convvit])
@pytest.mark.parametrize("decoder", WIDTHS)
@pytest.mark.parametrize("classes", [("nodule",), ("nodule", "cyst")])
def test_non_square_images_and_gradients_everywhere(trunk, decoder, classes):
    model = build(trunk, decoder, classes)
    image = torch.randn(2, 1, 64, 96)
    mask = torch.randint(0, len(classes) + 1, (2, 64, 96))
    output = model(image)
    assert output["logits"].shape == (2, len(classes) + 1, 64, 96)
    model.loss(output, {"mask": mask}).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    first = next(p for n, p in model.encoder.named_parameters() if "patch_embed" in n)
    assert first.grad.abs().sum() > 0
    probabilities = model.eval().predict(image)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 64, 96))


@pytest.mark.parametrize("decoder", WIDTHS)
def test_learns_a_bright_square(decoder):
    model = build(vit, decoder, ("square",))
    mask = torch.zeros(2, 32, 32, dtype=torch.long)
    mask[0, 8:24, 8:24] = mask[1, 16:32, 0:16] = 1
    image = mask.unsqueeze(1).float() + 0.1 * torch.randn(2, 1, 32, 32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        model.loss(model(image), {"mask": mask}).backward()
        optimiser.step()
    guess = [model.labels(p, (32, 32)) for p in model.eval().predict(image)]
    assert model.metrics(guess, list(mask.numpy()))["dice"] > 0.8


def test_upernet_loss_adds_the_auxiliary_head():
    model = build(vit, "upernet", ("nodule",))
    output, mask = model(torch.randn(2, 1, 32, 32)), torch.randint(0, 2, (2, 32, 32))
    main = torch.nn.functional.cross_entropy(output["logits"], mask)
    auxiliary = torch.nn.functional.cross_entropy(output["auxiliary"], mask)
    torch.testing.assert_close(model.loss(output, {"mask": mask}), main + 0.4 * auxiliary)


def test_a_mask_of_another_shape_is_refused():
    model = build(vit, "linear", ("nodule",))
    output = model(torch.randn(2, 1, 32, 32))
    with pytest.raises(VesaliusError, match=r"the mask has shape \[2, 32, 30\]"):
        model.loss(output, {"mask": torch.zeros(2, 32, 30)})


@pytest.mark.parametrize("decoder", WIDTHS)
def test_config_rebuilds(decoder):
    model = build(vit, decoder, ("nodule",))
    again = Segmenter(vit(), **model.config)
    again.load_state_dict(model.state_dict())
    image = torch.randn(1, 1, 32, 32)
    assert torch.equal(again.eval().predict(image), model.eval().predict(image))


@pytest.mark.parametrize(
    ("options", "about"),
    [
        ({"decoder": "upnet"}, "did you mean 'upernet'"),
        ({"decoder": "unetpp", "layers": (0, 1)}, "give 4 numbers from 0 to 2"),
        ({"decoder": "segvit", "layers": (0, 1, 3)}, "give 3 numbers from 0 to 2"),
        ({"classes": ()}, "name the mask's classes"),
    ],
)
def test_what_cannot_be_built_says_why(options, about):
    with pytest.raises(ConfigError, match=about):
        Segmenter(vit(), **{"classes": ("nodule",)} | options)


def test_writes_masks_at_the_images_own_size(tmp_path):
    model = build(vit, "linear", ("nodule",))
    source = np.random.default_rng(0).integers(0, 255, (1, 100, 60), np.uint8)
    image = Image(source, ("gray",), spacing=(0.2, 0.3))
    probabilities = torch.zeros(2, 32, 32)
    probabilities[1, :16], probabilities[0, 16:] = 1, 1
    written = model.write(probabilities, image, tmp_path / "out", "scan", ["png", "nifti", "overlay"])
    assert [path.name for path in written] == ["scan.png", "scan.nii.gz", "scan_overlay.png"]
    mask = read(written[0]).array[0]
    assert mask.shape == (100, 60) and mask[:49].all() and not mask[51:].any()
    assert read(written[1]).spacing[-2:] == pytest.approx((0.2, 0.3))
    assert read(written[2]).array.shape == (3, 100, 60)
