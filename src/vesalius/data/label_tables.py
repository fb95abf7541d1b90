"""What the voxel values of a dataset mean, by class name, so that sets of different classes can be trained as one.

A set labels some classes and says nothing of the others. `LabelTable.channels` gives a channel for every class of a
common list and says which of them this set labels at all; a loss leaves the rest out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from vesalius.errors import ConfigError, nearest

CONNECTIVITY = np.ones((3, 3, 3), dtype=bool)  # 26 neighbours


@dataclass(frozen=True)
class LabelTable:
    """One dataset's labels.

    Args:
        values: voxel value -> class name.
        labelled: the classes that every case of the set is annotated for.
        split: (right, left) pairs that the set has as one class, under the name of the right one.
        within: tumour -> the organ that it is part of and whose value it replaces; its voxels count as both.
        export: (class, value) pairs in the order in which they are painted to write the set's own values.
        export_sides: the same with values of their own for sides that the set does not tell apart.

    Raises:
        ConfigError: a value, a pair or a tumour of a class that is not among the labelled ones.
    """

    values: Mapping[int, str]
    labelled: tuple[str, ...]
    split: tuple[tuple[str, str], ...] = ()
    within: Mapping[str, str] = field(default_factory=dict)
    export: tuple[tuple[str, int], ...] = ()
    export_sides: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        named = [*self.values.values(), *(side for pair in self.split for side in pair), *self.within.values()]
        for name in named:
            if name not in self.labelled:
                raise ConfigError(f"the class {name!r} is not labelled", remedy=nearest(name, self.labelled))

    def channels(self, raw: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """One channel a class.

        Args:
            raw: ``[D, H, W]`` the set's own values, its first axis growing to the patient's right (RAS).
            classes: the common list.

        Returns:
            ``[K, D, H, W]`` uint8, 1 = the class, and ``[K]`` bool, whether the set labels it: where not, its channel
            says nothing.

        >>> table = LabelTable({1: "liver", 2: "tumour"}, ("liver", "tumour"), within={"tumour": "liver"})
        >>> masks, labelled = table.channels(np.array([[[0, 1, 2]]]), ["liver", "spleen", "tumour"])
        >>> masks[:, 0, 0].tolist(), labelled.tolist()
        ([[0, 1, 1], [0, 0, 0], [0, 0, 1]], [True, False, True])
        """
        masks = {name: np.zeros(raw.shape, dtype=bool) for name in self.labelled}
        for value, name in self.values.items():
            masks[name] |= raw == value
        for tumour, organ in self.within.items():
            masks[organ] |= masks[tumour]
        for right, left in self.split:
            masks[left] |= left_side(masks[right])
            masks[right] &= ~masks[left]
        channels = np.zeros((len(classes), *raw.shape), dtype=np.uint8)
        for row, name in enumerate(classes):
            if name in masks:
                channels[row] = masks[name]
        return channels, np.array([name in masks for name in classes])


def paint(masks: np.ndarray, pairs: Sequence[tuple[str, int]], classes: Sequence[str]) -> np.ndarray:
    """Binary masks ``[K, D, H, W]`` of `classes` -> one label volume ``[D, H, W]`` uint8; later pairs win.

    >>> paint(np.array([[[[1, 1, 0]]], [[[0, 1, 0]]]]), [("liver", 1), ("tumour", 2)], ["liver", "tumour"]).tolist()
    [[[1, 2, 0]]]
    """
    label = np.zeros(masks.shape[1:], dtype=np.uint8)
    for name, value in pairs:
        label[masks[list(classes).index(name)] == 1] = value
    return label


def left_side(both: np.ndarray) -> np.ndarray:
    """The left one of a paired organ: of its two largest components, the one at smaller indices of the first axis.

    As published, smaller components stay with the right side, and so does a single one.

    Args:
        both: ``[D, H, W]`` bool, its first axis growing to the patient's right.

    >>> left_side(np.array([1, 1, 0, 0, 1, 1, 1], dtype=bool).reshape(7, 1, 1)).ravel().astype(int).tolist()
    [1, 1, 0, 0, 0, 0, 0]
    """
    labels, count = ndimage.label(both, CONNECTIVITY)
    if count < 2:
        return np.zeros_like(both)
    sizes = np.bincount(labels.ravel())[1:]
    # Two components are taken as they come; of more, the largest, and of equal ones the later, as published.
    order = sorted(range(1, count + 1), key=lambda n: (sizes[n - 1], n), reverse=True)
    largest = (1, 2) if count == 2 else (order[0], order[1])
    first, second = (np.argwhere(labels == n)[:, 0].mean() for n in largest)
    return np.asarray(labels == largest[0 if first < second else 1])
