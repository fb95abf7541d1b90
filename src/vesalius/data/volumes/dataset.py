"""A table's volumes as tensors: whole cases on the network's voxels, and views of them (a patch, or all of it).

As with images, reading and seeing are apart: `VolumeDataset` gives a case that is the same every time and, out of a
cache, costs nothing until it is looked at; `PatchView` takes a part of it by chance from (seed, draw) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from vesalius.data.datasets import Sample
from vesalius.data.table import mask_names, select
from vesalius.data.volumes.cache import VolumeCache
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.prepare import Relabel, prepare
from vesalius.errors import ConfigError, VesaliusError, nearest

TASKS = ("segmentation",)


class VolumeDataset(Dataset[Sample]):
    """The volumes of a table, on the voxels of the network's contract.

    A sample is a dict of

    - ``image``: ``[C, D, H, W]`` in the files' dtype and intensities, memory-mapped where there is a cache;
    - ``limits``: float32 ``[C, 2]``, with which `VolumeContract.normalise` makes intensities of any part of it;
    - ``row``: int, the row of `table`;
    - segmentation: ``mask``: uint8 ``[D, H, W]``, value i + 1 being ``classes[i]``, 255 ignored; ``annotated``: bool
      ``[K]``, the classes this case was annotated for; ``points``: int32 ``[N, 4]``, value and place of voxels of each
      class.

    Args:
        table: rows that are volumes (``vesalius index --volumes``).
        contract: what the network reads.
        task: segmentation, or None for images alone.
        classes: class names in the network's order; by default all mask classes in the order of occurrence.
        cache: folder of prepared cases, which are made now where they are missing; None to prepare a case anew each
            time that it is asked for.
        crop: leave out the border without foreground.
        relabel: of `vesalius.data.volumes.prepare.prepare`.
        workers: processes that fill the cache.

    Raises:
        ConfigError: an unknown task or class.
        VesaliusError: there are no rows, rows that are slices, rows without a mask, or a case that cannot be prepared.
    """

    def __init__(
        self,
        table: pl.DataFrame,
        contract: VolumeContract,
        *,
        task: str | None = None,
        classes: Sequence[str] = (),
        cache: str | Path | None = None,
        crop: bool = False,
        relabel: Relabel | None = None,
        workers: int = 0,
    ) -> None:
        if task is not None and task not in TASKS:
            raise ConfigError(f"unknown task {task!r} for volumes", remedy=nearest(task, TASKS))
        if table.is_empty():
            raise VesaliusError("no volumes", remedy="choose a split that has some, or index more files")
        flat = table.filter(pl.col("size").list.len() != 3)
        if len(flat):
            raise VesaliusError(
                f"{len(flat)} of {len(table)} rows are slices or 2-D images",
                path=flat["path"][0],
                remedy="index again with volumes",
            )
        lacking = len(table) - len(select(table, task=task))
        if lacking:
            raise VesaliusError(
                f"{lacking} of {len(table)} volumes have no mask",
                remedy=f"use the rows of vesalius.data.table.select(table, task={task!r})",
            )
        self.table, self.contract, self.task, self.crop, self.relabel = table, contract, task, crop, relabel
        self._rows = table.to_dicts()
        known = mask_names(table) if task == "segmentation" else ()
        self.classes = tuple(classes) or known
        if known and not set(known) & set(self.classes):
            raise ConfigError(f"no volume has the class {self.classes[0]!r}", remedy=nearest(self.classes[0], known))
        self._numbered = list(self.classes) if task == "segmentation" else None
        self.cache = (
            None if cache is None else VolumeCache(cache, contract, classes=self._numbered, crop=crop, relabel=relabel)
        )
        if self.cache is not None:
            self.cache.build(self._rows, workers=workers)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        if self.cache is not None:
            case = self.cache.get(row)
        else:
            case = prepare(row, self.contract, classes=self._numbered, crop=self.crop, relabel=self.relabel)
        sample: Sample = {
            "image": torch.from_numpy(case.image),
            "limits": torch.from_numpy(case.limits),
            "row": index,
        }
        if case.mask is not None:
            sample["mask"] = torch.from_numpy(case.mask)
            sample["points"] = torch.from_numpy(case.points)
            sample["annotated"] = torch.tensor([name in row["annotated"] for name in self.classes])
        return sample

    def where(self, index: int) -> str:
        """The case's files: for messages."""
        return str(self._rows[index]["path"])


@dataclass(frozen=True)
class WholeView:
    """A whole case in the network's intensities.

    Args:
        contract: what the network reads.
    """

    contract: VolumeContract

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """``image`` float32 ``[C, D, H, W]``, ``mask`` ``[D, H, W]``; nothing is left to chance."""
        image = self.contract.normalise(sample["image"], sample["limits"])
        return {**{name: sample[name] for name in ("mask", "annotated", "row") if name in sample}, "image": image}


