"""Predicted organ and tumour masks made anatomically sensible: components, sides, and tumours inside their organs.

Two published rule sets: that of the Universal Model (Liu 2024) and that of AbdomenAtlas (Li 2024), which also limits
tumours in number and size and fills holes in lungs. Arrays are ``[D, H, W]`` bool whose first axis grows to the
patient's right and whose last grows to the head (RAS).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import ndimage

from vesalius.data.abdomen import NAMES, TEMPLATE
from vesalius.data.class_tables import ClassTable
from vesalius.data.label_tables import CONNECTIVITY
from vesalius.tasks.lungs import lung_pair, separate_lungs

Rules = Literal["universal", "atlas"]
AROUND = np.ones((5, 5, 5), dtype=bool)
"""Voxels that a tumour may reach beyond its organ."""


def clean(
    masks: np.ndarray, classes: Sequence[str] = NAMES, *, rules: Rules = "universal", table: ClassTable = TEMPLATE
) -> np.ndarray:
    """Post-process predictions.

    Args:
        masks: ``[K, D, H, W]`` of `classes`, names of `table`; a class of another name stays as it is.
        rules: "universal" or "atlas".
        table: what the classes are, and the rule of each.

    Returns:
        ``[K, D, H, W]`` bool.

    A rule that needs a class which is not among `classes` takes it as empty.

    >>> masks = np.zeros((1, 9, 1, 1), dtype=bool)
    >>> masks[0, :3] = masks[0, 5] = True
    >>> clean(masks, ["spleen"])[0].ravel().astype(int).tolist()
    [1, 1, 1, 0, 0, 0, 0, 0, 0]
    """
    raw = {name: np.asarray(mask, dtype=bool) for name, mask in zip(classes, masks, strict=True)}
    empty = np.zeros(masks.shape[1:], dtype=bool)
    kinds = {entry.name: entry for entry in table.classes}
    done = dict(raw)
    for name, mask in raw.items():
        entry = kinds.get(name)
        if entry is None:
            continue
        organs = [raw.get(organ, empty) for organ in entry.organs]
        if entry.rule == "largest":
            done[name] = largest(mask)
        elif entry.rule == "above":
            done[name] = above(mask, largest(np.logical_or.reduce([empty, *organs])))
        elif entry.rule == "inside":
            around = largest(np.logical_or.reduce([empty, *organs]), len(organs))
            done[name] = inside(mask, around)
        if rules == "atlas" and entry.most:
            done[name] = largest(done[name], entry.most, least=entry.least)
    for sides in table.pairs.values():
        if all(kinds[side].rule == "sides" for side in sides) and set(sides) & set(raw):
            both = np.logical_or.reduce([raw.get(side, empty) for side in sides])
            parted = separate_lungs(both) if rules == "atlas" else lung_pair(both) or (empty, empty)
            done |= {side: part for side, part in zip(sides, parted, strict=True) if side in raw}
    return np.stack([done[name] for name in classes])


def largest(mask: np.ndarray, count: int = 1, *, least: int = 0) -> np.ndarray:
    """The `count` largest components (26 neighbours) of more than `least` voxels."""
    labels, found = ndimage.label(mask, CONNECTIVITY)
    sizes = np.bincount(labels.ravel(), minlength=found + 1)[1:]
    order = np.argsort(-sizes, kind="stable")[:count]
    return np.isin(labels, [n + 1 for n in order if sizes[n] > least])


def inside(tumour: np.ndarray, organ: np.ndarray) -> np.ndarray:
    """The part of a tumour in the organ's neighbourhood: its closing by 5 voxels, grown by 2."""
    around = ndimage.binary_dilation(ndimage.binary_closing(organ, AROUND), AROUND)
    return np.asarray(tumour & around)


def above(vein: np.ndarray, pancreas: np.ndarray) -> np.ndarray:
    """The part of a vein from the pancreas's lowest slice upwards; all of it where there is no pancreas."""
    slices = np.flatnonzero(pancreas.any(axis=(0, 1)))
    kept = vein.copy()
    if slices.size:
        kept[:, :, : slices[0]] = False
    return kept
