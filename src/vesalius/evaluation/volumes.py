"""Segmentations of whole volumes: cases from files, label maps on the image's own voxels, their scores and files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from vesalius.data.class_tables import Sides
from vesalius.data.datasets import generator
from vesalius.data.entry import Entry, Folder
from vesalius.data.layouts import detect
from vesalius.data.masks import IGNORE
from vesalius.data.progress import track
from vesalius.data.table import MASK_SEPARATOR, load_table
from vesalius.data.volumes.cases import case_of, is_nifti, read_case
from vesalius.data.volumes.contract import VolumeContract, channel_key
from vesalius.data.volumes.layouts import with_series
from vesalius.data.volumes.prepare import prepare
from vesalius.errors import ConfigError, VesaliusError
from vesalius.evaluation.metrics import bootstrap, defined_mean
from vesalius.evaluation.sliding import segment_volume
from vesalius.evaluation.volume_prompts import Prompts, simulated, wanted
from vesalius.evaluation.volume_tasks import OnSam, VolumeTask
from vesalius.images import Image
from vesalius.images.segmentation import check_sources
from vesalius.tasks.prompted_volumes import PromptedVolumeSegmentation
from vesalius.tasks.volume_language import LanguageSegmentation
from vesalius.tasks.volume_metrics import case_scores, summarise
from vesalius.tasks.volume_segmentation import VolumeSegmentation
from vesalius.training.runs import RunFolder

SCORES = ("dice", "nsd", "hd95")
"""What gets confidence intervals, beside ``f1`` and ``lesion_dice`` where lesions are scored."""
SIDE = re.compile(r"(?<![^\W_])(left|right)(?![^\W_])", re.IGNORECASE)
"""A side as a word of its own in a class's name."""


@dataclass(frozen=True)
class Case:
    """A volume to predict.

    Args:
        paths: its files: one, or one a channel; a DICOM series is its folder or one of its files.
        channels: their names, where they are known.
        stem: where its outputs go, beneath the output folder, without a suffix.
    """

    paths: tuple[Path, ...]
    channels: tuple[str, ...]
    stem: Path

    @property
    def name(self) -> str:
        """Its paths in one string, as in a table."""
        return MASK_SEPARATOR.join(map(str, self.paths))

    def read(self) -> Image:
        """The volume, whose channels have names where they are known."""
        return read_case(self.paths, self.channels)


def check_flips(run: str | Path, names: Sequence[str]) -> None:
    """Refuse mirror images where they are other anatomy.

    Args:
        run: its folder, or a weights file.
        names: of the classes that are predicted.

    Raises:
        ConfigError: a class is named after a side, or the run was trained without mirroring.

    >>> check_flips("weights.safetensors", ["kidney_left", "kidney_right"])
    Traceback (most recent call last):
        ...
    vesalius.errors.ConfigError: flips with 'kidney_left', which a mirror image has on the other side; leave it out
    """
    for name in names:
        if SIDE.search(name):
            raise ConfigError(f"flips with {name!r}, which a mirror image has on the other side", remedy="leave it out")
    config = RunFolder(Path(run)).config
    if config.is_file() and RunFolder(Path(run)).read_config().get("config", {}).get("flip") == 0:
        raise ConfigError(f"flips with {run}, which was trained without mirroring", remedy="leave it out")


