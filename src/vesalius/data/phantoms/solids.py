"""Anatomy in millimetres: grids to sample it on, random smooth functions, ellipsoids and tubes, and a canvas of labels.

Everything is a function of a position in LPS millimetres (x to the patient's left, y to the back, z to the head), as in
`vesalius.images.Image`. A phantom is therefore the same patient on any grid: coarse, anisotropic, or oblique.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter1d, map_coordinates
from scipy.spatial.transform import Rotation

from vesalius.errors import ConfigError

Points = np.ndarray
"""``[3, ...]`` float32: x, y, z in mm."""
Change = Callable[[Points, np.ndarray], np.ndarray]
LEAST = 4
"""Voxels that a side of a volume must have."""
PIECE = 4
"""Segments of a tube that are painted at a time."""


@dataclass(frozen=True)
class Grid:
    """Voxel centres in the patient.

    Args:
        size: voxels (D, H, W).
        spacing: mm along (D, H, W).
        rotation: ``[3, 3]``, its columns being the directions in which column, row and slice numbers grow; the
            identity is an axial volume as scanners store it.
        centre: LPS mm of the volume's middle.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    rotation: np.ndarray
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def axial(
        cls,
        size: int | Sequence[int],
        spacing: Sequence[float],
        *,
        view: tuple[float, float, float],
        oblique: float = 0.0,
    ) -> Grid:
        """An axial grid, tilted by `oblique` degrees about an axis that is none of the patient's.

        Args:
            size: voxels (D, H, W), or one number for all three.
            spacing: mm along (D, H, W), one number for all three, or empty: so that the volume spans `view`.
            view: mm along (D, H, W).
            oblique: degrees.

        Raises:
            ConfigError: a size or spacing that no volume can have.
        """
        sides = _three(size, "size")
        if min(sides) < LEAST:
            raise ConfigError(f"size = {list(sides)}", remedy=f"give one or three numbers of {LEAST} or more")
        d, h, w = (int(side) for side in sides)
        steps = _three(spacing, "spacing") if len(spacing) else (view[0] / d, view[1] / h, view[2] / w)
        if min(steps) <= 0:
            raise ConfigError(f"spacing = {list(steps)}", remedy="give one or three numbers of mm above 0")
        axis = np.array((0.8, 0.5, 0.33)) / np.linalg.norm((0.8, 0.5, 0.33))
        rotation = Rotation.from_rotvec(np.deg2rad(oblique) * axis).as_matrix()
        return cls((d, h, w), (float(steps[0]), float(steps[1]), float(steps[2])), rotation)

    @property
    def affine(self) -> np.ndarray:
        """4x4, from (column, row, slice) to LPS mm."""
        affine = np.eye(4)
        affine[:3, :3] = self.rotation * np.array(self.spacing[::-1])
        affine[:3, 3] = np.array(self.centre) - affine[:3, :3] @ ((np.array(self.size[::-1]) - 1) / 2)
        return affine

    def points(self) -> Points:
        """Positions ``[3, D, H, W]`` of the voxels' centres."""
        affine = self.affine.astype(np.float32)
        slices, rows, columns = np.ogrid[tuple(slice(n) for n in self.size)]
        return np.stack([a * columns + b * rows + c * slices + d for a, b, c, d in affine[:3]]).astype(np.float32)

    def finer(self) -> tuple[Grid, tuple[int, int, int]]:
        """The grid whose thick voxels are cut into an odd number of about cubic ones, and those numbers."""
        thin = min(self.spacing)
        parts = [min(2 * round((side / thin - 1) / 2) + 1, 9) for side in self.spacing]
        (d, h, w), (k, m, n) = self.size, parts
        a, b, c = self.spacing
        return replace(self, size=(d * k, h * m, w * n), spacing=(a / k, b / m, c / n)), (k, m, n)


def acquire(fine: np.ndarray, parts: tuple[int, int, int], blur: float) -> np.ndarray:
    """What a scanner with thick slices sees of ``[..., D k, H l, W m]``: the point spread, then the mean over a voxel.

    Args:
        fine: values on `Grid.finer`'s grid.
        parts: its numbers (k, l, m).
        blur: standard deviation of the point spread along each axis, in voxels of the finer grid.
    """
    for axis in (-3, -2, -1):
        fine = gaussian_filter1d(fine, blur, axis=axis, truncate=3.0) if blur > 0 else fine
    return _blocks(fine, parts).mean(axis=(-5, -3, -1), dtype=np.float32)


