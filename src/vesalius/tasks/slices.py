"""Segmentation of volumes slice by slice, each by itself, with a network of slices (TransUNet)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vesalius.nn.transunet import TransUNet
from vesalius.tasks.stacks import StackSegmentation


class SliceSegmentation(StackSegmentation):
    """Stacks of one slice, without prompts; a slice's intensities are those of the contract.

    Args:
        encoder: the network, of as many foreground classes.
        classes, frame, dice: as of `StackSegmentation`; TransUNet's loss is half Dice, half cross-entropy.

    >>> import torch
    >>> from dataclasses import replace
    >>> from vesalius.nn.transunet import TRANSUNET_PRESETS
    >>> network = TransUNet(replace(TRANSUNET_PRESETS["tiny"], classes=1))
    >>> task = SliceSegmentation(network, ("liver",), frame=(32, 32)).eval()
    >>> task(torch.zeros(2, 1, 1, 32, 32)).shape, task.label(torch.zeros(1, 4, 20, 30)).shape
    (torch.Size([2, 1, 2, 32, 32]), (4, 20, 30))
    """

    NAME = "slice_segmentation"

    def __init__(
        self, encoder: TransUNet, classes: Sequence[str], *, frame: Sequence[int] = (224, 224), dice: float = 0.5
    ):
        network: Any = encoder  # a stack asks its network for its classes and patch size, which this one has, too
        super().__init__(network, classes, slices=1, frame=frame, stretch=False, dice=dice)
        self.config = {"classes": list(classes), "frame": list(self.frame), "dice": dice}

    def forward(self, volume: Tensor, boxes: Tensor | None = None) -> Tensor:
        """``[B, D, C, *frame]`` -> logits ``[B, D, K + 1, *frame]``, background first; `boxes` are None."""
        return self.encoder(volume.flatten(0, 1)).unflatten(0, volume.shape[:2])
