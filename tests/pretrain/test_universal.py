"""The Universal Model's loss counts labelled classes only, and its network is built by name."""

from __future__ import annotations

import pytest
import torch

from vesalius.errors import ConfigError
from vesalius.pretrain.universal import (
    PRESETS,
    TRUNKS,
    UniversalConfig,
    build,
    learning_rate,
    partial_loss,
    with_pseudo_labels,
)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, 5, generator=generator)
    target = torch.randint(0, 2, (2, 4, 3, 4, 5), generator=generator, dtype=torch.uint8)
    labelled = torch.tensor([[True, False, True, False], [False, False, True, True]])
    return logits, target, labelled


@pytest.mark.parametrize("per_slice", [False, True])
def test_what_is_not_labelled_has_no_part(batch, per_slice):
    logits, target, labelled = batch
    logits = logits.requires_grad_()
    total, *_ = partial_loss(logits, target, labelled, per_slice=per_slice)
    total.backward()
    reached = logits.grad.abs().sum((2, 3, 4)) > 0
    assert torch.equal(reached, labelled)
    changed = torch.where(labelled.view(2, 4, 1, 1, 1), target, 255)
    assert torch.equal(partial_loss(logits, changed, labelled, per_slice=per_slice)[0], total)


def test_nothing_labelled_costs_nothing_and_still_has_a_gradient(batch):
    logits, target, labelled = batch
    logits = logits.requires_grad_()
    total, *_ = partial_loss(logits, target, torch.zeros_like(labelled))
    total.backward()
    assert float(total.detach()) == 0
    assert logits.grad.abs().sum() == 0


def test_dice_by_slice_idles_where_the_class_is_absent():
    target = torch.zeros(1, 1, 10, 4, 4, dtype=torch.uint8)
    target[:, :, 0] = 1
    perfect = 40 * (target.float() - 0.5)
    labelled = torch.tensor([[True]])
    assert float(partial_loss(perfect, target, labelled)[2]) < 0.05
    assert float(partial_loss(perfect, target, labelled, per_slice=True)[2]) > 0.9


def test_pseudo_labels_fill_old_classes_only_where_nothing_is_labelled():
    target = torch.zeros(2, 3, 1, 1, 2, dtype=torch.uint8)
    labelled = torch.tensor([[True, False, True], [False, False, True]])
    old = torch.full((2, 2, 1, 1, 2), 3.0)
    filled, known = with_pseudo_labels(target, labelled, old, [0, 1])
    assert known.all()
    assert filled[:, :, 0, 0, 0].tolist() == [[0, 1, 0], [1, 1, 0]]
    assert target.sum() == 0


@pytest.mark.parametrize(("trunk", "width"), [("unet3d", 8), ("segresnet", 8), ("nested_unet3d", 4), ("dints", 8)])
def test_every_trunk_takes_the_head(trunk, width):
    config = UniversalConfig(classes=("liver", "spleen"), trunk=trunk, width=width, embedding=16)
    network = build(config, torch.randn(2, 16)).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)


def test_text_needs_embeddings():
    assert set(TRUNKS) >= {config.trunk for config in PRESETS.values()}
    with pytest.raises(ConfigError, match="text embeddings: none"):
        build(PRESETS["tiny"])
    assert learning_rate(0, UniversalConfig()) == pytest.approx(1e-4 / 99)
