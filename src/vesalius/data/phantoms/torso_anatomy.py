"""An abdomen and lower chest as a map of structures: what each of the organs is made of, and where it lies.

Places and sizes are those of an adult lying on the back, to about a centimetre; the origin is the first lumbar
vertebra. Every person has other sizes, fat, positions of the organs, and coils of the bowel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vesalius.data.phantoms.relaxation import Tissue
from vesalius.data.phantoms.solids import (
    Canvas,
    Change,
    Ellipsoid,
    Field,
    Grid,
    Joined,
    Solid,
    Tube,
    smooth_path,
    warped,
)


class Structure(NamedTuple):
    """A material in a place.

    Args:
        label: the class it counts as, or "".
        hu: Hounsfield units without contrast medium; typical values of 120 kV CT.
        gain: HU that contrast medium adds in the portal venous phase, 70 s after injection.
        grain: HU of its own unevenness.
        tissue: what decides its grey value in MR.
    """

    label: str
    hu: float
    gain: float
    grain: float
    tissue: Tissue


_SOFT, _FAT, _FLUID = Tissue(0.75, 1200, 45), Tissue(0.9, 340, 75), Tissue(1.0, 3500, 700)
_BLOOD, _GAS = Tissue(0.35, 1500, 60), Tissue(0.0, 1000, 50)  # flowing blood gives spin echoes little signal
_LIVER, _BOWEL = Tissue(0.75, 700, 45), Tissue(0.8, 1100, 60)

STRUCTURES = {
    "air": Structure("", -1000, 0, 0, _GAS),
    "skin": Structure("", 30, 10, 5, Tissue(0.6, 900, 35)),
    "fat": Structure("", -105, 0, 8, _FAT),
    "visceral fat": Structure("", -100, 2, 12, _FAT),
    "muscle": Structure("", 52, 10, 10, _SOFT),
    "diaphragm": Structure("", 50, 12, 5, _SOFT),
    "cortical bone": Structure("", 520, 0, 80, Tissue(0.06, 800, 15)),
    "spongy bone": Structure("", 190, 15, 45, Tissue(0.5, 550, 60)),
    "disc": Structure("", 85, 5, 8, Tissue(0.8, 1100, 75)),
    "spinal canal": Structure("", 25, 5, 5, Tissue(0.95, 2200, 250)),
    "heart": Structure("", 42, 95, 12, Tissue(0.6, 1100, 50)),
    "small vessel": Structure("", 42, 105, 4, _BLOOD),
    "ureter": Structure("", 12, 10, 3, _FLUID),
    "spleen": Structure("spleen", 47, 72, 5, Tissue(0.8, 1250, 75)),
    "right kidney cortex": Structure("right kidney", 34, 155, 6, Tissue(0.8, 1050, 80)),
    "right kidney medulla": Structure("right kidney", 30, 125, 6, Tissue(0.85, 1450, 95)),
    "left kidney cortex": Structure("left kidney", 34, 155, 6, Tissue(0.8, 1050, 80)),
    "left kidney medulla": Structure("left kidney", 30, 125, 6, Tissue(0.85, 1450, 95)),
    "gall bladder": Structure("gall bladder", 10, 0, 2, _FLUID),
    "esophagus": Structure("esophagus", 38, 25, 8, _BOWEL),
    "liver": Structure("liver", 57, 52, 6, _LIVER),
    "stomach wall": Structure("stomach", 40, 40, 8, _BOWEL),
    "stomach content": Structure("stomach", 18, 0, 12, Tissue(0.95, 2300, 260)),
    "stomach gas": Structure("stomach", -970, 0, 10, _GAS),
    "aorta": Structure("aorta", 42, 118, 4, _BLOOD),
    "postcava": Structure("postcava", 42, 92, 6, _BLOOD),
    "portal vein": Structure("portal vein and splenic vein", 42, 122, 4, _BLOOD),
    "pancreas": Structure("pancreas", 40, 55, 10, Tissue(0.75, 730, 48)),
    "right adrenal gland": Structure("right adrenal gland", 25, 45, 5, Tissue(0.75, 800, 60)),
    "left adrenal gland": Structure("left adrenal gland", 25, 45, 5, Tissue(0.75, 800, 60)),
    "duodenum wall": Structure("duodenum", 38, 45, 8, _BOWEL),
    "duodenum content": Structure("duodenum", 18, 0, 10, Tissue(0.95, 2200, 240)),
    "hepatic vessel": Structure("hepatic vessel", 42, 112, 4, _BLOOD),
    "right lung": Structure("right lung", -840, 15, 30, Tissue(0.06, 1200, 30)),
    "left lung": Structure("left lung", -840, 15, 30, Tissue(0.06, 1200, 30)),
    "right lung vessel": Structure("right lung", 30, 90, 10, _BLOOD),
    "left lung vessel": Structure("left lung", 30, 90, 10, _BLOOD),
    "colon wall": Structure("colon", 38, 42, 8, _BOWEL),
    "colon content": Structure("colon", 25, 0, 55, Tissue(0.6, 900, 60)),
    "colon gas": Structure("colon", -980, 0, 10, _GAS),
    "bowel wall": Structure("intestine", 38, 62, 8, _BOWEL),
    "bowel content": Structure("intestine", 15, 0, 10, Tissue(0.95, 2200, 240)),
}
"""Name -> material; a map's value i is the i-th name. Labels are spelt as in the Universal Model's class list."""

NUMBER = {name: value for value, name in enumerate(STRUCTURES)}


@dataclass(frozen=True)
class Torso:
    """A map of structures, and the solids in which tumours may grow.

    Args:
        canvas: the map, and the positions in the undisturbed anatomy.
        hosts: organ -> its solids.
        frames: organ -> the structures that belong to it.
    """

    canvas: Canvas
    hosts: dict[str, tuple[Solid, ...]]
    frames: dict[str, tuple[str, ...]]


def torso(grid: Grid, rng: np.random.Generator) -> Torso:
    """One person's torso, painted from the skin inwards.

    Args:
        grid: the voxels; they should be about cubic.
        rng: of everything.
    """
    scale = rng.uniform(0.93, 1.06, size=3).astype(np.float32).reshape(3, 1, 1, 1)
    points = warped(grid.points() / scale, rng, amplitude=2.6, length=70.0)
    canvas = Canvas(grid, points, margin=26.0)
    near = _Near(rng)
    dome = _wall(canvas, rng)
    _spine(canvas)
    _bowel(canvas, rng)
    colon = _colon(canvas, rng)
    _stomach(canvas, near)
    pancreas = _pancreas(canvas, rng, near)
    liver = _liver(canvas, dome, near)
    _spleen(canvas, dome, near)
    kidneys = _kidneys(canvas, near)
    _vessels(canvas)
    return Torso(
        canvas,
        {"liver": (liver,), "kidney": kidneys, "pancreas": (pancreas,), "colon": (colon,)},
        {
            "liver": ("liver", "hepatic vessel"),
            "kidney": tuple(f"{side} kidney {part}" for side in ("right", "left") for part in ("cortex", "medulla")),
            "pancreas": ("pancreas",),
            "colon": ("colon wall", "colon content", "colon gas"),
        },
    )


class _Near:
    """Moves a place, and sizes a radius, a little from person to person."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def __call__(self, centre: Sequence[float], mm: float = 4.0) -> tuple[float, float, float]:
        x, y, z = (float(at + self.rng.uniform(-mm, mm)) for at in centre)
        return x, y, z

    def sized(self, radii: Sequence[float], share: float = 0.1) -> tuple[float, float, float]:
        x, y, z = (float(r * self.rng.uniform(1 - share, 1 + share)) for r in radii)
        return x, y, z


