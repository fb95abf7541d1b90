"""Four organs and three kinds of lesion as functions of a position in mm, for the ultrasound phantoms.

Each organ function draws one patient's anatomy and returns an `Anatomy`, which can be evaluated on any grid: the
beams of any probe (what the scanner sees) or the pixels of the picture (the mask).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

from vesalius.data.phantoms.us_physics import Probe, Scene

LABELS = ("normal", "benign", "malignant")
Grid = np.ndarray


class Patchwork:
    """A smooth random function of position, mean 0 and deviation about 1: quadratic B-splines on a noisy lattice."""

    def __init__(self, rng: np.random.Generator, length: float, extent: float = 200.0, stretch: float = 1.0):
        self.length, self.stretch, self.offset = length, stretch, extent / 2
        shape = (int(extent * 1.2 / length) + 4, int(extent * 1.2 / (length * stretch)) + 4)
        self.values = (rng.standard_normal(shape) * 1.8).astype(np.float32)

    def __call__(self, y: Grid, x: Grid) -> Grid:
        """Values at positions in mm."""
        at = [(y + self.offset * 0.2) / self.length, (x + self.offset * 1.1) / (self.length * self.stretch)]
        return map_coordinates(self.values, at, order=2, prefilter=False, mode="grid-wrap", output=np.float32)


@dataclass(frozen=True)
class Lesion:
    """A closed contour around `centre`: ``r(angle) = radius * (ellipse + harmonics + spikes)``, and what is inside.

    Args:
        kind: benign or malignant.
        centre: (y, x) in mm.
        radius: mean radius in mm.
        aspect: width over height; benign lesions are wider than tall.
        tilt: rotation of the ellipse, radians.
        harmonics: ``[K, 3]`` rows (order, amplitude, phase) of the margin's undulation.
        spikes: ``[S, 3]`` rows (angle, height, sharpness) of spicules.
        echo: dB relative to the tissue it replaces.
        through: dB gained (enhancement) or lost (shadow, negative) by a beam across its diameter.
        calcifications: ``[N, 2]`` (y, x) in mm of bright points.
        patches: unevenness of the echoes inside.
    """

    kind: str
    centre: tuple[float, float]
    radius: float
    aspect: float
    tilt: float
    harmonics: np.ndarray
    spikes: np.ndarray
    echo: float
    through: float
    calcifications: np.ndarray
    patches: Patchwork

    def distance(self, y: Grid, x: Grid) -> Grid:
        """Approximate signed distance to the margin in mm along the ray from the centre, negative inside."""
        dy, dx = y - self.centre[0], x - self.centre[1]
        angle = np.arctan2(dy, dx)
        stretch = self.aspect**0.5
        local = angle - self.tilt
        margin = 1 / np.sqrt((np.cos(local) / stretch) ** 2 + (np.sin(local) * stretch) ** 2)
        for order, amplitude, phase in self.harmonics.tolist():
            margin = margin + amplitude * np.cos(order * angle + phase)
        for at, height, sharpness in self.spikes.tolist():
            margin = margin + height * np.exp(sharpness * (np.cos(angle - at) - 1))
        return np.hypot(dy, dx) - self.radius * margin


@dataclass(frozen=True)
class Anatomy:
    """One patient's organ: what a beam meets at ``(y, x)`` in mm; the lesion, if any; the probe's settings."""

    scene: Callable[[Grid, Grid], Scene]
    lesion: Lesion | None
    probe: dict[str, float]


def breast(rng: np.random.Generator, label: str) -> Anatomy:
    """Skin, fat lobules between Cooper's ligaments, fibroglandular tissue, pectoral muscle, chest wall."""
    depth = rng.uniform(34, 44)
    fat_end, gland_end = rng.uniform(0.2, 0.3) * depth, rng.uniform(0.6, 0.72) * depth
    wall = rng.uniform(0.88, 0.96) * depth
    wave, lobules, glands, grain = (Patchwork(rng, length) for length in (14, 5.5, 4, 1.6))
    fibres = Patchwork(rng, 0.7, stretch=14)
    tilt, density = rng.uniform(-0.12, 0.12), rng.uniform(-1, 3)
    lesion = _lesion(rng, label, y=(fat_end + 5, gland_end - 4), x=(-0.2 * depth, 0.2 * depth), radius=(3.6, 6.2))

    def scene(y: Grid, x: Grid) -> Scene:
        bend = 1.1 * wave(y * 0, x) + tilt * x
        web = lobules(y * 0.9, x)
        septa = np.exp(-((web / 0.13) ** 2))
        fat = -9 + 1.2 * grain(y, x)
        gland = 3 + density + 3.2 * glands(y, x) + 1.5 * grain(y, x)
        muscle = -7 + 3.0 * fibres(y + 0.6 * bend, x)
        in_gland = _step(y - fat_end - bend - 1.2 * web) * _step(gland_end + 0.5 * bend - y)
        in_muscle = _step(y - gland_end - 2.5 - 0.4 * bend)
        echo = fat + in_gland * (gland - fat) + in_muscle * (muscle - fat)
        echo = echo + 9 * septa * (1 - in_gland) * (1 - in_muscle) + 4 * septa * in_gland
        uneven = np.exp(0.5 * glands(y * 0, x))  # an interface is as bright as it happens to face the beam
        interface = 1.3 * _line(y - gland_end - 2.5 - 0.4 * bend, 0.25) + 0.8 * _line(
            y - fat_end - bend - 1.2 * web, 0.2
        )
        interface = interface * uneven
        echo, interface = _skin(echo, interface, y, thickness=1.6)
        return _wall(echo, interface, y - wall - 0.6 * bend, bright=2.2 * uneven, loss=14.0)

    return Anatomy(_with(scene, lesion), lesion, {"depth": depth, "axial": 0.2, "lateral": 0.85, "focus": 0.45})


