from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vesalius.errors import ConfigError
from vesalius.nn.masking import Rings
from vesalius.pretrain import system
from vesalius.pretrain.usfm import PRESETS, USFM, USFMConfig, dual_loss, spatial_loss, spectral_loss

SMALL = replace(PRESETS["tiny"], image_size=32, patch_size=4, mask_block=8, width=32, depth=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(config: USFMConfig, n: int = 4) -> tuple[USFM, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    module = USFM(config)
    return module, module.corrupt(torch.randn(n, 1, 32, 32), generator=generator())


def test_loss_is_zero_for_a_perfect_restoration():
    _, data = batch(SMALL)
    assert all(float(term) == 0 for term in dual_loss(data["image"], data["image"], data["mask"], data["stopped"]))


def test_spatial_loss_is_the_mean_error_of_masked_pixels():
    image, mask = torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = True
    restored = image + 1
    restored[..., :4, :4] = 0.5
    assert float(spatial_loss(restored, image, mask)) == pytest.approx(0.5, rel=1e-5)


def test_spectral_loss_sees_stopped_bins_alone():
    image = torch.randn(2, 1, 16, 16)
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16)
    stopped = torch.zeros(2, 16, 16, dtype=torch.bool)
    stopped[:, 8, 11] = True  # frequency +3 along the row
    other = stopped.roll(1, -1)
    assert float(spectral_loss(image + wave, image, stopped)) == pytest.approx(8.0, rel=1e-4)
    assert float(spectral_loss(image + wave, image, other)) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_each_term_alone_reaches_the_encoder(weight):
    module, data = batch(SMALL)
    _, spatial, spectral = module.loss(data)
    (spectral if weight else spatial).backward()
    assert module.encoder.patch_embed.proj.weight.grad.abs().sum() > 0


def test_corruption_says_what_is_corrupted():
    _, spatial = batch(replace(SMALL, corruption="spatial"))
    assert not spatial["stopped"].any()
    assert spatial["mask"].float().mean() == pytest.approx(0.625)
    _, frequency = batch(replace(SMALL, corruption="frequency"))
    assert not frequency["mask"].any()
    assert frequency["stopped"].flatten(1).any(1).all()
    _, separate = batch(replace(SMALL, corruption="separate"), n=32)
    masked, stopped = (separate[name].flatten(1).any(1) for name in ("mask", "stopped"))
    assert (masked ^ stopped).all()
    assert masked.any()
    assert stopped.any()
    _, dual = batch(SMALL)
    assert dual["mask"].flatten(1).any(1).all()
    assert dual["stopped"].flatten(1).any(1).all()


def test_hidden_pixels_have_no_influence_with_a_mask_token():
    module, data = batch(replace(SMALL, corruption="spatial", fill="mask_token"))
    hidden = data["mask"].repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1)
    with torch.no_grad():
        first = module(data["corrupted"], data["mask"])
        second = module(torch.where(hidden, 9.0, data["corrupted"]), data["mask"])
    assert torch.equal(first, second)


def test_a_view_is_a_function_of_its_generator():
    module = USFM(SMALL)
    sample = {"image": torch.rand(1, 50, 60)}
    first, second, third = (module.view(sample, generator(seed)) for seed in (1, 1, 2))
    assert {name: tuple(value.shape) for name, value in first.items()} == {
        "image": (1, 32, 32),
        "corrupted": (1, 32, 32),
        "mask": (8, 8),
        "stopped": (32, 32),
    }
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["corrupted"], third["corrupted"])


def test_a_few_steps_lower_the_loss():
    module, data = batch(replace(SMALL, lr=5e-3), n=8)
    module.total_steps = 30
    plan = module.configure_optimizers()
    losses = []
    for _ in range(30):
        loss = module.loss(data)[0]
        plan["optimizer"].zero_grad()
        loss.backward()
        plan["optimizer"].step()
        plan["lr_scheduler"]["scheduler"].step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_organs_are_drawn_evenly_by_default():
    organs = ["liver"] * 9 + ["thyroid"]
    balanced = USFM(SMALL).sampling_weights(organs)
    np.testing.assert_allclose(balanced, [1 / 18] * 9 + [0.5])
    np.testing.assert_allclose(USFM(replace(SMALL, organ_alpha=1.0)).sampling_weights(organs), 0.1)


def test_paper_preset_and_published_decoder_names():
    config = PRESETS["paper"]
    assert (config.encoder.width, config.encoder.depth, config.encoder.relative) == (768, 12, "shared")
    assert config.contract.size == 224
    names = dict(USFM(SMALL).named_parameters())
    assert names["decoder.0.weight"].shape == (16, 32, 1, 1)


def test_refusals():
    with pytest.raises(ConfigError, match="did you mean 'usfm'"):
        system("usmf")
    with pytest.raises(ConfigError, match="mask_block"):
        replace(SMALL, mask_block=6)
    with pytest.raises(ConfigError, match="never grow"):
        Rings(base=2)
