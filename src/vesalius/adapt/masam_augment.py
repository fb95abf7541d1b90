"""MA-SAM's augmentations: a stack of slices and its labels, turned, lit and warped alike in every slice.

As published they work on 8-bit pictures (Pillow): of a window of 450 HU that keeps 1.8 HU a level. Two things differ.
All chance comes from one generator, so that no two workers draw the same sequence, and a rotation interpolates the
image linearly where the published one takes the nearest pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

Slices = NDArray[np.float32]
"""``[D, H, W]`` in [0, 1]."""
Labels = NDArray[np.uint8]
"""``[L, H, W]``: the masks of the slices, and whatever else has to follow the warps."""
Picture = Image.Image


def warp(image: Slices, labels: Labels, matrix: tuple[float, ...]) -> tuple[Slices, Labels]:
    """An affine map of every slice: the image linearly, labels from the nearest pixel; 0 comes in from outside.

    Args:
        matrix: (a, b, c, d, e, f): pixel (x, y) is taken from (a x + b y + c, d x + e y + f).
    """

    def moved(picture: Picture, resample: Image.Resampling) -> NDArray[np.uint8]:
        return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample=resample))

    return (
        _unit(np.stack([moved(one, Image.Resampling.BILINEAR) for one in _pictures(image)])),
        np.stack([moved(Image.fromarray(one), Image.Resampling.NEAREST) for one in labels]),
    )


def retouch(image: Slices, change: Callable[[Picture], Picture]) -> Slices:
    """A change of intensities, of each slice by itself."""
    return _unit(np.stack([np.asarray(change(one)) for one in _pictures(image)]))


def gamma(image: Slices, exponent: float) -> Slices:
    """``x ** (1 / exponent)``, from and to 8 bits."""
    table = (255 * (np.arange(256) / 255) ** (1 / exponent)).astype(np.uint8)
    return _unit(table[(255 * image).astype(np.uint8)])


def erase(image: Slices, labels: Labels, rng: np.random.Generator) -> tuple[Slices, Labels]:
    """Noise in a rectangle of 2 to 5 % of the area, the same in every slice; its label is background."""
    height, width = image.shape[1:]
    while True:
        area, aspect = rng.uniform(0.02, 0.05) * height * width, rng.uniform(0.3, 3.3)
        columns, rows = int(np.sqrt(area * aspect)), int(np.sqrt(area / aspect))
        if columns < width and rows < height:
            break
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    image, labels = image.copy(), labels.copy()
    image[:, top : top + rows, left : left + columns] = rng.uniform(0, 1, size=(rows, columns))
    labels[:, top : top + rows, left : left + columns] = 0
    return image, labels


def shear_x(image: Slices, labels: Labels, strength: float) -> tuple[Slices, Labels]:
    """Rows slide by `strength` of their distance from the middle."""
    return warp(image, labels, (1, strength, -strength * image.shape[2] / 2, 0, 1, 0))


def shear_y(image: Slices, labels: Labels, strength: float) -> tuple[Slices, Labels]:
    """Columns slide by `strength` of their distance from the middle."""
    return warp(image, labels, (1, 0, 0, strength, 1, -strength * image.shape[1] / 2))


def scale(image: Slices, labels: Labels, strength: float) -> tuple[Slices, Labels]:
    """Shrunk by `strength` towards the upper left corner."""
    return warp(image, labels, (strength, 0, 0, 0, strength, 0))


def translate_x(image: Slices, labels: Labels, strength: float) -> tuple[Slices, Labels]:
    """To the left by a share of the width."""
    return warp(image, labels, (1, 0, strength * image.shape[2], 0, 1, 0))


def translate_y(image: Slices, labels: Labels, strength: float) -> tuple[Slices, Labels]:
    """Upwards by a share of the height."""
    return warp(image, labels, (1, 0, 0, 0, 1, strength * image.shape[1]))


def posterize(image: Slices, labels: Labels, strength: float) -> tuple[Slices, Labels]:
    """The highest bits of each intensity."""
    return retouch(image, lambda picture: ImageOps.posterize(picture, int(strength))), labels


def contrast(image: Slices, labels: Labels, strength: float) -> tuple[Slices, Labels]:
    """Away from the slice's mean, or towards it."""
    return retouch(image, lambda picture: ImageEnhance.Contrast(picture).enhance(strength)), labels


