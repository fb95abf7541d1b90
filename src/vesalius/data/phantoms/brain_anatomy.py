"""A head as a map of tissues: folded cortex, ventricles, basal ganglia, cerebellum, brainstem, skull and face.

Sizes and places are those of an adult in atlas space, to a few mm. The cortex is what a sheet of even thickness looks
like beneath a folded surface: sulci are the zero set of a band-limited random function that is constant along rays from
the middle of the brain, cut off at a random depth, and all that lies within 3 mm of the liquid is grey.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vesalius.data.phantoms.relaxation import Tissue
from vesalius.data.phantoms.solids import (
    Canvas,
    Ellipsoid,
    Field,
    Grid,
    Points,
    Tube,
    mirrored,
    smooth_min,
    smooth_path,
    warped,
)

TISSUES = {
    "air": Tissue(0.0, 1000, 100),
    "csf": Tissue(1.0, 4200, 1700),
    "gray matter": Tissue(0.82, 1350, 95),
    "white matter": Tissue(0.70, 900, 72),
    "deep gray matter": Tissue(0.78, 1130, 80),
    "pallidum": Tissue(0.74, 980, 62),
    "skull": Tissue(0.08, 800, 12),
    "marrow": Tissue(0.50, 500, 60),
    "fat": Tissue(0.90, 350, 75),
    "muscle": Tissue(0.75, 1300, 42, 1000),
    "skin": Tissue(0.70, 900, 45, 650),
    "eye": Tissue(1.0, 4000, 1200),
    "mucosa": Tissue(0.85, 1500, 110, 600),
    "necrotic core": Tissue(0.95, 2700, 330),
    "oedema": Tissue(0.88, 1650, 150),
    "enhancing tumour": Tissue(0.86, 1450, 125, 420),
}
"""Name -> properties; a tissue map's value i is the i-th name. The last three are lesions."""

NUMBER = {name: value for value, name in enumerate(TISSUES)}
BRAIN = ("gray matter", "white matter", "deep gray matter", "pallidum")
CORTEX = 2.8
"""Thickness in mm."""
FOLDS = 22.0
"""mm from one sulcus to the next but one."""


@dataclass(frozen=True)
class Head:
    """What differs from person to person.

    Args:
        scale: size along x, y and z.
        ventricles: factor on the ventricles' radii.
        sulci: mm of half their width; both grow with age.
        mass: (x, y, z, radius in mm) of what pushes the brain aside, or None.
    """

    scale: tuple[float, float, float]
    ventricles: float
    sulci: float
    mass: tuple[float, float, float, float] | None = None

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Head:
        """A healthy one."""
        age = rng.random()
        sides = rng.uniform(0.94, 1.05, size=3)
        return cls(
            (float(sides[0]), float(sides[1]), float(sides[2])),
            float(0.7 + 0.7 * age + rng.uniform(-0.1, 0.1)),
            float(0.35 + 0.7 * age),
        )


def head(grid: Grid, person: Head, rng: np.random.Generator, *, skull: bool) -> np.ndarray:
    """Tissue map ``[D, H, W]`` uint8 of a person's head, or of the brain alone.

    Args:
        grid: the voxels; they should be about cubic.
        person: size, ventricles, sulci.
        rng: of the folds and irregularities.
        skull: with skull, scalp and face; otherwise stripped, as in BraTS.
    """
    points = grid.points() / np.array(person.scale, dtype=np.float32).reshape(3, 1, 1, 1)
    if person.mass is not None:
        points = _pushed(points, person.mass)
    points = warped(points, rng, amplitude=1.6, length=70.0)
    folds = _Folds(rng)

    canvas = Canvas(grid, points, margin=16.0)
    sides = np.abs(points[0])
    hull = _hull(sides, points)
    cerebellum = _Cerebellum(sides, points)
    stem = Tube(smooth_path(((0, 20, -2), (0, 18, -24), (0, 27, -50), (0, 32, -110))), np.linspace(13, 5.5, 16))
    below = stem(points)
    inside = np.minimum(np.minimum(hull, cerebellum.distance), below)
    if skull:
        _coverings(canvas, points, inside, rng)
    canvas.labels[inside < (2.5 if skull else 1.2)] = NUMBER["csf"]

    liquid = _liquid(grid, points, sides, hull, folds, person.sulci)
    canvas.labels[hull < 0] = NUMBER["white matter"]
    canvas.labels[(hull < 0) & (liquid < CORTEX)] = NUMBER["gray matter"]
    canvas.labels[(hull < 0) & (liquid < 0)] = NUMBER["csf"]
    cerebellum.paint(canvas.labels, outside=hull)
    canvas.labels[(below < 0) & (hull > -14)] = NUMBER["white matter"]
    _middle(canvas, person.ventricles)
    return canvas.labels


