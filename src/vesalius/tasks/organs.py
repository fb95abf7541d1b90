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

from vesalius.data.abdomen import CLASSES, NAMES
from vesalius.data.label_tables import CONNECTIVITY
from vesalius.tasks.lungs import lung_pair, separate_lungs

Rules = Literal["universal", "atlas"]
AROUND = np.ones((5, 5, 5), dtype=bool)  # voxels that a tumour may reach beyond its organ
VEIN, PANCREAS, LUNGS = "portal_vein_and_splenic_vein", "pancreas", ("lung_right", "lung_left")
CONFINED = ("kidney_tumor", "liver_tumor")
UNTOUCHED = ("hepatic_vessel",)


def clean(masks: np.ndarray, classes: Sequence[str] = NAMES, *, rules: Rules = "universal") -> np.ndarray:
    """Post-process predictions.

    Args:
        masks: ``[K, D, H, W]`` of `classes`, names of `vesalius.data.abdomen`; a class of another name stays as it is.
        rules: "universal" or "atlas".

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
    kinds = {organ.name: organ for organ in CLASSES}
    done: dict[str, np.ndarray] = {}
    for name, mask in raw.items():
        organ = kinds.get(name)
        if organ is None or name in UNTOUCHED or name in LUNGS:
            done[name] = mask
        elif name == VEIN:
            done[name] = above(mask, largest(raw.get(PANCREAS, empty)))
        elif organ.kind == "organ":
            done[name] = largest(mask)
        else:
            if name in CONFINED:
                union = np.logical_or.reduce([raw.get(side, empty) for side in organ.organs])
                mask = inside(mask, largest(union, len(organ.organs)))
            done[name] = largest(mask, organ.most, least=organ.least) if rules == "atlas" else mask
    if set(LUNGS) & set(raw):
        union = raw.get(LUNGS[0], empty) | raw.get(LUNGS[1], empty)
        right, left = separate_lungs(union) if rules == "atlas" else lung_pair(union) or (empty, empty)
        done |= {name: side for name, side in zip(LUNGS, (right, left), strict=True) if name in raw}
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