def thyroid(rng: np.random.Generator, label: str) -> Anatomy:
    """Strap muscles, a lobe with a capsule, the carotid artery to its side, the trachea with its shadow."""
    depth = rng.uniform(34, 42)
    side = float(rng.choice((-1.0, 1.0)))
    centre = (rng.uniform(0.42, 0.48) * depth, side * rng.uniform(-0.04, 0.02) * depth)
    half = (rng.uniform(6.5, 8.5), rng.uniform(9.0, 11.5))
    artery = (
        centre[0] + rng.uniform(-1, 3),
        centre[1] + side * (half[1] + rng.uniform(2.2, 3.2)),
        rng.uniform(2.5, 3.3),
    )
    trachea = (centre[0] + 4.5, centre[1] - side * (half[1] + 5.5), rng.uniform(6.5, 8))
    wave, grain = Patchwork(rng, 12), Patchwork(rng, 1.8)
    fibres = Patchwork(rng, 0.75, stretch=9)
    room = half[0] * 0.35
    lesion = _lesion(
        rng, label, y=(centre[0] - room, centre[0] + room), x=(centre[1] - 4, centre[1] + 4), radius=(2.6, 4.4)
    )

    def scene(y: Grid, x: Grid) -> Scene:
        bend = 0.8 * wave(y * 0, x)
        lobe = _ellipse(y + 0.5 * bend, x, centre, half)
        muscle = -8 + 2.6 * fibres(y + bend, x)
        tissue = 4 + 1.2 * grain(y, x)
        surround = muscle + 4 * _step(3.4 + 0.5 * bend - y)
        echo = surround + _step(-lobe) * (tissue - surround)
        interface = 1.3 * _line(lobe, 0.22) * _facing(y - centre[0], x - centre[1], half)
        interface = interface + 0.8 * _line(y - 3.4 - 0.5 * bend, 0.2) + 0.8 * _line(y - 0.2 * depth - bend, 0.2)
        vessel = np.hypot(y - artery[0], x - artery[1]) - artery[2]
        echo = echo + _step(-vessel, 0.15) * (-38 - echo)
        interface = interface + 1.6 * _line(vessel - 0.3, 0.25) * _facing(y - artery[0], x - artery[1], (1, 1))
        windpipe = np.hypot(y - trachea[0], x - trachea[1]) - trachea[2]
        inside = _step(-windpipe, 0.2)
        echo = echo + inside * (-16 - 5 * np.sin(windpipe * 3.2) - echo)
        interface = interface + 4.0 * _line(windpipe, 0.3) * (y < trachea[0])
        echo, interface = _skin(echo, interface, y, thickness=1.3)
        return Scene(echo, interface, -6.0 * _step(-vessel) + 16.0 * inside)

    return Anatomy(_with(scene, lesion), lesion, {"depth": depth, "axial": 0.19, "lateral": 0.8, "focus": 0.5})


