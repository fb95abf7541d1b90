"""A table's rows as tensors: the image at its own size, then one of two views of it at the network's.

Reading and augmenting are apart so that the same seed gives the same pixels whichever process reads, and so that the
image, its mask and its clean pair cannot be cropped differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vesalius.data.augment import CropFlip
from vesalius.data.contract import InputContract
from vesalius.data.masks import IGNORE, read_companion, read_mask, shape_error
from vesalius.data.progress import track
from vesalius.data.table import TASK_COLUMN, label_names, mask_names, select
from vesalius.errors import ConfigError, VesaliusError, nearest
from vesalius.images import Image, read

Sample = dict[str, Any]
"""What a dataset yields; see `ImageDataset`."""
View = Callable[[Sample, torch.Generator], Any]
"""From a sample and a source of chance to what goes into a batch."""

TASKS = ("classification", "segmentation", "enhancement")
PICTURES = ("image", "target", "sharp")
"""Fields of a sample that are intensities."""


class ImageDataset(Dataset[Sample]):
    """The images of a table, as the network's contract wants them but at their own size.

    A sample is a dict of

    - ``image``: float32 ``[C, H, W]`` in [0, 1], blurred if the contract says so; neither resized nor normalised;
    - ``row``: int, the row of `table`;
    - classification: ``label``: int64 index into `classes`, or, if `multilabel`, float32 ``[K]`` of 0 and 1;
    - segmentation: ``mask``: uint8 ``[H, W]``, value i + 1 being ``classes[i]``, 255 ignored;
    - enhancement: ``target``: float32 ``[C, H, W]`` in [0, 1], the clean image, never blurred;
    - segmentation and multi-label classification: ``annotated``: bool ``[K]``, the classes this case was annotated for;
    - with `sharp`: ``sharp``: float32 ``[C, H, W]`` in [0, 1], the image without the contract's blur.

    Args:
        table: rows that all carry what the task learns from (see `vesalius.data.table.select`).
        contract: what the network reads.
        task: classification, segmentation, enhancement, or None for images alone.
        classes: class names in the network's order; by default all labels of the table alphabetically, or all mask
            classes in the order of occurrence.
        multilabel: any number of labels an image; by default as `is_multilabel` finds these rows.
        cache: read all files now and keep them in memory, in their own dtype; worker processes share them.
        sharp: give the unblurred image, too.

    Raises:
        ConfigError: an unknown task or class.
        VesaliusError: there are no rows, or rows without what the task learns from.
    """

    def __init__(
        self,
        table: pl.DataFrame,
        contract: InputContract,
        *,
        task: str | None = None,
        classes: Sequence[str] = (),
        multilabel: bool | None = None,
        cache: bool = False,
        sharp: bool = False,
    ) -> None:
        if task is not None and task not in TASKS:
            raise ConfigError(f"unknown task {task!r}", remedy=nearest(task, TASKS))
        if table.is_empty():
            raise VesaliusError("no images", remedy="choose a split that has some, or index more files")
        lacking = len(table) - len(select(table, task=task))
        if lacking:
            what = TASK_COLUMN.get(task or "", "label")
            raise VesaliusError(
                f"{lacking} of {len(table)} images have no {what}",
                remedy=f"use the rows of vesalius.data.table.select(table, task={task!r})",
            )
        self.table, self.contract, self.task, self.sharp = table, contract, task, sharp
        self._clean = replace(contract, blur=None)
        self._rows = table.to_dicts()
        known = {"classification": label_names, "segmentation": mask_names}.get(task or "", lambda table: ())(table)
        self.classes = tuple(classes) or known
        # A rare class need not occur in every part of a table, nor any where an image may have none.
        if known and not multilabel and not set(known) & set(self.classes):
            raise ConfigError(f"no image has the class {self.classes[0]!r}", remedy=nearest(self.classes[0], known))
        if multilabel is None:
            multilabel = task == "classification" and is_multilabel(table, self.classes)
        self.multilabel = multilabel
        if task == "classification" and not multilabel:
            self._check_single()
        self._images: dict[tuple[str, int | None], Image] = {}
        self._targets: dict[int, Image] = {}
        self._masks: dict[int, np.ndarray] = {}
        if cache:
            for index in track(range(len(self)), len(self), "reading images into memory"):
                row = self._rows[index]
                self._images[row["path"], row["frame"]] = read(row["path"], row["frame"])
                if task == "enhancement":
                    self._targets[index] = read_companion(row["target"], row["frame"])
                if task == "segmentation":
                    self._masks[index] = read_mask(row)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        image = self._images.get((row["path"], row["frame"])) or read(row["path"], row["frame"])
        sample: Sample = {"image": self.contract.unit(image), "row": index}
        if self.sharp:
            sample["sharp"] = self._clean.unit(image)
        if self.task == "classification":
            sample["label"] = self._label(row)
        elif self.task == "segmentation":
            sample["mask"] = self._mask(index, image)
        elif self.task == "enhancement":
            target = self._targets.get(index) or read_companion(row["target"], row["frame"])
            if target.size != image.size:
                raise shape_error(target.path, target.size, image.path, image.size)
            sample["target"] = self._clean.unit(target)
        if self.task == "segmentation" or self.multilabel:
            sample["annotated"] = self._annotated(row)
        return sample

    def targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Of a classification, without reading the images: every ``label`` and ``annotated``, ``[N]`` or ``[N, K]``."""
        labels, annotated = ([get(row) for row in self._rows] for get in (self._label, self._annotated))
        return torch.stack(labels).numpy(), torch.stack(annotated).numpy()

    def where(self, index: int) -> str:
        """The file, and frame, of a row: for messages."""
        row = self._rows[index]
        return row["path"] if row["frame"] is None else f"{row['path']} (frame {row['frame']})"

    def _check_single(self) -> None:
        found = [len(set(row["labels"]) & set(self.classes)) for row in self._rows]
        for what, count in (("none", found.count(0)), ("several", sum(n > 1 for n in found))):
            if count:
                raise VesaliusError(
                    f"{count} of {len(found)} images have {what} of the classes {', '.join(self.classes)}",
                    remedy="leave them out, or name all classes" if what == "none" else "learn several labels an image",
                )

    def _label(self, row: Mapping[str, Any]) -> Tensor:
        if self.multilabel:
            return torch.tensor([float(name in row["labels"]) for name in self.classes])
        return torch.tensor(next(i for i, name in enumerate(self.classes) if name in row["labels"]))

    def _annotated(self, row: Mapping[str, Any]) -> Tensor:
        # a label that was found was looked for, even in a table that does not say so
        looked_for = {*row["annotated"], *(row["labels"] if self.task == "classification" else ())}
        return torch.tensor([name in looked_for for name in self.classes])

    def _mask(self, index: int, image: Image) -> Tensor:
        row = self._rows[index]
        stored = self._masks[index] if index in self._masks else read_mask({**row, "size": image.size})
        # From the file's numbering of its classes to the network's; classes that it was not asked for are background.
        numbers = np.zeros(256, np.uint8)
        numbers[IGNORE] = IGNORE
        for value, name in enumerate(row["mask_classes"], start=1):
            if name in self.classes:
                numbers[value] = self.classes.index(name) + 1
        return torch.from_numpy(numbers[stored])


