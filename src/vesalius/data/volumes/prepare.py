"""One case of a table on a network's voxels: image, mask, and where each class is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vesalius.data.masks import IGNORE, classes_of, shape_error
from vesalius.data.table import MASK_SEPARATOR
from vesalius.data.volumes.cases import case_of
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.transforms import Grid
from vesalius.errors import UnreadableImage
from vesalius.images import Image, probe, read_segmentation, read_volume

MOST_POINTS = 4096
"""Voxels of a class of a case that are remembered as centres of patches."""


@dataclass(frozen=True)
class Prepared:
    """A case on the network's voxels, in its own dtype and intensities.

    Args:
        image: ``[C, D, H, W]``.
        limits: ``[C, 2]`` float32, what `VolumeContract.normalise` needs.
        mask: ``[D, H, W]`` uint8, value i + 1 being the i-th class, 255 ignored; None where there is none.
        points: ``[N, 4]`` int32, the class's value and the place (d, h, w) of some voxels of every class.
    """

    image: np.ndarray
    limits: np.ndarray
    mask: np.ndarray | None
    points: np.ndarray


class Relabel(Protocol):
    """What is done to a whole mask before it is stored, such as telling left from right."""

    @property
    def key(self) -> str:
        """All that the result depends on, beside mask and row."""

    def __call__(self, mask: np.ndarray, row: Mapping[str, Any], /) -> np.ndarray:
        """``[D, H, W]`` uint8 on the network's voxels -> the same in other values, 0 and 255 as they were."""


def prepare(
    row: Mapping[str, Any],
    contract: VolumeContract,
    *,
    classes: Sequence[str] | None = None,
    crop: bool = False,
    relabel: Relabel | None = None,
) -> Prepared:
    """Read a row's case and place it.

    Args:
        row: of a table whose rows are volumes.
        contract: what the network reads.
        classes: names of the mask's values in the result; None for no mask.
        crop: leave out the border without foreground.
        relabel: what is done to the mask before anything is cut off.

    Raises:
        VesaliusError: the case cannot be read or placed, or its mask does not lie on it.
    """
    image = case_of(row)
    placed = contract.place(image)
    limits = np.array([contract.intensity.fit(channel) for channel in placed], np.float32)
    mask = None if classes is None else _mask(row, image, contract, classes)
    if mask is not None and relabel is not None:
        mask = relabel(mask, row)
    if crop:
        box = contract.foreground(placed)
        placed = np.ascontiguousarray(placed[(slice(None), *box)])
        mask = None if mask is None else np.ascontiguousarray(mask[box])
    return Prepared(placed, limits, mask, _points(mask))


def _mask(row: Mapping[str, Any], image: Image, contract: VolumeContract, classes: Sequence[str]) -> np.ndarray:
    """The mask's files placed by their own affines, merged by maximum, in the numbering of `classes`."""
    grid = contract.grid(image)
    merged = np.zeros(grid.size, np.uint8)
    for path in map(Path, row["mask"].split(MASK_SEPARATOR)):
        if probe(path).modality == "SEG":
            stored, names = read_segmentation(path, image)
            values, names, part = stored.astype(np.uint8), tuple(names), image
        else:
            part = read_volume(path)
            names = tuple(row["mask_classes"])
            values = classes_of(part.array[0], max(len(names), 1), path)
            if part.affine is None:  # then its voxels are taken to be the image's
                part = replace(part, affine=image.affine, spacing=image.spacing) if part.size == image.size else part
        check_on(part, contract.grid(part), image, grid)
        numbers = np.zeros(256, np.uint8)
        numbers[IGNORE] = IGNORE
        for value, name in enumerate(names, start=1):
            if name in classes:
                numbers[value] = classes.index(name) + 1
        np.maximum(merged, contract.grid(part).apply(numbers[values], labels=True), out=merged)
    return merged


def check_on(part: Image, grid: Grid, image: Image, image_grid: Grid) -> None:
    """A mask has the image's voxels, if perhaps along other axes.

    Raises:
        VesaliusError: it has another size, or lies elsewhere.
    """
    if grid.source != image_grid.source:
        raise shape_error(part.path, part.size, image.path, image.size)
    ends = np.abs(grid.ends(part) - image_grid.ends(image)).max(axis=0)
    if (ends > np.min(image_grid.spacing) / 2).any():
        raise UnreadableImage(
            f"lies {ends.max():.3g} mm from the image {image.path} that it belongs to",
            path=part.path,
            remedy="pair them anew, or resample the mask to the image's grid",
        )


def _points(mask: np.ndarray | None) -> np.ndarray:
    """Places of up to `MOST_POINTS` voxels of each class, the same for the same mask."""
    found = [np.empty((0, 4), np.int32)]
    if mask is not None:
        generator = np.random.default_rng(0)
        for value in np.setdiff1d(np.unique(mask), (0, IGNORE)):
            flat = np.flatnonzero(mask == value)
            if len(flat) > MOST_POINTS:
                flat = np.sort(generator.choice(flat, MOST_POINTS, replace=False))
            places = np.stack(np.unravel_index(flat, mask.shape), axis=1)
            found.append(np.column_stack([np.full(len(flat), value), places]).astype(np.int32))
    return np.concatenate(found)
