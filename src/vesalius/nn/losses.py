"""Losses that several systems share. Masks are ``[B, H, W]`` integers; 255 marks pixels to leave out."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F

from vesalius.data.masks import IGNORE
from vesalius.errors import VesaliusError


def check_mask(mask: Tensor, shape: tuple[int, ...], classes: int) -> None:
    """Check that `mask` has `shape` and holds only 0 ... classes - 1 and 255.

    Raises:
        VesaliusError: it does not; the message names both shapes, or the value.
    """
    if tuple(mask.shape) != tuple(shape):
        raise VesaliusError(
            f"the mask has shape {list(mask.shape)}, the image asks for {list(shape)}",
            remedy="give each image a mask of its own height and width",
        )
    wrong = mask[(mask != IGNORE) & ((mask < 0) | (mask >= classes))]
    if wrong.numel():
        raise VesaliusError(
            f"the mask holds the value {int(wrong[0])} but there are {classes} classes with the background",
            remedy="number the classes 0 ... K - 1, and 255 for pixels to ignore",
        )


def soft_dice(probability: Tensor, truth: Tensor, *, valid: Tensor | None = None, eps: float = 1.0) -> Tensor:
    """1 - soft Dice over the whole batch at once, mean over channels (Deblurring MIM's segmentation loss).

    Summing over the batch before dividing keeps images without foreground from dominating.

    Args:
        probability, truth: ``[B, K, H, W]`` in [0, 1].
        valid: ``[B, 1, H, W]``, 0 where pixels are left out.
        eps: added to numerator and denominator.

    >>> half = torch.full((1, 1, 2, 2), 0.5)
    >>> round(float(soft_dice(half, torch.ones(1, 1, 2, 2))), 4)  # 1 - (2 * 2 + 1) / (2 + 4 + 1)
    0.2857
    """
    if valid is not None:
        probability, truth = probability * valid, truth * valid
    return DiceLoss(batch=True, smooth_nr=eps, smooth_dr=eps)(probability, truth)


def foreground_dice(logits: Tensor, mask: Tensor) -> Tensor:
    """`soft_dice` of the foreground classes.

    Args:
        logits: ``[B, K, H, W]``, channel 0 the background.
        mask: ``[B, H, W]``.
    """
    classes = logits.shape[1]
    valid = mask != IGNORE
    truth = F.one_hot(torch.where(valid, mask, 0).long(), classes).permute(0, 3, 1, 2).to(logits.dtype)
    probability = logits.softmax(1)
    return soft_dice(probability[:, 1:], truth[:, 1:], valid=valid.unsqueeze(1))


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over the pixels that count; 0, with a gradient of 0, where none does.

    Args:
        logits: ``[B, K, H, W]``.
        mask: ``[B, H, W]``.
    """
    total = F.cross_entropy(logits, mask.long(), ignore_index=IGNORE, reduction="sum")
    return total / (mask != IGNORE).sum().clamp(min=1)


def dice_ce(logits: Tensor, mask: Tensor) -> Tensor:
    """`foreground_dice` plus `cross_entropy`."""
    return foreground_dice(logits, mask) + cross_entropy(logits, mask)
