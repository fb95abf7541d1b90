"""The shared losses: parity with the authors' Dice, ignored pixels, masks that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vesalius.errors import VesaliusError
from vesalius.nn.losses import check_mask, cross_entropy, dice_ce, foreground_dice, soft_dice
from vesalius.published.fixture import Fixture

PARITY = Path(__file__).parents[1] / "parity"


def test_soft_dice_agrees_with_the_authors_code():
    fixture = Fixture.read(PARITY / "deblur_dice_loss_a.json.gz")
    probability, truth = (torch.from_numpy(fixture.inputs[name]) for name in ("probability", "truth"))
    assert fixture.error("loss", soft_dice(probability, truth).double().numpy()) < 1e-6


def test_one_sigmoid_output_is_the_two_class_softmax():
    torch.manual_seed(0)
    logit, mask = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 8, 8))
    both = torch.cat([torch.zeros_like(logit), logit], dim=1)
    torch.testing.assert_close(foreground_dice(both, mask), soft_dice(logit.sigmoid(), mask[:, None].float()))


@pytest.mark.parametrize("loss", [foreground_dice, cross_entropy, dice_ce])
def test_ignored_pixels_have_no_influence(loss):
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    mask[:, 5:] = 255
    before = loss(logits, mask)
    logits[:, :, 5:] += torch.randn(2, 3, 3, 8)
    torch.testing.assert_close(loss(logits, mask), before)


def test_a_mask_without_any_pixel_that_counts_costs_nothing():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = dice_ce(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss == 0 and logits.grad.abs().sum() == 0


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(VesaliusError, match=r"shape \[1, 4, 5\], the image asks for \[1, 4, 4\]"):
        check_mask(torch.zeros(1, 4, 5), (1, 4, 4), 2)
    with pytest.raises(VesaliusError, match="value 3 but there are 2 classes"):
        check_mask(torch.full((1, 4, 4), 3), (1, 4, 4), 2)