def _wall(canvas: Canvas, rng: np.random.Generator) -> Joined:
    """Skin, fat, muscle and ribs around the cavity; lungs, heart and diaphragm above. Returns the space beneath it."""
    x, y, z = canvas.points
    labels = canvas.labels
    fat = rng.uniform(9, 24)
    back = np.maximum(y + 40, 0) / 110
    level = (np.abs(x / 172) ** 2.4 + np.abs((y + 36) / 122) ** 2.4) ** (1 / 2.4)
    depth = (1 - level) * 130  # mm beneath the skin, roughly
    front = np.clip(-(y + 36) / 122, 0, 1)
    under_skin = fat * (0.75 + 0.6 * front - 0.2 * back + 0.12 * Field(rng, 60.0)(canvas.points))
    inside = depth - under_skin - 11 - 5 * back
    for name, where in (
        ("skin", depth > 0),
        ("fat", depth > 2),
        ("muscle", depth > under_skin),
        ("visceral fat", inside > 0),
    ):
        labels[where] = NUMBER[name]
    # The straight muscles do not meet in the middle, and fat lies between the flat ones.
    labels[(np.abs(x) < 4) & (y < -60) & (inside < 2) & (depth > under_skin)] = NUMBER["fat"]
    sheet = np.abs(inside + 6) < 0.8
    labels[sheet & (np.abs(x) > 95) & (y < 20)] = NUMBER["fat"]

    margin = 62 - 0.55 * np.abs(x) - 50 * (y > 10)
    turn = (z - 0.42 * y) / 27
    apart = np.abs(turn - np.round(turn)) * 27
    rib = np.hypot(apart, 1.3 * (inside + 6)) - 6.2
    bony = (z > margin) & (np.abs(x) > 26)
    labels[(rib < 0) & bony] = NUMBER["cortical bone"]
    labels[(rib < -2.4) & bony] = NUMBER["spongy bone"]
    cartilage = (np.abs(x) < 26) & (y < -60) & (z > 52) & (np.abs(inside + 6) < 5)
    labels[cartilage] = NUMBER["spongy bone"]

    dome = Joined(
        [
            Ellipsoid((-74, -45, -25), (88, 92, 112)),
            Ellipsoid((76, -40, -25), (82, 88, 98)),
            Ellipsoid((0, -60, -25), (75, 72, 92)),
        ],
        blend=20.0,
    )
    above = dome(canvas.points)
    chest = (inside > 1) & (above > 0) & (z > -25)
    labels[chest] = np.where(x < 0, NUMBER["right lung"], NUMBER["left lung"])[chest]
    tree = np.abs(Field(rng, 26.0, width=0.35)(canvas.points)) + np.abs(Field(rng, 26.0, width=0.35)(canvas.points))
    vessel = chest & (tree < 0.3)
    labels[vessel] = np.where(x < 0, NUMBER["right lung vessel"], NUMBER["left lung vessel"])[vessel]
    labels[chest & (np.abs(x - 4) < 24 - 0.1 * (y + 20)) & (y > -110)] = NUMBER["visceral fat"]
    labels[(inside > 0) & (np.abs(above + 1.5) < 1.6) & (z > -40)] = NUMBER["diaphragm"]
    canvas.paint(NUMBER["visceral fat"], Ellipsoid((16, -82, 102), (68, 56, 52)), over=_numbers("lung"))
    canvas.paint(NUMBER["heart"], Ellipsoid((18, -84, 106), (60, 46, 46), (0, 20, -30)), over=_numbers("lung", "visc"))
    return dome


