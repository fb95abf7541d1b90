"""Segmentation of volumes by stacks of slices (MA-SAM): each slice is seen in several stacks, and the means decide.

A stack slides along the volume; a slice's class probabilities are averaged over the stacks that hold it and decided as
soon as no stack to come does, so that a volume of any depth needs the memory of a few slices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceLoss
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.data.masks import IGNORE
from vesalius.data.progress import track
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.memory import check_memory
from vesalius.data.volumes.transforms import foreground_box
from vesalius.errors import ConfigError
from vesalius.images import Image
from vesalius.nn.losses import cross_entropy
from vesalius.nn.masam import MaSam
from vesalius.tasks.volume_segmentation import VolumeSegmentation, write_label_map

Box = Sequence[float]
"""(x0, y0, z0, x1, y1, z1): the first and the last column, row and slice, in voxels of the image as it is stored."""


def places_of(centre: int, slices: int) -> Tensor:
    """The slices of a stack around `centre`; those beyond the ends of the volume do not exist.

    >>> places_of(1, 5).tolist(), places_of(1, 4).tolist()
    ([-1, 0, 1, 2, 3], [0, 1, 2, 3])
    """
    first = centre - (slices - 1) // 2
    return torch.arange(first, first + slices)


def stack_centres(depth: int, slices: int, stride: int = 1) -> list[int]:
    """The centres of the stacks that see a volume; with stride 1 every slice is one, as published.

    >>> stack_centres(9, 5, 5), stack_centres(8, 5, 5), stack_centres(3, 5)
    ([2, 7], [2, 7], [0, 1, 2])
    """
    before = (slices - 1) // 2
    centres = list(range(min(stride - 1, before, depth - 1), depth, stride))
    return centres if centres[-1] + slices - 1 - before >= depth - 1 else [*centres, depth - 1]


def average_stacks(
    scores: Callable[[Tensor], Tensor],
    depth: int,
    *,
    slices: int = 5,
    stride: int = 1,
    within: tuple[int, int] | None = None,
    title: str | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The mean scores of every slice over the stacks that hold it, in order, as soon as they are complete.

    Args:
        scores: from the numbers of a stack's slices ``[slices]`` to their scores ``[slices, ...]``. Beyond the ends of
            the volume its last slice is repeated, and what is said of the repetitions is left out.
        depth: slices of the volume.
        stride: slices from one stack to the next, at most `slices`.
        within: the first and the last slice that are asked for; None for all.
        title: of the progress bar; None for none.

    Yields:
        A slice's number and its mean scores.
    """
    first, last = within or (0, depth - 1)
    waiting: dict[int, tuple[Tensor, int]] = {}
    centres = [first + centre for centre in stack_centres(last - first + 1, slices, stride)]
    for centre in centres if title is None else track(centres, len(centres), title):
        places = places_of(centre, slices)
        found = scores(places.clamp(0, depth - 1))
        for place in sorted(place for place in waiting if place < int(places[0])):
            total, count = waiting.pop(place)
            yield place, total / count
        for place, score in zip(places.tolist(), found, strict=True):
            if place in waiting:
                total, count = waiting[place]
                waiting[place] = total.add_(score), count + 1
            elif first <= place <= last:
                waiting[place] = score.clone(), 1
    for place, (total, count) in sorted(waiting.items()):
        yield place, total / count


def stretch(stack: Tensor) -> Tensor:
    """Intensities ``[C, ...]`` of a stack to [0, 1], each channel from its least to its greatest; a flat one is 0."""
    flat = stack.flatten(1)
    shape = (-1, *[1] * (stack.ndim - 1))
    low, high = flat.amin(1).view(shape), flat.amax(1).view(shape)
    return (stack - low) / (high - low + 1e-8)


