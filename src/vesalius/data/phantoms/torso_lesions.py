"""Tumours of the torso phantoms, and lesions that look like them: where they grow, how large, how they are painted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from vesalius.data.phantoms.solids import Ellipsoid, Field
from vesalius.data.phantoms.torso_anatomy import NUMBER, Torso
from vesalius.errors import ConfigError, nearest

TRIES = 12
"""Places looked at for one that other organs leave free."""
LEAST = 0.4
"""Share of a lesion that must lie in its organ."""


class Host(TypedDict):
    """Where and how large tumours of an organ are: mm of radius, depth of the middle in radii, HU and MR contrast."""

    radius: tuple[float, float]
    depth: float
    contrast: float
    percent: float
    like: str


HOSTS: dict[str, Host] = {
    "liver": {"radius": (8, 22), "depth": 0.8, "contrast": -45, "percent": 55, "like": "liver"},
    "kidney": {"radius": (8, 20), "depth": 0.2, "contrast": -75, "percent": 25, "like": "right kidney cortex"},
    "pancreas": {"radius": (7, 13), "depth": 0.5, "contrast": -40, "percent": 40, "like": "pancreas"},
    "colon": {"radius": (9, 16), "depth": 0.4, "contrast": 15, "percent": 30, "like": "colon wall"},
}
"""Organ -> its tumours: ductal carcinoma of the pancreas and most metastases enhance less than what they grow in."""


@dataclass(frozen=True)
class Lesion:
    """A tumour or a look-alike.

    Args:
        value: in ``instances``.
        organ: liver, kidney, pancreas or colon.
        tumor: whether the labels say so; a look-alike belongs to its organ.
        centre: of the undisturbed anatomy, mm.
        radius: mm.
        voxels: how many it has.
    """

    value: int
    organ: str
    tumor: bool
    centre: tuple[float, float, float]
    radius: float
    voxels: int = 0


def check_lesions(organs: Sequence[str], radius: Sequence[float]) -> None:
    """Raises ConfigError for an organ without tumours, or radii that are no range."""
    for organ in organs:
        if organ not in HOSTS:
            raise ConfigError(f"no tumours grow in {organ!r}", remedy=nearest(organ, HOSTS))
    if len(radius) not in (0, 2) or (len(radius) == 2 and not 0 < radius[0] <= radius[1]):
        raise ConfigError(f"radius = {list(radius)}", remedy="give two numbers of mm, the smaller first")


def grow(
    patient: Torso, tumors: Sequence[str], lookalikes: int, radius: Sequence[float], rng: np.random.Generator
) -> tuple[np.ndarray, list[Lesion]]:
    """Place the lesions apart from one another inside their organs, and paint them with ragged margins."""
    wanted = [(organ, True) for organ in tumors]
    wanted += [(organ, False) for organ in dict.fromkeys(tumors) for _ in range(lookalikes)]
    canvas = patient.canvas
    instances = np.zeros_like(canvas.labels)
    lesions: list[Lesion] = []
    for organ, tumor in wanted:
        host = HOSTS[organ]
        solids = patient.hosts[organ]
        solid = solids[int(rng.integers(len(solids)))]
        low, high = radius or host["radius"]
        size = float(rng.uniform(low, high))
        seats = rng.uniform(solid.box[0], solid.box[1], size=(4000, 3)).T.astype(np.float32)
        depth = -solid(seats)
        # In the frame of the volume's anatomy, and not where the view ends.
        good = (depth > min(host["depth"] * size, 0.6 * float(depth.max()))) & (np.abs(seats[2] + 10) < 140)
        for other in lesions:
            good &= np.linalg.norm(seats.T - np.array(other.centre), axis=1) > size + other.radius + 4
        stretch, rough = rng.uniform(0.85, 1.15, size=3), Field(rng, 1.2 * size)
        names = (*patient.frames[organ], "visceral fat") if organ == "kidney" else patient.frames[organ]
        structures = [NUMBER[name] for name in names]
        for seat in np.flatnonzero(good)[:TRIES]:
            x, y, z = (float(at) for at in seats[:, seat])
            ball = Ellipsoid((x, y, z), (size * stretch[0], size * stretch[1], size * stretch[2]))
            at = canvas.region(ball.box + np.array([[-1], [1]]) * 0.3 * size)
            points = canvas.points[(slice(None), *at)]
            whole = ball(points) + 0.12 * size * rough(points) < 0
            inside = whole & np.isin(canvas.labels[at], structures) & (instances[at] == 0)
            if inside.sum() >= LEAST * whole.sum():
                value = len(lesions) + 1
                instances[at][inside] = value
                lesions.append(Lesion(value, organ, tumor, (x, y, z), size))
                break
    return instances, lesions


def label_of(lesion: Lesion) -> str:
    """The class of the organ that a look-alike lies in."""
    if lesion.organ == "kidney":
        return "right kidney" if lesion.centre[0] < 0 else "left kidney"
    return lesion.organ