def _spine(canvas: Canvas) -> None:
    """Vertebrae and discs along the lumbar curve, with their processes, and the muscles beside them."""
    deep = _numbers("visc", "muscle")
    for side in (-1, 1):
        canvas.paint(
            NUMBER["muscle"], Tube(((side * 33, 36, -200), (side * 30, 44, 200)), (24, 20), (1.35, 1, 1)), over=deep
        )
        psoas = Tube(((side * 24, -8, 20), (side * 34, -30, -70), (side * 60, -52, -180)), (8, 18, 24))
        canvas.paint(NUMBER["muscle"], psoas)
        canvas.paint(
            NUMBER["muscle"], Tube(((side * 62, 14, 10), (side * 72, 8, -140)), (9, 12), (1.5, 1, 1)), over=deep
        )
        crest = Tube(
            smooth_path(((side * 48, 28, -175), (side * 98, 6, -142), (side * 122, -50, -160))), np.full(11, 8)
        )
        canvas.paint(NUMBER["muscle"], crest, grow=9)
        canvas.paint(NUMBER["cortical bone"], crest)
        canvas.paint(NUMBER["spongy bone"], crest, grow=-2.5)
    for level in range(-5, 6):
        z = 34.0 * level
        y = -20 + 0.22 * z - 0.0004 * z * z
        for side in (-1, 1):
            wing = Tube(((side * 8, y + 22, z + 2), (side * 36, y + 27, z + 6)), (6, 3.5))
            canvas.paint(NUMBER["cortical bone"], wing)
            canvas.paint(NUMBER["spongy bone"], wing, grow=-2)
        spine = Tube(((0, y + 32, z), (0, y + 66, z - 10)), (5, 4.5), squash=(0.8, 1, 1.6))
        canvas.paint(NUMBER["cortical bone"], spine)
        canvas.paint(NUMBER["spongy bone"], spine, grow=-2)
        ring = Ellipsoid((0, y + 24, z), (17, 14, 15))
        canvas.paint(NUMBER["cortical bone"], ring)
        canvas.paint(NUMBER["disc"], Tube(((0, y, z - 17), (0, y, z + 17)), (16.5, 16.5), squash=(1.35, 1, 1)))
        block = Tube(((0, y, z - 10), (0, y, z + 10)), (16.5, 16.5), squash=(1.38, 1, 1))
        canvas.paint(NUMBER["cortical bone"], block, change=_flat(z, 12.5))
        canvas.paint(NUMBER["spongy bone"], block, grow=-2, change=_flat(z, 10.5))
    canal = smooth_path([(0, 0 + 0.22 * z - 0.0004 * z * z, z) for z in range(-190, 191, 38)])
    canvas.paint(NUMBER["spinal canal"], Tube(canal, np.full(len(canal), 8.0), squash=(1.25, 1, 1)))