def is_multilabel(table: pl.DataFrame, classes: Sequence[str]) -> bool:
    """Whether an image has several of the classes, or was looked at for them and has no label at all.

    An image whose only label is another class says nothing about these. To be asked of a whole table: a part of it may
    happen to hold one label an image.

    >>> from vesalius.data.table import make_table
    >>> rows = [{"path": "a.png", "labels": ["cyst"]}, {"path": "b.png", "labels": ["cyst", "nodule"]}]
    >>> is_multilabel(make_table(rows), ("cyst", "nodule")), is_multilabel(make_table(rows), ("cyst",))
    (True, False)
    """
    found, looked_for = (pl.col(name).list.set_intersection(list(classes)) for name in ("labels", "annotated"))
    nothing = (pl.col("labels").list.len() == 0) & (looked_for.list.len() > 0)
    return not select(table, task="classification").filter((found.list.len() > 1) | nothing).is_empty()


class Draws(Dataset[Any]):
    """The images a `DrawSampler` asks for, each seen through `view` with chance from (seed, draw) alone.

    Args:
        dataset: map-style, of samples.
        view: what makes an item of a batch from a sample.
        seed: of the augmentation.

    ``self[draw, index]`` raises VesaliusError, naming the file, whatever goes wrong in reading or viewing it: in a
    worker process the cause would otherwise be lost.
    """

    def __init__(self, dataset: Dataset[Sample], view: View, seed: int) -> None:
        self.dataset, self.view, self.seed = dataset, view, seed

    def __getitem__(self, item: tuple[int, int]) -> Any:
        draw, index = item
        try:
            return self.view(self.dataset[index], generator(self.seed, draw))
        except VesaliusError as error:
            if error.path is not None:
                raise
            raise VesaliusError(error.what, path=self._where(index), remedy=error.remedy) from error
        except Exception as error:
            raise VesaliusError(
                f"cannot be made ready for training ({type(error).__name__}: {error})",
                path=self._where(index),
                remedy="leave it out of the table, or index again with check",
            ) from error

    def _where(self, index: int) -> str:
        return self.dataset.where(index) if hasattr(self.dataset, "where") else f"image {index}"


