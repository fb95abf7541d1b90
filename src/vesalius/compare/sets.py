"""Who is in which set of a comparison, and their pixels, kept beside the results so that each is read once.

Every training image has a fixed number of augmented versions, drawn from (draw, seed, image, number) alone: all arms
see the same ones, and what a frozen trunk makes of them is computed once, exactly. Pixels are kept in 8 bits, as in
most of the files that they come from, and mapped into the memory of all workers together.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vesalius.compare.plan import Setup
from vesalius.data.contract import InputContract
from vesalius.data.datasets import EvalView, ImageDataset, TrainView, generator, is_multilabel, mixed_seed
from vesalius.data.draws import draw
from vesalius.data.table import load_table, select
from vesalius.errors import VesaliusError
from vesalius.files import atomic

CROP = (0.5, 1.0)
"""Share of a training image's area that a version shows; half of the versions are mirrored."""
FIELDS = {"classification": ("image", "label", "annotated"), "segmentation": ("image", "mask")}
Data = dict[str, Tensor]
"""``image`` uint8 ``[N, C, S, S]`` (training: ``[N, views, C, S, S]``), ``label`` and ``annotated`` or ``mask``."""


def rows_for(table: pl.DataFrame, task: str, classes: Sequence[str]) -> pl.DataFrame:
    """The rows of a table that a task with these classes learns from and is scored on."""
    rows = select(table, task=task)
    if task != "classification":
        return rows
    columns = ("labels", "annotated") if is_multilabel(rows, classes) else ("labels",)
    found = [pl.col(name).list.set_intersection(list(classes)).list.len() > 0 for name in columns]
    return rows.filter(pl.any_horizontal(found))


@dataclass(frozen=True)
class Study:
    """The rows of a comparison.

    Args:
        rows: of all splits, see `rows_for`.
        setup: the comparison's.
        lists: folder of published draws, or None to draw from the training split.
    """

    rows: pl.DataFrame
    setup: Setup
    lists: str | None = None

    def split(self, name: str) -> pl.DataFrame:
        """The rows of one split.

        Raises:
            VesaliusError: there are none.
        """
        rows = self.rows.filter(pl.col("split") == name)
        if rows.is_empty():
            raise VesaliusError(
                f"the table has no {name} images for {self.setup.task}",
                remedy="index it again with --resplit, --val 0.2 and --test 0.3",
            )
        return rows

    def support(self, shots: int, number: int) -> pl.DataFrame:
        """The images that a draw trains on."""
        if self.lists is not None:
            return self._listed(shots, number, 0)
        classes = self.setup.classes if self.setup.task == "classification" else ()
        unit: Any = self.setup.unit
        images: Any = self.setup.images
        with warnings.catch_warnings():  # told once, by `run`
            warnings.filterwarnings("ignore", message=".* shots ", category=UserWarning)
            return draw(self.split("train"), classes=classes, shots=shots, number=number, unit=unit, images=images)

    def validation(self, shots: int, number: int) -> pl.DataFrame:
        """The images that the learning rate is chosen on."""
        return self.split("val") if self.lists is None else self._listed(shots, number, 1)

    def _listed(self, shots: int, number: int, which: int) -> pl.DataFrame:
        from vesalius.data.medfmc import published_draws  # not needed by a comparison of one's own draws

        assert self.lists is not None
        draws = published_draws(self.lists, shots=shots, as_published=self.setup.as_published)
        if number >= len(draws):
            raise VesaliusError(f"has {len(draws)} draws", path=self.lists, remedy=f"use --draws {len(draws)}")
        places = {Path(path).name: row for row, path in enumerate(self.rows["path"])}
        lacking = [name for name in draws[number][which] if name not in places]
        if lacking:
            raise VesaliusError(
                f"names {len(lacking)} images that the table does not have, such as {lacking[0]}",
                path=self.lists,
                remedy="index the images that the lists are of",
            )
        return self.rows[[places[name] for name in draws[number][which]]]  # as published, some twice


@lru_cache(maxsize=1)
def open_study(data: tuple[str, ...], lists: str | None, setup: Setup) -> Study:
    """The rows of a comparison, read once in a process."""
    return Study(rows_for(load_table(data), setup.task, setup.classes), setup, lists)


def evaluation_data(study: Study, rows: pl.DataFrame, contract: InputContract, cache: Path) -> Data:
    """Images as they are, ``image [N, C, S, S]``."""

    def read() -> Data:
        view, images = EvalView(contract), _dataset(study, rows, contract)
        return _stack([_kept(view(images[row]), contract, FIELDS[study.setup.task]) for row in range(len(images))])

    return cached(cache, read, *_identity(study, rows, contract))


def training_data(
    study: Study, rows: pl.DataFrame, contract: InputContract, cache: Path, *, number: int, seed: int
) -> Data:
    """The augmented versions of a draw's images, ``image [N, views, C, S, S]``."""
    views = study.setup.views

    def read() -> Data:
        view, images = TrainView(contract, crop_scale=CROP), _dataset(study, rows, contract)
        chance = mixed_seed(number, seed)
        found = []
        for row, name in enumerate(_names(rows)):
            sample, place = images[row], int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
            versions = [
                _kept(view(sample, generator(chance, mixed_seed(place, version))), contract, FIELDS[study.setup.task])
                for version in range(views)
            ]
            found.append(_stack(versions))
        return _stack(found)

    data = cached(cache, read, *_identity(study, rows, contract), CROP, views, number, seed)
    # One label an image, not one a version.
    return {name: value[:, 0] if name in ("label", "annotated") else value for name, value in data.items()}


def cached(folder: Path, compute: Callable[[], Data], *identity: Any) -> Data:
    """What `compute` gives, from the file of this identity if there is one."""
    digest = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:24]
    path = folder / f"{digest}.safetensors"
    if not path.exists():
        with atomic(path) as temporary:
            save_file({name: value.contiguous() for name, value in compute().items()}, temporary)
    return load_file(path)


def _dataset(study: Study, rows: pl.DataFrame, contract: InputContract) -> ImageDataset:
    setup = study.setup
    multilabel = setup.multilabel if setup.task == "classification" else None
    return ImageDataset(rows, contract, task=setup.task, classes=setup.classes, multilabel=multilabel)


def _kept(sample: dict[str, Any], contract: InputContract, fields: Sequence[str]) -> Data:
    """What a network and its loss read, the picture's intensities as bytes."""
    data = {name: sample[name] for name in fields if name in sample}
    return {**data, "image": (255 * contract.denormalise(data["image"])).round().clamp(0, 255).byte()}


def _stack(samples: Sequence[Data]) -> Data:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _names(rows: pl.DataFrame) -> list[str]:
    """One name a row, wherever its file lies."""
    return [f"{name} {frame}" for name, frame in rows.select(pl.coalesce("sha256", "path"), "frame").rows()]


def _identity(study: Study, rows: pl.DataFrame, contract: InputContract) -> tuple[Any, ...]:
    setup = study.setup
    targets = rows.select("labels", "annotated", "mask").rows()
    return (setup.task, setup.classes, setup.multilabel, contract.to_dict(), _names(rows), targets)
