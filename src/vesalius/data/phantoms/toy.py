"""32 x 32 B-mode-like images in memory, on which the papers' claims are tested in minutes.

Each image hides three things of different scale, so that a pre-training objective can be asked what it learned:
the *shape* of a darker nodule, the *texture* inside it (fine or coarse speckle with the same mean and variance, so
that intensity says nothing about it) and single bright *points* (calcifications).

Everything about image ``i`` comes from a generator seeded by ``(seed, i)``: the first 100 of 3000 images are the same
as the 100 images drawn alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Standard deviations (axial, lateral) of the point-spread function in pixels at 32 px, and its axial cycles per pixel.
BACKGROUND_PSF = (1.0, 1.3, 0.18)
TEXTURE_PSF = ((0.75, 0.80, 0.23), (1.40, 1.70, 0.12))  # fine, coarse
ORGAN_PSF = ((1.0, 1.2, 0.18), (0.9, 3.0, 0.22), (2.0, 2.0, 0.0))
_PARAMETERS = 40  # uniform draws per image for everything that is not speckle


@dataclass(frozen=True)
class ToyBatch:
    """Images and what is hidden in them.

    Args:
        image: ``[N, 1, H, W]`` float32, each image with mean 0 and standard deviation 1.
        nodule: ``[N, H, W]`` bool, the ellipse.
        texture: ``[N]`` int64, 0 fine or 1 coarse speckle inside the nodule.
        calcification: ``[N, H, W]`` bool, single bright pixels inside the nodule (0-4 per image).
    """

    image: np.ndarray
    nodule: np.ndarray
    texture: np.ndarray
    calcification: np.ndarray


@dataclass(frozen=True)
class ToyOrgans:
    """Images of several organs: ``image [N, 1, H, W]`` float32, z-scored, and ``organ [N]`` int64."""

    image: np.ndarray
    organ: np.ndarray


def toy_ultrasound(n: int, *, seed: int, size: int = 32) -> ToyBatch:
    """`n` images with a nodule each; some with fascia lines, a shadow, calcifications.

    Args:
        n: number of images.
        seed: seed; image ``i`` is a function of ``(seed, i)`` alone.
        size: pixels of the side; the anatomy scales with it, the speckle does not.

    >>> batch = toy_ultrasound(4, seed=0)
    >>> batch.image.shape, batch.nodule.shape, batch.texture.shape
    ((4, 1, 32, 32), (4, 32, 32), (4,))
    """
    u, noise = _draws(n, seed, size, fields=2)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)[:, None] / size  # [1, H, W], in image sides

    def uniform(column: int, low: float, high: float) -> np.ndarray:
        return (low + (high - low) * u[:, column])[:, None, None]

    texture = (u[:, 0] < 0.5).astype(np.int64)
    centre_y, centre_x = uniform(1, 0.28, 0.72), uniform(2, 0.26, 0.74)
    radius_y, radius_x, angle = uniform(3, 0.14, 0.23), uniform(4, 0.17, 0.28), uniform(5, -0.6, 0.6)
    dy, dx = y - centre_y, x - centre_x
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    nodule = (along / radius_x) ** 2 + (across / radius_y) ** 2 < 1

    outside = _speckle(noise[0], np.array([BACKGROUND_PSF] * n))
    inside = _standardise(_speckle(noise[1], np.array(TEXTURE_PSF)[texture]), nodule)
    outside = _standardise(outside, ~nodule)
    contrast = uniform(6, 0.5, 1.1)  # darker by that many standard deviations of the speckle
    image = np.where(nodule, inside - contrast, outside)

    image += uniform(7, -0.6, 0.6) * (y - 0.5) * 2  # residual time-gain error, deeper darker or brighter
    image = image + _fascia(u[:, 8:24], y, x) * ~nodule
    shadow = (np.abs(dx) < radius_x * 0.8) & (dy > 0) & ~nodule & (u[:, 24] < 0.4)[:, None, None]
    image -= shadow * uniform(25, 0.4, 1.0)

    calcification = _points(u[:, 26:36], centre_y, centre_x, radius_y, radius_x, angle, size) & nodule
    image = image + calcification * uniform(36, 2.0, 3.2)
    return ToyBatch(_standardise(image)[:, None].astype(np.float32), nodule, texture, calcification)


def toy_organs(n: int, *, seed: int, size: int = 32, shares: Sequence[float] = (0.90, 0.07, 0.03)) -> ToyOrgans:
    """Three organs of unequal number: an isotropic gland, a striated muscle, a coarse organ with vessels.

    Args:
        n: number of images.
        seed: seed; image ``i`` is a function of ``(seed, i)`` alone.
        size: pixels of the side.
        shares: probability of each of the three organs.

    >>> np.bincount(toy_organs(2000, seed=0).organ) / 2000
    array([0.907, 0.062, 0.031])
    """
    u, noise = _draws(n, seed, size, fields=1)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)[:, None] / size
    organ = np.searchsorted(np.cumsum(shares)[:-1], u[:, 0], side="right").astype(np.int64)
    image = _standardise(_speckle(noise[0], np.array(ORGAN_PSF)[organ]))

    def uniform(column: int, low: float, high: float) -> np.ndarray:
        return (low + (high - low) * u[:, column])[:, None, None]

    radius = np.hypot((y - uniform(1, 0.35, 0.65)) / uniform(3, 0.15, 0.3), (x - uniform(2, 0.35, 0.65)) / 0.25)
    gland = -1.0 * (radius < 1)
    depth = y + uniform(4, -0.5, 0.5) * (x - 0.5)
    muscle = 2.0 * np.exp(4 * (np.cos(2 * np.pi * (uniform(5, 4, 7) * depth + uniform(6, 0, 1))) - 1))
    vessel = np.zeros_like(image)
    for k in range(3):
        at = np.hypot(y - uniform(7 + 3 * k, 0.1, 0.9), x - uniform(8 + 3 * k, 0.1, 0.9)) / uniform(
            9 + 3 * k, 0.06, 0.13
        )
        vessel += 1.5 * np.exp(-((at - 1.2) ** 2) / 0.05) - 2.5 * (at < 1)
    structure = np.where(organ[:, None, None] == 0, gland, np.where(organ[:, None, None] == 1, muscle, vessel))
    return ToyOrgans(_standardise(image + structure)[:, None].astype(np.float32), organ)


def _draws(n: int, seed: int, size: int, *, fields: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniforms ``[N, _PARAMETERS]`` and complex white noise ``[fields, N, H, W]`` of each image's own generator."""
    u = np.empty((n, _PARAMETERS), dtype=np.float32)
    noise = np.empty((n, fields, 2, size, size), dtype=np.float32)
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        u[i] = rng.random(_PARAMETERS, dtype=np.float32)
        rng.standard_normal(out=noise[i], dtype=np.float32)
    return u, (noise[:, :, 0] + 1j * noise[:, :, 1]).swapaxes(0, 1)


