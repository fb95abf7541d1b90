"""The low-pass operators of deblurring masked image modelling, as part of a network's input contract.

The published scripts blur a whole data set once, in 8 bits, with OpenCV. Here the same operators run when an image is
loaded, and the choice travels with the weights, so that inference cannot forget it. `blur_uint8`'s Gaussian,
mean and median equal OpenCV's; defocus agrees within one grey level.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vesalius.errors import ConfigError, nearest

METHODS = ("gaussian", "mean", "median", "motion", "defocus", "srad")

SRAD_STEP = 0.05
"""Time step of the diffusion, in the units of Yu & Acton."""


@dataclass(frozen=True)
class Blur:
    """A blur of the image at its own size, before any crop or resize (so `sigma` is in the file's pixels).

    Args:
        method: one of

            - ``gaussian``: standard deviation `sigma`, window ``round(6 sigma + 1)`` made odd (OpenCV's
              rule for 8 bits);
            - ``mean``, ``median``: over ``size x size`` pixels;
            - ``motion``: along a line of `size` pixels whose direction is drawn from a generator seeded by the image's
              own pixels, so the same image is always blurred the same way;
            - ``defocus``: a disc of radius `size`;
            - ``srad``: speckle-reducing anisotropic diffusion (Yu & Acton 2002), `size` iterations. **[rec]**:
              drawn in the paper's figure, absent from its code; the equations are those of Yu & Acton.
        sigma: pixels; used by ``gaussian`` alone.
        size: pixels, or iterations of ``srad``. The published value is 5.

    Borders are mirrored without repeating the edge, except the median's, which repeats it.

    >>> Blur("gaussian", sigma=1.1)(np.full((1, 8, 8), 0.5, np.float32)).mean().round(3)
    np.float32(0.5)
    """

    method: str = "gaussian"
    sigma: float = 1.1
    size: int = 5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"unknown blur {self.method!r}", remedy=nearest(self.method, METHODS))
        if self.sigma <= 0 or self.size < 1:
            raise ConfigError(f"blur with sigma {self.sigma} and size {self.size}", remedy="both must be positive")
        if self.method in ("mean", "median", "motion") and self.size % 2 == 0:
            raise ConfigError(f"{self.method} blur of size {self.size}", remedy="use an odd number of pixels")

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Blur ``[C, H, W]`` float in [0, 1], each channel alone; same shape, float32."""
        return np.stack([self._channel(channel.astype(np.float32)) for channel in pixels])

    def blur_uint8(self, image: np.ndarray) -> np.ndarray:
        """Blur an 8-bit image ``[H, W]`` into an 8-bit image, as the published offline script does."""
        if image.dtype != np.uint8 or image.ndim != 2:
            raise ConfigError(f"blur_uint8 got {image.dtype} {image.shape}", remedy="give uint8 [H, W]")
        if self.method == "gaussian":
            return gaussian_uint8(image, self.sigma)
        blurred = self._channel(image.astype(np.float32) / 255)
        return np.rint(np.clip(blurred, 0, 1) * 255).astype(np.uint8)

    def _channel(self, channel: np.ndarray) -> np.ndarray:
        match self.method:
            case "gaussian":
                kernel = gaussian_kernel(self.sigma)
                for axis in (0, 1):
                    channel = ndimage.correlate1d(channel, kernel, axis=axis, mode="mirror")
                return channel
            case "mean":
                return ndimage.uniform_filter(channel, self.size, mode="mirror")
            case "median":
                return ndimage.median_filter(channel, self.size, mode="nearest")
            case "motion":
                seed = zlib.crc32(np.ascontiguousarray(channel).tobytes())
                angle = np.random.default_rng(seed).uniform(0, np.pi)
                return ndimage.correlate(channel, line_kernel(self.size, angle), mode="mirror")
            case "defocus":
                return ndimage.correlate(channel, disc_kernel(self.size), mode="mirror")
            case _:
                return srad(channel, iterations=self.size)


def gaussian_kernel(sigma: float) -> np.ndarray:
    """The normalised 1-D kernel with OpenCV's window rule for 8-bit images.

    >>> len(gaussian_kernel(1.1)), len(gaussian_kernel(0.5))
    (9, 5)
    """
    size = round(6 * sigma + 1) | 1
    x = np.arange(size) - size // 2
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def gaussian_uint8(image: np.ndarray, sigma: float) -> np.ndarray:
    """OpenCV's Gaussian blur of an 8-bit image ``[H, W]``, bit for bit.

    The kernel is in 1/256ths, the rounding error of each weight is carried to the next, inwards; the sums are exact
    and rounded once, at the end.
    """
    kernel = gaussian_kernel(sigma) * 256
    half = len(kernel) // 2
    fixed = np.zeros(len(kernel), np.int64)
    carried = 0.0
    for i in range(half):
        fixed[i] = fixed[-1 - i] = np.rint(kernel[i] + carried)
        carried += kernel[i] - fixed[i]
    fixed[half] = 256 - 2 * fixed[:half].sum()
    total = image.astype(np.int64)
    for axis in (0, 1):
        total = ndimage.correlate1d(total, fixed, axis=axis, mode="mirror")
    return ((total + (1 << 15)) >> 16).astype(np.uint8)


def disc_kernel(radius: int) -> np.ndarray:
    """A uniform disc ``[2 radius + 1, 2 radius + 1]`` that sums to one.

    The published setting smooths it with a standard deviation of 0.01 pixel, which leaves it as it is.
    """
    x = np.arange(-radius, radius + 1)
    disc = (x[:, None] ** 2 + x[None] ** 2 <= radius**2).astype(np.float64)
    return disc / disc.sum()


def line_kernel(size: int, angle: float) -> np.ndarray:
    """A uniform line through the centre of ``[size, size]`` at `angle` (radians), summing to one."""
    reach = np.linspace(-(size // 2), size // 2, 4 * size)
    rows = np.rint(reach * np.sin(angle)).astype(int) + size // 2
    columns = np.rint(reach * np.cos(angle)).astype(int) + size // 2
    kernel = np.zeros((size, size))
    kernel[rows, columns] = 1
    return kernel / kernel.sum()


def srad(image: np.ndarray, *, iterations: int = 15) -> np.ndarray:
    """Speckle-reducing anisotropic diffusion of ``[H, W]`` intensities in [0, 1] (Yu & Acton 2002, eqs. 31-40).

    The instantaneous coefficient of variation ``q^2 = ((1/2)(|grad I|/I)^2 - (1/16)(lap I/I)^2) / (1 + lap I/(4 I))^2``
    is compared with the speckle scale ``q0(t) = exp(-t/6)``; where it is as high as speckle, the image is smoothed, and
    at edges it is kept.
    """
    image = np.clip(image.astype(np.float64), 1 / 255, 1)
    for iteration in range(iterations):
        padded = np.pad(image, 1, mode="edge")
        north, south = padded[:-2, 1:-1] - image, padded[2:, 1:-1] - image
        west, east = padded[1:-1, :-2] - image, padded[1:-1, 2:] - image
        gradient = (north**2 + south**2 + west**2 + east**2) / image**2
        laplacian = (north + south + west + east) / image
        # The denominator vanishes where the Laplacian is -4 I; no positive image reaches it, rounding could.
        q2 = (gradient / 2 - laplacian**2 / 16) / np.maximum((1 + laplacian / 4) ** 2, 1e-8)
        q02 = np.exp(-iteration * SRAD_STEP / 6) ** 2
        c = np.clip(1 / (1 + (q2 - q02) / (q02 * (1 + q02))), 0, 1)
        c = np.pad(c, ((0, 1), (0, 1)), mode="edge")
        here, below, right = c[:-1, :-1], c[1:, :-1], c[:-1, 1:]
        image = image + SRAD_STEP / 4 * (below * south + here * north + right * east + here * west)
    return image.astype(np.float32)