def find_cases(inputs: str | Path | Sequence[str | Path], channels: Sequence[str]) -> list[Case]:
    """The volumes that are named: files, DICOM series, folders of them, or tables of `vesalius index`.

    Files or series that lie in one folder and whose names end in the names of the network's channels are one case.

    Args:
        inputs: files, folders or ``.parquet`` tables.
        channels: what the network reads.

    Raises:
        VesaliusError: a path is not there, or there are no images.
    """
    named = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(path) for path in inputs]
    cases: list[Case] = []
    loose: list[Case] = []
    for path in named:
        if path.suffix == ".parquet":
            for row in load_table(path).filter(pl.col("size").list.len() == 3).to_dicts():
                parts = tuple(map(Path, row["path"].split(MASK_SEPARATOR)))
                cases.append(Case(parts, tuple(row["channels"]), _stem(parts)))
        elif path.is_dir():
            folder = Folder.walk(path.resolve())
            entries = with_series(detect(folder).entries(folder))
            if not entries:
                raise VesaliusError("holds no volumes", path=path, remedy="give NIfTI files or DICOM series")
            cases += [_case(entry, folder.root) for entry in entries if entry.channels]
            loose += [_case(entry, folder.root) for entry in entries if not entry.channels]
        elif path.exists():
            loose.append(Case((path,), (), _stem((path,))))
        else:
            raise VesaliusError("is not there", path=path, remedy="check the path")
    cases += _joined(loose, channels)
    stems = [case.stem for case in cases]
    return [
        case
        if stems.index(case.stem) == number
        else replace(case, stem=case.stem.with_name(f"{case.stem.name}_{number}"))
        for number, case in enumerate(cases)
    ]


def predict_case(
    task: VolumeTask,
    contract: VolumeContract,
    case: Case,
    out: Path,
    *,
    formats: Sequence[str] | None,
    overlays: bool,
    flips: bool = False,
    prompts: Prompts | None = None,
    half: bool = False,
    title: str | None = None,
) -> list[dict[str, Any]]:
    """Predict a volume and write its label map in its own geometry.

    Args:
        task: in evaluation mode.
        contract: the volumes that it expects.
        case: the volume.
        out: the output folder.
        formats: nifti, dicom-seg; None for that of the input.
        overlays: draw it over middle slices, too.
        flips: average over mirror images.
        prompts: clicks or boxes, for a task that takes them.
        half: run the network in half precision.
        title: of the progress bar; None for none.

    Returns:
        The row of scores.csv: voxels and, where the spacing is known, ml of each class.

    Raises:
        VesaliusError: the case cannot be read, or its outputs cannot be written.
    """
    image = case.read()
    given = prompts.on(image) if prompts else None
    chosen = tuple(formats) if formats is not None else ("nifti" if is_nifti(case.paths[0]) else "dicom-seg",)
    folder = (out / case.stem).parent
    if "dicom-seg" in chosen:
        check_sources(image, folder / case.stem.name)  # before the long work, not after it
    mask = label_map(task, image, contract, flips=flips, prompts=given, half=half, title=title)
    paths = task.write(mask, image, folder, case.stem.name, (*chosen, "overlay") if overlays else chosen)
    row: dict[str, Any] = {"path": case.name, "frame": "", **({"prompts": str(given)} if given else {})}
    for value, name in enumerate(task.classes, start=1):
        voxels = int((mask == value).sum())
        row[f"{name}_voxels"] = voxels
        row[f"{name}_ml"] = "" if image.spacing is None else round(voxels * float(np.prod(image.spacing)) / 1000, 4)
    return [{**row, "outputs": ";".join(path.relative_to(out).as_posix() for path in paths)}]


def label_map(
    task: VolumeTask,
    image: Image,
    contract: VolumeContract,
    *,
    flips: bool = False,
    prompts: Prompts | None = None,
    half: bool = False,
    title: str | None = None,
) -> NDArray[np.uint8]:
    """The label map ``[D, H, W]`` of an image, on its own voxels; `prompts` are in these, too."""
    if isinstance(task, OnSam):
        given = prompts or Prompts()
        labels = {"labels": given.labels} if isinstance(task, PromptedVolumeSegmentation) and given.labels else {}
        return task.segment(image, contract, points=given.points, boxes=given.boxes, half=half, title=title, **labels)
    return segment_volume(
        task,
        image,
        contract,
        decide=task.decide,
        finish=task.finish if isinstance(task, LanguageSegmentation) else None,
        flips=(0, 1, 2) if flips else (),
        half=half,
        device=next(task.parameters()).device,
        title=title,
    )


