"""A small annotation project with CT phantoms and three models that disagree, made without running any."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from vesalius.curate.masks import write_values
from vesalius.curate.project import Atlas
from vesalius.curate.records import QueueItem
from vesalius.data.class_tables import ClassTable
from vesalius.data.index import index
from vesalius.data.phantoms.torso import LABELS, torso_volume
from vesalius.images import Image
from vesalius.images.nifti import RAS_TO_LPS

STRUCTURES = {"liver": "liver", "spleen": "spleen", "kidney_left": "left kidney"}
"""Class of the project -> what the phantom calls it."""
MODELS = ("unet", "swin", "universal")


def make_project(folder: Path, *, cases: int = 2, size: tuple[int, int, int] = (24, 40, 40)) -> Atlas:
    """Phantom CTs, three proposals of each structure, their maps and the queue."""
    source = folder / "scans"
    truths = []
    for number in range(1, cases + 1):
        volume = torso_volume(3, number, size=size)
        image = Image(
            volume["images"].round().astype(np.int16),
            ("ct",),
            spacing=volume["spacing"],
            affine=volume["affine"],
            modality="CT",
        )
        _write_ct(image, source / f"patient_DOE_{number}.nii.gz")
        truths.append(volume["labels"])
    table = index(source, folder / "index.parquet", volumes=True, workers=1)
    classes = ClassTable.from_dict({"classes": list(STRUCTURES)})
    atlas = Atlas.create(
        folder / "atlas", table, classes=classes, predictors={name: {"run": f"runs/{name}"} for name in MODELS}
    )
    items = []
    for row_number, case in enumerate(atlas.cases()):
        name = atlas.image_path(case).name
        labels = truths[int(name.split("_")[2].split(".")[0]) - 1]
        items += _propose(atlas, case, labels, row_number)
    items.sort(key=lambda item: -item.score)
    (atlas.path / "queue.json").write_text(json.dumps([asdict(item) for item in items]), encoding="utf-8")
    return atlas


def _write_ct(image: Image, path: Path) -> None:
    """Hounsfield units as a hospital's converter writes them, the patient's name in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = nibabel.Nifti1Image(image.array[0].T, RAS_TO_LPS @ image.affine)
    file.header["descrip"] = b"DOE^JANE"
    file.header.set_xyzt_units("mm")
    nibabel.save(file, path)


def _propose(atlas: Atlas, case: str, labels: np.ndarray, number: int) -> list[QueueItem]:
    """The truth, a model that loses a piece of it, and one that adds a blob."""
    image = atlas.image(case)
    rng = np.random.default_rng(number)
    masks: dict[str, list[np.ndarray]] = {name: [] for name in MODELS}
    items = []
    for structure, label in STRUCTURES.items():
        truth = labels == LABELS.index(label) + 1
        inside = np.argwhere(truth)
        hole = _ball(truth.shape, inside[rng.integers(len(inside))], 5)
        blob = _ball(truth.shape, inside[rng.integers(len(inside))] + [0, 3, 3], 4)
        three = np.stack([truth, truth & ~hole, ndimage.binary_dilation(truth) & ~hole | blob])
        for name, mask in zip(MODELS, three, strict=True):
            masks[name].append(mask)
        average = three.mean(0)
        attention = np.rint(255 * 2 * three.std(0)).astype(np.uint8)
        for kind, values in (
            ("average", average > 0.5),
            ("inconsistency", attention),
            ("attention", np.rint(ndimage.gaussian_filter(attention.astype(float), 1)).astype(np.uint8)),
        ):
            write_values(values, image, atlas.path / "maps" / case / kind / f"{structure}.nii.gz")
        mm3 = float((attention > 64).sum() * np.prod(image.spacing))
        items.append(QueueItem(case, structure, mm3, mm3, 0.4 * mm3, 0.5 + mm3 / 2e5))
    for name in MODELS:
        told = np.zeros(labels.shape, np.uint8)
        for value, mask in enumerate(masks[name], start=1):
            told[mask] = value
        folder = atlas.prediction(name, case)
        folder.mkdir(parents=True)
        write_values(told, image, folder / "labels.nii.gz")
        done = {"structures": list(STRUCTURES), "exclusive": True}
        (folder / "done.json").write_text(json.dumps(done), encoding="utf-8")
    return items


def _ball(shape: tuple[int, ...], centre: np.ndarray, radius: float) -> np.ndarray:
    grid = np.indices(shape).T - np.asarray(centre)
    return ((grid**2).sum(-1) <= radius**2).T
