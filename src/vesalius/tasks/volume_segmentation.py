"""Segmentation of volumes: a head on a 3-D trunk, for classes that exclude each other or regions that overlap.

BrainSegFounder is fine-tuned on the three regions of BraTS, each with its own sigmoid and a soft Dice loss; stroke
lesions and organs are one label map. Whichever, what leaves the network is one label map in the classes of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceLoss
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.data.masks import IGNORE
from vesalius.data.volumes.transforms import grid_of
from vesalius.errors import ConfigError, nearest
from vesalius.images import Image, overlay, write_image, write_mask
from vesalius.nn.volumes import VolumeTrunk
from vesalius.tasks.trunk import check_formats

Regions = Mapping[str, Sequence[str]]
"""Name of a region -> the classes that it is made of."""
BRATS: Regions = {
    "TC": ("necrotic core", "enhancing tumour"),
    "WT": ("necrotic core", "oedema", "enhancing tumour"),
    "ET": ("enhancing tumour",),
}
"""Tumour core, whole tumour and enhancing tumour, in the order of the published networks' channels."""
PICTURE = 320
"""Pixels up to which slices are enlarged."""
SUFFIXES = {"nifti": ".nii.gz", "dicom-seg": ".dcm"}


def parse_regions(words: Sequence[str], classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Regions as the command line names them: ``brats``, or ``NAME=CLASS+CLASS`` each.

    Args:
        words: none for classes that exclude each other.
        classes: of the table.

    Raises:
        ConfigError: a word is neither, a class is not known, or the regions do not make a label map.

    >>> parse_regions(["brats"], ["necrotic core", "oedema", "enhancing tumour"])["ET"]
    ('enhancing tumour',)
    >>> parse_regions(["all=organ+tumour", "tumour=tumour"], ["organ", "tumour"])
    {'all': ('organ', 'tumour'), 'tumour': ('tumour',)}
    """
    if list(words) == ["brats"]:
        regions = {name: tuple(members) for name, members in BRATS.items()}
    else:
        regions = {}
        for word in words:
            name, _, members = word.partition("=")
            if not members:
                raise ConfigError(f"region {word!r}", remedy="write brats, or NAME=CLASS+CLASS for each region")
            regions[name] = tuple(part.strip() for part in members.split("+"))
    for name in (member for some in regions.values() for member in some):
        if name not in classes:
            raise ConfigError(f"no mask has the class {name!r}", remedy=nearest(name, classes))
    painted(regions, classes)
    return regions


def painted(regions: Regions, classes: Sequence[str]) -> list[tuple[int, int]]:
    """In which order regions are painted into a label map, and with which value: larger ones first.

    A region stands for the one of its classes that no smaller region within it has.

    Raises:
        ConfigError: there is not exactly one.

    >>> painted(BRATS, ["necrotic core", "oedema", "enhancing tumour"])  # WT as 2, TC as 1, ET as 3
    [(1, 2), (0, 1), (2, 3)]
    """
    order = sorted(regions, key=lambda name: -len(regions[name]))
    found = []
    for name in order:
        inner = [set(regions[other]) for other in order if set(regions[other]) < set(regions[name])]
        own = set(regions[name]) - set().union(*inner)
        if len(own) != 1:
            raise ConfigError(
                f"region {name!r} has {len(own)} classes that no region within it has",
                remedy="nest the regions so that each adds one class",
            )
        found.append((list(regions).index(name), list(classes).index(own.pop()) + 1))
    return found


class VolumeSegmentation(nn.Module):
    """Scores of every voxel, from a trunk with a decoder, or linearly from an encoder's maps.

    Args:
        encoder: the trunk.
        classes: names of the foreground; value i + 1 of a mask is ``classes[i]``.
        regions: overlapping regions to learn in place of the classes, each of some of them; None for none.
        entropy: add the binary cross-entropy to the Dice of regions, which alone is slow where they are small; without
            it as published for BraTS.
        linear: a 1x1x1 convolution of each of the encoder's maps, interpolated and summed: how much the maps say by
            themselves. Else one of the decoder's features.

    >>> from vesalius.nn.unet3d import UNet3D, UNet3DConfig
    >>> task = VolumeSegmentation(UNet3D(UNet3DConfig(width=4)), ("liver", "tumour"))
    >>> task(torch.zeros(2, 1, 16, 16, 24)).shape
    torch.Size([2, 3, 16, 16, 24])
    """

    TASK, NAME = "segmentation", "volume_segmentation"
    FORMATS = ("nifti", "dicom-seg", "overlay")

    def __init__(
        self,
        encoder: VolumeTrunk,
        classes: Sequence[str],
        *,
        regions: Regions | None = None,
        entropy: bool = False,
        linear: bool = False,
    ):
        super().__init__()
        if not classes:
            raise ConfigError("no classes to segment", remedy="index the masks with their classes' names")
        if not linear and not encoder.decoder_channels:
            raise ConfigError("this trunk has no decoder", remedy="use decoder = linear, or a trunk that has one")
        self.encoder, self.classes = encoder, tuple(classes)
        self.entropy, self.linear = entropy, linear
        self.regions = {name: tuple(members) for name, members in regions.items()} if regions else None
        self._painted = painted(self.regions, classes) if self.regions else []
        outputs = len(self.regions) if self.regions else len(classes) + 1
        if linear:
            widths = _map_channels(encoder)
            self.head: nn.Module = nn.ModuleList(nn.Conv3d(width, outputs, 1) for width in widths)
        else:
            self.head = nn.Conv3d(encoder.decoder_channels, outputs, 1)
        self.dice = DiceLoss(include_background=False, batch=True)  # a patch often lacks a class
        self.region_dice = DiceLoss(sigmoid=True)
        self.config: dict[str, Any] = {
            "classes": list(classes),
            "regions": {name: list(members) for name, members in self.regions.items()} if self.regions else None,
            "entropy": entropy,
            "linear": linear,
        }

    @property
    def scored(self) -> tuple[str, ...]:
        """What is scored: the regions, or else the classes."""
        return tuple(self.regions) if self.regions else self.classes

    def forward(self, volume: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` -> logits ``[B, K + 1, D, H, W]``, background first; ``[B, R, D, H, W]`` of regions."""
        features = self.encoder(volume)
        if not self.linear:
            return self.head(features.decoder)
        size = volume.shape[2:]
        scores = [
            F.interpolate(head(level), size=size, mode="trilinear", align_corners=False)
            for head, level in zip(self.head.children(), features.maps, strict=True)
        ]
        return torch.stack(scores).sum(0)

    def loss(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Soft Dice of each region's sigmoid (and its cross-entropy), or cross-entropy + soft Dice of the classes.

        Args:
            output: of `forward`.
            batch: with ``mask [B, D, H, W]``, value i + 1 being ``classes[i]``, 255 counting for nothing.
        """
        mask = batch["mask"].long()
        valid = (mask != IGNORE).unsqueeze(1)
        if self.regions:
            truth = self.region_masks(mask).to(output.dtype)
            # Where nobody looked, the truth is what the network says: no loss, and no gradient.
            output, truth = torch.where(valid, output, -1e4), torch.where(valid, truth, 0)
            dice = self.region_dice(output, truth)
            return dice + F.binary_cross_entropy_with_logits(output, truth) if self.entropy else dice
        known = torch.where(valid[:, 0], mask, 0)
        truth = F.one_hot(known, len(self.classes) + 1).movedim(-1, 1).to(output.dtype) * valid
        entropy = F.cross_entropy(output, mask, ignore_index=IGNORE, reduction="sum") / valid.sum().clamp(min=1)
        return entropy + self.dice(output.softmax(1) * valid, truth)

    def region_masks(self, mask: Tensor | NDArray[Any]) -> Tensor:
        """A label mask ``[B, D, H, W]`` -> what is scored, ``[B, R, D, H, W]`` bool: regions, or else classes."""
        mask = torch.as_tensor(mask)
        values = [
            [self.classes.index(name) + 1 for name in members]
            for members in (self.regions.values() if self.regions else ((name,) for name in self.classes))
        ]
        return torch.stack([torch.isin(mask, torch.tensor(some, device=mask.device)) for some in values], dim=1)

    def decide(self, scores: Tensor) -> Tensor:
        """Logits of one volume, or slab, ``[K, D, H, W]`` -> its label map ``[D, H, W]`` uint8."""
        if not self.regions:
            return scores.argmax(0).to(torch.uint8)
        label = torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
        for region, value in self._painted:
            label[scores[region] > 0] = value
        return label

    def write(
        self, mask: NDArray[np.uint8], image: Image, folder: str | Path, stem: str, formats: Sequence[str] | None = None
    ) -> list[Path]:
        """Write a label map in the image's geometry, and pictures of its middle slices.

        Args:
            mask: ``[D, H, W]`` of the image's size.
            image: as it was read.
            folder, stem: where and under which name.
            formats: nifti, dicom-seg, overlay; None for all.
        """
        return write_label_map(mask, image, folder, stem, classes=self.classes, formats=formats)


def write_label_map(
    mask: NDArray[np.uint8],
    image: Image,
    folder: str | Path,
    stem: str,
    *,
    classes: Sequence[str],
    formats: Sequence[str] | None = None,
) -> list[Path]:
    """Write a label map in the image's geometry, and pictures of its middle slices; see `VolumeSegmentation.write`."""
    formats, paths = check_formats(formats, VolumeSegmentation.FORMATS), []
    for name in SUFFIXES:
        if name in formats:
            path = Path(folder) / f"{stem}{SUFFIXES[name]}"
            paths.append(write_mask(mask, image, path, classes=classes))
    if "overlay" in formats:
        for view, (picture, marks) in middle_slices(image, mask).items():
            drawn = overlay(picture, marks, classes=classes).transpose(2, 0, 1) / np.float32(255)
            paths.append(write_image(drawn, picture, Path(folder) / f"{stem}_{view}.png"))
    return paths


def middle_slices(image: Image, mask: NDArray[np.uint8]) -> dict[str, tuple[Image, NDArray[np.uint8]]]:
    """Three slices as radiologists see them, through the middle of what was found, or else of the volume.

    Args:
        image: a volume, whose first channel is shown.
        mask: ``[D, H, W]`` of its size.

    Returns:
        axial, coronal, sagittal -> the slice, with square pixels, and its mask.
    """
    first = replace(image, array=image.array[:1], channels=image.channels[:1])
    pixels, spacing = first.unit()[0], np.array(image.spacing or (1.0, 1.0, 1.0))
    if image.affine is not None:  # from head to foot, front to back, and right to left
        grid = grid_of(first, orientation="IPL", spacing=None)
        pixels, mask, spacing = grid.apply(pixels), grid.apply(mask, labels=True), np.array(grid.spacing)
    places = np.argwhere(mask)
    centre = np.rint(places.mean(0)).astype(int) if len(places) else np.array(mask.shape) // 2
    slices = {}
    for axis, name in enumerate(("axial", "coronal", "sagittal")):
        flat, marks = pixels.take(centre[axis], axis), mask.take(centre[axis], axis)
        steps = np.delete(spacing, axis)
        larger = max(PICTURE // max(flat.shape), 1)
        for along, times in enumerate(np.rint(larger * steps / steps.min()).astype(int)):
            flat, marks = flat.repeat(times, along), marks.repeat(times, along)
        picture = Image(np.rint(255 * flat).astype(np.uint8)[None], ("gray",), path=image.path)
        slices[name] = picture, marks
    return slices


@torch.no_grad()
def _map_channels(encoder: VolumeTrunk) -> list[int]:
    """Channels of the encoder's maps, from a trial run."""
    training, device = encoder.training, next(encoder.parameters()).device
    trial = torch.zeros(1, encoder.in_channels, *(max(2 * encoder.multiple, 16),) * 3, device=device)
    maps = encoder.eval()(trial).maps
    encoder.train(training)
    return [level.shape[1] for level in maps]