def _uneven(pyramids: Field) -> Change:
    """Roughens the border between cortex and medulla."""
    return lambda points, distance: distance + 2.2 * np.maximum(pyramids(points), -0.6)


def _flat(z: float, half: float) -> Change:
    """Cuts a solid off `half` mm above and below `z`."""
    return lambda points, distance: np.maximum(distance, np.abs(points[2] - z) - half)


def _liver(canvas: Canvas, dome: Joined, near: _Near) -> Joined:
    """Right and left lobe under the diaphragm, the gall bladder at their lower side, and their veins."""
    under = Ellipsoid((18, -22, -68), near.sized((108, 100, 76), 0.06))
    liver = Joined(
        [
            Ellipsoid((-84, -42, 7), near.sized((80, 86, 86), 0.08)),
            Ellipsoid(near((-2, -92, 32)), near.sized((76, 38, 30)), (0, -8, 0)),
        ],
        cut=(under, Tube(((-4, 0, -60), (-4, -10, 110)), (34, 26))),
        blend=16.0,
        inside=dome,
    )
    over = _numbers("visc", "bowel", "colon", "stomach", "duodenum", "diaphragm")
    canvas.paint(NUMBER["liver"], liver, over=over)
    canvas.paint(NUMBER["gall bladder"], Ellipsoid(near((-66, -98, -27)), near.sized((14, 24, 16), 0.2), (25, 0, 0)))
    trees = (
        (((-16, -44, 72), (-45, -48, 62), (-85, -40, 40), (-120, -30, 5)), 5.5),
        (((-16, -46, 72), (-45, -72, 58), (-75, -95, 25), (-90, -105, -5)), 5.0),
        (((-16, -48, 72), (-5, -75, 55), (15, -98, 42), (45, -105, 36)), 4.5),
        (((-85, -40, 40), (-95, -10, 30), (-110, 5, 10)), 3.0),
        (((-50, -68, 18), (-80, -55, 20), (-115, -60, 25), (-135, -50, 20)), 5.5),
        (((-80, -55, 20), (-100, -45, -5), (-115, -40, -35)), 4.0),
        (((-80, -55, 20), (-95, -80, 10), (-110, -95, -15)), 3.5),
        (((-50, -68, 18), (-28, -95, 26), (5, -104, 34), (35, -100, 36)), 4.5),
        (((-115, -60, 25), (-120, -80, 45), (-110, -95, 55)), 2.8),
    )
    for path, radius in trees:
        nodes = smooth_path([near(at, 5.0) for at in path])
        canvas.paint(
            NUMBER["hepatic vessel"], Tube(nodes, np.linspace(radius, 1.6, len(nodes))), over=(NUMBER["liver"],)
        )
    return liver


def _spleen(canvas: Canvas, dome: Joined, near: _Near) -> None:
    body = Ellipsoid(near((106, -4, 18)), near.sized((36, 52, 44), 0.15), (0, -15, 25))
    spleen = Joined([body], cut=(Ellipsoid((58, -28, 18), (42, 48, 60)),), blend=8.0, inside=dome)
    over = _numbers("visc", "stomach", "colon", "bowel", "diaphragm")
    canvas.paint(NUMBER["spleen"], spleen, over=over)


