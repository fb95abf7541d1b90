"""Segmentation of one structure in volumes by clicks: crops around them, and their probabilities merged.

3DSAM-adapter sees one crop around all clicks; what lies outside is background, and a lesion larger than the crop is
cut. Here clicks that are further apart get crops of their own, whose probabilities are averaged where they overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from monai.losses import DiceLoss
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.data.masks import IGNORE
from vesalius.data.progress import track
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.memory import check_memory
from vesalius.data.volumes.transforms import Grid
from vesalius.errors import ConfigError
from vesalius.images import Image
from vesalius.nn.losses import cross_entropy
from vesalius.nn.sam3d import Sam3D
from vesalius.tasks.volume_segmentation import VolumeSegmentation, write_label_map

Roi = tuple[int, int, int]
APART = 0.5
"""Share of a crop's side beyond which clicks get crops of their own."""
OVERLAP = 0.5
"""Of neighbouring crops where there are no clicks."""


def draw_clicks(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Voxels of the foreground, drawn with replacement: ``[count, 3]`` as (d, h, w).

    Args:
        mask: ``[D, H, W]`` bool.
        count: of clicks; there are none in an empty mask.

    >>> mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    >>> mask[1, 2, 3] = True
    >>> draw_clicks(mask, 2, torch.Generator()).tolist()
    [[1, 2, 3], [1, 2, 3]]
    """
    places = mask.nonzero()
    if not len(places):
        return places
    return places[torch.randint(len(places), (count,), generator=generator)]


def crop_corner(points: Tensor, roi: Roi) -> tuple[int, int, int]:
    """Where a crop around clicks begins: it is centred between the outermost; it may begin outside of the volume.

    >>> crop_corner(torch.tensor([[10, 50, 90], [20, 51, 90]]), (32, 32, 32))
    (-1, 34, 74)
    """
    middle = (points.amin(0) + points.amax(0)).div(2).floor().long()
    d, h, w = (int(place) - side // 2 for place, side in zip(middle, roi, strict=True))
    return d, h, w


def crop_corners(points: Tensor, roi: Roi, *, merge: bool = True) -> list[tuple[int, int, int]]:
    """Where the crops around clicks begin.

    Args:
        points: ``[N, 3]``, foreground clicks (d, h, w).
        roi: voxels of a crop.
        merge: clicks that lie further apart than half a crop get crops of their own; False for one crop around all, as
            published.

    >>> crop_corners(torch.tensor([[8, 8, 8], [10, 9, 8], [40, 8, 8]]), (16, 16, 16))
    [(1, 0, 0), (32, 0, 0)]
    """
    groups: list[Tensor] = []
    limit = APART * torch.tensor(roi)
    for point in points:
        for number, group in enumerate(groups):
            grown = torch.cat([group, point[None]])
            if not merge or (grown.amax(0) - grown.amin(0) <= limit).all():
                groups[number] = grown
                break
        else:
            groups.append(point[None])
    return list(dict.fromkeys(crop_corner(group, roi) for group in groups))


def cut(volume: Tensor, corner: Sequence[int], roi: Roi, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """A crop ``[C, *roi]`` of ``volume [C, D, H, W]`` in the network's intensities, 0 outside of the volume."""
    ends = [(max(start, 0), max(min(start + side, whole), 0)) for start, side, whole in _spans(corner, roi, volume)]
    part = prepare(volume[(slice(None), *(slice(low, high) for low, high in ends))])
    filling = [
        amount
        for (start, side, _), (low, high) in reversed(list(zip(_spans(corner, roi, volume), ends, strict=True)))
        for amount in (low - start, start + side - high)
    ]
    return F.pad(part, filling)


def on_grid(points: Sequence[Sequence[float]] | NDArray[Any], grid: Grid) -> Tensor:
    """Places (column, row, slice) of an image as stored -> (d, h, w) on a network's voxels, ``[N, 3]`` float.

    Raises:
        ConfigError: one lies outside of the image.
    """
    stored = np.asarray(points, np.float64).reshape(-1, 3)[:, ::-1]
    turned = stored[:, list(grid.order)]
    last = np.array(grid.source) - 1
    if ((turned < -0.5) | (turned > last + 0.5)).any():
        size = [grid.source[grid.order.index(axis)] for axis in (2, 1, 0)]
        raise ConfigError(f"a click at {np.asarray(points).tolist()} lies outside of {size} columns, rows and slices")
    turned = np.where(grid.flip, last - turned, turned)
    return torch.from_numpy(turned / np.array(grid.scale)).float()


class PromptedVolumeSegmentation(nn.Module):
    """A structure that is clicked on, or one that the automatic variant finds by itself.

    Args:
        encoder: the network.
        classes: the name of the structure, one.
        merge: crops around clicks that are far apart, see `crop_corners`.

    >>> from vesalius.nn.sam import SAM_PRESETS
    >>> from vesalius.nn.sam3d import Sam3DShape
    >>> sizes = {"window": 4, "layers": 8, "neck": 32, "sampler_heads": 4, "sampler_hidden": 64, "hidden": 16}
    >>> task = PromptedVolumeSegmentation(Sam3D(Sam3DShape(SAM_PRESETS["sam_tiny"], **sizes)), ("tumour",)).eval()
    >>> task.probability(torch.zeros(1, 40, 30, 30), torch.tensor([[5, 5, 5], [35, 9, 9]]), roi=(16, 16, 16)).shape
    torch.Size([40, 30, 30])
    """

    TASK, NAME = "segmentation", "prompted_volume_segmentation"
    FORMATS = VolumeSegmentation.FORMATS

    def __init__(self, encoder: Sam3D, classes: Sequence[str], *, merge: bool = True):
        super().__init__()
        if len(classes) != 1 or encoder.config.classes != 2:
            raise ConfigError(f"{len(classes)} classes to click on", remedy="name one: a click says where, not what")
        self.encoder, self.classes, self.merge = encoder, tuple(classes), merge
        self.config: dict[str, Any] = {"classes": list(classes), "merge": merge}

    @property
    def scored(self) -> tuple[str, ...]:
        """What is scored: the class."""
        return self.classes

    @property
    def prompted(self) -> bool:
        """It needs clicks."""
        return self.encoder.config.prompted

    def forward(self, volume: Tensor, points: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Crops ``[B, C, *roi]``, clicks ``[B, N, 3]`` (d, h, w) and their labels -> logits ``[B, 2, *roi]``."""
        return self.encoder(volume, points, labels)

    def loss(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """`click_loss`; ``batch["mask"]`` is ``[B, *roi]``, 255 counting for nothing."""
        return click_loss(output, batch["mask"])

    def region_masks(self, mask: Tensor | NDArray[Any]) -> Tensor:
        """A label mask ``[B, D, H, W]`` -> the class's ``[B, 1, D, H, W]`` bool."""
        return torch.as_tensor(mask)[:, None] == 1

    @torch.inference_mode()
    def probability(
        self,
        volume: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        roi: Roi,
        prepare: Callable[[Tensor], Tensor] = Tensor.float,
        half: bool = False,
        title: str | None = None,
    ) -> Tensor:
        """The probability of the structure in a volume, 0 where no crop lies.

        Args:
            volume: ``[C, D, H, W]`` of any dtype, memory-mapped perhaps: a crop at a time is read.
            points: ``[N, 3]`` (d, h, w) on its voxels; None for the automatic variant, whose crops cover the volume.
            labels: ``[N]``, 1 foreground (which crops are placed by), 0 background; None for 1.
            roi: voxels of a crop.
            prepare: from a part of the volume to the network's intensities, such as `VolumeContract.normalise`.
            half: run under autocast (bfloat16 on a CPU, float16 elsewhere).
            title: of the progress bar; None for none.

        Returns:
            ``[D, H, W]`` float32.

        Raises:
            ConfigError: clicks are missing, or not wanted.
            VesaliusError: less memory is free than it needs.
        """
        size = (volume.shape[1], volume.shape[2], volume.shape[3])
        check_memory(8 * int(np.prod(size, dtype=np.int64)))
        corners: Sequence[Sequence[int]]
        if points is None:
            corners = _covering(size, roi)
        else:
            if labels is None:
                labels = torch.ones(len(points), dtype=torch.long)
            if not (labels == 1).any():
                raise ConfigError("no foreground click", remedy="click on what shall be segmented")
            corners = crop_corners(points[labels == 1], roi, merge=self.merge)
        device = next(self.parameters()).device
        kind = torch.bfloat16 if device.type == "cpu" else torch.float16
        total, weight = torch.zeros(size), torch.zeros(size)
        for corner in corners if title is None else track(corners, len(corners), title):
            clicks, known = self._within(points, labels, corner, roi)
            crop = cut(volume, corner, roi, prepare)[None].to(device)
            with torch.autocast(device.type, kind) if half else nullcontext():
                scores = self(crop, *(None if part is None else part[None].to(device) for part in (clicks, known)))
            found = scores.float().softmax(1)[0, 1].cpu()
            ends = [(max(-start, 0), min(side, whole - start)) for start, side, whole in _spans(corner, roi, volume)]
            inside = tuple(slice(low, high) for low, high in ends)
            box = tuple(slice(start + low, start + high) for start, (low, high) in zip(corner, ends, strict=True))
            total[box] += found[inside]
            weight[box] += 1
        return total.div_(weight.clamp_(min=1))

    def segment(
        self,
        image: Image,
        contract: VolumeContract,
        *,
        points: Sequence[Sequence[float]] | None = None,
        labels: Sequence[int] | None = None,
        boxes: Sequence[Sequence[float]] | None = None,
        half: bool = False,
        title: str | None = None,
    ) -> NDArray[np.uint8]:
        """An image through its network's contract, `probability`, and back onto its own voxels, where 0.5 decides.

        Args:
            image: a volume.
            contract: what the network reads.
            points: clicks (x, y, z): column, row and slice, in voxels of the image as it is stored.
            labels: 1 for what shall be segmented, 0 for what shall not (which networks as published take for 1); None
                for 1.
            boxes: none; the sequence is there because other tasks take them.
            half, title: as of `probability`.

        Returns:
            ``[D, H, W]`` uint8 of ``image.size``.

        Raises:
            ConfigError: boxes, clicks outside of the image, or clicks that are missing or not wanted.
            VesaliusError: the image does not fit the contract, or not into memory.
        """
        if boxes:
            raise ConfigError("3DSAM-adapter takes no boxes", remedy="give points, or a network of masam")
        if self.prompted != bool(points):
            what = "this network needs a click" if self.prompted else "this network takes no clicks"
            raise ConfigError(what, remedy="give points to a network that was trained with them, and only to such")
        clicks = on_grid(points, contract.grid(image)) if points else None
        known = torch.tensor(labels) if labels is not None else None
        if clicks is not None and known is not None and len(known) != len(clicks):
            raise ConfigError(f"{len(known)} labels for {len(clicks)} clicks", remedy="give each click one")
        placed = contract.place(image)
        limits = contract.limits(placed)
        found = self.probability(
            torch.from_numpy(placed),
            clicks,
            known,
            roi=contract.roi,
            prepare=lambda part: contract.normalise(part, limits),
            half=half,
            title=title,
        )
        return (contract.restore(found, image) > 0.5).astype(np.uint8)

    def write(
        self, mask: NDArray[np.uint8], image: Image, folder: str | Path, stem: str, formats: Sequence[str] | None = None
    ) -> list[Path]:
        """Write a label map in the image's geometry, and pictures of its middle slices; see `VolumeSegmentation`."""
        return write_label_map(mask, image, folder, stem, classes=self.classes, formats=formats)

    def _within(
        self, points: Tensor | None, labels: Tensor | None, corner: Sequence[int], roi: Roi
    ) -> tuple[Tensor | None, Tensor | None]:
        """The clicks of a crop in its own voxels; as published (not `merge`) also those outside of it."""
        if points is None or labels is None:
            return None, None
        moved = points.float() - torch.tensor(corner)
        inside = ((moved >= 0) & (moved < torch.tensor(roi))).all(1) if self.merge else torch.ones(len(points)).bool()
        return moved[inside], labels[inside]


def click_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Half Dice of the foreground, half cross-entropy (Gong 2024).

    Args:
        logits: ``[B, 2, D, H, W]``.
        mask: ``[B, D, H, W]``; 255 counts for nothing.
    """
    return 0.5 * foreground_dice(logits.softmax(1)[:, 1], mask).mean() + 0.5 * cross_entropy(logits, mask)


def foreground_dice(probability: Tensor, mask: Tensor) -> Tensor:
    """1 - Dice of each crop, ``[B]``.

    Args:
        probability: ``[B, D, H, W]``.
        mask: ``[B, D, H, W]``; 255 counts for nothing.
    """
    counted = (mask != IGNORE)[:, None]
    dice = DiceLoss(smooth_nr=1e-5, smooth_dr=1e-5, reduction="none")
    return dice(probability[:, None] * counted, (mask == 1)[:, None].to(probability)).flatten()


def _spans(corner: Sequence[int], roi: Roi, volume: Tensor) -> Iterable[tuple[int, int, int]]:
    """Where a crop begins, its side, and the volume's, axis by axis."""
    return list(zip(corner, roi, volume.shape[1:], strict=True))


def _covering(size: Roi, roi: Roi) -> Sequence[Sequence[int]]:
    """Corners of overlapping crops that cover a volume; one that is smaller lies in the middle of its crop."""
    fitting = tuple(max(whole, side) for whole, side in zip(size, roi, strict=True))
    step = tuple(max(int(side * (1 - OVERLAP)), 1) for side in roi)
    before = [max(side - whole, 0) // 2 for whole, side in zip(size, roi, strict=True)]
    found = [tuple(part.start for part in parts) for parts in dense_patch_slices(fitting, roi, step)]
    return [tuple(start - lack for start, lack in zip(starts, before, strict=True)) for starts in found]
