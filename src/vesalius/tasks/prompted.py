"""Segment Anything on one image: encode it once, then ask for masks with points, boxes and earlier masks.

Prompts are in pixels of the image as it is, x (column) before y (row). Pixels reach the network from 0 to 255: 8-bit
images as they are, others through their window (`Image.unit`), never cast. The longer side is resized to the network's
and the rest padded, by the published rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from vesalius.errors import ConfigError
from vesalius.images import Image
from vesalius.nn.sam_decoder import Sam

Places = np.ndarray | Tensor | Sequence[Sequence[float]] | Sequence[float]


@dataclass(frozen=True)
class EncodedImage:
    """What the network keeps of an image.

    Args:
        features: ``[1, C, h, w]``.
        size: rows and columns that the image was resized to, within the padded square.
        original: its own rows and columns.
    """

    features: Tensor
    size: tuple[int, int]
    original: tuple[int, int]


@dataclass(frozen=True)
class PromptedMasks:
    """The masks of P prompts, M for each: one for a clear prompt, three readings of an ambiguous one.

    Args:
        logits: ``[P, M, H, W]`` on the image's own pixels; above 0 is inside.
        iou: ``[P, M]``, the IoU that the network predicts for each.
        low: ``[P, M, 4 h, 4 w]``, the decoder's own logits: the mask prompt of a next round.
    """

    logits: Tensor
    iou: Tensor
    low: Tensor

    @property
    def best(self) -> Tensor:
        """The mask of each prompt with the highest predicted IoU: ``[P, H, W]`` bool."""
        return self.logits[torch.arange(len(self.iou), device=self.iou.device), self.iou.argmax(1)] > 0


class SamPredictor:
    """A SAM that takes images and prompts as they come.

    >>> from vesalius.nn.sam import SAM_PRESETS
    >>> predictor = SamPredictor(Sam(SAM_PRESETS["sam_tiny"]))
    >>> image = predictor.encode(np.zeros((3, 60, 80), dtype=np.uint8))
    >>> masks = predictor.predict(image, points=[[40, 30]], labels=[1])
    >>> masks.logits.shape, masks.best.shape
    (torch.Size([1, 3, 60, 80]), torch.Size([1, 60, 80]))
    """

    def __init__(self, sam: Sam):
        self.sam = sam.eval()
        self.side = sam.config.image_size

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.sam.pixel_mean.device

    @torch.inference_mode()
    def encode(self, image: Image | np.ndarray) -> EncodedImage:
        """Encode an image.

        Args:
            image: 2-D of 1 or 3 channels, or pixels ``[3, H, W]``, uint8 or float from 0 to 255.

        Raises:
            ConfigError: it is a volume, or has other channels.
        """
        pixels = image if isinstance(image, np.ndarray) else pixels_of(image)
        original = (pixels.shape[-2], pixels.shape[-1])
        resized = torch.from_numpy(resize_longest(pixels, self.side)).float()[None].to(self.device)
        features = self.sam.encode(resized)
        return EncodedImage(features, (resized.shape[-2], resized.shape[-1]), original)

    @torch.inference_mode()
    def predict(
        self,
        image: EncodedImage,
        *,
        points: Places | None = None,
        labels: Places | None = None,
        boxes: Places | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
    ) -> PromptedMasks:
        """Masks for prompts on an encoded image.

        Args:
            points: ``[P, N, 2]``, or ``[N, 2]`` of one prompt, (x, y).
            labels: ``[P, N]`` or ``[N]``: 1 in the object, 0 outside it, -1 for a place holder.
            boxes: ``[P, 4]``, or ``[4]`` of one prompt, (x0, y0, x1, y1).
            masks: ``[P, 1, 4 h, 4 w]`` logits, as in `PromptedMasks.low`.
            multimask: three readings of each prompt (for a single point), or one (where prompts leave no doubt).
        """
        low, iou = self.decode(image, points=points, labels=labels, boxes=boxes, masks=masks, multimask=multimask)
        return PromptedMasks(self.sam.restore(low, image.size, image.original), iou, low)

    @torch.inference_mode()
    def decode(
        self,
        image: EncodedImage,
        *,
        points: Places | None = None,
        labels: Places | None = None,
        boxes: Places | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """`predict`, stopping at the decoder's resolution: logits ``[P, M, 4 h, 4 w]`` and IoU ``[P, M]``."""
        places = self._pixels(points, image, 3)
        kinds = None if labels is None else torch.as_tensor(labels, device=self.device).long()
        corners = self._pixels(boxes, image, 2)
        if kinds is not None and places is not None:
            kinds = kinds.reshape(places.shape[:2])
        low, iou = self.sam.decode(image.features, points=places, labels=kinds, boxes=corners, masks=masks)
        wanted = slice(1, None) if multimask else slice(1)
        return low[:, wanted], iou[:, wanted]

    def _pixels(self, values: Places | None, image: EncodedImage, ndim: int) -> Tensor | None:
        """Places in the image's pixels as places in the padded square; a single prompt gets the axis of prompts."""
        if values is None:
            return None
        places = torch.as_tensor(scale_places(np.asarray(values), image.original, image.size))
        places = places.float().to(self.device)
        return places if places.ndim == ndim else places[None]


def pixels_of(image: Image) -> np.ndarray:
    """An image as the network was trained on: ``[3, H, W]`` from 0 to 255, uint8 if it is so, else float32.

    Raises:
        ConfigError: it is a volume, or has other channels than 1 or 3.
    """
    if image.array.ndim != 3 or image.array.shape[0] not in (1, 3):
        raise ConfigError(
            f"{image.path} has {image.array.shape[0]} channels of {image.size}",
            remedy="give a grey or RGB image, or choose a slice",
        )
    pixels = image.array if image.array.dtype == np.uint8 else image.unit() * 255
    return np.broadcast_to(pixels, (3, *image.size))


def resized_shape(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Rows and columns when the longer becomes `side`, halves rounded up.

    >>> resized_shape((500, 750), 1024)
    (683, 1024)
    """
    scale = side / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def resize_longest(pixels: np.ndarray, side: int) -> np.ndarray:
    """``[C, H, W]`` with the longer side resized to `side`: bilinear with antialiasing, of the same dtype."""
    rows, columns = resized_shape((pixels.shape[-2], pixels.shape[-1]), side)
    resized = [
        Pillow.fromarray(np.ascontiguousarray(channel)).resize((columns, rows), Pillow.Resampling.BILINEAR)
        for channel in pixels
    ]
    return np.stack([np.asarray(channel) for channel in resized])


def scale_places(places: np.ndarray, original: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Points ``[..., 2]`` or boxes ``[..., 4]`` of an image of rows and columns `original`, in one of `size`.

    >>> scale_places(np.array([[750, 250]]), (500, 750), (683, 1024)).tolist()
    [[1024.0, 341.5]]
    """
    factors = np.array([size[1] / original[1], size[0] / original[0]])
    pairs = np.asarray(places, dtype=np.float64).reshape(*places.shape[:-1], -1, 2)
    return (pairs * factors).reshape(places.shape)