def _kidneys(canvas: Canvas, near: _Near) -> tuple[Solid, ...]:
    """Cortex around pyramids, fat and pelvis in the sinus, each in its own fat; the adrenal glands above."""
    made: list[Solid] = []
    for name, sign, level in (("right", -1, -38), ("left", 1, -24)):
        x, y, z = near((sign * 66, -4, level), 5.0)
        radii = near.sized((27, 28, 53), 0.08)
        turn = (10.0, sign * -12.0, sign * 25.0)
        kidney = Ellipsoid((x, y, z), radii, turn)
        canvas.paint(
            NUMBER["visceral fat"], kidney, grow=7, over=_numbers("liver", "bowel", "colon", "spleen", "pancr")
        )
        canvas.paint(NUMBER[f"{name} kidney cortex"], kidney)
        inner = Ellipsoid((x, y, z), (radii[0] - 7, radii[1] - 7, radii[2] - 8), turn)
        pyramids = Field(near.rng, 19.0, width=0.35)
        canvas.paint(NUMBER[f"{name} kidney medulla"], inner, change=_uneven(pyramids))
        sinus = Ellipsoid((x - sign * 15, y - 6, z), (17, 10, 25), turn)
        canvas.paint(NUMBER["visceral fat"], sinus)
        pelvis = Tube(
            smooth_path(((x - sign * 2, y - 2, z + 8), (x - sign * 22, y - 9, z - 4), (sign * 36, -38, -110))),
            np.array((3, 4, 5, 6, 6, 5, 4, 3, 2.5, 2, 2)),
        )
        canvas.paint(NUMBER["ureter"], pelvis)
        made.append(kidney)
        ax, ay, az = near((sign * 38, -36, 16), 3.0)
        for tip in ((6, 20, -6), (-6, 22, -4)):
            limb = Tube(((ax, ay, az + 8), (ax + sign * tip[0], ay + tip[1], az + tip[2])), (3.4, 2.4), (1, 1, 2.2))
            canvas.paint(NUMBER[f"{name} adrenal gland"], limb, over=_numbers("visc", "liver", "spleen"))
    return tuple(made)


def _pancreas(canvas: Canvas, rng: np.random.Generator, near: _Near) -> Tube:
    """Head in the bend of the duodenum, body across the spine, tail at the spleen; lobulated."""
    loop = smooth_path(
        ((-22, -98, 2), (-50, -88, 2), (-60, -76, -22), (-50, -66, -52), (-12, -66, -60), (26, -68, -54))
    )
    _hollow(canvas, "duodenum", Tube(loop, np.full(len(loop), 11.0)), wall=3.5)
    path = smooth_path(
        [near(p, 3.0) for p in ((-34, -78, -34), (-28, -84, -18), (0, -93, -10), (34, -78, 4), (78, -40, 14))]
    )
    pancreas = Tube(path, np.interp(np.linspace(0, 4, len(path)), range(5), (13, 15, 9, 10.5, 11)))
    lobules = Field(rng, 11.0, width=0.5)
    over = _numbers("visc", "bowel", "stomach", "colon")
    canvas.paint(NUMBER["pancreas"], pancreas, over=over, change=lambda p, d: d + 1.3 * lobules(p))
    return pancreas


def _stomach(canvas: Canvas, near: _Near) -> None:
    """Gullet and stomach, with a level of liquid under the gas."""
    gullet = smooth_path(((2, -16, 170), (8, -24, 100), (26, -42, 62)))
    canvas.paint(NUMBER["esophagus"], Tube(gullet, np.full(len(gullet), 7.5)))
    path = smooth_path([near(p) for p in ((62, -38, 58), (72, -62, 36), (66, -92, 8), (34, -114, -12), (-4, -108, -6))])
    path = np.vstack([path, (-22, -98, 2)])
    radii = np.interp(np.linspace(0, 5, len(path)), range(6), (30, 33, 27, 21, 14, 10))
    stomach = Tube(path, radii)
    level = float(near.rng.uniform(-122, -85))
    _hollow(canvas, "stomach", stomach, wall=4.0)
    gas = (NUMBER["stomach content"],)
    canvas.paint(NUMBER["stomach gas"], stomach, over=gas, change=lambda p, d: np.maximum(d + 4, p[1] - level))