def middle(fine: np.ndarray, parts: tuple[int, int, int]) -> np.ndarray:
    """The values ``[..., D, H, W]`` in the middle of the voxels: labels have no mean."""
    k, m, n = (part // 2 for part in parts)
    return np.ascontiguousarray(fine[..., k :: parts[0], m :: parts[1], n :: parts[2]])


class Field:
    """A smooth random function of position, mean 0 and deviation 1.

    Gaussian noise on a periodic lattice keeps the wavelengths around `length`; `width` is the relative width of that
    band, or None for all longer ones too.

    Args:
        rng: where the noise comes from.
        length: wavelength in mm.
        width: relative bandwidth, such as 0.3 for folds that are evenly spaced.

    It repeats itself after 288 mm or twelve wavelengths, whichever is less.
    """

    def __init__(self, rng: np.random.Generator, length: float, *, width: float | None = None):
        extent = min(288.0, 12 * length)
        count = max(round(extent / length * 5), 8)
        self.step = extent / count
        noise = rng.standard_normal((count,) * 3, dtype=np.float32)
        frequency = fft.fftfreq(count, self.step)[:, None, None] ** 2 + fft.fftfreq(count, self.step)[:, None] ** 2
        cycles = np.sqrt(frequency + fft.rfftfreq(count, self.step) ** 2) * length
        band = np.exp(-1.5 * cycles**2) if width is None else np.exp(-(((cycles - 1) / width) ** 2))
        band.flat[0] = 0
        values = fft.irfftn(fft.rfftn(noise) * band, noise.shape)
        self.values = (values / values.std()).astype(np.float32)

    def __call__(self, points: Points) -> np.ndarray:
        """Values at positions ``[3, ...]``."""
        return map_coordinates(self.values, points / self.step, order=1, prefilter=False, mode="grid-wrap")


def warped(points: Points, rng: np.random.Generator, *, amplitude: float, length: float) -> Points:
    """Positions moved by a smooth random displacement, which makes every shape irregular and none intersect."""
    return points + np.stack([amplitude * Field(rng, length)(points) for _ in range(3)])


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid, turned by rotations about x, y and z (degrees) around its centre."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def box(self) -> np.ndarray:
        """Corners ``[2, 3]`` in mm of a box around it."""
        reach = np.array(self.radii) if not any(self.turn) else np.full(3, max(self.radii))
        return np.array(self.centre) + np.array([[-1], [1]]) * reach

    def __call__(self, points: Points) -> np.ndarray:
        """About the signed distance in mm, negative inside."""
        centre = np.array(self.centre, dtype=np.float32).reshape(3, *[1] * (points.ndim - 1))
        radii = np.array(self.radii, dtype=np.float32).reshape(centre.shape)
        local = points - centre
        if any(self.turn):
            turn = Rotation.from_euler("xyz", self.turn, degrees=True).as_matrix().astype(np.float32)
            local = np.tensordot(turn.T, local, axes=1)
        level = np.sqrt(((local / radii) ** 2).sum(0))
        slope = np.sqrt(((local / radii**2) ** 2).sum(0))
        ratio = np.divide(level, slope, out=np.full_like(level, min(self.radii)), where=slope > 1e-6)
        return ratio * (level - 1)


@dataclass(frozen=True)
class Tube:
    """A bent tube through `path` ``[N, 3]`` with radius `radii` ``[N]`` there, and elliptic where `squash` is not 1.

    Args:
        path: points in mm.
        radii: mm at those points.
        squash: what the tube is wider by along x, y and z.
    """

    path: Sequence[Sequence[float]] | np.ndarray
    radii: Sequence[float] | np.ndarray
    squash: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def box(self) -> np.ndarray:
        """Corners ``[2, 3]`` in mm of a box around it."""
        path, reach = np.array(self.path), max(self.radii) * np.array(self.squash)
        return np.stack([path.min(0) - reach, path.max(0) + reach])

    def pieces(self) -> list[Tube]:
        """The same as several short tubes."""
        starts = range(0, len(self.path) - 1, PIECE)
        return [replace(self, path=self.path[k : k + PIECE + 1], radii=self.radii[k : k + PIECE + 1]) for k in starts]

    def __call__(self, points: Points) -> np.ndarray:
        """About the signed distance in mm, negative inside."""
        scale = np.array(self.squash, dtype=np.float32)
        nodes, radii = np.array(self.path, dtype=np.float32) / scale, np.array(self.radii, dtype=np.float32)
        local = points / scale.reshape(3, *[1] * (points.ndim - 1))
        nearest = np.full(points.shape[1:], np.inf, dtype=np.float32)
        for start, end, first, last in zip(nodes[:-1], nodes[1:], radii[:-1], radii[1:], strict=True):
            along = end - start
            offset = [axis - at for axis, at in zip(local, start, strict=True)]
            share = sum(a * o for a, o in zip(along, offset, strict=True)) / max(float(along @ along), 1e-6)
            share = np.clip(share, 0, 1)
            apart = sum((o - share * a) ** 2 for a, o in zip(along, offset, strict=True))
            np.minimum(nearest, np.sqrt(apart) - (first + share * (last - first)), out=nearest)
        return nearest


@dataclass(frozen=True)
class Joined:
    """Several solids as one, rounded where they meet.

    Args:
        solids: what is joined.
        cut: what is taken away.
        blend: mm within which they are rounded.
        inside: what it must lie inside, by 3 mm, if anything.
    """

    solids: Sequence[Ellipsoid | Tube]
    cut: Sequence[Ellipsoid | Tube] = ()
    blend: float = 10.0
    inside: Joined | None = None

    @property
    def box(self) -> np.ndarray:
        """Corners ``[2, 3]`` in mm of a box around it."""
        boxes = np.stack([solid.box for solid in self.solids])
        return np.stack([boxes[:, 0].min(0), boxes[:, 1].max(0)])

    def __call__(self, points: Points) -> np.ndarray:
        """About the signed distance in mm, negative inside."""
        distance = self.solids[0](points)
        for solid in self.solids[1:]:
            distance = smooth_min(distance, solid(points), self.blend)
        for solid in self.cut:
            distance = -smooth_min(-distance, solid(points), self.blend)
        return distance if self.inside is None else np.maximum(distance, self.inside(points) + 3)


Solid = Ellipsoid | Tube | Joined


def smooth_min(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """The lesser of two, rounded where they differ by less than `width`."""
    near = np.maximum(width - np.abs(a - b), 0)
    return np.minimum(a, b) - near**2 / (4 * width)


def smooth_path(path: Sequence[Sequence[float]] | Sequence[np.ndarray], steps: int = 5) -> np.ndarray:
    """A finer polyline ``[M, 3]`` through the points of a coarse one (Catmull-Rom)."""
    nodes = np.array(path, dtype=np.float64)
    ends = np.vstack([2 * nodes[0] - nodes[1], nodes, 2 * nodes[-1] - nodes[-2]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(ends, ends[1:], ends[2:], ends[3:], strict=False)
    ]
    return np.vstack([*pieces, nodes[-1:]])


class Canvas:
    """A label map that solids are painted on, each within a box only, later ones over earlier ones.

    Args:
        grid: where the voxels lie.
        points: ``[3, D, H, W]``, where the voxels lie in the anatomy that the solids describe: the grid's positions,
            warped.
        margin: mm by which those may differ.
    """

    def __init__(self, grid: Grid, points: Points, *, margin: float):
        self.labels = np.zeros(grid.size, dtype=np.uint8)
        self.points, self.margin = points, margin
        self._inverse, self._size = np.linalg.inv(grid.affine), np.array(grid.size)

    def region(self, box: np.ndarray) -> tuple[slice, slice, slice]:
        """The voxels that a box ``[2, 3]`` in mm may touch."""
        low, high = box[0] - self.margin, box[1] + self.margin
        corners = np.array(
            [[x, y, z, 1] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
        )
        index = (corners @ self._inverse.T)[:, 2::-1]
        first = np.clip(np.floor(index.min(0)).astype(int), 0, self._size)
        last = np.clip(np.ceil(index.max(0)).astype(int) + 1, 0, self._size)
        return slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2])

    def paint(
        self,
        label: int,
        solid: Solid,
        *,
        over: Collection[int] = (),
        grow: float = 0.0,
        change: Change | None = None,
    ) -> None:
        """Label the inside of a solid.

        Args:
            label: the value.
            solid: what to paint.
            over: labels that may be painted over; empty for all.
            grow: mm by which it is larger.
            change: a function of positions and signed distances that returns other distances, to cut or roughen it.
        """
        if isinstance(solid, Tube) and len(solid.path) > PIECE + 1:
            # A long tube's box is mostly not tube.
            for piece in solid.pieces():
                self.paint(label, piece, over=over and {*over, label}, grow=grow, change=change)
            return
        at = self.region(solid.box + np.array([[-1], [1]]) * max(grow, 0.0))
        points = self.points[(slice(None), *at)]
        if points.size == 0:
            return
        distance = solid(points) - grow
        inside = (distance if change is None else change(points, distance)) < 0
        if over:
            inside &= np.isin(self.labels[at], list(over))
        self.labels[at][inside] = label


def mirrored(solid: Ellipsoid | Tube) -> Ellipsoid | Tube:
    """The same on the patient's other side."""
    if isinstance(solid, Ellipsoid):
        (x, y, z), (a, b, c) = solid.centre, solid.turn
        return replace(solid, centre=(-x, y, z), turn=(a, -b, -c))
    return replace(solid, path=[(-x, y, z) for x, y, z in solid.path])


def _three(value: float | Sequence[float], name: str) -> tuple[float, float, float]:
    values = [value] if isinstance(value, int | float) else list(value)
    if len(values) not in (1, 3):
        raise ConfigError(
            f"{name} has {len(values)} numbers", remedy="give one, or three along (slices, rows, columns)"
        )
    first, second, third = values * 3 if len(values) == 1 else values
    return first, second, third


def _blocks(fine: np.ndarray, parts: tuple[int, int, int]) -> np.ndarray:
    """``[..., D k, H l, W m]`` -> ``[..., D, k, H, l, W, m]``."""
    shape = [side for n, k in zip(fine.shape[-3:], parts, strict=True) for side in (n // k, k)]
    return fine.reshape(*fine.shape[:-3], *shape)
