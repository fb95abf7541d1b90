"""Where a user points in a volume: clicks and boxes from words, or drawn from the truth to score a network by.

Clicks and boxes are in voxels of the image as it is stored, (column, row, slice) from 0, or in mm of the patient:
``lps`` as DICOM counts (x to the left, y to the back, z up), ``ras`` as NIfTI and 3D Slicer show (x to the right, y to
the front, z up).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vesalius.data.volumes.transforms import LPS_TO_RAS, foreground_box
from vesalius.errors import ConfigError, UnreadableImage
from vesalius.images import Image
from vesalius.tasks.prompted_volumes import draw_clicks

Space = Literal["voxel", "lps", "ras"]
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Prompts:
    """Clicks and boxes in one space.

    Args:
        points: (x, y, z) each.
        labels: of the points: 1 for what shall be segmented, 0 for what shall not.
        boxes: (x0, y0, z0, x1, y1, z1) each.
        space: voxel, lps or ras.
    """

    points: tuple[Numbers, ...] = ()
    labels: tuple[int, ...] = ()
    boxes: tuple[Numbers, ...] = ()
    space: Space = "voxel"

    def __bool__(self) -> bool:
        return bool(self.points or self.boxes)

    def __str__(self) -> str:
        """For tables: numbers of a prompt by spaces, prompts by ``;``."""
        marks = ["" if label == 1 else "not " for label in self.labels]
        points = [mark + " ".join(f"{n:g}" for n in point) for mark, point in zip(marks, self.points, strict=True)]
        return "; ".join([*points, *(" ".join(f"{n:g}" for n in box) for box in self.boxes)])

    @classmethod
    def parse(
        cls,
        points: Sequence[str] = (),
        labels: Sequence[int] = (),
        boxes: Sequence[str] = (),
        space: Space = "voxel",
    ) -> Prompts:
        """Prompts as the command line writes them.

        Args:
            points: "x,y,z" each.
            labels: of the points; none for 1.
            boxes: "x0,y0,z0,x1,y1,z1" each.

        Raises:
            ConfigError: one has another number of numbers, or there are not as many labels as points.

        >>> str(Prompts.parse(["30,40,7", "5,5,7"], [1, 0]))
        '30 40 7; not 5 5 7'
        """
        known = tuple(labels) or (1,) * len(points)
        if len(known) != len(points) or not set(known) <= {0, 1}:
            raise ConfigError(f"labels {list(known)} of {len(points)} points", remedy="give 1 or 0 for each")
        return cls(
            tuple(_numbers(word, 3, "point") for word in points),
            known,
            tuple(_numbers(word, 6, "box") for word in boxes),
            space,
        )

    def on(self, image: Image) -> Prompts:
        """The same in voxels of an image; the box of a box that is turned.

        Raises:
            UnreadableImage: mm of an image that does not say how it lies.
        """
        if self.space == "voxel" or not self:
            return self
        if image.affine is None:
            raise UnreadableImage(
                f"does not say where its voxels lie, prompts are in {self.space} mm",
                path=image.path,
                remedy="give them in voxels",
            )
        to_lps = LPS_TO_RAS if self.space == "ras" else np.eye(4)  # its own inverse
        matrix = np.linalg.inv(image.affine) @ to_lps

        def voxels(places: Any) -> NDArray[np.float64]:
            return (np.column_stack([places, np.ones(len(places))]) @ matrix.T)[:, :3]

        points = tuple(tuple(map(float, place)) for place in voxels(self.points)) if self.points else ()
        boxes = []
        for box in self.boxes:
            corners = voxels(
                [[box[axis + 3 * end] for axis, end in enumerate(ends)] for ends in product((0, 1), repeat=3)]
            )
            boxes.append((*map(float, np.rint(corners.min(0))), *map(float, np.rint(corners.max(0)))))
        return Prompts(points, self.labels, tuple(boxes))


def wanted(task: Any) -> Literal["points", "boxes"] | None:
    """What a task has to be told of each volume; None for nothing."""
    if getattr(task, "prompted", False):
        return "points"
    return "boxes" if getattr(task, "boxes", False) else None


def check_prompts(task: Any, given: Prompts) -> None:
    """Refuse prompts that a task does not take, or lacks.

    Raises:
        ConfigError: with what it needs.
    """
    kind = wanted(task)
    if kind == "points" and (not given.points or given.boxes):
        raise ConfigError("this run segments what is clicked on", remedy="say where with --point x,y,z")
    if kind == "boxes" and (not given.boxes or given.points):
        raise ConfigError("this run segments what is in a box", remedy="say where with --box x0,y0,z0,x1,y1,z1")
    if kind is None and given:
        raise ConfigError("this run needs neither point nor box", remedy="leave them out")


def simulated(task: Any, truth: NDArray[np.bool_], *, clicks: int, generator: torch.Generator) -> Prompts | None:
    """What somebody who knows the truth would say; None where there is nothing to point at.

    Args:
        task: that `wanted` something.
        truth: ``[D, H, W]``, what shall be found.
        clicks: drawn from it at random.
        generator: of the clicks.
    """
    if not truth.any():
        return None
    if wanted(task) == "points":
        found = draw_clicks(torch.from_numpy(truth), clicks, generator).flip(1).tolist()
        return Prompts(tuple(tuple(map(float, place)) for place in found), (1,) * len(found))
    spans = foreground_box(truth)[::-1]
    return Prompts(boxes=((*(float(s.start) for s in spans), *(float(s.stop - 1) for s in spans)),))


def _numbers(word: str, count: int, what: str) -> Numbers:
    try:
        numbers = tuple(float(part) for part in word.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise ConfigError(f"{what} {word!r}", remedy=f"give {count} numbers with commas between")
    return numbers