def _colon(canvas: Canvas, rng: np.random.Generator) -> Tube:
    """A frame of four limbs with haustra, faeces and gas."""
    corners = (
        (-112, -46, -190),
        (-114, -52, -120),
        (-112, -62, -66),
        (-92, -98, -50),
        (-50, -122, -72),
        (8, -128, -84),
    )
    rest = ((58, -110, -60), (98, -88, -16), (116, -52, -8), (120, -40, -60), (120, -44, -120), (104, -60, -190))
    path = smooth_path([np.array(p) + rng.uniform(-6, 6, size=3) for p in (*corners, *rest)], steps=7)
    radii = np.interp(np.linspace(0, 11, len(path)), (0, 4, 7, 11), (24, 20, 18, 15))
    colon = Tube(path, radii * rng.uniform(0.85, 1.1) * (1 + 0.09 * np.sin(np.arange(len(path)) * 2.4)))
    _hollow(canvas, "colon", colon, wall=3.0)
    lumps = Field(rng, 34.0)
    canvas.paint(
        NUMBER["colon gas"],
        colon,
        over=(NUMBER["colon content"],),
        change=lambda p, d: np.maximum(d + 3, -lumps(p) * 8 + 0.12 * (p[1] + 80)),
    )
    return colon


def _bowel(canvas: Canvas, rng: np.random.Generator) -> None:
    """Coils of small bowel in the middle of the lower abdomen."""
    for _ in range(15):
        at = np.array((rng.uniform(-75, 85), rng.uniform(-118, -60), rng.uniform(-190, -45)))
        path = [at]
        for _ in range(6):
            at = np.clip(at + rng.normal(0, 32, size=3), (-88, -128, -200), (98, -58, -36))
            path.append(at)
        nodes = smooth_path(path)
        coil = Tube(nodes, 11.5 + 1.5 * np.sin(np.arange(len(nodes))))
        canvas.paint(NUMBER["visceral fat"], coil, grow=2.5, over=_numbers("bowel"))
        _hollow(canvas, "bowel", coil, wall=3.5)


def _vessels(canvas: Canvas) -> None:
    """Aorta with coeliac trunk, mesenteric and renal arteries, vena cava with renal veins, portal and splenic vein."""
    over = _numbers("visc", "liver", "lung", "pancr", "duod", "bowel", "diaph", "hepatic", "muscle")

    def paint(name: str, path: Sequence[tuple[float, float, float]], radii: Sequence[float]) -> None:
        nodes = smooth_path(path)
        along = np.interp(np.linspace(0, 1, len(nodes)), np.linspace(0, 1, len(radii)), radii)
        canvas.paint(NUMBER[name], Tube(nodes, along), over=over)

    paint("portal vein", ((-6, -76, -22), (-14, -76, -8), (-34, -72, 8), (-52, -68, 18)), (6, 7, 7, 6.5))
    paint("portal vein", ((-8, -76, -12), (20, -68, 0), (52, -46, 10), (82, -22, 16)), (5, 4.5, 4, 3.5))
    paint("small vessel", ((-6, -80, -20), (-4, -86, -60), (4, -84, -120)), (5.5, 5, 3))
    paint(
        "postcava",
        ((-22, -56, -150), (-20, -50, -60), (-20, -46, 0), (-18, -42, 50), (-16, -46, 100)),
        (10, 11, 12, 13, 13),
    )
    paint(
        "aorta", ((16, 2, 190), (14, -14, 80), (10, -36, 20), (6, -48, -40), (3, -62, -112)), (12, 11.5, 11, 9.5, 8.5)
    )
    for side in (-1, 1):
        paint("small vessel", ((3, -62, -110), (side * 20, -60, -135), (side * 48, -50, -190)), (7, 6.5, 6))
        paint("postcava" if side < 0 else "small vessel", ((-20, -50, -30), (side * 40, -26, -30)), (4.5, 4.5))
        paint("small vessel", ((8, -40, -25), (side * 44, -16, -28)), (3, 2.5))
    paint("small vessel", ((9, -38, 16), (6, -62, 10), (-26, -78, 8)), (4, 3.5, 2.5))
    paint("small vessel", ((6, -62, 10), (40, -58, 14), (80, -22, 20)), (3, 2.8, 2.2))
    paint("small vessel", ((8, -42, 0), (7, -66, -22), (6, -80, -70)), (4, 3.8, 3))


def _hollow(canvas: Canvas, name: str, tube: Tube, *, wall: float) -> None:
    """A tube of bowel: wall, and content inside."""
    over = _numbers("visc", "bowel", "duod", "colon", "diaph") if name != "bowel" else _numbers("visc")
    canvas.paint(NUMBER[f"{name} wall"], tube, over=over)
    canvas.paint(NUMBER[f"{name} content"], tube, grow=-wall, over=(NUMBER[f"{name} wall"],))


def _numbers(*starts: str) -> tuple[int, ...]:
    """The structures whose names contain one of these words."""
    return tuple(value for name, value in NUMBER.items() if any(word in name for word in starts))