def masks(
    task: VolumeTask,
    contract: VolumeContract,
    row: Mapping[str, Any],
    image: Image,
    *,
    clicks: int = 1,
    half: bool = False,
    chance: torch.Generator | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], str]:
    """Prediction and truth of what is scored, ``[K, D, H, W]`` each on the image's voxels; ignored ones are neither.

    Args:
        task: in evaluation mode.
        contract: the volumes that it expects.
        row: of a table, whose masks speak in the task's classes (`ClassTable.translate`).
        image: of the row.
        clicks: for a task that is clicked on, drawn from the truth by `chance`; where that is empty nothing is found.
        half: run the network in half precision.

    Returns:
        Both, and the prompts that were drawn, '' for a task without.
    """
    # Turned onto the network's axes and back, without resampling: masks may lie along other axes than the image.
    native = replace(contract, spacing=None)
    if isinstance(task, LanguageSegmentation):
        stored = prepare(row, native, classes=task.table.sources, relabel=Sides(task.table)).mask
        assert stored is not None
        codes = native.restore(stored, image)
        device = next(task.parameters()).device
        found = segment_volume(
            task, image, contract, decide=task.decide, finish=task.masks, half=half, device=device, title=None
        )
        truth = np.stack([task.table.members[:, task.table.names.index(name)][codes] for name in task.scored])
        return found.astype(bool) & (codes != IGNORE), truth, ""
    placed = prepare(row, native, classes=list(task.classes)).mask
    assert placed is not None
    known = native.restore(placed, image)
    prompts = None
    if wanted(task):
        prompts = simulated(task, known == 1, clicks=clicks, generator=chance or torch.Generator())
    found = np.zeros_like(known)
    if prompts or not wanted(task):
        found = label_map(task, image, contract, prompts=prompts, half=half)
    prediction, truth = task.region_masks(np.stack([found, known])).numpy() & (known != IGNORE)
    return prediction, truth, str(prompts or "")


def score_volumes(
    task: VolumeTask,
    contract: VolumeContract,
    rows: pl.DataFrame,
    *,
    groups: Sequence[str],
    tolerance: float = 1.0,
    lesions: str | None = None,
    empty: str = "vesalius",
    clicks: int = 1,
    half: bool = False,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, float]]]:
    """Scores of a table's volumes on their own voxels.

    Args:
        task: in evaluation mode.
        contract: the volumes that it expects.
        rows: with masks.
        groups: a patient a row.
        tolerance: mm of the surface Dice.
        lesions: the rule by which lesions are scored one by one, None for not at all.
        empty: the rule for masks without a voxel.
        clicks: a volume, for a task that is clicked on; drawn from the truth by `seed`.
        half: run the network in half precision.
        draws, seed: of the bootstrap.

    Returns:
        Means, with per_class; one column a score and class with one value a row; and 95 % intervals over patients, of
        the means over classes and of each class (named ``dice liver``).
    """
    names = task.scored
    found: list[dict[str, dict[str, float]]] = []
    said: list[str] = []
    if isinstance(task, LanguageSegmentation):
        rows, _ = task.table.translate(rows)
    for number, row in enumerate(track(rows.to_dicts(), len(rows), "predicting")):
        image = case_of(row)
        chance = generator(seed, number)
        prediction, truth, prompts = masks(task, contract, row, image, clicks=clicks, half=half, chance=chance)
        said.append(prompts)
        found.append(
            case_scores(
                prediction,
                truth,
                classes=names,
                annotated=_annotated(task, row),
                spacing=image.spacing,
                tolerance=tolerance,
                lesions=dict.fromkeys(names, lesions) if lesions else None,
                empty=empty,
            )
        )
    metrics = summarise(found, names)
    metrics["hd95_unit"] = "mm" if rows["spacing"].is_not_null().all() else "voxels"
    keys = list(dict.fromkeys(key for case in found for scores in case.values() for key in scores))
    cases = {f"{key} {name}": [case.get(name, {}).get(key) for case in found] for key in keys for name in names}
    intervals = _intervals(cases, metrics, names, groups, draws, seed)
    return metrics, {**({"prompts": said} if any(said) else {}), **cases}, intervals


