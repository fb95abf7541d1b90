"""The images of EPT's claim: a trunk learns coloured shapes and is moved to grey tissue with few labels.

What changes between the two is what changes between photographs and medical images: colour goes, one object becomes
many small ones, and the classes are others. In tissue the cells' share of the area, their brightness and the
background say nothing of the class; their number and their form do.

Everything about image ``i`` comes from a generator seeded by ``(seed, i)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SHAPES = ("disk", "ring", "square", "triangle", "cross", "star", "bar", "crescent")
TISSUES = ("few round", "few long", "many round", "many long")
CELLS = ((2, 3), (7, 9))  # number of cells in few and in many
STRETCH = ((1.0, 1.2), (2.2, 3.0))  # length by width of a cell in round and in long
MEAN, STD = 0.5, 0.3  # of the intensities in [0, 1], by which all images are normalised
_PARAMETERS = 64  # uniform draws per image for everything that is not noise


@dataclass(frozen=True)
class Labelled:
    """``image [N, 3, S, S]`` float32 around 0 with a standard deviation around 1, and ``label [N]`` int64."""

    image: np.ndarray
    label: np.ndarray


def shapes(n: int, *, seed: int, size: int = 24) -> Labelled:
    """`n` images of one coloured shape each, darker than the coloured ground, of any place, size and angle.

    Args:
        n: number of images.
        seed: image ``i`` is a function of ``(seed, i)`` alone.
        size: pixels of the side.

    >>> batch = shapes(16, seed=0)
    >>> batch.image.shape, bool(batch.label.max() < len(SHAPES))
    ((16, 3, 24, 24), True)
    """
    u, noise = _draws(n, seed, size, channels=3)
    label = np.floor(u[:, 0] * len(SHAPES)).astype(np.int64)
    y, x = _grid(size)
    along, across = _turned(y - _range(u, 1, 0.34, 0.66), x - _range(u, 2, 0.34, 0.66), _range(u, 3, 0, 2 * np.pi))
    radius = _range(u, 4, 0.24, 0.36)
    inside = np.empty((n, size, size), np.float32)
    for number, distance in enumerate(_DISTANCES):
        of = label == number
        inside[of] = _edge(distance(along[of] / radius[of], across[of] / radius[of]) * radius[of], size)
    ground = 0.45 + 0.45 * u[:, 8:11]  # red, green, blue
    colour = ground - 0.3 - 0.3 * u[:, 11:14]
    tilt = _range(u, 5, -0.2, 0.2) * (y - 0.5) + _range(u, 6, -0.2, 0.2) * (x - 0.5)
    picture = ground[:, :, None, None] + (colour - ground)[:, :, None, None] * inside[:, None] + tilt[:, None]
    picture = picture + _range(u, 7, 0.02, 0.08)[:, None] * noise
    return Labelled(_normalised(picture), label)


def tissue(label: np.ndarray, *, seed: int, size: int = 24) -> Labelled:
    """Grey images of dark cells, the same in all three channels.

    Args:
        label: ``[N]``, which of `TISSUES` each image is.
        seed: image ``i`` is a function of ``(seed, i)`` and its label alone.
        size: pixels of the side.

    >>> bool(tissue(np.array([0, 3]), seed=0).image.std(axis=1).max() < 1e-6)  # no colour
    True
    """
    label = np.asarray(label, np.int64)
    u, noise = _draws(len(label), seed, size, channels=2)
    y, x = _grid(size)
    low, high = np.array(CELLS)[label // 2].T
    count = low + np.floor(u[:, 0] * (high - low + 1))
    low, high = np.array(STRETCH)[label % 2].T
    stretch = (low + (high - low) * u[:, 1])[:, None, None]
    area = _range(u, 2, 0.14, 0.30) / count[:, None, None]
    long, wide = np.sqrt(area * stretch / np.pi), np.sqrt(area / stretch / np.pi)
    # Cells lie in the compartments of a 3 x 3 lattice, shaken, so that they hardly overlap.
    place = np.argsort(u[:, 8:17], axis=1)
    cells = np.zeros((len(label), size, size), np.float32)
    for k in range(max(max(pair) for pair in CELLS)):
        row = (place[:, k] // 3 + 0.5)[:, None, None] / 3 + _range(u, 17 + 4 * k, -0.09, 0.09)
        column = (place[:, k] % 3 + 0.5)[:, None, None] / 3 + _range(u, 18 + 4 * k, -0.09, 0.09)
        angle = _range(u, 3, 0, np.pi) + _range(u, 19 + 4 * k, -0.5, 0.5)
        along, across = _turned(y - row, x - column, angle)
        one = _edge((np.hypot(along / long, across / wide) - 1) * wide, size)
        cells = np.maximum(cells, one * _range(u, 20 + 4 * k, 0.6, 1.0) * (k < count)[:, None, None])
    ground = _range(u, 4, 0.5, 0.8) + _range(u, 5, -0.25, 0.25) * (y - 0.5) + _range(u, 6, -0.25, 0.25) * (x - 0.5)
    grain = _smooth(noise[:, 0]) * 0.05 + noise[:, 1] * 0.04
    grey = ground - _range(u, 7, 0.2, 0.4) * cells + grain
    return Labelled(np.repeat(_normalised(grey)[:, None], 3, axis=1), label)


def _normalised(picture: np.ndarray) -> np.ndarray:
    return ((picture.clip(0, 1) - MEAN) / STD).astype(np.float32)


def _draws(n: int, seed: int, size: int, *, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniforms ``[N, _PARAMETERS]`` and white noise ``[N, channels, S, S]`` of each image's own generator."""
    u = np.empty((n, _PARAMETERS), np.float32)
    noise = np.empty((n, channels, size, size), np.float32)
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        u[i] = rng.random(_PARAMETERS, dtype=np.float32)
        rng.standard_normal(out=noise[i], dtype=np.float32)
    return u, noise


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns ``[1, S, S]`` of the pixels' centres, in image sides."""
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32)[:, None] + 0.5) / size
    return y, x


