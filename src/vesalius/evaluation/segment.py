"""`vesalius segment`: masks of what a click or a box means in an image or a slice, or of everything in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vesalius.adapt.sam_files import open_base
from vesalius.errors import ConfigError, VesaliusError
from vesalius.evaluation.automatic_masks import AutomaticConfig, FoundMask, automatic_masks
from vesalius.evaluation.prediction import MASK_SUFFIX, find_inputs, own_format
from vesalius.files import output_folder, write_text
from vesalius.images import Image, overlay, probe, read, read_volume, write_image, write_mask
from vesalius.published.sam import at_size
from vesalius.tasks.prompted import PromptedMasks, SamPredictor

MOST = 254  # masks that a label image of 8 bits holds


def segment(
    image: str | Path,
    *,
    base: str,
    out: str | Path,
    point: Sequence[str] = (),
    label: Sequence[int] = (),
    box: Sequence[str] = (),
    automatic: bool = False,
    frame: int | None = None,
    window: Sequence[float] = (),
    name: str = "object",
    formats: Sequence[str] | None = None,
    overlays: bool = True,
    image_size: int | None = None,
    points_per_side: int = 32,
    device: str = "cpu",
) -> dict[str, Any]:
    """Ask a SAM for the mask of what points and boxes mean in an image or a slice, or for everything in it.

    Writes the mask in the image's own geometry, an overlay, and NAME.json with what was asked and the predicted IoU. Of
    a single point's three readings the surest is written; a box, or several points, leave no doubt and have one. In a
    volume the mask lies on its slice.

    Args:
        image: a DICOM, NIfTI or picture file, or the folder of a DICOM series.
        base: the weights: sam_vit_b_01ec64.pth or another layout of it, a converted file, or shapes:sam_tiny.
        out: folder of the outputs.
        point: x,y of pixels of the object, from 0; several words for several points.
        label: of each point, 1 in the object (the default) or 0 outside it.
        box: x0,y0,x1,y1 around the object; several boxes are several objects.
        automatic: find everything; takes no points and boxes.
        frame: of a multi-frame file, or the slice of a volume, from 0; a volume's middle slice by default.
        window: centre and width of the intensities to show the network, as of a CT; by default the file's window, or
            what its pixels span. 8-bit images are taken as they are.
        name: of the object, in the mask's file.
        formats: png, nifti, dicom-seg; by default that of the input.
        overlays: draw the mask over the image, too.
        image_size: pixels that the longer side is resized to, by default what the weights were trained at; less is
            quicker.
        points_per_side: of the grid that `automatic` asks at.
        device: cpu, cuda, ...

    Returns:
        The paths of the outputs, and of each mask its pixels, area in mm2 and predicted IoU.

    Raises:
        ConfigError: no prompt, one that cannot be read or lies outside the image, or a label too few.
        VesaliusError: the image or the weights cannot be read.

    >>> import tempfile
    >>> from vesalius import phantom
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = phantom("ultrasound", folder / "us", n=1, size=64)
    >>> picture = next((folder / "us").rglob("*.png"))
    >>> result = segment(picture, base="random:sam_tiny", out=folder / "out", point=["30,20"])
    object: ...
    >>> [Path(path).suffix for path in result["outputs"]]
    ['.png', '.png', '.json']
    """
    prompts = [_numbers(text, 2, "point") for text in point], [_numbers(text, 4, "box") for text in box]
    if automatic == bool(prompts[0] or prompts[1]):
        raise ConfigError("what should be segmented?", remedy="give --point x,y or --box x0,y0,x1,y1, or --automatic")
    if len(prompts[1]) > 1 and prompts[0]:
        raise ConfigError("points and several boxes", remedy="give points with one box at most")
    whole, flat = _choose(Path(image), frame)
    if window:
        if len(window) != 2:
            raise ConfigError(f"a window of {len(window)} numbers", remedy="give its centre and its width")
        flat = replace(flat, window=(float(window[0]), float(window[1])))
    labels = _labels(label, len(prompts[0]))
    for numbers, kind in ((prompts[0], "point"), (prompts[1], "box")):
        _check_inside(numbers, flat, kind)
    folder = output_folder(out)
    sam, card, _ = open_base(base, beside=folder)
    if image_size is not None:
        sam = at_size(sam, image_size)
    predictor = SamPredictor(sam.to(device))
    if automatic:
        found = automatic_masks(predictor, flat, AutomaticConfig(points=points_per_side))
        found.sort(key=lambda mask: mask.area, reverse=True)  # the small ones are drawn upon the large
        names, masks = [f"mask {number}" for number in range(1, len(found) + 1)], [one.mask for one in found]
        records = [_describe(one.mask, one.iou, flat) | _found(one) for one in found]
    else:
        answer = _ask(predictor, flat, prompts[0], labels, prompts[1])
        masks = list(answer.best.cpu().numpy())
        names = [name] if len(masks) == 1 else [f"{name} {number}" for number in range(1, len(masks) + 1)]
        records = [_describe(mask, float(iou.max()), flat) for mask, iou in zip(masks, answer.iou, strict=True)]
    if len(masks) > MOST:
        Console(stderr=True).print(f"{len(masks)} masks; the image of labels holds the {MOST} largest")
    painted = np.zeros(flat.size, dtype=np.uint8)
    for number, mask in enumerate(masks[:MOST], start=1):
        painted[mask] = number
    stem = folder / find_inputs(image)[0].stem.name if Path(image).is_file() else folder / Path(image).name
    chosen = formats if formats is not None else [own_format(flat.path, "segmentation")]
    outputs = _write(painted, whole, flat, stem, chosen, names[:MOST], overlays=overlays)
    asked = {"points": prompts[0], "labels": labels, "boxes": prompts[1], "frame": flat.frame, "window": flat.window}
    report = {"image": str(image), "base": base, "source": card.source, **asked}
    described = [{"name": one, **record} for one, record in zip(names, records, strict=True)]
    report["masks"] = described
    outputs.append(write_text(stem.with_name(stem.name + ".json"), json.dumps(report, indent=1) + "\n"))
    for line in described:
        area = "" if line["mm2"] is None else f", {line['mm2']:.1f} mm2"
        print(f"{line['name']}: {line['pixels']} pixels{area}, predicted IoU {line['iou']:.2f}")
    return {"outputs": [str(path) for path in outputs], "masks": described}


def _ask(
    predictor: SamPredictor, image: Image, points: list[list[float]], labels: list[int], boxes: list[list[float]]
) -> PromptedMasks:
    doubtful = len(points) == 1 and not boxes
    return predictor.predict(
        predictor.encode(image.check()),
        points=points or None,
        labels=labels or None,
        boxes=boxes or None,
        multimask=doubtful,
    )


def _choose(path: Path, frame: int | None) -> tuple[Image | None, Image]:
    """The volume, if it is one, and the 2-D image."""
    if not path.is_dir() and len(probe(path).size) == 2:
        return None, read(path, frame)
    volume = read_volume(path) if path.is_dir() else read(path)
    number = volume.size[0] // 2 if frame is None else frame
    if not 0 <= number < volume.size[0]:
        raise VesaliusError(f"has slices 0 to {volume.size[0] - 1}, not {number}", path=path, remedy="choose --frame")
    spacing = None if volume.spacing is None else volume.spacing[1:]
    flat = replace(volume, array=volume.array[:, number], spacing=spacing, affine=None, frame=number, slices=())
    return volume, flat


def _write(
    mask: np.ndarray,
    whole: Image | None,
    flat: Image,
    stem: Path,
    formats: Sequence[str],
    names: Sequence[str],
    *,
    overlays: bool,
) -> list[Path]:
    paths = []
    for chosen in formats:
        if chosen not in MASK_SUFFIX:
            raise ConfigError(f"no format is called {chosen!r}", remedy=f"choose of {', '.join(MASK_SUFFIX)}")
        path = stem.with_name(stem.name + MASK_SUFFIX[chosen])
        if whole is not None and chosen != "png":
            volume = np.zeros(whole.size, dtype=np.uint8)
            volume[flat.frame] = mask
            paths.append(write_mask(volume, whole, path, classes=names))
        else:
            paths.append(write_mask(mask, flat, path, classes=names))
    if overlays:
        drawn = overlay(flat, mask, classes=names).transpose(2, 0, 1) / np.float32(255)
        paths.append(write_image(drawn, flat, stem.with_name(stem.name + "_overlay.png")))
    return paths


def _describe(mask: np.ndarray, iou: float, image: Image) -> dict[str, Any]:
    """Pixels, mm2 where the spacing is known, and the predicted IoU."""
    pixels = int(mask.sum())
    area = None if image.spacing is None else round(pixels * float(prod(image.spacing)), 3)
    return {"pixels": pixels, "mm2": area, "iou": round(iou, 4)}


def _found(mask: FoundMask) -> dict[str, Any]:
    """What else is known of a mask that was found, with itself as runs."""
    return {
        "stability": round(mask.stability, 4),
        "box": mask.box,
        "point": mask.point,
        "size": mask.size,
        "counts": mask.runs.tolist(),
    }


def _numbers(text: str, count: int, kind: str) -> list[float]:
    """``x,y`` as numbers."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise ConfigError(
            f"--{kind} {text!r}", remedy=f"give {count} numbers with commas, as {'x,y,x,y'[: 2 * count - 1]}"
        )
    return numbers


def _labels(labels: Sequence[int], points: int) -> list[int]:
    """One label a point, 1 by default."""
    if labels and len(labels) != points:
        raise ConfigError(f"{len(labels)} labels for {points} points", remedy="give one for each, or none")
    if any(one not in (0, 1) for one in labels):
        raise ConfigError(f"labels {list(labels)}", remedy="1 is in the object, 0 outside it")
    return list(labels) or [1] * points


def _check_inside(prompts: list[list[float]], image: Image, kind: str) -> None:
    height, width = image.size
    for numbers in prompts:
        xs, ys = numbers[::2], numbers[1::2]
        if not (0 <= min(xs) <= max(xs) <= width and 0 <= min(ys) <= max(ys) <= height):
            text = ",".join(f"{number:g}" for number in numbers)
            raise ConfigError(
                f"the {kind} {text} lies outside the image of {width} columns and {height} rows",
                remedy="give x (column) before y (row), from 0",
            )
        if kind == "box" and (xs[0] >= xs[1] or ys[0] >= ys[1]):
            raise ConfigError(f"the box {numbers} is empty", remedy="give x0,y0,x1,y1 with x0 < x1 and y0 < y1")
