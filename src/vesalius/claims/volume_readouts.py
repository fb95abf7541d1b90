"""What a frozen or fine-tuned 3-D encoder is asked in a claim: where is the structure, after few labelled volumes.

The frozen encoder is read by ridge regression, whose strength and threshold come from labelled volumes that were left
out in turn: no arm is favoured by a learning rate or by a training that was cut short.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vesalius.nn.swin_unetr import SwinEncoder, SwinUNETR
from vesalius.tasks.volume_segmentation import VolumeSegmentation
from vesalius.training.short import Batch, Tick, train_short

STRENGTHS = tuple(10.0**power for power in range(-5, 1))
CUTS = tuple(0.05 * k for k in range(1, 15))
Maps = Sequence[Tensor]
"""Of some volumes ``[N, C_i, d_i, h_i, w_i]``, finest first."""


@torch.no_grad()
def encoder_maps(encoder: SwinEncoder, volumes: Tensor) -> list[Tensor]:
    """The frozen encoder's maps of ``volumes [N, C, D, H, W]``."""
    encoder.eval()
    return [torch.cat(level) for level in zip(*(encoder(part).maps for part in volumes.split(8)), strict=True)]


def averages(volumes: Tensor, levels: int = 5) -> list[Tensor]:
    """The volumes themselves averaged to the grids of the encoder's maps: what can be read without a network."""
    return [F.avg_pool3d(volumes, 2**level) for level in range(1, levels + 1)]


def ridge_dice(train: Maps, train_mask: Tensor, test: Maps, test_mask: Tensor) -> float:
    """Mean Dice over volumes of a ridge regression from all maps to the share of the structure.

    The maps are interpolated to the finest one's grid, where a voxel's columns are what all of them say there. The
    prediction is interpolated to the mask's grid and cut.

    Args:
        train, test: maps of the labelled volumes (two or more) and of those to score.
        train_mask, test_mask: ``[N, D, H, W]`` bool.
    """
    share = F.avg_pool3d(train_mask.unsqueeze(1).float(), 2)
    sums = [_sums(_columns(train, index), share[index].reshape(-1, 1)) for index in range(len(train_mask))]
    total = torch.stack(sums).sum(0)
    left_out = {
        strength: torch.stack([_predict(train, index, _solve(total - own, strength)) for index, own in enumerate(sums)])
        for strength in STRENGTHS
    }
    errors = {strength: (guess - train_mask.float()).square().mean() for strength, guess in left_out.items()}
    strength = min(STRENGTHS, key=errors.__getitem__)
    cut = max(CUTS, key=lambda value: volume_dice(left_out[strength] > value, train_mask))
    weights = _solve(total, strength)
    guess = torch.stack([_predict(test, index, weights) for index in range(len(test_mask))])
    return volume_dice(guess > cut, test_mask)


def fine_tuned_dice(
    encoder: SwinEncoder,
    train: Tensor,
    train_mask: Tensor,
    test: Tensor,
    test_mask: Tensor,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    tick: Tick,
) -> float:
    """Mean Dice over volumes after training a whole Swin UNETR on a copy of `encoder`.

    AdamW, 10 % warm-up and half a cosine, cross-entropy plus soft Dice, mirrored along each axis by chance. The
    decoder's start and the order of volumes depend on `seed` alone.

    Args:
        train, test: volumes ``[N, C, D, H, W]``.
        train_mask, test_mask: ``[N, D, H, W]`` bool.
    """
    torch.manual_seed(seed)
    task = VolumeSegmentation(SwinUNETR.on(encoder), ("structure",))

    def batches(chance: torch.Generator) -> Batch:
        index = torch.randint(len(train), (batch,), generator=chance)
        axes = [axis - 3 for axis, draw in enumerate(torch.rand(3, generator=chance).tolist()) if draw < 0.5]
        return {"image": train[index].flip(axes), "mask": train_mask[index].flip(axes)}

    train_short(task, batches, lr=lr, steps=steps, seed=seed, weight_decay=1e-5, tick=tick)
    task.eval()
    with torch.no_grad():
        guess = torch.cat([task(part).argmax(1) for part in test.split(8)])
    return volume_dice(guess > 0, test_mask)


def volume_dice(guess: Tensor, truth: Tensor) -> float:
    """Mean over volumes of the Dice of ``[N, D, H, W]`` bool; volumes without the structure are left out.

    >>> truth = torch.tensor([[[[True, False]]], [[[False, False]]]])
    >>> round(volume_dice(torch.ones_like(truth), truth), 3)
    0.667
    """
    guess, truth = guess.flatten(1), truth.flatten(1)
    there = truth.any(1)
    overlap, areas = (guess & truth).sum(1)[there], (guess.sum(1) + truth.sum(1))[there]
    return (2 * overlap / areas).mean().item()


def _columns(maps: Maps, index: int) -> Tensor:
    """``[voxels, columns]`` of one volume on the finest map's grid; the last column is 1."""
    size = maps[0].shape[2:]
    levels = [F.interpolate(level[index : index + 1], size, mode="trilinear") for level in maps]
    return torch.cat([*levels, torch.ones_like(levels[0][:, :1])], dim=1)[0].flatten(1).T


def _sums(columns: Tensor, target: Tensor) -> Tensor:
    """Products ``[columns, columns + 1]`` of the columns with each other and, last, with the target."""
    return (columns.T @ torch.cat([columns, target], dim=1)).double()


def _solve(sums: Tensor, strength: float) -> Tensor:
    """Weights ``[columns]`` of a ridge regression on columns scaled to one deviation; the constant is not shrunk."""
    products, target = sums[:, :-1], sums[:, -1]
    n, means = products[-1, -1], products[-1] / products[-1, -1]
    spread = (products.diagonal() - n * means.square()).clamp(min=0)  # 0 for the constant
    penalty = strength * spread
    penalty[:-1] += 1e-9 * n  # of columns that never vary
    return torch.linalg.solve(products + penalty.diag(), target).float()


def _predict(maps: Maps, index: int, weights: Tensor) -> Tensor:
    """``[D, H, W]`` at twice the finest map's resolution."""
    size = maps[0].shape[2:]
    guess = (_columns(maps, index) @ weights).view(1, 1, *size)
    return F.interpolate(guess, scale_factor=2, mode="trilinear")[0, 0]
