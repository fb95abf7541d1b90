"""Gliomas of the brain phantoms: a necrotic core in an enhancing rim of uneven thickness, in oedema."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from vesalius.data.phantoms.solids import Field, Points

LESION_LABELS = {"necrotic core": 1, "oedema": 2, "enhancing tumour": 4}
"""The values of the lesions' label file, as in BraTS 2017 to 2021."""


@dataclass(frozen=True)
class Glioma:
    """A tumour by its measures.

    Args:
        centre: LPS mm.
        radius: mm from there to the outside of the enhancing rim.
        core: share of the radius that is necrotic.
        oedema: mm that it reaches beyond the rim.
        rng: of its irregularities.
    """

    centre: tuple[float, float, float]
    radius: float
    core: float
    oedema: float
    rng: np.random.Generator

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        points: Points | None = None,
        room: np.ndarray | None = None,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> Glioma:
        """One in a lobe of the built-in brain, or at one of `points` deep inside `room`."""
        side = rng.choice((-1, 1))
        radius = float(rng.uniform(8, 18))
        if points is None or room is None:
            angle = rng.uniform(0, 2 * np.pi)
            centre = (side * rng.uniform(24, 36), 44 * np.sin(angle) * rng.uniform(0.4, 1), rng.uniform(8, 38))
        else:
            depth = distance_transform_edt(room, sampling=spacing)
            at = rng.choice(np.flatnonzero(depth >= min(radius, 0.7 * depth.max())))
            centre = tuple(points.reshape(3, -1)[:, at])
        x, y, z = (float(value) for value in centre)
        return cls((x, y, z), radius, float(rng.uniform(0.6, 0.8)), float(rng.uniform(7, 16)), rng)

    def paint(self, marks: np.ndarray, points: Points, room: np.ndarray, white: np.ndarray) -> None:
        """Add its parts to `marks`, in the brain only; oedema keeps to white matter."""
        offset = points - np.array(self.centre, dtype=np.float32).reshape(3, 1, 1, 1)
        rough, fringe, rim = Field(self.rng, 22.0), Field(self.rng, 16.0), Field(self.rng, 9.0)
        distance = np.sqrt((offset**2).sum(0)) * (1 + 0.18 * rough(offset)) - self.radius
        near = distance < self.oedema * (1 + 0.45 * fringe(offset))
        marks[near & (marks == 0) & room & (white | (distance < 1.5))] = LESION_LABELS["oedema"]
        room = room | (distance < -1.5)
        marks[(distance < 0) & room] = LESION_LABELS["enhancing tumour"]
        inner = -(1 - self.core) * self.radius * (1 + 0.3 * rim(offset))
        marks[(distance < np.minimum(inner, -1.0)) & room] = LESION_LABELS["necrotic core"]