@dataclass(frozen=True)
class PatchView:
    """A patch of the contract's ``roi``, in the network's intensities, placed and turned by chance.

    With probability `foreground` its centre is a labelled voxel: first a class is drawn among those that the case has,
    then one of its voxels, so that a small tumour is seen as often as a large liver. Else, and where there is no mask,
    the patch lies anywhere. It is moved to lie within the volume, and filled with 0 around one that is smaller.

    Args:
        contract: what the network reads.
        foreground: probability of a labelled centre. 2/3 is the Universal Model's 2 : 1.
        class_weights: relative chance of each class as the centre's; None for equal ones.
        flip: probability of mirroring each axis.
        rot90: probability of turning by 90 to 270 degrees in the plane of the first two axes, of equal ``roi``.
        scale, shift: intensities are multiplied by 1 + U(-scale, scale), and U(-shift, shift) is added, per channel.
    """

    contract: VolumeContract
    foreground: float = 2 / 3
    class_weights: tuple[float, ...] | None = None
    flip: float = 0.0
    rot90: float = 0.0
    scale: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        for name in ("foreground", "flip", "rot90"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}", remedy="give a probability")
        for name in ("scale", "shift"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}", remedy="give a number from 0")
        if self.rot90 and self.contract.roi[0] != self.contract.roi[1]:
            raise ConfigError(f"rot90 with patches of {self.contract.roi}", remedy="make the first two sides equal")

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """``image`` float32 ``[C, *roi]``, ``mask`` uint8 ``[*roi]``, ``annotated``, ``row``."""
        corner = self.corner(sample, generator)
        box = [slice(start, start + side) for start, side in zip(corner, self.contract.roi, strict=True)]
        image = self.contract.normalise(sample["image"][(slice(None), *box)], sample["limits"])
        flips, turn, turns, stretch, offset = self._chances(len(image), generator)
        image = image * (1 + self.scale * stretch) + self.shift * offset
        patch = {"image": image, **({"mask": sample["mask"][tuple(box)]} if "mask" in sample else {})}
        for name, pixels in patch.items():
            padded = _padded(pixels, self.contract.roi)
            axes = [axis - 3 for axis in range(3) if flips[axis] < self.flip]
            flipped = padded.flip(axes) if axes else padded
            patch[name] = (flipped.rot90(turns, (-3, -2)) if turn < self.rot90 else flipped).contiguous()
        return {**patch, **{name: sample[name] for name in ("annotated", "row") if name in sample}}

    def corner(self, sample: Sample, generator: torch.Generator) -> list[int]:
        """Where the patch begins, (d, h, w)."""
        size, roi = sample["image"].shape[1:], self.contract.roi
        draws = torch.rand(6, generator=generator)
        centre = [int(draw * side) for draw, side in zip(draws[:3].tolist(), size, strict=True)]
        points = sample.get("points")
        if points is not None and len(points) and draws[3] < self.foreground:
            chosen = self._class(points, float(draws[4]))
            if chosen is not None:
                members = points[points[:, 0] == chosen]
                centre = members[int(draws[5] * len(members)), 1:].tolist()
        return [
            min(max(middle - side // 2, 0), max(whole - side, 0))
            for middle, side, whole in zip(centre, roi, size, strict=True)
        ]

    def _class(self, points: Tensor, draw: float) -> int | None:
        """A class of the case by its weight, None where all of them weigh nothing."""
        present = points[:, 0].unique()
        weights = torch.ones(len(present), dtype=torch.float64)
        if self.class_weights is not None:
            weights = torch.tensor(self.class_weights, dtype=torch.float64)[present.long() - 1]
        if not weights.sum() > 0:
            return None
        reached = (weights.cumsum(0) / weights.sum()) > draw
        return int(present[int(reached.int().argmax())])

    @staticmethod
    def _chances(channels: int, generator: torch.Generator) -> tuple[list[float], float, int, Tensor, Tensor]:
        """All other chance, the same numbers whatever is done with them."""
        flips = torch.rand(3, generator=generator).tolist()
        turn, turns = float(torch.rand(1, generator=generator)), int(torch.randint(1, 4, (1,), generator=generator))
        stretch, offset = torch.rand(2, channels, 1, 1, 1, generator=generator) * 2 - 1
        return flips, turn, turns, stretch, offset


def _padded(pixels: Tensor, roi: tuple[int, int, int]) -> Tensor:
    """Zeros on both sides of axes that are shorter than `roi`, where `sliding_window` puts them: background."""
    lacking = [side - have for side, have in zip(roi, pixels.shape[-3:], strict=True)]
    if not any(lacking):
        return pixels
    return F.pad(pixels, [amount for side in reversed(lacking) for amount in (side // 2, side - side // 2)])