def _pushed(points: Points, mass: tuple[float, float, float, float]) -> Points:
    """Positions in the undisturbed brain: tissue at the edge of a mass came from nearer its middle."""
    centre = np.array(mass[:3], dtype=np.float32).reshape(3, 1, 1, 1)
    offset = points - centre
    near = np.exp(-(offset**2).sum(0) / (2 * (1.3 * mass[3]) ** 2))
    return points - 0.35 * near * offset


def _hull(sides: np.ndarray, points: Points) -> np.ndarray:
    """Signed distance in mm to the cerebrum as if it had no folds: a vault with a flat base, and temporal lobes."""
    _, y, z = points
    mirrored_points = np.stack([sides, y, z])
    vault = Ellipsoid((0, 0, 12), (67, 84, 60))(points)
    vault = -smooth_min(-vault, z + 15 + 0.12 * y, 14.0)
    temporal = Ellipsoid((41, -10, -19), (26, 42, 21), (0, 0, -8))(mirrored_points)
    return smooth_min(vault, temporal, 8.0)


def _liquid(grid: Grid, points: Points, sides: np.ndarray, hull: np.ndarray, folds: _Folds, width: float) -> np.ndarray:
    """Distance in mm to the nearest liquid outside or in a fissure or sulcus, negative inside."""
    _, y, z = points
    # The fissure between the hemispheres ends at the corpus callosum, an ellipse in the plane of symmetry.
    callosum = (np.hypot((y - 2) / 40, (z - 1) / 25) - 1) * 30
    midline = np.maximum(sides - 0.6 - 0.5 * width, 3.0 - callosum)
    sylvian = np.maximum(np.abs(z + 7 - 0.3 * y) - 0.8 - width, np.maximum(39 - sides, np.abs(y + 2) - 34))
    insula = np.maximum(
        np.abs(sides - 39 + 0.006 * (y + 3) ** 2) - 0.8, np.maximum(np.abs(z - 4) - 13, np.abs(y + 3) - 25)
    )
    walls = np.minimum(np.minimum(midline, sylvian), insula)
    depth = np.minimum(-hull, walls)

    # No sulcus reaches the white matter around the basal ganglia.
    core = Ellipsoid((18, 2, 8), (16, 40, 18))(np.stack([sides, y, z]))
    middle = np.array((0, 0, 4), dtype=np.float32).reshape(3, 1, 1, 1)
    rays = points + folds.bends(points) - middle
    rays *= (66 / np.maximum(np.sqrt((rays**2).sum(0)), 12)) ** 0.75
    deep = 15 + 4.0 * folds.depth(points)
    sulci = np.minimum(
        np.maximum(_sheets(folds.main(rays), FOLDS, grid) - width, depth - deep),
        np.maximum(_sheets(folds.small(rays), 0.6 * FOLDS, grid) - 0.6 * width, depth - 0.4 * deep),
    )
    return np.minimum(np.minimum(-hull, walls), np.maximum(sulci, 5 - core))


def _sheets(pattern: np.ndarray, wavelength: float, grid: Grid) -> np.ndarray:
    """About the distance in mm to the zeros of a random function of that wavelength."""
    slope = np.sqrt(sum(part**2 for part in np.gradient(pattern, *grid.spacing)))
    return np.abs(pattern) / np.maximum(slope, 0.4 * 2 * np.pi / wavelength)


class _Folds:
    """The random functions that make one person's sulci: long ones, short ones, their depth and their bends."""

    def __init__(self, rng: np.random.Generator):
        self.main, self.small = Field(rng, FOLDS, width=0.28), Field(rng, 0.6 * FOLDS, width=0.3)
        self.depth = Field(rng, 30.0)
        self._bends = [Field(rng, 24.0) for _ in range(3)]

    def bends(self, points: Points) -> np.ndarray:
        """Displacement in mm, so that the walls of a sulcus are not flat."""
        return np.stack([2.6 * bend(points) for bend in self._bends])


class _Cerebellum:
    """Two hemispheres and a vermis whose leaves lie in fans about a transverse axis."""

    def __init__(self, sides: np.ndarray, points: Points):
        _, y, z = points
        lobe = Ellipsoid((23, 48, -36), (29, 27, 20), (0, 0, -12))(np.stack([sides, y, z]))
        vermis = Ellipsoid((0, 50, -32), (9, 22, 19))(points)
        self.distance = smooth_min(lobe, vermis, 4.0)
        self.fan = np.arctan2(z + 35, y - 30) * 28 + 0.06 * sides

    def paint(self, labels: np.ndarray, *, outside: np.ndarray) -> None:
        """Leaves of grey matter on a tree of white matter, where the cerebrum is not."""
        depth, leaf = -self.distance, np.cos(2 * np.pi * self.fan / 5.0)
        branch = np.cos(2 * np.pi * self.fan / 17.0)
        here = (depth > 0) & (outside > 1.5)
        labels[here] = NUMBER["gray matter"]
        labels[here & (depth > 10 - 4 * branch)] = NUMBER["white matter"]
        labels[here & (leaf < -0.8) & (depth < 5)] = NUMBER["csf"]


