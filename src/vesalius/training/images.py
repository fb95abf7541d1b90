"""What the verb `pretrain` asks of a 2-D system, in the words of `vesalius.pretrain.volumes.VolumePretraining`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from torch import nn

from vesalius.data.datasets import ImageDataset
from vesalius.pretrain.volumes import Plan
from vesalius.published.card import Card
from vesalius.published.networks import architecture
from vesalius.training.backbones import initialise
from vesalius.training.common import fits_memory

PRETRAINING = {"usfm": Plan(images=2048, epochs=800), "deblurring": Plan(images=256, epochs=800)}
"""The published schedules ("paper" presets)."""
TINY_PRETRAINING = Plan(images=32, steps=1000)
"""Of the "tiny" presets."""


class ImagePretraining:
    """A 2-D system: it learns from single images without labels, and leaves its encoder after the last step.

    Args:
        module: the system's LightningModule.
        preset: that its configuration began with.
    """

    PART = "backbone"
    unit = "images"
    monitor = "val/loss"
    keeps_best = False
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, module: Any, preset: str):
        self.module = module
        self.plan = PRETRAINING[module.SYSTEM] if preset.startswith("paper") else TINY_PRETRAINING

    @property
    def network(self) -> nn.Module:
        """What is stored."""
        return self.module.encoder

    @property
    def architecture(self) -> dict[str, Any]:
        """The encoder, as a card describes it."""
        return architecture(self.module.encoder)

    @property
    def extra(self) -> dict[str, Any]:
        """Nothing else goes into its run and its card."""
        return {}

    def initialise(self, spec: str) -> Card:
        """Fill the encoder from another backbone of the same shape; its card, without the notes of that file."""
        return replace(initialise(self.module.encoder, spec), notes=())

    def samples(self, table: pl.DataFrame, cache: Path, *, workers: int = 0) -> ImageDataset:
        """The images, in memory where they fit; `cache` is for volumes."""
        contract = self.module.contract
        blurs = contract.blur is not None  # the sharp image is then what is to be restored
        return ImageDataset(table, contract, cache=fits_memory(table), sharp=blurs)

    def sampling_weights(self, table: pl.DataFrame) -> np.ndarray | None:
        """The probability of each image, by its organ."""
        return self.module.sampling_weights(table["organ"].to_list())
