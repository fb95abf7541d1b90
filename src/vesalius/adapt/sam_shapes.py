"""A small SAM that has learned something: trained for a minute on random overlapping shapes with one click or box.

SAM's training code was not released and its data is a billion masks, so adapters on a small trunk would stand on noise.
Here the trunk learns what an outline is, and to answer prompts, from pictures that cost nothing. As in the paper
(Kirillov et al. 2023, appendix A) the best of a click's three readings is trained, a box's single mask, and each mask's
predicted IoU. The loss is cross-entropy + Dice: with the paper's 20 focal + Dice, which is made for millions of steps,
nothing but background is learned in some hundreds. Its rounds of correcting clicks are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vesalius.data.datasets import generator
from vesalius.data.progress import track
from vesalius.nn.optim import linear_warmup_cosine
from vesalius.nn.sam_decoder import Sam, TwoWayAttention

STEPS = 400
LOOSE = 0.1  # a box's corners are moved by up to this part of its sides
SMALLEST = 0.004  # of the picture's area; smaller targets are not asked for


@dataclass(frozen=True)
class Shapes:
    """Pictures of overlapping shapes, with T targets in each.

    Args:
        images: ``[B, 3, S, S]`` from 0 to 255, grey.
        labels: ``[B, S, S]``, the topmost shape of each pixel from 1, 0 for none. The last shape lies on the one before
            it, as a nucleus in its cell.
        masks: ``[B T, S, S]`` bool, of the first picture first: a shape as far as it is seen, or the last two together.
        points: ``[B T, 1, 2]``, (x, y) of a random pixel of each target.
        boxes: ``[B T, 4]``, of each target, loosened.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    points: Tensor
    boxes: Tensor

    @property
    def image_index(self) -> Tensor:
        """The picture of each target, ``[B T]``."""
        return torch.arange(len(self.images)).repeat_interleave(len(self.masks) // len(self.images))


def draw_shapes(count: int, size: int, chance: torch.Generator, *, shapes: int = 4, targets: int = 2) -> Shapes:
    """Draw pictures of ellipses, rectangles and diamonds on a smooth background, with noise.

    Args:
        count: pictures.  size: pixels of their side.  shapes: in each, the last on the one before it.
        targets: of each picture, at most one more than shapes.
        chance: where all randomness comes from.

    >>> drawn = draw_shapes(2, 64, torch.Generator().manual_seed(0))
    >>> drawn.images.shape, drawn.masks.shape, bool(drawn.masks.flatten(1).any(1).all())
    (torch.Size([2, 3, 64, 64]), torch.Size([4, 64, 64]), True)
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=chance)

    centre, radii = uniform(0.15, 0.85, shapes, 2), uniform(0.1, 0.3, shapes, 2)
    radii[:, -2] = uniform(0.16, 0.3, 2)
    centre[:, -1], radii[:, -1] = centre[:, -2], radii[:, -2] * uniform(0.35, 0.6, 1)
    turn, kind = uniform(0, torch.pi, shapes, 1, 1), torch.randint(3, (count, shapes, 1, 1), generator=chance)
    turn[:, -1] = turn[:, -2]
    grid = (torch.arange(size) + 0.5) / size
    y, x = grid[:, None] - centre[..., 1, None, None], grid - centre[..., 0, None, None]
    u = (x * turn.cos() + y * turn.sin()) / radii[..., 0, None, None]
    v = (y * turn.cos() - x * turn.sin()) / radii[..., 1, None, None]
    forms = torch.stack([u**2 + v**2, torch.maximum(u.abs(), v.abs()), 0.8 * (u.abs() + v.abs())])
    inside = forms.gather(0, kind[None].expand(1, *u.shape))[0] < 1
    labels = (inside * torch.arange(1, shapes + 1)[:, None, None]).amax(1)

    grey = torch.cat([uniform(0.35, 0.5, 1), uniform(0.05, 0.95, shapes)], dim=1)
    background = F.interpolate(uniform(-0.08, 0.08, 1, 4, 4), size, mode="bicubic")[:, 0]
    picture = grey.gather(1, labels.flatten(1)).view_as(background) + background * (labels == 0)
    picture = picture + 0.04 * torch.randn(picture.shape, generator=chance)

    seen = torch.stack([labels == label for label in range(1, shapes + 1)] + [labels >= shapes - 1], dim=1)
    chosen = torch.multinomial((seen.float().mean((2, 3)) > SMALLEST).float() + 1e-9, targets, generator=chance)
    masks = seen[torch.arange(count)[:, None], chosen].flatten(0, 1)
    pixel = torch.multinomial(masks.flatten(1).float() + 1e-12, 1, generator=chance)
    points = torch.stack([pixel % size, pixel // size], dim=-1).float()
    return Shapes(
        (picture.clamp(0, 1) * 255)[:, None].expand(-1, 3, -1, -1), labels, masks, points, _boxes(masks, chance)
    )


def _boxes(masks: Tensor, chance: torch.Generator) -> Tensor:
    """The box of each mask with its sides moved at random."""
    ends = []
    for axis in (1, 2):  # columns, then rows
        hit = masks.any(axis).float()
        ends.append((hit.argmax(1), hit.shape[1] - 1 - hit.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = ends
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)
    return boxes + LOOSE * sides * (2 * torch.rand(boxes.shape, generator=chance) - 1)


def prompt_loss(logits: Tensor, iou: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy + Dice + squared error of the predicted IoU, of each prompt's best mask: ``[P]``.

    Args:
        logits: ``[P, M, h, w]``.  iou: ``[P, M]``, as predicted.  masks: ``[P, h, w]``, the share of each cell inside.
    """
    truth = masks[:, None].expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((2, 3))
    probability = logits.sigmoid()
    both = (probability * truth).sum((2, 3))
    dice = 1 - (2 * both + 1) / (probability.sum((2, 3)) + truth.sum((2, 3)) + 1)
    with torch.no_grad():
        guess, inside = logits > 0, truth > 0.5
        met = (guess & inside).sum((2, 3)) / (guess | inside).sum((2, 3)).clamp(min=1)
    loss = entropy + dice
    best = loss.argmin(1, keepdim=True)
    return (loss + (iou - met) ** 2).gather(1, best)[:, 0]


def pretrain_shapes(
    sam: Sam, *, steps: int = STEPS, batch: int = 8, lr: float = 2e-3, seed: int = 0, progress: bool = True
) -> list[float]:
    """Train a fresh SAM in place, at its own image size, on pictures that depend on seed and step alone.

    Args:
        sam: the network, of as many mask tokens as SAM's: one for boxes and the others for clicks.
        steps, batch: pictures are drawn anew at each step, with four targets each.
        lr: AdamW's, with a tenth of the steps of warm-up and half a cosine; weight decay 0.01.
        seed: of the pictures.
        progress: show a bar.

    Returns:
        The loss of every step.
    """
    sam.train()
    look_where_prompted(sam)
    optimizer = torch.optim.AdamW(sam.parameters(), lr=lr, weight_decay=0.01)
    device, size, losses = sam.pixel_mean.device, sam.config.image_size, []
    numbers = range(steps)
    for step in track(numbers, steps, "learning shapes") if progress else numbers:
        drawn = draw_shapes(batch, size, generator(seed, step), targets=4)
        index, points = drawn.image_index.to(device), drawn.points.to(device)
        features = sam.encode(drawn.images.to(device))
        labels = torch.ones(points.shape[:2], dtype=torch.long, device=device)
        clicked, clicked_iou = sam.decode(features, image_index=index, points=points, labels=labels)
        boxed, boxed_iou = sam.decode(features, image_index=index, boxes=drawn.boxes.to(device))
        masks = F.adaptive_avg_pool2d(drawn.masks.float().to(device), clicked.shape[-1])
        loss = prompt_loss(clicked[:, 1:], clicked_iou[:, 1:], masks).mean()
        loss = loss + prompt_loss(boxed[:, :1], boxed_iou[:, :1], masks).mean()
        for group in optimizer.param_groups:
            group["lr"] = linear_warmup_cosine(step + 1, total=steps + 1, warmup=0.1 * steps, lr=lr)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    sam.eval()
    return losses


@torch.no_grad()
def look_where_prompted(sam: Sam, *, gain: float = 1.5) -> None:
    """Let a fresh decoder attend to the places of its prompts, which takes long to be learned otherwise.

    Positions are compared by their inner product. Projections of queries and keys that start out alike keep it, and
    marks of prompts and masks that start out small do not drown it.
    """
    for part in sam.mask_decoder.modules():
        if isinstance(part, TwoWayAttention) and part.q_proj.out_features < part.q_proj.in_features:
            torch.nn.init.orthogonal_(part.q_proj.weight, gain)
            part.k_proj.weight.copy_(part.q_proj.weight)
    for part in sam.prompt_encoder.modules():
        if isinstance(part, torch.nn.Embedding):
            torch.nn.init.normal_(part.weight, std=0.1)