def liver(rng: np.random.Generator, label: str) -> Anatomy:
    """Abdominal wall, homogeneous parenchyma with hepatic and portal veins, the diaphragm behind it."""
    depth = rng.uniform(115, 145)
    capsule, dome = rng.uniform(14, 20), rng.uniform(0.8, 0.9) * depth
    wave, patches, grain = Patchwork(rng, 45), Patchwork(rng, 22), Patchwork(rng, 5)
    fibres = Patchwork(rng, 1.8, stretch=12)
    vessels = [
        (
            rng.uniform(38, dome - 12),
            rng.uniform(-42, 42),
            rng.uniform(2.2, 5.5),
            rng.uniform(1, 3.5),
            rng.uniform(-0.9, 0.9),
        )
        for _ in range(rng.integers(4, 8))
    ]
    portal = rng.random(len(vessels)) < 0.45
    tilt = rng.uniform(-0.25, 0.25)
    lesion = _lesion(rng, label, y=(42, 0.62 * depth), x=(-24, 24), radius=(9, 15))

    def scene(y: Grid, x: Grid) -> Scene:
        bend = 2.0 * wave(y * 0, x)
        echo = 0.8 * patches(y, x) + 1.3 * grain(y, x)
        interface = np.zeros_like(echo)
        attenuation = np.zeros_like(echo)
        for (cy, cx, radius, aspect, turn), bright in zip(vessels, portal, strict=True):
            along = (x - cx) * math.cos(turn) + (y - cy) * math.sin(turn)
            across = (y - cy) * math.cos(turn) - (x - cx) * math.sin(turn)
            lumen = (np.hypot(along / aspect, across) - radius) * 0.8
            echo = echo + _step(-lumen, 0.5) * (-30 - echo)
            interface = interface + (1.5 if bright else 0.3) * _line(lumen - 0.8, 0.8)
            attenuation = attenuation - 0.8 * _step(-lumen, 0.5)
        behind = y - dome - tilt * x + 0.006 * (x - 10 * tilt) ** 2
        echo = echo - 7 * _step(behind, 1.0)
        interface = interface + 3.2 * np.exp(0.4 * wave(y, x)) * _line(behind, 0.9)
        echo, interface = _abdominal_wall(echo, interface, y, capsule + bend, fibres(y + bend, x))
        return Scene(echo, interface, attenuation)

    probe = {"depth": depth, "radius": rng.uniform(40, 55), "half_angle": rng.uniform(0.50, 0.60)}
    return Anatomy(_with(scene, lesion), lesion, probe | {"axial": 0.55, "lateral": 0.75, "focus": 0.55})