def _speckle(noise: np.ndarray, psf: np.ndarray) -> np.ndarray:
    """Log-compressed speckle ``[N, H, W]`` of complex noise ``[N, H, W]`` and PSFs ``[N, 3]``.

    ``log(0.15 + |noise * h|^0.5)``; h is a Gaussian (axial, lateral) times a cosine along the beam, applied as its
    Fourier transform and scaled to unit energy, so that every PSF gives the same amplitude distribution.
    """
    size = noise.shape[-1]
    fy, fx = np.fft.fftfreq(size)[None, :, None], np.fft.fftfreq(size)[None, None, :]
    axial, lateral, cycles = psf.T[:, :, None, None]
    band = sum(np.exp(-2 * (np.pi * axial) ** 2 * (fy + sign * cycles) ** 2) for sign in (-1, 1))
    transfer = band * np.exp(-2 * (np.pi * lateral * fx) ** 2)
    transfer /= np.sqrt((transfer**2).mean(axis=(1, 2), keepdims=True))
    filtered = np.fft.ifft2(np.fft.fft2(noise) * transfer)
    return np.log(0.15 + np.sqrt(np.abs(filtered))).astype(np.float32)


def _standardise(image: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Mean 0 and standard deviation 1 of each ``[H, W]`` over `where`."""
    where = np.ones_like(image, dtype=bool) if where is None else where
    mean = image.mean(axis=(1, 2), keepdims=True, where=where)
    return (image - mean) / image.std(axis=(1, 2), keepdims=True, where=where)


def _fascia(u: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """1-3 bright, slightly bent lines ``[N, H, W]``."""
    lines = np.zeros((len(u), y.shape[1], y.shape[2]), dtype=np.float32)
    count = 1 + np.floor(u[:, 0] * 3)
    for k in range(3):
        at, slope, bend, bright = (u[:, 1 + 4 * k + j][:, None, None] for j in range(4))
        centre = 0.04 + 0.92 * at + 0.3 * (slope - 0.5) * (x - 0.5) + 0.05 * np.sin(2 * np.pi * (x + bend))
        profile = np.exp(-(((y - centre) * 32 / 0.7) ** 2))
        lines += profile * (1.2 + 1.0 * bright) * (k < count)[:, None, None]
    return lines


def _points(
    u: np.ndarray, cy: np.ndarray, cx: np.ndarray, ry: np.ndarray, rx: np.ndarray, angle: np.ndarray, size: int
) -> np.ndarray:
    """0-4 single pixels ``[N, H, W]`` within 0.8 of the ellipse."""
    n = len(u)
    points = np.zeros((n, size, size), dtype=bool)
    count = np.floor(u[:, 0] * 5)
    cy, cx, ry, rx, angle = (value[:, 0, 0] for value in (cy, cx, ry, rx, angle))
    for k in range(4):
        radius, phase = 0.8 * np.sqrt(u[:, 1 + 2 * k]), 2 * np.pi * u[:, 2 + 2 * k]
        along, across = rx * radius * np.cos(phase), ry * radius * np.sin(phase)
        row = np.round((cy + along * np.sin(angle) + across * np.cos(angle)) * size).astype(int)
        column = np.round((cx + along * np.cos(angle) - across * np.sin(angle)) * size).astype(int)
        points[np.arange(n), row.clip(0, size - 1), column.clip(0, size - 1)] |= k < count
    return points