def brightness(image: Slices, labels: Labels, strength: float) -> tuple[Slices, Labels]:
    """Times `strength`."""
    return retouch(image, lambda picture: ImageEnhance.Brightness(picture).enhance(strength)), labels


def sharpness(image: Slices, labels: Labels, strength: float) -> tuple[Slices, Labels]:
    """Away from the slice smoothed, or towards it."""
    return retouch(image, lambda picture: ImageEnhance.Sharpness(picture).enhance(strength)), labels


def identity(image: Slices, labels: Labels, strength: float) -> tuple[Slices, Labels]:
    """As it is."""
    return image, labels


Operation = Callable[[Slices, Labels, float], tuple[Slices, Labels]]
OPERATIONS: dict[Operation, tuple[float, float]] = {
    shear_x: (-0.3, 0.3),
    shear_y: (-0.3, 0.3),
    scale: (0.8, 1.2),
    translate_x: (-0.2, 0.2),
    translate_y: (-0.2, 0.2),
    posterize: (4, 8.99),
    contrast: (0.7, 1.3),
    brightness: (0.7, 1.3),
    sharpness: (0.1, 1.9),
    identity: (0, 1),
}
"""Operation -> least and greatest strength; two of them are done to every stack."""


def augment(image: Slices, labels: Labels, rng: np.random.Generator, *, mirror: bool = True) -> tuple[Slices, Labels]:
    """One draw of all augmentations, in the published order.

    Args:
        image: ``[D, H, W]`` in [0, 1].
        labels: ``[L, H, W]``.
        rng: the source of chance.
        mirror: turn by quarters and mirror half of the stacks, as published; not for classes that have sides. Slices
            that are not square are turned by half turns only.

    Returns:
        Both, of the same sizes.
    """
    steps: list[Callable[[Slices, Labels], tuple[Slices, Labels]]] = []
    chances = rng.random(4)
    if mirror and chances[0] < 0.5:
        quarter = 1 if image.shape[1] == image.shape[2] else 2
        steps.append(partial(_turned, turns=quarter * int(rng.integers(4)), axis=1 + int(rng.integers(2))))
    if chances[1] < 0.5:
        steps.append(partial(_rotated, degrees=int(rng.integers(-15, 15))))
    if chances[2] < 0.5:
        exponent = 3 * rng.random() + 0.5
        steps.append(lambda slices, masks: (gamma(slices, exponent), masks))
    if chances[3] < 0.5:
        steps.append(partial(erase, rng=rng))
    operations = list(OPERATIONS)
    for number in rng.choice(len(operations), size=2, replace=False):
        steps.append(partial(operations[number], strength=rng.uniform(*OPERATIONS[operations[number]])))
    for step in steps:
        image, labels = step(image, labels)
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(labels)


def _turned(image: Slices, labels: Labels, *, turns: int, axis: int) -> tuple[Slices, Labels]:
    return np.flip(np.rot90(image, turns, (1, 2)), axis), np.flip(np.rot90(labels, turns, (1, 2)), axis)


def _rotated(image: Slices, labels: Labels, *, degrees: int) -> tuple[Slices, Labels]:
    turn = partial(ndimage.rotate, angle=degrees, axes=(1, 2), reshape=False)
    return turn(image, order=1), turn(labels, order=0)


def _pictures(image: Slices) -> list[Picture]:
    return [Image.fromarray(one) for one in (255 * image.clip(0, 1)).astype(np.uint8)]


def _unit(levels: NDArray[np.uint8]) -> Slices:
    return levels.astype(np.float32) / np.float32(255)