def generator(seed: int, draw: int) -> torch.Generator:
    """A source of chance that depends on the two numbers alone.

    >>> torch.rand(1, generator=generator(0, 5)) == torch.rand(1, generator=generator(0, 5))
    tensor([True])
    """
    return torch.Generator().manual_seed(mixed_seed(seed, draw))


def mixed_seed(seed: int, draw: int) -> int:
    """One seed of two numbers: neighbours in either have nothing in common.

    >>> mixed_seed(0, 1) == mixed_seed(0, 1) != mixed_seed(1, 0)
    True
    """
    return int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class EvalView:
    """A sample at the network's size, and its ``image`` in the network's intensities.

    ``target`` and ``sharp`` are resized like the image and stay in [0, 1]; ``mask`` keeps its values.

    Args:
        contract: what the network reads.
    """

    contract: InputContract

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Pictures ``[C, size, size]``, mask ``[size, size]``; nothing is left to chance."""
        return _resized(sample, self.contract)


@dataclass(frozen=True)
class TrainView:
    """`EvalView` of a part of the image, chosen and turned by chance; picture, mask and target alike.

    Args:
        contract: what the network reads.
        flip: mirror left and right every other time.
        rot90: turn by 0, 90, 180 or 270 degrees. Off by default, since ultrasound has an up and a down.
        crop_scale: fraction of the image's area that is cropped, from and to; None for the whole image.
        ratio: width by height of the crop, from and to, in the image's pixels.

    All chance is drawn from the generator given, the same numbers whatever the sample holds.
    """

    contract: InputContract
    flip: bool = True
    rot90: bool = False
    crop_scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(f"crop_scale {self.crop_scale}", remedy="give two fractions, 0 < low <= high <= 1")

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Pictures ``[C, size, size]``, mask ``[size, size]``."""
        sample = dict(sample)
        fields = [name for name in (*PICTURES, "mask") if name in sample]
        if self.crop_scale is not None:
            height, width = sample["image"].shape[-2:]
            crop = CropFlip(self.contract.size, scale=self.crop_scale, ratio=self.ratio)
            box = crop.box(height, width, generator=generator)
            for name in fields:
                sample[name] = F.crop(sample[name], *box)
        flipped = self.flip and torch.rand(1, generator=generator).item() < 0.5
        turns = int(torch.randint(4, (1,), generator=generator)) if self.rot90 else 0
        for name in fields:
            if flipped:
                sample[name] = sample[name].flip(-1)
            sample[name] = sample[name].rot90(turns, (-2, -1))
        return _resized(sample, self.contract)


def _resized(sample: Sample, contract: InputContract) -> Sample:
    resized = dict(sample)
    for name in PICTURES:
        if name in sample:
            resized[name] = contract.resize(sample[name])
    resized["image"] = contract.normalise(resized["image"])
    if "mask" in sample:
        size = [contract.size, contract.size]
        # "nearest exact" has the pixel centres of the bicubic and bilinear resize; plain "nearest" is half a pixel off.
        resized["mask"] = F.resize(sample["mask"][None], size, InterpolationMode.NEAREST_EXACT)[0]
    return resized
