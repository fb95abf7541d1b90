from __future__ import annotations

import numpy as np
import torch

from vesalius.claims.readouts import dice, fine_tuned_dice, label_accuracy, label_auc, patch_precision, ridge_dice
from vesalius.nn.vit import ViT, ViTConfig

PATCH = 4


def scene(n: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """Masks ``[n, 16, 16]`` of a square each, and tokens that know their patch's pixels through a random rotation."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((n, 16, 16), dtype=bool)
    for one in mask:
        top, left = rng.integers(0, 10, 2)
        one[top : top + 6, left : left + 6] = True
    patches = mask.reshape(n, 4, PATCH, 4, PATCH).transpose(0, 1, 3, 2, 4).reshape(n, 16, 16)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0]
    return patches @ rotation, torch.from_numpy(mask)


def test_ridge_reads_what_is_in_the_tokens_and_nothing_else():
    (train, train_mask), (test, test_mask) = scene(60, 1), scene(40, 2)
    assert ridge_dice(train, train_mask, test, test_mask, patch=PATCH) > 0.99
    assert patch_precision(train, train_mask, test, test_mask, patch=PATCH) > 0.9
    noise = np.random.default_rng(3).standard_normal((100, 16, 16))
    share = test_mask.float().mean().item()
    assert ridge_dice(noise[:60], train_mask, noise[60:], test_mask, patch=PATCH) < 2 * share / (1 + share) + 0.05


def test_labels_are_read_from_the_spread_of_tokens():
    rng = np.random.default_rng(0)
    label = np.arange(80) % 2
    tokens = rng.standard_normal((80, 16, 8)) * (1 + label)[:, None, None]
    assert label_accuracy(tokens[:40], label[:40], tokens[40:], label[40:]) > 0.95
    assert label_auc(tokens[:40], label[:40], tokens[40:], label[40:]) > 0.98
    three = np.arange(80) % 3
    assert 0.3 < label_auc(tokens[:40], three[:40], tokens[40:], three[40:]) < 0.7


def test_fine_tuning_learns_and_leaves_the_encoder_alone():
    torch.manual_seed(0)
    encoder = ViT(ViTConfig(image_size=16, patch_size=PATCH, in_channels=1, width=32, depth=1, heads=2, pool="mean"))
    before = encoder.patch_embed.proj.weight.clone()
    _, mask = scene(60, 1)
    image = mask.unsqueeze(1) + 0.3 * torch.randn(60, 1, 16, 16)
    arguments = (image[:40], mask[:40], image[40:], mask[40:])
    score = fine_tuned_dice(encoder, *arguments, steps=60, lr=5e-3)
    assert score > 0.75
    assert torch.equal(encoder.patch_embed.proj.weight, before)
    assert fine_tuned_dice(encoder, *arguments, steps=2, seed=1) == fine_tuned_dice(
        encoder, *arguments, steps=2, seed=1
    )


def test_dice_leaves_empty_truths_out():
    truth = np.array([[True, True, False], [False, False, False]])
    assert dice(np.array([[True, False, False], [True, True, True]]), truth) == 2 / 3