def _middle(canvas: Canvas, ventricles: float) -> None:
    """Corpus callosum, basal ganglia, thalami, cisterns and ventricles."""
    over = [NUMBER[name] for name in (*BRAIN, "csf")]

    def paint(tissue: str, solid: Ellipsoid | Tube, both: bool = True) -> None:
        for one in (solid, mirrored(solid)) if both else (solid,):
            canvas.paint(NUMBER[tissue], one, over=over)

    arch = smooth_path(((0, -28, 1), (0, -35, 9), (0, -26, 19), (0, 0, 25), (0, 24, 20), (0, 35, 9)))
    paint("white matter", Tube(arch, np.full(len(arch), 3.2), squash=(5, 1, 1)), both=False)
    paint("deep gray matter", Tube(smooth_path(((12, -30, 4), (13, -20, 11), (18, 4, 20))), np.linspace(7, 2.5, 11)))
    paint("deep gray matter", Ellipsoid((26, -3, 2), (5.5, 17, 10), (0, 0, -12)))
    paint("pallidum", Ellipsoid((19, 0, 0), (4.5, 9.5, 7), (0, 0, -25)))
    paint("deep gray matter", Ellipsoid((11, 15, 5), (8.5, 14, 9), (0, 0, -22)))
    paint("gray matter", Ellipsoid((27, -2, -18), (5, 14, 4)))
    paint("csf", Ellipsoid((0, -8, -15), (12, 11, 5)), both=False)
    paint("csf", Ellipsoid((0, 37, 0), (9, 4, 6)), both=False)

    v = ventricles
    horn = smooth_path(((9, -36, 3), (7.5, -24, 13), (9, -4, 19), (14, 16, 18), (25, 32, 10), (23, 50, 5)))
    paint("csf", Tube(horn, v * np.interp(np.linspace(0, 5, len(horn)), range(6), (3, 6, 5, 5, 7, 2))))
    tip = smooth_path(((26, 31, 8), (33, 20, -9), (33, 2, -16), (29, -6, -17)))
    paint("csf", Tube(tip, v * np.linspace(4, 1.4, len(tip))))
    paint("csf", Ellipsoid((0, 7, -1), (1.8 * v, 14, 9)), both=False)
    paint("csf", Ellipsoid((0, 35, -30), (7 * v**0.5, 5 * v**0.5, 9)), both=False)
    paint("white matter", Ellipsoid((0, -17, 14), (0.9, 16, 8)), both=False)


def _coverings(canvas: Canvas, points: Points, inside: np.ndarray, rng: np.random.Generator) -> None:
    """Skull of two tables with marrow between, scalp, neck and face with eyes, orbital fat and sinuses."""
    z = points[2]
    labels = canvas.labels
    uneven = Field(rng, 60.0)(points)
    # The neck and the face: soft tissue around a jaw, beneath a skin.
    face = Ellipsoid((0, -28, -70), (62, 70, 72))(points)
    neck = Tube(((0, 22, -40), (0, 30, -140)), (58, 58), squash=(1, 1.1, 1))(points)
    vault = inside - 13 - 1.5 * uneven
    outer = smooth_min(smooth_min(face, neck, 25.0), vault, 12.0)
    labels[outer < 0] = NUMBER["skin"]
    labels[outer < -2.2] = NUMBER["fat"]
    labels[(outer < -6 - 2 * uneven) & ((z < -20) | (inside < 11))] = NUMBER["muscle"]
    for value, limit in (("fat", 10.5), ("skull", 8.5), ("marrow", 6.6), ("skull", 3.9)):
        labels[(inside < limit + 0.8 * uneven) & ((value != "fat") | (z > -20))] = NUMBER[value]
    for side in (-1, 1):
        canvas.paint(NUMBER["fat"], Ellipsoid((side * 30, -68, -30), (19, 26, 17)))
        canvas.paint(NUMBER["muscle"], Tube(((side * 36, -78, -30), (side * 18, -42, -28)), (3, 2)))
        canvas.paint(NUMBER["eye"], Ellipsoid((side * 31, -80, -30), (12.2, 12.2, 12.2)))
        canvas.paint(NUMBER["air"], Ellipsoid((side * 28, -66, -62), (13, 16, 15)))
        canvas.paint(NUMBER["air"], Ellipsoid((side * 6, -60, -36), (5, 20, 12)))
        canvas.paint(NUMBER["skull"], Ellipsoid((side * 42, 22, -38), (12, 13, 14)))
    canvas.paint(NUMBER["mucosa"], Ellipsoid((0, -70, -62), (9, 28, 22)))
    canvas.paint(NUMBER["air"], Tube(((-4, -82, -62), (-4, -48, -60), (0, -30, -110)), (2, 2, 7)))
    canvas.paint(NUMBER["air"], Tube(((4, -82, -62), (4, -48, -60)), (2, 2)))
    labels[outer >= 0] = NUMBER["air"]
