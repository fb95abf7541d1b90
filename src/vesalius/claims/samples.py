"""The images on which a claim is tested, in memory: unlabelled ones, a few labelled ones, and test images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from vesalius.data.contract import InputContract
from vesalius.data.masks import IGNORE, read_mask
from vesalius.data.phantoms.toy import toy_organs, toy_ultrasound
from vesalius.data.table import load_table, select
from vesalius.errors import VesaliusError
from vesalius.images import read

ORGAN_SHARES = (0.90, 0.07, 0.03)
READ_OUT = 300
"""What an arm's read-outs count on the progress bar, in steps."""


@dataclass(frozen=True)
class Budget:
    """What every arm gets alike.

    Args:
        steps, batch: of pre-training.
        organ_steps: of pre-training in the arms about organ sampling.
        unlabelled, labelled, test: images.
        few: of the labelled ones, for the label-efficient fine-tuning; a fifth of them, where there are fewer.
        finetune_steps: of fine-tuning.
        size, patch: pixels of an image's and of a token's side.
    """

    steps: int = 1000
    batch: int = 64
    organ_steps: int = 500
    unlabelled: int = 3000
    labelled: int = 400
    few: int = 80
    test: int = 500
    finetune_steps: int = 120
    size: int = 32
    patch: int = 4

    def with_steps(self, steps: int) -> Budget:
        """The same with other steps of pre-training."""
        return replace(self, steps=steps, organ_steps=max(1, steps // 2))

    def for_table(self) -> Budget:
        """The same for real images, which need more pixels."""
        return replace(self, size=64, patch=8)

    def work(self, arm: str) -> int:
        """What an arm counts on the progress bar, in steps: its pre-training and its read-outs."""
        return self.steps + READ_OUT


@dataclass(frozen=True)
class Split:
    """Images ``[N, 1, S, S]``, each with mean 0 and standard deviation 1, and what is known about them.

    Args:
        mask: ``[N, S, S]`` bool of the structure to be segmented.
        points: ``[N, S, S]`` bool of single bright pixels.
        label: ``[N]`` class of each image.
    """

    image: Tensor
    mask: Tensor | None = None
    points: Tensor | None = None
    label: np.ndarray | None = None


@dataclass(frozen=True)
class Samples:
    """The splits of one seed.

    Args:
        unlabelled, labelled, test: for pre-training, for read-outs, for scores.
        organs: (training, test) images of several organs, `label` = the organ; None where there is one organ.
    """

    unlabelled: Split
    labelled: Split
    test: Split
    organs: tuple[Split, Split] | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Samples:
        """The same with other images (blurred ones)."""
        splits = (replace(split, image=change(split.image)) for split in (self.unlabelled, self.labelled, self.test))
        return Samples(*splits, self.organs)


def load_samples(seed: int, budget: Budget, *, data: str | None, folder: Path) -> Samples:
    """The images of a seed: those of the table `data`, or phantoms."""
    return real_images(data, seed, budget) if data else phantoms(seed, budget)


@lru_cache(maxsize=1)
def phantoms(seed: int, budget: Budget) -> Samples:
    """Procedural images: a nodule (mask), its speckle type (label), calcifications (points); three unequal organs."""

    def split(number: int, count: int) -> Split:
        batch = toy_ultrasound(count, seed=10 * seed + number, size=budget.size)
        masks = (torch.from_numpy(value) for value in (batch.nodule, batch.calcification))
        return Split(torch.from_numpy(batch.image), *masks, batch.texture)

    def organs(number: int, count: int, shares: tuple[float, ...]) -> Split:
        batch = toy_organs(count, seed=10 * seed + number, size=budget.size, shares=shares)
        return Split(torch.from_numpy(batch.image), label=batch.organ)

    return Samples(
        split(0, budget.unlabelled),
        split(1, budget.labelled),
        split(2, budget.test),
        (organs(3, budget.unlabelled, ORGAN_SHARES), organs(4, budget.test, (1 / 3, 1 / 3, 1 / 3))),
    )


@lru_cache(maxsize=1)
def real_images(path: str, seed: int, budget: Budget) -> Samples:
    """The images of a table, resized to the claim's pixels: which of them are labelled is drawn from the seed.

    The training split gives the unlabelled and the labelled images, the test split (or, without one, the validation
    split) the test images. Read-outs are what the table has: masks (any class against background), or one label an
    image.

    Raises:
        VesaliusError: the table has neither, or no test images.
    """
    table = load_table(path)
    table = table.filter(table["frame"].is_not_null() | (table["size"].list.len() == 2))
    train = table.filter(table["split"] == "train")
    test = next((part for name in ("test", "val") if len(part := table.filter(table["split"] == name))), None)
    if test is None or train.is_empty():
        raise VesaliusError("has no training or no test images", path=path, remedy="index it with test=0.2")
    task = next(
        (task for task in ("segmentation", "classification") if all(len(select(x, task=task)) for x in (train, test))),
        None,
    )
    if task is None:
        raise VesaliusError("has neither masks nor labels to read out", path=path, remedy="index it with its labels")

    def rows(part: pl.DataFrame, count: int) -> pl.DataFrame:
        return part.sample(min(count, len(part)), shuffle=True, seed=seed)

    labelled, tested = (rows(select(part, task=task), n) for part, n in ((train, budget.labelled), (test, budget.test)))
    names = sorted(set(labelled["labels"].list.first().drop_nulls()))
    has_label = len(names) > 1 and all((part["labels"].list.len() == 1).all() for part in (labelled, tested))

    def split(part: pl.DataFrame, *, truth: bool) -> Split:
        images, masks = [], []
        for row in part.iter_rows(named=True):
            images.append(_image(row, budget.size))
            if truth and task == "segmentation":
                masks.append(_mask(row, budget.size))
        label = None
        if truth and has_label:
            label = np.array([labels[0] for labels in part["labels"].to_list()])
        return Split(torch.stack(images), torch.stack(masks) if masks else None, None, label)

    organs = None
    counts = test["organ"].value_counts().filter(pl.col("organ").is_not_null() & (pl.col("count") >= 10))
    if len(counts) > 1:
        known = counts["organ"].to_list()
        parts = [part.filter(part["organ"].is_in(known)) for part in (train, test)]
        parts = [rows(parts[0], budget.unlabelled), rows(parts[1], 2 * budget.test)]
        organs = tuple(replace(split(part, truth=False), label=part["organ"].to_numpy()) for part in parts)
    unlabelled = split(rows(train, budget.unlabelled), truth=False)
    return Samples(unlabelled, split(labelled, truth=True), split(tested, truth=True), organs)


def _image(row: dict[str, Any], size: int) -> Tensor:
    contract = InputContract(size, 1, (0.0,), (1.0,))
    pixels = contract(read(row["path"], row["frame"]))
    return (pixels - pixels.mean()) / pixels.std().clamp(min=1e-6)


def _mask(row: dict[str, Any], size: int) -> Tensor:
    mask = torch.from_numpy(read_mask(row))
    inside = ((mask > 0) & (mask != IGNORE)).float()
    return F.interpolate(inside[None, None], (size, size), mode="area")[0, 0] > 0.5