def _range(u: np.ndarray, column: int, low: float, high: float) -> np.ndarray:
    return (low + (high - low) * u[:, column])[:, None, None]


def _turned(y: np.ndarray, x: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _edge(distance: np.ndarray, size: int) -> np.ndarray:
    """1 inside (negative distance, in image sides), 0 outside, a ramp of one pixel between."""
    return np.clip(0.5 - distance * size, 0, 1)


def _smooth(noise: np.ndarray, sigma: float = 1.2) -> np.ndarray:
    """White noise ``[N, S, S]`` through a Gaussian of `sigma` pixels, periodic, with a standard deviation of 1."""
    frequency = np.fft.fftfreq(noise.shape[-1])
    gain = np.exp(-2 * (np.pi * sigma) ** 2 * (frequency[:, None] ** 2 + frequency**2))
    return np.fft.ifft2(np.fft.fft2(noise) * gain / np.sqrt((gain**2).mean())).real


# Signed distances (about; negative inside) of the shapes within the unit circle, in their order.


def _bar(a: np.ndarray, b: np.ndarray, length: float = 1.0, width: float = 0.32) -> np.ndarray:
    return np.maximum(np.abs(a) - length, np.abs(b) - width)


def _star(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.hypot(a, b) - (0.72 + 0.32 * np.cos(5 * np.arctan2(b, a)))


def _triangle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sides = (a * np.cos(t) + b * np.sin(t) - 0.5 for t in (0, 2 * np.pi / 3, 4 * np.pi / 3))
    return np.maximum.reduce(list(sides))


_DISTANCES: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda a, b: np.hypot(a, b) - 0.85,
    lambda a, b: np.abs(np.hypot(a, b) - 0.75) - 0.22,
    lambda a, b: _bar(a, b, 0.75, 0.75),
    _triangle,
    lambda a, b: np.minimum(_bar(a, b, 0.95, 0.28), _bar(b, a, 0.95, 0.28)),
    _star,
    _bar,
    lambda a, b: np.maximum(np.hypot(a, b) - 0.95, 0.72 - np.hypot(a - 0.5, b)),
)
