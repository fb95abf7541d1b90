"""The labelled images of a task, and the subset that a label-efficiency curve or a k-shot run learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from vesalius.data.contract import InputContract
from vesalius.data.datasets import ImageDataset
from vesalius.data.table import label_names, mask_names, select, shorten
from vesalius.errors import ConfigError, VesaliusError, nearest


def class_names(table: pl.DataFrame, task: str, chosen: Sequence[str] = ()) -> tuple[str, ...]:
    """The classes of a task in the network's order: those chosen, or all of the table; none for enhancement.

    Raises:
        ConfigError: one is chosen that no image of the table has.
    """
    if task == "enhancement":
        return ()
    known = (label_names if task == "classification" else mask_names)(select(table, task=task))
    for name in chosen:
        if name not in known:
            raise ConfigError(f"no image has the class {name!r}", remedy=nearest(name, known))
    return tuple(chosen) or known


def labelled(
    table: pl.DataFrame, contract: InputContract, *, task: str, classes: Sequence[str], cache: bool = False
) -> ImageDataset:
    """The images of a part of a table, in which some of the classes may not occur (a rare one, few labels).

    Args:
        table: rows of the task.
        contract: what the network reads.
        task: classification, segmentation or enhancement.
        classes: in the network's order, see `class_names`.
        cache: keep the images in memory.

    Raises:
        VesaliusError: an image with several of the classes, or none, to classify.
    """
    if task == "classification":
        count = table["labels"].list.set_intersection(list(classes)).list.len()
        bad = table.filter(count != 1)
        if len(bad):
            raise VesaliusError(
                f"{len(bad)} images have several of the classes {', '.join(classes)}, or none:"
                f" {shorten(bad['path'].to_list())}",
                remedy="choose classes that exclude each other with --classes",
            )
    return ImageDataset(table, contract, task=task, classes=classes, cache=cache)


def few_labels(table: pl.DataFrame, *, fraction: float = 1.0, shots: int | None = None, seed: int = 0) -> pl.DataFrame:
    """A part of the rows, chosen by patient within each label, in the table's order.

    With one seed, a smaller part is contained in a larger one, so that a curve differs by labels and not by luck.

    Args:
        table: labelled training rows.
        fraction: of each label's patients, at least one; rows without labels count as one label.
        shots: this many patients of each label in place of a fraction, and one image of each.
        seed: of the choice.

    Raises:
        ConfigError: a fraction outside (0, 1], shots below 1, or both.

    >>> from vesalius.data.table import make_table
    >>> rows = [{"path": f"{i}.png", "patient": str(i), "labels": ["ab"[i % 2]]} for i in range(20)]
    >>> few_labels(make_table(rows), fraction=0.2)["labels"].explode().value_counts(sort=True)["count"].to_list()
    [2, 2]
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction = {fraction}", remedy="give a number above 0, up to 1")
    if shots is not None and (shots < 1 or fraction != 1):
        raise ConfigError(f"shots = {shots} with fraction = {fraction}", remedy="give one of them, shots from 1")
    if shots is None and fraction == 1:
        return table
    keyed = table.with_row_index("row").select(
        "row",
        pl.coalesce("patient", "path").alias("patient"),
        pl.col("labels").list.first().fill_null("").alias("label"),
    )
    patients = keyed.group_by("patient", maintain_order=True).agg(pl.col("label").first(), pl.col("row"))
    generator = np.random.default_rng(seed)
    kept: list[int] = []
    for _, group in patients.sort("label", "patient").group_by("label", maintain_order=True):
        order = generator.permutation(len(group))
        count = math.ceil(fraction * len(group) - 1e-9) if shots is None else shots
        for rows in group["row"].gather(order[:count]).to_list():
            kept += rows if shots is None else rows[:1]
    return table[sorted(kept)]
