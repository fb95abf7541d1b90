"""The labelled images of a task, and the subset that a label-efficiency curve or a k-shot run learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from vesalius.data.contract import InputContract
from vesalius.data.datasets import ImageDataset, is_multilabel
from vesalius.data.draws import draw
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
    table: pl.DataFrame,
    contract: InputContract,
    *,
    task: str,
    classes: Sequence[str],
    multilabel: bool | None = None,
    cache: bool = False,
) -> ImageDataset:
    """The images of a part of a table, in which some of the classes may not occur (a rare one, few labels).

    Args:
        table: rows of the task.
        contract: what the network reads.
        task: classification, segmentation or enhancement.
        classes: in the network's order, see `class_names`.
        multilabel: for classification, whether an image may have several of the classes, or none; by default whether
            these rows do (`is_multilabel`), which of a part should be told.
        cache: keep the images in memory.

    Raises:
        VesaliusError: an image with several of the classes, or none, to classify as one of them; an image that was
            looked at for none of them.
    """
    if task == "classification":
        multilabel = is_multilabel(table, classes) if multilabel is None else multilabel
        found, looked_for = (pl.col(name).list.set_intersection(list(classes)) for name in ("labels", "annotated"))
        if multilabel:
            bad = table.filter(found.list.len() + looked_for.list.len() == 0)
            what, remedy = "were not looked at for any of the classes {}", "leave them out"
        else:
            bad = table.filter(found.list.len() != 1)
            what = "have several of the classes {}, or none"
            remedy = "choose classes that exclude each other with --classes"
        if len(bad):
            what = what.format(", ".join(classes))
            raise VesaliusError(f"{len(bad)} images {what}: {shorten(bad['path'].to_list())}", remedy=remedy)
    return ImageDataset(table, contract, task=task, classes=classes, multilabel=multilabel, cache=cache)


def few_labels(
    table: pl.DataFrame,
    *,
    fraction: float = 1.0,
    shots: int | None = None,
    seed: int = 0,
    classes: Sequence[str] = (),
) -> pl.DataFrame:
    """A part of the rows, chosen by patient within each label.

    With one seed, a smaller part is contained in a larger one, so that a curve differs by labels and not by luck. A row
    of several labels counts for each of them.

    Args:
        table: labelled training rows.
        fraction: of each label's patients, at least one; rows without labels count as one label.
        shots: this many patients of each label in place of a fraction, and one image of each; see
            `vesalius.data.draws.draw`.
        seed: of the choice.
        classes: the labels; by default all of the table.

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
    names = tuple(classes) or label_names(table)
    if shots is not None:
        return draw(table, classes=names, shots=shots, number=0, seed=seed)
    if fraction == 1:
        return table
    patients = pl.coalesce("patient", "path").alias("patient")
    of_label: dict[str, set[str]] = {}
    for patient, labels in table.select(patients, "labels").rows():
        for name in set(labels) & set(names) or {""}:
            of_label.setdefault(name, set()).add(patient)
    everyone = sorted(set().union(*of_label.values()))
    # One order for all labels, so that a patient who is kept for one of them serves for the others as well.
    place = dict(zip(everyone, np.random.default_rng(seed).permutation(len(everyone)).tolist(), strict=True))
    kept: set[str] = set()
    for members in of_label.values():
        count = math.ceil(fraction * len(members) - 1e-9)
        kept.update(sorted(members, key=place.__getitem__)[:count])
    return table.filter(patients.is_in(list(kept)))
