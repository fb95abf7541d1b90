"""From files to masks, scores and restored images: one file at a time, going on past bad ones, and continuable."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vesalius.data.contract import InputContract
from vesalius.errors import VesaliusError
from vesalius.files import atomic, write_text
from vesalius.images import Header, Image, is_image, overlay, probe, read, write_image, write_mask

NIFTI = (".nii", ".nii.gz")
RASTER = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MASK_SUFFIX = {"png": ".png", "nifti": ".nii.gz", "dicom-seg": ".dcm"}


@dataclass(frozen=True)
class Input:
    """A file to predict.

    Args:
        path: the file.
        stem: where its outputs go, beneath the output folder, without a suffix.
    """

    path: Path
    stem: Path


def find_inputs(inputs: str | Path | Sequence[str | Path]) -> list[Input]:
    """The files that are named, and the images in the folders that are named, in order.

    Outputs keep the place that a file has within its folder. Files that differ only by suffix keep it in the name.

    Raises:
        VesaliusError: a path is not there, or there are no images.
    """
    named = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(path) for path in inputs]
    places: list[tuple[Path, Path]] = []
    for path in named:
        if path.is_dir():
            found = sorted(inner for inner in path.rglob("*") if is_image(inner))
            if not found:
                raise VesaliusError("holds no images", path=path, remedy="give a folder of DICOM, NIfTI or PNG files")
            places += [(file, file.relative_to(path)) for file in found]
        elif path.exists():
            places.append((path, Path(path.name)))
        else:
            raise VesaliusError("is not there", path=path, remedy="check the path")
    stems = [place.with_name(_stem(place.name)) for _, place in places]
    distinct = [
        stem if stems.count(stem) == 1 else place.with_name(place.name.replace(".", "_"))
        for stem, (_, place) in zip(stems, places, strict=True)
    ]
    for number, stem in enumerate(distinct):  # the same name in two folders
        if stem in distinct[:number]:
            distinct[number] = stem.with_name(f"{stem.name}_{number}")
    return [Input(path, stem) for (path, _), stem in zip(places, distinct, strict=True)]


class Writer:
    """scores.csv and failed.csv of an output folder, and which inputs they say are done.

    Args:
        out: the folder.
        made_by: what the outputs depend on; a folder of others is refused.
        overwrite: begin again.
    """

    def __init__(self, out: Path, made_by: Mapping[str, Any], *, overwrite: bool):
        self.out, self.scores, self.failed = out, out / "scores.csv", out / "failed.csv"
        self.rows: list[dict[str, str]] = []
        marker = out / "predictions.json"
        text = json.dumps(dict(made_by), indent=2) + "\n"
        if self.scores.exists() and not overwrite:
            if not marker.exists() or marker.read_text(encoding="utf-8") != text:
                raise VesaliusError(
                    "holds predictions of other weights or with other options",
                    path=out,
                    remedy="choose another --out, or --overwrite",
                )
            self.rows = self._kept()
        if self.rows:
            self._rewrite()
        else:
            self.scores.unlink(missing_ok=True)
        write_text(marker, text)
        self._failures: list[tuple[str, str]] = []

    @property
    def done(self) -> set[str]:
        """Paths of the inputs whose outputs are there."""
        return {row["path"] for row in self.rows}

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the rows of one input, all at once."""
        if not self.scores.exists():
            self.rows = [{name: str(value) for name, value in row.items()} for row in rows]
            self._rewrite()
            return
        text = io.StringIO()
        csv.DictWriter(text, list(rows[0]), lineterminator="\n").writerows(rows)
        try:
            with self.scores.open("a", encoding="utf-8") as stream:
                stream.write(text.getvalue())  # at once, so that a kill leaves no part of an input's rows
        except OSError as error:
            raise VesaliusError(
                f"writing failed ({error.strerror})", path=self.scores, remedy="free some space, then predict again"
            ) from error

    def fail(self, name: str, reason: str) -> None:
        """Record an input that could not be predicted, under its name in scores.csv."""
        self._failures.append((name, reason))
        with atomic(self.failed) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([("path", "reason"), *self._failures])

    def close(self) -> int:
        """How many failed; a failed.csv of an earlier attempt does not outlive its cause."""
        if not self._failures:
            self.failed.unlink(missing_ok=True)
        return len(self._failures)

    def _kept(self) -> list[dict[str, str]]:
        """The rows of scores.csv whose outputs are there, without a line that a kill cut short."""
        with self.scores.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if None not in row.values() and None not in row]
        return [row for row in rows if all((self.out / name).exists() for name in row["outputs"].split(";") if name)]

    def _rewrite(self) -> None:
        with atomic(self.scores) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def predict_file(
    task: Any,
    contract: InputContract,
    source: Input,
    out: Path,
    *,
    formats: Sequence[str] | None,
    overlays: bool,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Predict every frame or slice of a file and write what the task writes.

    Masks of a multi-frame DICOM or of a volume are one file, pictures one per frame.

    Args:
        task: an adapted network in evaluation mode.
        contract: the pixels that it expects.
        source: the file.
        out: the output folder.
        formats: of masks (png, nifti, dicom-seg) or restored images (png, nifti); None for that of the input.
        overlays: draw masks over the images, too.
        batch_size: frames at a time.

    Returns:
        Rows of scores.csv, one a frame.

    Raises:
        VesaliusError: the file cannot be read, or its outputs cannot be written.
    """
    header = probe(source.path)
    images = list(_frames(source.path, header))
    predictions: list[Tensor] = []
    device = next(task.parameters()).device
    for start in range(0, len(images), batch_size):
        batch = [contract(image.check()) for image in images[start : start + batch_size]]
        with torch.inference_mode():
            predictions += list(task.predict(torch.stack(batch).to(device)).cpu())
    stem = out / source.stem
    if task.TASK == "classification":
        rows = [task.row(p, image) for p, image in zip(predictions, images, strict=True)]
        return [row | {"outputs": ""} for row in rows]
    chosen = tuple(formats) if formats is not None else (own_format(source.path, task.TASK),)
    whole = read(source.path) if len(header.size) == 3 else None
    if task.TASK == "segmentation":
        masks = [task.labels(p, image.size) for p, image in zip(predictions, images, strict=True)]
        paths = _write_masks(masks, images, whole, stem, chosen, task.classes)
        if overlays:
            paths += [
                write_image(
                    overlay(image, mask, classes=task.classes).transpose(2, 0, 1) / np.float32(255), image, path
                )
                for image, mask, path in zip(images, masks, _per_frame(stem, images, "_overlay.png"), strict=True)
            ]
        rows = [_areas(mask, p, image, task.classes) for mask, p, image in zip(masks, predictions, images, strict=True)]
    else:
        paths = _write_restored(predictions, images, whole, stem, chosen)
        rows = [{} for _ in images]
    names = ";".join(path.relative_to(out).as_posix() for path in paths)
    return [
        {"path": str(source.path), "frame": "" if image.frame is None else image.frame, **row, "outputs": names}
        for image, row in zip(images, rows, strict=True)
    ]


def _frames(path: Path, header: Header) -> Iterator[Image]:
    """The 2-D images of a file."""
    if len(header.size) == 3:
        volume = read(path)
        spacing = None if volume.spacing is None else volume.spacing[1:]
        for number in range(volume.size[0]):
            yield replace(volume, array=volume.array[:, number], spacing=spacing, affine=None, frame=number)
    elif header.frames > 1:
        for number in range(header.frames):
            yield read(path, number)
    else:
        yield read(path)


def _write_masks(
    masks: Sequence[NDArray[np.uint8]],
    images: Sequence[Image],
    whole: Image | None,
    stem: Path,
    formats: Sequence[str],
    classes: Sequence[str],
) -> list[Path]:
    placed = len(images) > 1 and all(image.affine is not None for image in images)
    paths = []
    for name in formats:
        suffix = MASK_SUFFIX[name]
        # frames without a place in the patient, as of ultrasound clips, cannot share a DICOM segmentation
        if (name == "nifti" and whole is not None) or (name == "dicom-seg" and placed):
            path = stem.with_name(stem.name + suffix)
            paths.append(write_mask(np.stack(masks), whole or images[0], path, classes=classes))
        else:
            places = _per_frame(stem, images, suffix)
            paths += [write_mask(*case, classes=classes) for case in zip(masks, images, places, strict=True)]
    return paths


def _write_restored(
    restored: Sequence[Tensor], images: Sequence[Image], whole: Image | None, stem: Path, formats: Sequence[str]
) -> list[Path]:
    arrays = []
    for output, image in zip(restored, images, strict=True):
        pixels = F.resize(output, list(image.size), InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        arrays.append((pixels.mean(0, keepdim=True) if len(image.channels) == 1 else pixels).numpy())
    paths = []
    for name in formats:
        if whole is not None and name == "nifti":
            paths.append(write_image(np.stack(arrays, 1), whole, stem.with_name(stem.name + "_restored.nii.gz")))
        else:
            places = _per_frame(stem, images, "_restored" + MASK_SUFFIX[name])
            paths += [write_image(*case) for case in zip(arrays, images, places, strict=True)]
    return paths


def _areas(mask: NDArray[np.uint8], p: Tensor, image: Image, classes: Sequence[str]) -> dict[str, Any]:
    """Of each class: pixels, mm2 where the spacing is known, and the highest probability."""
    row: dict[str, Any] = {}
    for number, name in enumerate(classes, start=1):
        pixels = int((mask == number).sum())
        row[f"{name}_pixels"] = pixels
        row[f"{name}_mm2"] = "" if image.spacing is None else round(pixels * float(np.prod(image.spacing)), 4)
        row[f"{name}_max_probability"] = round(float(p[number].max()), 6)
    return row


def _per_frame(stem: Path, images: Sequence[Image], suffix: str) -> list[Path]:
    if len(images) == 1:
        return [stem.with_name(stem.name + suffix)]
    return [stem.with_name(f"{stem.name}_f{image.frame:04d}{suffix}") for image in images]


def own_format(path: Path, task: str) -> str:
    """The format that goes with a file's own."""
    name = path.name.lower()
    if name.endswith(NIFTI):
        return "nifti"
    return "png" if name.endswith(RASTER) or task == "enhancement" else "dicom-seg"


def _stem(name: str) -> str:
    for suffix in (*NIFTI[::-1], *RASTER, ".dcm", ".dicom"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
