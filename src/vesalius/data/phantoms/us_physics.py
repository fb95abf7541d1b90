"""How a scene of echoes becomes a B-mode picture: point-spread function, attenuation, log compression, scan conversion.

Pictures are formed where a scanner forms them, on a grid of depth samples by beams, and converted to pixels last. In a
convex probe's grid a beam is a ray, so shadows fan out and the lateral resolution worsens with depth by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import fft
from scipy.ndimage import map_coordinates

BEAM_SAMPLES = 2  # depth samples per pixel
_PAD = 24  # empty rows below the grid, so that the periodic convolution does not carry the skin to the bottom


@dataclass(frozen=True)
class Scene:
    """What the beams meet, on a grid ``[Z, X]``.

    Args:
        echo: scatterer strength in dB, 0 = the organ's mean grey.
        interface: amplitude of specular (coherent) echoes, 1 = as strong as 0 dB speckle.
        attenuation: one-way excess over the compensated tissue attenuation, dB/cm; negative brightens what lies below.
    """

    echo: np.ndarray
    interface: np.ndarray
    attenuation: np.ndarray


@dataclass(frozen=True)
class Probe:
    """A transducer and the picture it makes; lengths in mm, ``y`` down from its face, ``x`` from its middle.

    Args:
        depth: depth of the last sample.
        size: the picture is ``size`` x ``size`` pixels.
        radius: radius of the convex face; 0 is a linear array as wide as it sees deep.
        half_angle: half the opening angle of a convex array, radians.
        axial: standard deviation of the pulse, mm.
        lateral: standard deviation of the beam at its focus, in beam spacings at 128 beams.
        focus: depth of the focus as a fraction of `depth`.
    """

    depth: float
    size: int
    radius: float = 0.0
    half_angle: float = 0.6
    axial: float = 0.3
    lateral: float = 0.9
    focus: float = 0.5
    spacing: float = field(init=False)

    def __post_init__(self) -> None:
        width = 2 * (self.radius + self.depth) * np.sin(self.half_angle) if self.radius else self.depth
        extent = max(width, self.depth + self.radius * (1 - np.cos(self.half_angle)) if self.radius else self.depth)
        object.__setattr__(self, "spacing", float(extent / self.size))

    @property
    def samples(self) -> int:
        """Depth samples of a beam."""
        return BEAM_SAMPLES * self.size

    def beam_grid(self) -> tuple[np.ndarray, np.ndarray]:
        """``y, x`` in mm of every sample, ``[samples, size]``."""
        along = (np.arange(self.samples, dtype=np.float32)[:, None] + 0.5) / self.samples * self.depth
        across = (np.arange(self.size, dtype=np.float32)[None] + 0.5) / self.size * 2 - 1
        if not self.radius:
            return along + 0 * across, 0 * along + across * np.float32(self.depth / 2)
        angle = across * np.float32(self.half_angle)
        distance = along + self.radius
        return distance * np.cos(angle) - self.radius, distance * np.sin(angle)

    def pixel_grid(self) -> tuple[np.ndarray, np.ndarray]:
        """``y, x`` in mm of every pixel, ``[size, size]``; the picture's top is the highest point that is seen."""
        step = np.arange(self.size, dtype=np.float32) + 0.5
        top = -self.radius * (1 - np.cos(self.half_angle)) if self.radius else 0.0
        y, x = np.meshgrid(step * self.spacing + top, (step - self.size / 2) * self.spacing, indexing="ij")
        return y, x

    def scan_convert(self, beams: np.ndarray) -> np.ndarray:
        """``[samples, size]`` on beams -> ``[size, size]`` pixels; 0 outside the field of view."""
        along, across = self._beam_coordinates()
        if not self.radius:
            beams = beams.reshape(self.size, BEAM_SAMPLES, self.size).mean(1).repeat(BEAM_SAMPLES, axis=0)
        rows = along / self.depth * self.samples - 0.5
        columns = (across + 1) / 2 * self.size - 0.5
        return map_coordinates(beams, [rows, columns], order=1, mode="nearest") * self.field_of_view()

    def field_of_view(self) -> np.ndarray:
        """Which pixels are seen, ``[size, size]`` bool."""
        along, across = self._beam_coordinates()
        return (along >= 0) & (along <= self.depth) & (np.abs(across) <= 1)

    def _beam_coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Depth in mm, and position across the beams in -1 to 1, of every pixel."""
        y, x = self.pixel_grid()
        if not self.radius:
            return y, x / (self.depth / 2)
        return np.hypot(y + self.radius, x) - self.radius, np.arctan2(x, y + self.radius) / self.half_angle


def bmode(
    scene: Scene,
    probe: Probe,
    rng: np.random.Generator,
    *,
    looks: int = 1,
    sharpness: float = 1.0,
    gain: float = 0.0,
    slope: float = 0.0,
    noise: float = -38.0,
    dynamic_range: float = 66.0,
    zones: int = 4,
) -> np.ndarray:
    """A B-mode picture ``[size, size]`` float32 in [0, 1].

    The envelope is ``|h_z * (a n + s)|``: complex white noise ``n`` (many scatterers per resolution cell) scaled by the
    scene's amplitude ``a``, plus interfaces ``s``, convolved with a separable Gaussian ``h_z`` whose width across the
    beams is that of the nearest depth zones, blended linearly. Then ``0.5 + dB / dynamic_range``, clipped.

    Args:
        scene: echoes on ``probe.beam_grid()``.
        probe: geometry and resolution.
        rng: speckle and electronic noise.
        looks: independent speckle pictures whose intensities are averaged (spatial compounding).
        sharpness: divides the width of the point-spread function.
        gain: dB added everywhere.
        slope: time-gain error, dB from the top to the bottom.
        noise: electronic noise in dB at half depth; the time-gain compensation amplifies it with depth.
        dynamic_range: dB from black to white.
        zones: depth zones of the point-spread function.
    """
    rows, beams = probe.samples, probe.size
    depth = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
    loss = np.cumsum(scene.attenuation, axis=0) * (2 * probe.depth / rows / 10)
    gained = gain + slope * (depth - 0.5) - loss
    amplitude = np.float32(10) ** ((scene.echo + gained) / 20)
    interface = scene.interface * np.float32(10) ** (gained / 20)
    floor = np.float32(10) ** ((noise + 14 * (depth - 0.5)) / 20)

    axial = probe.axial / sharpness * rows / probe.depth
    centres = np.linspace(0, 1, zones, dtype=np.float32)
    widening = np.sqrt(1 + ((centres - probe.focus) / 0.45) ** 2)
    lateral = probe.lateral / sharpness * widening * beams / 128
    frequency = np.fft.fftfreq(rows + _PAD).astype(np.float32)[:, None]
    across = np.fft.fftfreq(beams).astype(np.float32)
    along_filter = _unit_energy(np.exp(-2 * (np.pi * axial * frequency) ** 2))
    across_filters = [_unit_energy(np.exp(-2 * (np.pi * width * across) ** 2)) for width in lateral]
    blend = np.clip(1 - np.abs(depth - centres) * (zones - 1), 0, 1)

    intensity: np.ndarray = np.zeros((rows, beams), dtype=np.float32)
    field_ = np.zeros((rows + _PAD, beams), dtype=np.complex64)
    for _ in range(looks):
        white = rng.standard_normal((2, rows, beams), dtype=np.float32) * np.float32(np.sqrt(0.5))
        field_[:rows] = amplitude * (white[0] + 1j * white[1]) + interface
        spectrum = fft.fft2(field_) * along_filter
        echo = sum(
            weight[:, None] * fft.ifft2(spectrum * narrow, overwrite_x=True)[:rows]
            for narrow, weight in zip(across_filters, blend.T, strict=True)
        )
        intensity += echo.real**2 + echo.imag**2
    intensity = intensity / np.float32(looks) + floor**2 * rng.standard_exponential(intensity.shape, dtype=np.float32)
    grey = 0.5 + 10 * np.log10(intensity + 1e-12) / dynamic_range
    return probe.scan_convert(np.clip(grey, 0, 1)).astype(np.float32)


def _unit_energy(transfer: np.ndarray) -> np.ndarray:
    """A transfer function under which white noise keeps its variance."""
    return (transfer / np.sqrt((transfer**2).mean())).astype(np.float32)