def fitted(size: Sequence[int], frame: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a slice that is resized, its aspect kept, to touch a frame from within.

    >>> fitted((400, 300), (512, 512)), fitted((512, 512), (512, 512))
    ((512, 384), (512, 512))
    """
    scale = min(frame[0] / size[0], frame[1] / size[1])
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def fit(slices: Tensor, frame: Sequence[int]) -> Tensor:
    """``[..., H, W]`` resized to touch the frame from within, and filled up with 0 below and on the right.

    Floating-point intensities are interpolated linearly (and smoothed, where they shrink), labels come from the nearest
    pixel and are filled up with 255, which counts for nothing.
    """
    rows, columns = fitted(slices.shape[-2:], frame)
    labels = not slices.dtype.is_floating_point
    flat = slices.reshape(1, -1, *slices.shape[-2:]).float()
    if (rows, columns) != tuple(slices.shape[-2:]):
        if labels:
            flat = F.interpolate(flat, (rows, columns), mode="nearest-exact")
        else:
            flat = F.interpolate(flat, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
    filled = F.pad(flat, (0, frame[1] - columns, 0, frame[0] - rows), value=IGNORE if labels else 0)
    return filled.reshape(*slices.shape[:-2], *frame).to(slices.dtype)


class StackSegmentation(nn.Module):
    """Class probabilities of every pixel of a stack, from an adapted SAM.

    Args:
        encoder: the network.
        classes: names of the foreground; value i + 1 of a mask is ``classes[i]``.
        slices: of a stack.
        frame: rows and columns of what the network reads; slices are resized into it, their aspect kept.
        boxes: prompted: the network is told a box around what it shall find.
        stretch: intensities of a stack from its least to its greatest, as published.
        dice: share of the Dice loss; the rest is cross-entropy.
        stride: slices from one stack to the next when volumes are segmented: 1 sees each slice in `slices` stacks, as
            published; `slices` sees it once, in a fifth of the time.

    >>> from vesalius.nn.masam import StackAdapters
    >>> from vesalius.nn.sam import SAM_PRESETS
    >>> network = MaSam(SAM_PRESETS["sam_tiny"], 1, StackAdapters(width=16, rank=4))
    >>> task = StackSegmentation(network, ("liver",), slices=3, frame=(32, 32)).eval()
    >>> task(torch.zeros(1, 3, 1, 32, 32)).shape, task.label(torch.zeros(1, 4, 20, 30)).shape
    (torch.Size([1, 3, 2, 32, 32]), (4, 20, 30))
    """

    TASK, NAME = "segmentation", "stack_segmentation"
    FORMATS = VolumeSegmentation.FORMATS

    def __init__(
        self,
        encoder: MaSam,
        classes: Sequence[str],
        *,
        slices: int = 5,
        frame: Sequence[int] = (512, 512),
        boxes: bool = False,
        stretch: bool = True,
        dice: float = 0.8,
        stride: int = 1,
    ):
        super().__init__()
        if len(classes) != encoder.classes:
            raise ConfigError(f"{len(classes)} classes for a network of {encoder.classes}")
        if slices < 1 or not 1 <= stride <= slices:
            raise ConfigError(f"stacks of {slices} slices, {stride} apart", remedy="leave out no slice")
        if boxes and len(classes) > 1:
            raise ConfigError("a box for several classes", remedy="name the one class that boxes are drawn around")
        patch = encoder.config.patch_size
        if len(frame) != 2 or any(side < patch or side % patch for side in frame):
            raise ConfigError(f"frame = {list(frame)}", remedy=f"give two multiples of {patch}")
        self.encoder, self.classes = encoder, tuple(classes)
        self.slices, self.frame, self.boxes = slices, (int(frame[0]), int(frame[1])), boxes
        self.stretch, self.dice, self.stride = stretch, dice, stride
        self.config: dict[str, Any] = {
            "classes": list(classes),
            "slices": slices,
            "frame": list(self.frame),
            "boxes": boxes,
            "stretch": stretch,
            "dice": dice,
            "stride": stride,
        }

    @property
    def scored(self) -> tuple[str, ...]:
        """What is scored: the classes."""
        return self.classes

    def read(self, stack: Tensor) -> Tensor:
        """A stack in its contract's intensities ``[C, D, H, W]`` -> what the network reads, ``[D, C, *frame]``."""
        return fit(stretch(stack) if self.stretch else stack, self.frame).transpose(0, 1)

    def forward(self, volume: Tensor, boxes: Tensor | None = None) -> Tensor:
        """``[B, D, C, *frame]``, boxes ``[B, D, 4]`` -> logits ``[B, D, K + 1, *frame]``, background first."""
        return self.encoder(volume, boxes)

    def loss(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """`stack_loss` of the slices; ``batch["mask"]`` is ``[B, D, *frame]``."""
        return stack_loss(output.flatten(0, 1), batch["mask"].flatten(0, 1), dice=self.dice)

    def region_masks(self, mask: Tensor | NDArray[Any]) -> Tensor:
        """A label mask ``[B, D, H, W]`` -> the classes' masks ``[B, K, D, H, W]`` bool."""
        mask = torch.as_tensor(mask)
        return torch.stack([mask == value for value in range(1, len(self.classes) + 1)], dim=1)

    @torch.inference_mode()
    def label(
        self,
        volume: Tensor,
        *,
        prepare: Callable[[Tensor], Tensor] = Tensor.float,
        box: Box | None = None,
        stride: int | None = None,
        half: bool = False,
        title: str | None = None,
    ) -> NDArray[np.uint8]:
        """The label map of a volume on the network's axes.

        Args:
            volume: ``[C, D, H, W]`` of any dtype, memory-mapped perhaps: a stack at a time is read.
            prepare: from a stack to the contract's intensities, such as `VolumeContract.normalise`.
            box: (x0, y0, z0, x1, y1, z1) on these voxels; slices beyond z0 and z1 are background.
            stride: instead of the task's own.
            half: run the network under autocast (bfloat16 on a CPU, float16 elsewhere).
            title: of the progress bar; None for none.

        Returns:
            ``[D, H, W]`` uint8.

        Raises:
            VesaliusError: less memory is free than `memory` says.
        """
        check_memory(self.memory(volume.shape[1:]))
        size = (volume.shape[2], volume.shape[3])
        device = next(self.parameters()).device
        kind = torch.bfloat16 if device.type == "cpu" else torch.float16
        flat = None if box is None else self._placed(box, size).to(device)
        within = None if box is None else (round(box[2]), round(box[5]))
        rows, columns = fitted(size, self.frame)

        def scores(places: Tensor) -> Tensor:
            stack = self.read(prepare(volume[:, places])).to(device)[None]
            given = None if flat is None else flat.expand(1, self.slices, 4)
            with torch.autocast(device.type, kind) if half else nullcontext():
                logits = self(stack, given)[0]
            return logits.float().softmax(1)[..., :rows, :columns].cpu()

        found = np.zeros(volume.shape[1:], np.uint8)
        stacks = average_stacks(
            scores, len(found), slices=self.slices, stride=stride or self.stride, within=within, title=title
        )
        for number, mean in stacks:
            whole = F.interpolate(mean[None], size, mode="bilinear", align_corners=False)[0]
            found[number] = whole.argmax(0).to(torch.uint8).numpy()
        return found

    def segment(
        self,
        image: Image,
        contract: VolumeContract,
        *,
        points: Sequence[Sequence[float]] | None = None,
        boxes: Sequence[Box] | None = None,
        half: bool = False,
        title: str | None = None,
    ) -> NDArray[np.uint8]:
        """An image through its network's contract, `label`, and back onto its own voxels.

        Args:
            image: a volume.
            contract: what the network reads.
            points: none; the sequence is there because other tasks take clicks.
            boxes: of a prompted network, around what it shall find, in the image's voxels; of several the masks are
                united.
            half, title: as of `label`.

        Returns:
            ``[D, H, W]`` uint8 of ``image.size``.

        Raises:
            ConfigError: clicks, or boxes that the network does not take, or lacks.
            VesaliusError: the image does not fit the contract, or not into memory.
        """
        if points:
            raise ConfigError("MA-SAM takes no clicks", remedy="give boxes, or a network of sam3d")
        if self.boxes != bool(boxes):
            what = "this network needs a box" if self.boxes else "this network takes no boxes"
            raise ConfigError(what, remedy="give boxes where it was trained with them, and only there")
        within: list[Box | None] = [placed_box(box, image, contract) for box in boxes or ()]
        placed = contract.place(image)
        limits, volume = contract.limits(placed), torch.from_numpy(placed)
        found = np.zeros(placed.shape[1:], np.uint8)
        for box in within or [None]:
            one = self.label(
                volume, prepare=lambda stack: contract.normalise(stack, limits), box=box, half=half, title=title
            )
            np.maximum(found, one, out=found)
        return contract.restore(found, image)

    def memory(self, size: Sequence[int], *, held: int = 2) -> int:
        """Bytes at the peak of `label`, the network's own activations apart.

        Args:
            size: voxels (D, H, W) of the volume.
            held: bytes a voxel of the volume given, all channels together.
        """
        outputs, area = len(self.classes) + 1, int(np.prod(self.frame))
        # The sums that wait, one stack's logits, probabilities and their copy; a slice on its own pixels, twice.
        scores = 4 * outputs * (5 * self.slices * area + 2 * int(np.prod(size[1:])))
        return scores + (held + 1) * int(np.prod(size, dtype=np.int64))

    def write(
        self, mask: NDArray[np.uint8], image: Image, folder: str | Path, stem: str, formats: Sequence[str] | None = None
    ) -> list[Path]:
        """Write a label map in the image's geometry, and pictures of its middle slices; see `VolumeSegmentation`."""
        return write_label_map(mask, image, folder, stem, classes=self.classes, formats=formats)

    def _placed(self, box: Box, size: tuple[int, int]) -> Tensor:
        """A box's columns and rows in the frame's pixels: ``[4]``."""
        rows, columns = fitted(size, self.frame)
        x, y = columns / size[1], rows / size[0]
        return torch.tensor([box[0] * x, box[1] * y, (box[3] + 1) * x - 1, (box[4] + 1) * y - 1])


def stack_loss(logits: Tensor, mask: Tensor, *, dice: float = 0.8) -> Tensor:
    """``(1 - dice) CE + dice Dice`` (Chen 2024, section 3.4).

    Dice is of squares, summed over the whole batch, and the mean over all classes with the background.

    Args:
        logits: ``[N, K, H, W]``.
        mask: ``[N, H, W]``; 255 counts for nothing.
    """
    return (1 - dice) * cross_entropy(logits, mask) + dice * squared_dice(logits, mask)


def squared_dice(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - 2 sum(p t) / sum(p^2 + t^2), over the batch, the mean over all channels; sizes as of `stack_loss`."""
    valid = mask != IGNORE
    truth = F.one_hot(torch.where(valid, mask, 0).long(), logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    counted = valid.unsqueeze(1)
    of_squares = DiceLoss(squared_pred=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)
    return of_squares(logits.softmax(1) * counted, truth * counted)


def placed_box(box: Box, image: Image, contract: VolumeContract) -> Box:
    """A box in the image's voxels -> the same on the network's.

    Raises:
        ConfigError: it does not lie in the image.
    """
    if len(box) != 6 or any(low > high for low, high in zip(box[:3], box[3:], strict=True)):
        raise ConfigError(f"box {list(box)}", remedy="give x0, y0, z0, x1, y1, z1, the smaller ones first")
    inside = np.zeros(image.size, np.uint8)
    low, high = np.rint(box[2::-1]).astype(int), np.rint(box[:2:-1]).astype(int)
    inside[tuple(slice(max(a, 0), max(b + 1, 0)) for a, b in zip(low, high, strict=True))] = 1
    if not inside.any():
        raise ConfigError(f"box {list(box)} lies outside of a volume of {image.size}", remedy="see its size in voxels")
    spans = foreground_box(contract.place_mask(inside, image) > 0)
    return [*(float(span.start) for span in spans[::-1]), *(float(span.stop - 1) for span in spans[::-1])]