def kidney(rng: np.random.Generator, label: str) -> Anatomy:
    """Abdominal wall, liver or fat above, a bean with dark pyramids in its cortex and a bright sinus."""
    depth = rng.uniform(100, 125)
    capsule = rng.uniform(12, 17)
    centre = (rng.uniform(0.48, 0.56) * depth, rng.uniform(-6, 6))
    half, turn = (rng.uniform(20, 25), rng.uniform(43, 52)), rng.uniform(-0.3, 0.3)
    pyramids = np.linspace(0, 2 * np.pi, rng.integers(8, 11), endpoint=False) + rng.uniform(0, 1)
    wave, grain, sinus_patches = Patchwork(rng, 40), Patchwork(rng, 4.5), Patchwork(rng, 6)
    fibres = Patchwork(rng, 1.8, stretch=12)
    pole = float(rng.choice((-1.0, 1.0)))
    cx, cy = pole * half[1] * 0.55, -half[0] * 0.5
    at = (centre[0] + cy * math.cos(turn) + cx * math.sin(turn), centre[1] + cx * math.cos(turn) - cy * math.sin(turn))
    lesion = _lesion(rng, label, y=(at[0] - 3, at[0] + 3), x=(at[1] - 3, at[1] + 3), radius=(8, 12.5))

    def scene(y: Grid, x: Grid) -> Scene:
        dy, dx = y - centre[0], x - centre[1]
        along, across = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
        bean = np.hypot(along / half[1], (across + 0.003 * along**2 * np.sign(turn)) / half[0])
        bend = 2.0 * wave(y * 0, x)
        around = 1 + 1.2 * grain(y, x)
        echo = around + 5 * _step((1.16 - bean) * 20, 1.0)
        cortex = -4 + 1.2 * grain(y, x)
        echo = echo + _step((1 - bean) * 20, 0.8) * (cortex - echo)
        for angle in pyramids.tolist():
            py, px = 0.68 * half[0] * math.sin(angle), 0.68 * half[1] * math.cos(angle)
            blob = np.hypot((along - px) / (0.11 * half[1]), (across - py) / (0.17 * half[0]))
            echo = echo - 9 * _step((1 - blob) * 3, 0.8)
        sinus = np.hypot(along / (0.62 * half[1]), across / (0.36 * half[0])) + 0.09 * sinus_patches(y, x)
        echo = echo + _step((1 - sinus) * 12, 1.5) * (8 + 4 * sinus_patches(y, x) - echo)
        interface = 2.0 * _line((bean - 1) * 22, 0.8) * _facing(dy, dx, half)
        echo, interface = _abdominal_wall(echo, interface, y, capsule + bend, fibres(y + bend, x))
        return Scene(echo, interface, 0.12 * _step((1 - sinus) * 12, 1.5))

    probe = {"depth": depth, "radius": rng.uniform(40, 55), "half_angle": rng.uniform(0.50, 0.60)}
    return Anatomy(_with(scene, lesion), lesion, probe | {"axial": 0.5, "lateral": 0.75, "focus": 0.5})


ORGANS: dict[str, Callable[[np.random.Generator, str], Anatomy]] = {
    "breast": breast,
    "thyroid": thyroid,
    "liver": liver,
    "kidney": kidney,
}


def make_probe(anatomy: Anatomy, size: int) -> Probe:
    """The probe that an organ is examined with, for pictures of `size` x `size` pixels."""
    return Probe(size=size, **anatomy.probe)


def _lesion(
    rng: np.random.Generator,
    label: str,
    *,
    y: tuple[float, float],
    x: tuple[float, float],
    radius: tuple[float, float],
) -> Lesion | None:
    """A lesion of that kind with its centre and mean radius in these ranges (mm); None for a normal organ."""
    if label == "normal":
        return None
    benign = label == "benign"
    size = rng.uniform(*radius)
    orders = np.arange(2, 5) if benign else np.arange(2, 9)
    amplitude = rng.uniform(0.01, 0.04, len(orders)) if benign else rng.uniform(0.02, 0.09, len(orders))
    harmonics = np.stack([orders, amplitude, rng.uniform(0, 2 * np.pi, len(orders))], axis=1)
    count = 0 if benign or rng.random() < 0.3 else rng.integers(5, 10)
    at = rng.uniform(0, 2 * np.pi, count)
    spikes = np.stack([at, rng.uniform(0.15, 0.55, count), rng.uniform(60, 250, count)], axis=1)
    centre = (float(rng.uniform(*y)), float(rng.uniform(*x)))
    points = rng.normal(0, 0.33 * size, (0 if benign or rng.random() < 0.5 else rng.integers(3, 8), 2)) + centre
    return Lesion(
        kind=label,
        centre=centre,
        radius=size,
        aspect=rng.uniform(1.2, 1.7) if benign else rng.uniform(0.75, 1.15),
        tilt=rng.uniform(-0.3, 0.3),
        harmonics=harmonics,
        spikes=spikes,
        echo=rng.uniform(-13, -8) if benign else rng.uniform(-20, -14),
        through=rng.uniform(3, 8) if benign else rng.uniform(-15, -6),
        calcifications=points,
        patches=Patchwork(rng, 0.35 * size),
    )


