"""Everything in an image: SAM asked at a grid of points, kept where it is sure, without repetitions.

Kirillov et al. (2023), appendix B. An image, and crops of it, are asked at every point of a grid; masks stay whose
predicted IoU is high and whose outline hardly moves with the threshold; of masks with much the same box the best
stays. Masks are kept run-length encoded, and only those that the predicted IoU lets through are ever upsampled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import ceil

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.ops import box_area, masks_to_boxes, nms

from vesalius.data.progress import track
from vesalius.images import Image
from vesalius.tasks.prompted import EncodedImage, SamPredictor, pixels_of

Box = tuple[float, float, float, float]
EDGE = 20.0  # pixels: a box so close to a crop's edge was cut by it


@dataclass(frozen=True)
class AutomaticConfig:
    """The published settings.

    Args:
        points: of the grid's side.  batch: points asked at a time.
        iou: the predicted IoU that a mask must exceed.
        stability: the least ratio of the mask's area at ``+offset`` to that at ``-offset`` around a logit of 0.
        nms: IoU of boxes above which the mask with the lower predicted IoU goes.
        crop_layers: layers of crops; layer i has ``(2^i)^2`` of them.
        crop_nms: as `nms`, between crops, where the smaller crop's mask stays.
        crop_overlap: of neighbouring crops, in parts of the image's shorter side.
        crop_factor: by which the grid's side is divided from layer to layer.
        min_area: pixels; smaller holes are filled and smaller islands removed.
    """

    points: int = 32
    batch: int = 64
    iou: float = 0.88
    stability: float = 0.95
    offset: float = 1.0
    nms: float = 0.7
    crop_layers: int = 0
    crop_nms: float = 0.7
    crop_overlap: float = 512 / 1500
    crop_factor: int = 1
    min_area: int = 0


@dataclass(frozen=True)
class FoundMask:
    """A mask that nobody asked for.

    Args:
        runs: lengths of alternating runs outside and inside, column by column (COCO's uncompressed counts).
        size: rows and columns of the image.
        box: x0, y0, x1, y1 of its first and last pixels.  iou: as predicted.  stability: see `AutomaticConfig`.
        point: x, y of the point it answers to.  crop: the box of the crop in which that was asked.
    """

    runs: np.ndarray
    size: tuple[int, int]
    box: Box
    iou: float
    stability: float
    point: tuple[float, float]
    crop: Box

    @property
    def mask(self) -> np.ndarray:
        """``[H, W]`` bool."""
        return decode_runs(self.runs, self.size)

    @property
    def area(self) -> int:
        """In pixels."""
        return int(self.runs[1::2].sum())


def automatic_masks(
    predictor: SamPredictor,
    image: Image | np.ndarray,
    config: AutomaticConfig | None = None,
    *,
    progress: bool = True,
) -> list[FoundMask]:
    """The masks of everything in an image, in the order in which they were found.

    Args:
        predictor: the network.
        image: 2-D, or pixels ``[3, H, W]`` from 0 to 255.
        config: None for the published settings.
        progress: show a bar.
    """
    c = config or AutomaticConfig()
    pixels = image if isinstance(image, np.ndarray) else pixels_of(image)
    size = (pixels.shape[-2], pixels.shape[-1])
    crops = crop_boxes(size, c.crop_layers, c.crop_overlap)
    grids = [point_grid(max(1, int(c.points / c.crop_factor**layer))) for layer in range(c.crop_layers + 1)]
    batches = [
        (crop, points)
        for crop, layer in crops
        for points in np.array_split(_pixels(grids[layer], crop), range(c.batch, len(grids[layer]), c.batch))
    ]
    inside: dict[Box, list[FoundMask]] = {crop: [] for crop, _ in crops}
    encoded: tuple[Box, EncodedImage] | None = None
    for crop, points in track(batches, len(batches), "masks") if progress else batches:
        if encoded is None or encoded[0] != crop:
            encoded = crop, predictor.encode(_cut(pixels, crop))
        inside[crop] += _ask(predictor, encoded[1], points, crop, size, c)
    found = [masks[number] for masks in inside.values() for number in _best(masks, [m.iou for m in masks], c.nms)]
    if len(crops) > 1:
        small_first = 1 / box_area(torch.tensor([mask.crop for mask in found]).reshape(-1, 4))
        found = [found[number] for number in _best(found, small_first, c.crop_nms)]
    return without_specks(found, c.min_area, max(c.nms, c.crop_nms)) if c.min_area else found


def _ask(
    predictor: SamPredictor,
    image: EncodedImage,
    points: np.ndarray,
    crop: Box,
    size: tuple[int, int],
    c: AutomaticConfig,
) -> list[FoundMask]:
    """The masks of a crop that points ``[N, 2]`` in it lead to and that are sure and not cut by its edge."""
    low, iou = predictor.decode(image, points=points[:, None], labels=np.ones((len(points), 1)))
    low, iou = low.flatten(0, 1), iou.flatten()
    asked = np.repeat(points, len(low) // len(points), axis=0)
    sure = torch.nonzero(iou > c.iou)[:, 0] if c.iou > 0 else torch.arange(len(iou))
    found = []
    for some in sure.split(c.batch):
        logits = predictor.sam.restore(low[some, None], image.size, image.original)[:, 0]
        steady = stability(logits, c.offset)
        masks = (logits > 0).cpu()
        boxes = mask_boxes(masks)
        cut = cut_by_edge(boxes, crop, (0, 0, size[1], size[0]))
        for row, number in enumerate(some.tolist()):
            if (c.stability > 0 and not steady[row] >= c.stability) or cut[row]:
                continue
            whole = np.zeros(size, dtype=bool)
            whole[int(crop[1]) : int(crop[3]), int(crop[0]) : int(crop[2])] = masks[row].numpy()
            x, y = asked[number] + crop[:2]
            found.append(
                FoundMask(
                    encode_runs(whole),
                    size,
                    _box(boxes[row] + torch.tensor([*crop[:2], *crop[:2]])),
                    float(iou[number]),
                    float(steady[row]),
                    (float(x), float(y)),
                    crop,
                )
            )
    return found


def _best(masks: list[FoundMask], scores: list[float] | Tensor, overlap: float) -> list[int]:
    """Which masks stay when of two whose boxes overlap more the one with the lower score goes; best first."""
    if not masks:
        return []
    boxes = torch.tensor([mask.box for mask in masks], dtype=torch.float32)
    return nms(boxes, torch.as_tensor(scores, dtype=torch.float32), overlap).tolist()


def _pixels(grid: np.ndarray, crop: Box) -> np.ndarray:
    """Points of a grid in a crop's pixels."""
    return grid * [crop[2] - crop[0], crop[3] - crop[1]]


def _cut(pixels: np.ndarray, crop: Box) -> np.ndarray:
    return pixels[:, int(crop[1]) : int(crop[3]), int(crop[0]) : int(crop[2])]


def _box(values: Tensor) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1


def point_grid(side: int) -> np.ndarray:
    """The centres of `side` x `side` cells, ``[side^2, 2]``, x and y from 0 to 1, row by row.

    >>> point_grid(2).tolist()
    [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    places = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)


def crop_boxes(size: tuple[int, int], layers: int, overlap: float) -> list[tuple[Box, int]]:
    """The whole image, then its crops, each with its layer.

    >>> crop_boxes((60, 80), 1, 0.25)[1:3]
    [((0, 0, 48, 38), 1), ((0, 23, 48, 60), 1)]
    """
    height, width = size
    crops: list[tuple[Box, int]] = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(size) * (2 / count))
        w, h = (ceil((shared * (count - 1) + side) / count) for side in (width, height))
        for column, row in product(range(count), repeat=2):
            x, y = (w - shared) * column, (h - shared) * row
            crops.append(((x, y, min(x + w, width), min(y + h, height)), layer))
    return crops


def stability(logits: Tensor, offset: float) -> Tensor:
    """Area at a threshold of ``+offset`` over that at ``-offset``, of ``[N, H, W]``: ``[N]``, 1 for sharp outlines."""
    return (logits > offset).sum((1, 2)) / (logits > -offset).sum((1, 2))


def mask_boxes(masks: Tensor) -> Tensor:
    """First and last pixels x0, y0, x1, y1 of ``[N, H, W]`` masks, zeros for an empty one: ``[N, 4]``."""
    boxes = torch.zeros(len(masks), 4)
    there = masks.flatten(1).any(1)
    boxes[there] = masks_to_boxes(masks[there]).float()
    return boxes


def cut_by_edge(boxes: Tensor, crop: Box, image: Box) -> Tensor:
    """Boxes ``[N, 4]`` in a crop's pixels that reach an edge of the crop which is not one of the image's: ``[N]``."""
    placed = boxes + torch.tensor([crop[0], crop[1]] * 2)
    edges = (torch.isclose(placed, torch.tensor(box, dtype=placed.dtype), atol=EDGE, rtol=0) for box in (crop, image))
    at_crop, at_image = edges
    return (at_crop & ~at_image).any(1)


def encode_runs(mask: np.ndarray) -> np.ndarray:
    """Lengths of alternating runs outside and inside a mask, column by column.

    >>> encode_runs(np.array([[True, False], [True, True]])).tolist()  # columns: in in, out in
    [0, 2, 1, 1]
    """
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size])
    return np.array([0, *runs] if flat[0] else runs)


def decode_runs(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The inverse of `encode_runs`, ``[H, W]`` bool."""
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(size, order="F")


def fill_holes(mask: np.ndarray, area: int) -> np.ndarray:
    """A mask without holes of fewer than `area` pixels; diagonal neighbours are connected."""
    regions, sizes = _regions(~mask)
    return mask | np.isin(regions, 1 + np.flatnonzero(sizes < area))


def drop_islands(mask: np.ndarray, area: int) -> np.ndarray:
    """A mask without islands of fewer than `area` pixels, but with its largest."""
    regions, sizes = _regions(mask)
    if not len(sizes):
        return mask
    kept = sizes >= min(area, sizes.max())
    return np.isin(regions, 1 + np.flatnonzero(kept))


def _regions(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected regions by number from 1, and their sizes."""
    regions, _ = ndimage.label(inside, structure=np.ones((3, 3)))
    return regions, np.bincount(regions.ravel())[1:]


def without_specks(masks: list[FoundMask], area: int, overlap: float) -> list[FoundMask]:
    """Masks without small holes and islands; of those that become alike, an unchanged one stays."""
    cleaned, unchanged = [], []
    for found in masks:
        mask = drop_islands(fill_holes(found.mask, area), area)
        unchanged.append(float(np.array_equal(mask, found.mask)))
        box = _box(mask_boxes(torch.from_numpy(mask)[None])[0])
        cleaned.append(found if unchanged[-1] else replace(found, runs=encode_runs(mask), box=box))
    return [cleaned[number] for number in _best(cleaned, unchanged, overlap)]
