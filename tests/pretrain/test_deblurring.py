from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vesalius.data.blur import Blur
from vesalius.errors import ConfigError
from vesalius.nn.encoder import gather_tokens
from vesalius.nn.mae import patchify, unpatchify
from vesalius.nn.masking import random_keep
from vesalius.pretrain.deblurring import PRESETS, Deblurring, reconstruction_loss

SMALL = replace(
    PRESETS["tiny"], image_size=32, patch_size=4, width=32, depth=2, decoder_width=32, decoder_depth=1, decoder_heads=4
)
CONV = replace(
    PRESETS["tiny"],
    encoder="convvit",
    image_size=64,
    patch_size=16,
    width=32,
    depth=2,
    stem_widths=(8, 16),
    stem_depths=(1, 1),
    decoder_width=32,
    decoder_depth=1,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_patches_come_back_as_the_image():
    image = torch.randn(2, 3, 16, 24)
    assert torch.equal(unpatchify(patchify(image, 4), (4, 6), 3), image)
    assert torch.equal(patchify(image, 4)[0, 1].view(4, 4, 3), image[0, :, :4, 4:8].permute(1, 2, 0))


def test_loss_of_an_equal_image_is_zero_and_norm_pix_ignores_gain():
    target = torch.randn(2, 6, 16)
    removed = torch.tensor([[1.0, 0, 1, 0, 1, 1]] * 2)
    for on in ("all", "removed"):
        assert float(reconstruction_loss(target, target, removed, loss_on=on)) == 0
    prediction = torch.randn_like(target)
    plain, scaled = (reconstruction_loss(prediction, gain * target + 1, removed, norm_pix=True) for gain in (1.0, 5.0))
    torch.testing.assert_close(plain, scaled, rtol=1e-3, atol=0)


def test_visible_patches_are_learned_from_in_deblurring_alone():
    prediction = torch.zeros(1, 4, 3, requires_grad=True)
    removed = torch.tensor([[1.0, 0, 0, 1]])
    for on, visible in (("all", True), ("removed", False)):
        (gradient,) = torch.autograd.grad(
            reconstruction_loss(prediction, torch.ones(1, 4, 3), removed, loss_on=on), prediction
        )
        assert bool(gradient[0, 1:3].abs().sum() > 0) is visible
        assert gradient[0, 0].abs().sum() > 0


@pytest.mark.parametrize("config", [SMALL, CONV], ids=["vit", "convvit"])
def test_removed_patches_have_no_influence_on_kept_tokens(config):
    torch.manual_seed(0)
    module = Deblurring(config).eval()
    side = config.image_size // config.patch_size
    keep, removed, _ = random_keep(torch.rand(1, side**2, generator=generator()), config.mask_ratio)
    hidden = removed.view(1, 1, side, side).bool()
    hidden = hidden.repeat_interleave(config.patch_size, 2).repeat_interleave(config.patch_size, 3)
    image = torch.randn(1, 1, config.image_size, config.image_size)
    with torch.no_grad():
        first = module.encoder(image, keep=keep).patches
        second = module.encoder(torch.where(hidden, 7.0, image), keep=keep).patches
    assert torch.equal(first, second)
    assert first.shape == gather_tokens(torch.zeros(1, side**2, config.width), keep).shape


@pytest.mark.parametrize("config", [SMALL, CONV], ids=["vit", "convvit"])
def test_a_few_steps_lower_the_loss(config):
    torch.manual_seed(0)
    module = Deblurring(config)
    module.total_steps = 25
    sharp = torch.randn(4, 1, config.image_size, config.image_size)
    data = module.corrupt(sharp, 0.5 * sharp, generator=generator())
    plan = module.configure_optimizers()
    losses = []
    for _ in range(25):
        loss = module.loss(data)
        plan["optimizer"].zero_grad()
        loss.backward()
        plan["optimizer"].step()
        plan["lr_scheduler"]["scheduler"].step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_view_pairs_the_blurred_with_the_sharp_image():
    module = Deblurring(replace(SMALL, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)))
    sharp = torch.rand(1, 32, 32, generator=generator())
    blurred = torch.from_numpy(Blur()(sharp.numpy()))
    first, second = (module.view({"image": blurred, "sharp": sharp}, generator(3)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    back = module.contract.denormalise(first["image"])
    assert min((back - sharp).abs().max(), (back.flip(-1) - sharp).abs().max()) < 1e-5
    assert first["corrupted"].std() < 0.7 * first["image"].std()
    assert first["noise"].shape == (64,)


def test_plain_mae_and_the_blurred_control_have_their_own_targets():
    sharp, blurred = torch.ones(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    own = Deblurring(replace(SMALL, target="input")).corrupt(sharp, blurred, generator=generator())
    assert torch.equal(own["image"], blurred)
    plain = Deblurring(replace(SMALL, blur=None, loss_on="removed"))
    view = plain.view({"image": torch.rand(1, 40, 40)}, generator())
    assert torch.equal(view["image"], view["corrupted"])
    assert plain.contract.blur is None


def test_the_contract_carries_the_blur():
    assert PRESETS["paper"].contract.blur == Blur("gaussian", sigma=1.1)


def test_panels_are_pictures():
    module = Deblurring(replace(SMALL, norm_pix=True)).eval()
    data = module.corrupt(torch.randn(2, 1, 32, 32), torch.randn(2, 1, 32, 32), generator=generator())
    panels = module.panels(data)
    assert list(panels) == ["original", "corrupted", "restored"]
    assert all(0 <= picture.min() and picture.max() <= 1 for picture in panels.values())


def test_the_hierarchical_encoder_has_fixed_patches():
    with pytest.raises(ConfigError, match="patches of 16"):
        Deblurring(replace(CONV, patch_size=8))
