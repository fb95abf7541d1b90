"""Random shapes: what is asked for is there, and a SAM learns from it."""

from __future__ import annotations

import torch

from vesalius.adapt.sam_shapes import draw_shapes, pretrain_shapes, prompt_loss
from vesalius.data.datasets import generator
from vesalius.nn.sam import SAM_PRESETS
from vesalius.nn.sam_decoder import Sam


def test_prompts_point_at_their_targets():
    drawn = draw_shapes(16, 96, generator(0, 0), targets=3)
    assert drawn.images.shape == (16, 3, 96, 96)
    assert drawn.masks.shape == (48, 96, 96)
    assert (drawn.images.min(), drawn.images.max()) >= (0, 0)
    x, y = drawn.points[:, 0].long().unbind(1)
    assert drawn.masks[torch.arange(48), y, x].all()
    x0, y0, x1, y1 = drawn.boxes.unbind(1)
    rows, columns = drawn.masks.any(2), drawn.masks.any(1)
    for low, high, seen in ((y0, y1, rows), (x0, x1, columns)):
        first, last = seen.float().argmax(1), 95 - seen.flip(1).float().argmax(1)
        side = last - first + 1
        assert ((low - first).abs() <= 0.1 * side + 1e-3).all()
        assert ((high - last).abs() <= 0.1 * side + 1e-3).all()
    pair = drawn.masks.view(16, 3, 96, 96)
    assert not (pair[:, 0] & ~pair[:, 1]).flatten(1).any(1).logical_not().all()  # targets differ
    assert torch.equal(draw_shapes(16, 96, generator(0, 0), targets=3).images, drawn.images)


def test_the_loss_is_of_the_best_reading():
    truth = torch.zeros(1, 8, 8)
    truth[:, 2:5, 2:5] = 1
    right, wrong = 20 * (2 * truth - 1), 20 * (1 - 2 * truth)
    logits = torch.stack([wrong, right, wrong], dim=1)
    iou = torch.tensor([[0.0, 1.0, 0.0]])
    assert prompt_loss(logits, iou, truth) < 1e-2
    assert prompt_loss(logits, 1 - iou, truth) > 0.9  # the IoU that was foretold is wrong
    assert prompt_loss(logits[:, :1], iou[:, :1], truth) > 10


def test_training_depends_on_the_seed_alone():
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        sam = Sam(SAM_PRESETS["sam_tiny"])
        losses.append(pretrain_shapes(sam, steps=4, batch=2, seed=3, progress=False))
    assert losses[0] == losses[1]
    assert not sam.training