def _with(scene: Callable[[Grid, Grid], Scene], lesion: Lesion | None) -> Callable[[Grid, Grid], Scene]:
    """`scene` with the lesion in it: darker inside, a capsule or an echogenic halo, and its shadow or enhancement."""
    if lesion is None:
        return scene

    def both(y: Grid, x: Grid) -> Scene:
        around = scene(y, x)
        distance = lesion.distance(y, x)
        soft = 0.03 * lesion.radius if lesion.kind == "benign" else 0.08 * lesion.radius
        inside = _step(-distance, soft)
        level = float(np.median(around.echo[distance < 0.4 * lesion.radius])) if (distance < 0).any() else 0.0
        uneven = (0.8 if lesion.kind == "benign" else 1.8) * lesion.patches(y, x)
        echo = around.echo + inside * (level + lesion.echo + uneven - around.echo)
        interface = around.interface * (1 - inside)
        if lesion.kind == "benign":
            facing = _facing(y - lesion.centre[0], x - lesion.centre[1], (1, 1))
            interface = interface + 0.9 * _line(distance, 0.05 * lesion.radius) * facing
        else:
            echo = echo + 6 * np.exp(-(((distance - 0.22 * lesion.radius) / (0.18 * lesion.radius)) ** 2))
        for py, px in lesion.calcifications.tolist():
            interface = interface + 5.0 * np.exp(-((np.hypot(y - py, x - px) / (0.06 * lesion.radius)) ** 2))
        loss = -lesion.through / (2 * 2 * lesion.radius / 10)
        return Scene(echo, interface, around.attenuation + loss * inside)

    return both


def _step(distance: Grid, width: float = 0.25) -> Grid:
    """0 below and 1 above zero, over about `width` mm."""
    return 0.5 * (1 + np.tanh(distance / width))


def _line(distance: Grid, width: float) -> Grid:
    """A ridge where `distance` is zero."""
    return np.exp(-((distance / width) ** 2))


def _ellipse(y: Grid, x: Grid, centre: tuple[float, float], half: tuple[float, float]) -> Grid:
    """About the distance in mm to an ellipse with half axes (y, x), negative inside."""
    return (np.hypot((y - centre[0]) / half[0], (x - centre[1]) / half[1]) - 1) * min(half)


def _facing(dy: Grid, dx: Grid, half: tuple[float, float]) -> Grid:
    """How squarely an ellipse's surface meets a beam from above: 1 at top and bottom, near 0 at the sides."""
    ny, nx = dy / half[0] ** 2, dx / half[1] ** 2
    return 0.08 + 0.92 * (ny**2 / (ny**2 + nx**2 + 1e-6)) ** 2


def _skin(echo: Grid, interface: Grid, y: Grid, *, thickness: float) -> tuple[Grid, Grid]:
    """A bright layer below the transducer with two sharp borders."""
    inside = _step(thickness - y)
    interface = interface * (1 - inside) + 2.5 * _line(y - 0.25, 0.25) + 1.4 * _line(y - thickness, 0.2)
    return echo + inside * (6 - echo), interface


def _wall(echo: Grid, interface: Grid, distance: Grid, *, bright: Grid, loss: float) -> Scene:
    """The chest wall: a strong interface, little behind it."""
    behind = _step(distance, 0.3)
    return Scene(echo - 8 * behind, interface + bright * _line(distance, 0.35), loss * behind)


def _abdominal_wall(echo: Grid, interface: Grid, y: Grid, inner: Grid, fibres: Grid) -> tuple[Grid, Grid]:
    """Skin, fat and striated muscle down to `inner` (mm)."""
    wall = _step(inner - y, 0.6)
    muscle = -5 + 3.5 * fibres - 4 * _step(0.45 * inner - y, 0.6)
    echo = echo + wall * (muscle - echo)
    interface = interface * (1 - wall) + 2.0 * _line(y - inner, 0.6) + 1.2 * _line(y - 0.45 * inner, 0.5)
    skin = _step(2.5 - y, 0.4)
    return echo + skin * (5 - echo), interface + 1.5 * _line(y - 0.5, 0.5)
