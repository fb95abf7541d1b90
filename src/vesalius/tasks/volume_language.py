"""Segmentation by the Universal Model: the classes asked for, cleaned as published, as masks or one label map."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vesalius.data.class_tables import ClassTable
from vesalius.errors import ConfigError
from vesalius.files import write_text
from vesalius.images import Image
from vesalius.nn.language_head import LanguageDriven
from vesalius.tasks.organs import Rules, clean
from vesalius.tasks.volume_segmentation import SUFFIXES, write_label_map


class LanguageSegmentation(nn.Module):
    """Masks of a Universal Model's classes, which may overlap: a tumour is part of its organ.

    Args:
        network: the trunk and its head.
        table: what its classes are: their rules after prediction, and what datasets call them.
        rules: of cleaning up, see `vesalius.tasks.organs.clean`; None for none.

    >>> from vesalius.nn.unet3d import UNet3D, UNet3DConfig
    >>> cyst = {"name": "cyst", "kind": "cyst", "organs": ["liver"], "rule": "inside"}
    >>> table = ClassTable.from_dict({"classes": ["liver", cyst]})
    >>> task = LanguageSegmentation(LanguageDriven(UNet3D(UNet3DConfig(width=4)), classes=table.names), table)
    >>> task.choose(["cyst"]).classes, task.computed
    (('cyst',), ('cyst', 'liver'))
    >>> task(torch.zeros(1, 1, 16, 16, 16)).shape
    torch.Size([1, 2, 16, 16, 16])
    """

    TASK = "segmentation"
    FORMATS = ("nifti", "dicom-seg", "overlay")

    def __init__(self, network: LanguageDriven, table: ClassTable, *, rules: Rules | None = "universal"):
        super().__init__()
        if table.names != network.classes:
            raise ConfigError(
                "the class table is of other classes", remedy="give the one that the run was trained with"
            )
        self.network, self.table, self.rules = network, table, rules
        self.classes: tuple[str, ...] = table.names
        self.computed: tuple[str, ...] = table.names

    @property
    def scored(self) -> tuple[str, ...]:
        """What is scored: the chosen classes."""
        return self.classes

    def choose(self, classes: Sequence[str]) -> LanguageSegmentation:
        """Only these classes, and what their rules need; all of them for none.

        Raises:
            ConfigError: the table does not know one of them.
        """
        asked = [name for name in self.table.names if not classes]
        for called in classes:
            name = self.table.resolve(called) or called
            asked += self.table.pairs[name] if name in self.table.pairs else [self.table.entry(name).name]
        needed = [organ for name in asked for organ in self._needs(name)]
        self.classes = tuple(dict.fromkeys(asked))
        self.computed = tuple(dict.fromkeys([*asked, *(name for name in needed if name in self.table.names)]))
        return self

    def _needs(self, name: str) -> tuple[str, ...]:
        entry = self.table.entry(name)
        if self.rules is None or entry.rule in ("largest", "keep"):
            return ()
        if entry.rule == "sides":
            return next((sides for sides in self.table.pairs.values() if name in sides), ())
        return entry.organs

    def forward(self, volume: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` -> logits ``[B, J, D, H, W]`` of `computed`."""
        return self.network(volume, self.computed)

    def decide(self, scores: Tensor) -> Tensor:
        """Logits of one volume, or slab, ``[J, D, H, W]`` -> masks of `computed`, uint8."""
        return (scores > 0).to(torch.uint8)

    def masks(self, found: NDArray[Any]) -> NDArray[np.uint8]:
        """A whole volume's ``[J, D, H, W]`` of `computed`, on the network's voxels -> cleaned masks of `classes`."""
        cleaned = found if self.rules is None else clean(found, self.computed, rules=self.rules, table=self.table)
        return np.ascontiguousarray(cleaned[: len(self.classes)], dtype=np.uint8)

    def finish(self, found: NDArray[Any]) -> NDArray[np.uint8]:
        """As `masks`, painted into one label map ``[D, H, W]``: organs in order, then what lies within them."""
        masks = self.masks(found)
        label = np.zeros(masks.shape[1:], np.uint8)
        kinds = [self.table.entry(name).kind for name in self.classes]
        for row in sorted(range(len(kinds)), key=lambda row: kinds[row] != "organ"):
            label[masks[row] > 0] = row + 1
        return label

    def write(
        self, mask: NDArray[np.uint8], image: Image, folder: str | Path, stem: str, formats: Sequence[str] | None = None
    ) -> list[Path]:
        """Write a label map in the image's geometry, pictures of its middle slices, and beside a NIfTI its classes.

        Args:
            mask: ``[D, H, W]`` of the image's size, value i + 1 being ``classes[i]``.
            image: as it was read.
            folder, stem: where and under which name.
            formats: nifti, dicom-seg, overlay; None for all.
        """
        paths = write_label_map(mask, image, folder, stem, classes=self.classes, formats=formats)
        for path in paths[:]:
            if path.name.endswith(SUFFIXES["nifti"]):
                values = {str(value): name for value, name in enumerate(self.classes, start=1)}
                beside = Path(folder) / f"{stem}_classes.json"
                write_text(beside, json.dumps(values, indent=2) + "\n")
                paths.append(beside)
        return paths
