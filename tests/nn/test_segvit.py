"""The attention-to-mask head and its loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from vesalius.nn.segvit import ATMHead, ATMLoss, CrossAttention, atm_scores
from vesalius.published.fixture import Fixture

PARITY = Path(__file__).parents[1] / "parity"


def test_loss_agrees_with_the_authors_code():
    fixture = Fixture.read(PARITY / "usfm_atm_loss_a.json.gz")
    x = {name: torch.from_numpy(array) for name, array in fixture.inputs.items()}
    stages = [(x[f"{stage}_logits"], x[f"{stage}_masks"]) for stage in ("aux0", "aux1", "pred")]
    terms = ATMLoss(as_published=True)(stages, x["labels"])
    terms["total"] = terms.pop("loss")
    assert set(terms) == set(fixture.outputs)
    assert max(fixture.error(name, value.numpy()) for name, value in terms.items()) < 1e-5


def test_ignored_pixels_have_no_influence_on_the_loss():
    torch.manual_seed(0)
    mask = torch.randint(0, 2, (2, 8, 8))
    mask[:, :3] = 255
    logits, masks = torch.randn(2, 2, 3), torch.randn(2, 2, 8, 8)
    before = ATMLoss()([(logits, masks)], mask)["loss"]
    masks[:, :, :3] += 5
    torch.testing.assert_close(ATMLoss()([(logits, masks)], mask)["loss"], before)


def test_scores_are_scaled_products_averaged_over_heads():
    torch.manual_seed(0)
    attention = CrossAttention(8, 2).eval()
    query, memory = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    _, scores = attention(query, memory)
    q, k = attention.q(query), attention.k(memory)
    # the sum over heads of per-head products is the product over all channels
    torch.testing.assert_close(scores, q @ k.transpose(1, 2) / 2 * 4**-0.5)


def test_masks_add_up_over_stages_deepest_map_first():
    torch.manual_seed(0)
    head = ATMHead((4, 6, 8), 3, width=12, heads=3, layers=1).eval()
    maps = [torch.randn(2, 4, 8, 12), torch.randn(2, 6, 4, 6), torch.randn(2, 8, 2, 3)]
    stages = head(maps, (32, 48))
    assert [tuple(masks.shape[-2:]) for _, masks in stages] == [(8, 12), (8, 12), (32, 48)]
    assert atm_scores(stages[-1]).shape == (2, 3, 32, 48)
    maps[0] = maps[0] + 1  # the finest map is read last
    again = head(maps, (32, 48))
    torch.testing.assert_close(again[1][1], stages[1][1])
    assert not torch.allclose(again[2][1], stages[2][1])


@pytest.mark.parametrize("present", [True, False])
def test_a_query_learns_its_class_or_no_object(present):
    mask = torch.zeros(1, 4, 4, dtype=torch.long)
    mask[0, 0, 0] = int(present)
    logits = torch.full((1, 2, 3), -9.0)
    logits[0, 0, 0] = 9
    logits[0, 1, 1 if present else 2] = 9
    masks = F.one_hot(mask, 2).permute(0, 3, 1, 2) * 40.0 - 20
    assert ATMLoss()([(logits, masks)], mask)["loss"] < 1e-4
    assert ATMLoss()([(logits.flip(1), masks)], mask)["loss"] > 1