def _intervals(
    cases: Mapping[str, Sequence[Any]],
    metrics: dict[str, Any],
    names: Sequence[str],
    groups: Sequence[str],
    draws: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Of each score, over classes and of each class; the classes' Dice also goes into their rows of `metrics`."""
    found = {}
    for key in (*SCORES, "f1", "lesion_dice"):
        if f"{key} {names[0]}" not in cases:
            continue
        values = np.array([cases[f"{key} {name}"] for name in names], np.float64)
        for name, one in [("", values), *((f" {name}", values[k : k + 1]) for k, name in enumerate(names))]:
            interval = bootstrap(partial(_mean, one), len(groups), groups=groups, draws=draws, seed=seed)
            found[f"{key}{name}"] = interval
            if key == "dice" and name:
                row = metrics["per_class"][name.strip()]
                row |= {"dice_low": interval["low"], "dice_high": interval["high"]}
    return found


def _mean(values: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
    """``[K, N]`` -> the mean over classes of the means over the drawn cases."""
    return defined_mean(np.array([defined_mean(one[rows]) for one in values]))


def _annotated(task: VolumeTask, row: Mapping[str, Any]) -> list[bool]:
    """Which of what is scored was looked for in a case: a region where all of its classes were."""
    if isinstance(task, LanguageSegmentation):
        labelled = task.table.labelled(row["annotated"])
        return [bool(labelled[task.table.names.index(name)]) for name in task.scored]
    regions = task.regions if isinstance(task, VolumeSegmentation) else None
    members = regions.values() if regions else [(name,) for name in task.classes]
    return [set(some) <= set(row["annotated"]) for some in members]


def _case(entry: Entry, root: Path) -> Case:
    paths = entry.files or (entry.path,)
    inside = paths[0].relative_to(root)
    place = inside.parent if len(paths) > 1 else inside
    stem = place.with_name(_bare(place)) if place.name else Path(root.name)  # the folder itself is the case
    return Case(paths, entry.channels, stem)


def _joined(cases: Sequence[Case], channels: Sequence[str]) -> list[Case]:
    """Files beside each other that hold one channel each become one case; others stay as they are."""
    if len(channels) == 1:
        return list(cases)
    beside: dict[Path, list[Case]] = {}
    for case in cases:
        beside.setdefault(case.paths[0].parent, []).append(case)
    joined: list[Case] = []
    for parent, members in beside.items():
        by_key: dict[str, dict[str, Path]] = {}
        for case in members:
            before, key = _ending(_bare(case.paths[0]), channels)
            by_key.setdefault(before, {})[key] = case.paths[0]
        whole = [parts for parts in by_key.values() if all(channel_key(name) in parts for name in channels)]
        taken = {path for parts in whole for path in parts.values()}
        for parts in whole:
            paths = tuple(parts[channel_key(name)] for name in channels)
            first = next(case for case in members if case.paths[0] == paths[0])
            before = _ending(first.stem.name, channels)[0]
            joined.append(Case(paths, tuple(channels), first.stem.with_name(before or parent.name)))
        joined += [case for case in members if case.paths[0] not in taken]
    return joined


def _ending(name: str, channels: Sequence[str]) -> tuple[str, str]:
    """A name without the channel that it ends in, and that channel's key; '' where it ends in none."""
    keys = {channel_key(channel) for channel in channels}
    words = name.replace("-", "_").split("_")
    for count in range(len(words), 0, -1):  # the longest: T2-FLAIR is not FLAIR of "T2"
        key = channel_key("".join(words[-count:]))
        if key in keys:
            return name[: len(name) - len("_".join(words[-count:]))].rstrip("_-"), key
    return name, ""


def _stem(paths: Sequence[Path]) -> Path:
    return Path(paths[0].parent.name if len(paths) > 1 else _bare(paths[0]))


def _bare(path: Path) -> str:
    """The name without the suffixes of volumes."""
    name = path.name
    for suffix in (".nii.gz", ".nii", ".dcm", ".dicom", ".ima"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
