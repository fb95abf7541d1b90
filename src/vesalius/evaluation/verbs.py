"""The verbs that use what was trained: `evaluate` and `predict`, as functions and on the command line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from rich.console import Console

from vesalius.adapt.labels import class_names, few_labels, labelled
from vesalius.adapt.networks import load_task
from vesalius.data.contract import InputContract
from vesalius.data.datasets import is_multilabel
from vesalius.data.progress import track
from vesalius.data.table import load_table, select
from vesalius.data.volumes.contract import VolumeContract
from vesalius.errors import ConfigError, UnreadableImage, VesaliusError
from vesalius.evaluation.metrics import classification, multilabel
from vesalius.evaluation.prediction import Input, Writer, find_inputs, predict_file
from vesalius.evaluation.protocols import each_class, features, knn, linear_probe
from vesalius.evaluation.results import Result
from vesalius.evaluation.scoring import intervals, score_classes, score_labels, score_task
from vesalius.evaluation.volume_prompts import Prompts, Space, check_prompts, wanted
from vesalius.evaluation.volume_tasks import OnSam, load_volume_task
from vesalius.evaluation.volumes import Case, check_flips, find_cases, predict_case, score_volumes
from vesalius.files import atomic, output_folder, sha256
from vesalius.published.card import Card
from vesalius.tasks import TASKS
from vesalius.tasks.multilabel import THRESHOLD
from vesalius.tasks.trunk import check_formats
from vesalius.tasks.volume_language import LanguageSegmentation
from vesalius.training.backbones import open_backbone
from vesalius.training.provenance import data_hash, patient_keys, read_seen, split_hash
from vesalius.training.runs import RunFolder, code_version
from vesalius.training.volume_verbs import reads_volumes

Paths = str | Path | Sequence[str | Path]
Protocol = Literal["auto", "task", "linear_probe", "knn"]


def evaluate(
    run: str | Path,
    data: Paths | None = None,
    *,
    split: Literal["train", "val", "test"] = "test",
    protocol: Protocol = "auto",
    classes: Sequence[str] = (),
    fraction: float = 1.0,
    shots: int | None = None,
    out: str | Path | None = None,
    trunk: str | None = None,
    tolerance: float = 1.0,
    lesions: Literal["atlas", "brats2023"] | None = None,
    empty: Literal["vesalius", "monai", "medpy", "sam3d", "masam", "transunet"] = "vesalius",
    clicks: int = 1,
    half: bool = False,
    draws: int = 1000,
    seed: int = 0,
    batch_size: int = 16,
) -> Result:
    """Score a run on patients that it has not seen, with 95 % intervals over patients.

    An adapted run is scored at the images' own sizes. A backbone is scored by a classifier on its frozen features,
    trained on the table's training images. Where images have any number of labels, classes are scored on the images
    in which they were looked for. Writes results.json and cases.csv (one row an image).

    Args:
        run: a run folder; for linear_probe and knn any backbone as of `adapt`.
        data: one or several tables (.parquet); by default those of the run.
        split: which part to score.
        protocol: task (an adapted run), linear_probe or knn (a backbone); auto takes task where there is one.
        classes: of a backbone's protocol, or of the Universal Model; by default all that the table has labels of.
        fraction: of the training patients whose labels a backbone's protocol uses.
        shots: labelled images per class that a backbone's protocol uses, in place of a fraction.
        out: folder of the results; by default the run's.
        trunk: where the trunk of a run that stores only what it trained lies now, if it was moved.
        tolerance: of volumes, mm by which surfaces may differ for the surface Dice (NSD).
        lesions: of volumes, the rule by which lesions are scored one by one; by default they are not.
        empty: of volumes, the rule for masks without a voxel (`vesalius.tasks.volume_metrics.EMPTY`); by default a case
            whose truth and prediction lack the class has no score, and is counted.
        clicks: of a run of sam3d, how many are drawn from a volume's truth by the seed; cases.csv says where.
        half: of volumes, run the network in half precision.
        draws: bootstrap samples.
        seed: of the bootstrap and the choice of labels.
        batch_size: images at a time.

    Raises:
        VesaliusError: the split is empty or holds patients that the run was trained or chosen on; nothing to score.

    >>> import tempfile
    >>> from vesalius import index, phantom
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = phantom("ultrasound", folder / "us", n=12, size=32)
    >>> _ = index(folder / "us", folder / "us.parquet", val=0.2, test=0.4)
    >>> from vesalius import adapt_backbone
    >>> options = {"task": "classification", "steps": 1, "batch_size": 2, "progress": False}
    >>> run = adapt_backbone(
    ...     "linear", backbone="random:usfm", data=folder / "us.parquet", out=folder / "run", **options
    ... )
    /...run: 1 steps, loss ...
    >>> result = evaluate(folder / "run", draws=10)
    /...
    >>> 0 <= result.metrics["accuracy"] <= 1
    True
    """
    folder = RunFolder(Path(run))
    config = folder.read_config() if folder.config.is_file() else {}
    if data is None:
        data = config.get("data")
        if data is None:
            raise VesaliusError("no table is known for this", path=run, remedy="give one with --data")
    if out is None and not folder.path.is_dir():
        raise VesaliusError("is not a folder that results can be written to", path=run, remedy="give one with --out")
    target = output_folder(out if out is not None else folder.path)
    table = load_table(data)
    task, card = _task_of(folder, protocol, trunk)
    name = card.part if task is not None else "classification"
    rows = select(table, split=split, task=name)
    if rows.is_empty():
        raise VesaliusError(
            f"the table has no {split} images for {name}", remedy="choose another --split, or index again"
        )
    leakage = _check_leakage(folder, rows, split)
    kind: str = protocol
    keys = patient_keys(rows)
    settings: dict[str, Any] = {"fraction": fraction, "shots": shots, "draws": draws}
    between: dict[str, dict[str, float]] | None = None
    if task is not None and isinstance(card.contract, VolumeContract):
        kind = "task"
        if isinstance(task, LanguageSegmentation):
            task.choose(classes or _labelled_classes(task, rows))
        else:
            _same_classes(table, name, card)
        names = tuple(task.scored)
        rules = {"tolerance": tolerance, "lesions": lesions, "empty": empty, "half": half}
        if kind_of_prompt := wanted(task):
            settings["prompts"] = kind_of_prompt
            rules |= {"clicks": clicks} if kind_of_prompt == "points" else {}
        settings |= rules
        metrics, cases, between = score_volumes(
            task,
            card.contract,
            rows,
            groups=keys,
            draws=draws,
            seed=seed,
            **rules,  # type: ignore[arg-type]
        )
    elif task is not None:
        kind = "task"
        images = labelled(
            rows,
            card.image_contract,
            task=name,
            classes=_same_classes(table, name, card),
            multilabel=getattr(task, "multilabel", False),
        )
        names = tuple(card.classes)
        metrics, cases = score_task(task, images, batch_size=batch_size)
    else:
        names = class_names(table, name, classes)
        metrics, cases = _probe(run, table, rows, kind, names, split, fraction, shots, seed, batch_size)
    settings["classes"] = list(names)
    if "classes_counted" in metrics:
        settings["threshold"] = THRESHOLD
    if between is None:
        between = intervals(name, cases, names, groups=keys, draws=draws, seed=seed)
    result = Result(
        run=str(run),
        protocol=kind,
        task=name,
        split=split,
        images=len(rows),
        patients=len(set(keys)),
        metrics=metrics,
        intervals=between,
        config=config,
        data_hash=data_hash(rows),
        split_hash=split_hash(table),
        seed=seed,
        code=code_version(),
        settings=settings,
        leakage=leakage,
    )
    suffix = "" if kind == "task" else f"_{kind}"
    with atomic(target / f"cases{suffix}.csv") as temporary:
        pl.DataFrame({"path": rows["path"], "frame": rows["frame"], **cases}, strict=False).write_csv(temporary)
    result.save(target / f"results{suffix}.json")
    result.show()
    return result


def predict(
    run: str | Path,
    inputs: Paths,
    *,
    out: str | Path,
    formats: Sequence[str] | None = None,
    overlays: bool = True,
    flips: bool = False,
    classes: Sequence[str] = (),
    point: Sequence[str] = (),
    label: Sequence[int] = (),
    box: Sequence[str] = (),
    space: Space = "voxel",
    half: bool = False,
    trunk: str | None = None,
    batch_size: int = 16,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write masks, class scores or restored images for files and folders of images.

    A run that reads volumes takes NIfTI files, DICOM series (a folder or one of their files), cases of a file a channel
    and tables of `index`. Masks lie on their image: its size, its affine, its study. scores.csv has one row a frame (or
    volume); files that cannot be read are listed in failed.csv and the rest goes on. What is done already is not done
    again.

    Args:
        run: an adapted run's folder, or a weights file with its card.
        inputs: images, or folders of them.
        out: folder of the outputs.
        formats: png, nifti, dicom-seg (segmentation), png, nifti (enhancement); by default that of each input.
        overlays: draw masks over the images, too; over the middle slices of volumes.
        flips: of volumes, average over mirror images, which takes eight times as long; refused where classes are
            named after a side, or the run was trained with ``flip`` 0.
        classes: of the Universal Model, those to predict; by default all.
        point: of a run of sam3d, clicks x,y,z on what shall be segmented; several for one that is large, or for more
            than one.
        label: 1 for each click on what shall be segmented, 0 for each on what shall not be, in their order; all 1 by
            default. 0 needs a network with labels of clicks.
        box: of a run of masam with boxes, x0,y0,z0,x1,y1,z1 around it.
        space: of both: voxel (column, row and slice of the file, from 0), or mm of the patient, lps (DICOM's) or ras
            (NIfTI's, 3D Slicer's).
        half: of volumes, run the network in half precision.
        trunk: where the trunk of a run that stores only what it trained lies now, if it was moved.
        batch_size: images at a time.
        overwrite: do again what is done, and replace other predictions.

    Returns:
        predicted, skipped, failed: how many inputs.

    Raises:
        VesaliusError: no inputs, unknown formats, an output folder of other predictions, or every input failed.

    >>> import tempfile
    >>> from vesalius import index, phantom
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = phantom("ultrasound", folder / "us", n=12, size=32)
    >>> _ = index(folder / "us", folder / "us.parquet", val=0.2, test=0.4)
    >>> from vesalius import adapt_backbone
    >>> options = {"task": "classification", "steps": 1, "batch_size": 2, "progress": False}
    >>> run = adapt_backbone(
    ...     "linear", backbone="random:usfm", data=folder / "us.parquet", out=folder / "run", **options
    ... )
    /...run: 1 steps, loss ...
    >>> counts = predict(folder / "run", folder / "us" / "breast", out=folder / "out")
    /...
    >>> counts["failed"], (folder / "out" / "scores.csv").exists()
    (0, True)
    """
    task, card = _load(Path(run), trunk)
    task.to(_device())
    if formats is not None:
        formats = tuple(part for name in formats for part in name.split(",") if part)
        check_formats(formats, [name for name in task.FORMATS if name not in ("overlay", "csv")])
    volumes = card.contract if isinstance(card.contract, VolumeContract) else None
    sources: Sequence[Any] = find_inputs(inputs) if volumes is None else find_cases(inputs, volumes.channels)
    folder = output_folder(out)
    weights = Path(run) if Path(run).suffix == ".safetensors" else RunFolder(Path(run)).weights
    made_by: dict[str, Any] = {
        "weights_sha256": sha256(weights),
        "formats": formats and list(formats),
        "overlays": overlays,
    }
    prompts = Prompts.parse(point, label, box, space)
    check_prompts(task, prompts)
    if volumes is not None:
        made_by |= {"flips": flips, "half": half, "prompts": str(prompts), "space": space}
    if isinstance(task, LanguageSegmentation):
        made_by["classes"] = list(task.choose(classes).classes)
    elif classes:
        raise ConfigError("this run predicts all of its classes", remedy="leave out classes")
    if flips and isinstance(task, OnSam):
        raise ConfigError("flips with a run on SAM", remedy="leave it out")
    if flips and volumes is not None:
        check_flips(run, getattr(task, "computed", task.classes))
    writer = Writer(folder, made_by, overwrite=overwrite)
    done = writer.done
    todo = [source for source in sources if _name(source) not in done]
    # Of one volume the windows are shown, of several the volumes.
    alone = volumes is not None and len(todo) == 1
    for source in todo if alone else track(todo, len(todo), "predicting"):
        try:
            with warnings.catch_warnings():  # pydicom's, about values that are copied from the source
                warnings.filterwarnings("ignore", module=r"pydicom\..*")
                if volumes is not None:
                    rows = predict_case(
                        task,
                        volumes,
                        source,
                        folder,
                        formats=formats,
                        overlays=overlays,
                        flips=flips,
                        prompts=prompts,
                        half=half,
                        title=_name(source) if alone else None,
                    )
                else:
                    rows = predict_file(
                        task,
                        card.image_contract,
                        source,
                        folder,
                        formats=formats,
                        overlays=overlays,
                        batch_size=batch_size,
                    )
        except VesaliusError as error:
            if isinstance(error.__cause__, OSError) and not isinstance(error, UnreadableImage):
                raise  # the disk is full, not the image bad
            writer.fail(_name(source), str(error))
        else:
            writer.add(rows)
    failed = writer.close()
    if failed and failed == len(sources):
        raise VesaliusError(
            f"none of the {failed} inputs could be predicted", path=writer.failed, remedy="see the reasons"
        )
    counts = {"predicted": len(todo) - failed, "skipped": len(sources) - len(todo), "failed": failed}
    listed = f"; see {writer.failed}" if failed else ""
    Console(soft_wrap=True).print(
        f"{folder}: {counts['predicted']} predicted, {counts['skipped']} there already, {failed} failed{listed}",
        highlight=False,
    )
    return counts


def _load(run: Path, trunk: str | None) -> tuple[Any, Card]:
    """An adapted network and its card, of images or of volumes."""
    return load_volume_task(run, trunk=trunk) if reads_volumes(str(run)) else load_task(run, trunk=trunk)


def _name(source: Input | Case) -> str:
    """What scores.csv calls an input."""
    return source.name if isinstance(source, Case) else str(source.path)


def _task_of(folder: RunFolder, protocol: str, trunk: str | None) -> tuple[Any, Card]:
    """The adapted network to score, or None for a protocol on features; and the card, where there is one."""
    part = Card.load(folder.path / "card.json").part if folder.weights.is_file() else None
    if protocol in ("linear_probe", "knn"):
        return None, Card("", "backbone", {}, InputContract())
    if part in TASKS:
        task, card = _load(folder.path, trunk)
        return task.to(_device()), card
    if part is not None and reads_volumes(str(folder.path)):
        raise ConfigError(f"{folder.path} is a {part} of volumes", remedy="adapt it to a segmentation first")
    if protocol == "auto" and part is not None:
        raise ConfigError(f"{folder.path} is a {part}", remedy="score its features: --protocol linear_probe or knn")
    raise VesaliusError("holds no finished run", path=folder.path, remedy="finish it with --resume")


def _probe(
    run: str | Path,
    table: pl.DataFrame,
    rows: pl.DataFrame,
    kind: str,
    names: tuple[str, ...],
    split: str,
    fraction: float,
    shots: int | None,
    seed: int,
    batch_size: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score frozen features by a classifier on those of the training images."""
    torch.manual_seed(seed)  # of a random backbone
    encoder, card = open_backbone(str(run))
    encoder.to(_device()).freeze()

    train_rows, val_rows = (select(table, split=part, task="classification") for part in ("train", "val"))
    if train_rows.is_empty():
        raise VesaliusError("the table has no labelled training images", remedy="index them with a training split")
    several = is_multilabel(table, names)

    def read(part: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features; class indices, or labels of 0 and 1; and which classes were looked for."""
        images = labelled(part, card.image_contract, task="classification", classes=names, multilabel=several)
        labels, annotated = images.targets()
        return features(encoder, images, batch_size=batch_size), labels, annotated

    few = few_labels(train_rows, fraction=fraction, shots=shots, seed=seed, classes=names)
    (train, labels, annotated), (test, truth, looked_for) = read(few), read(rows)
    use_val = kind != "knn" and split != "val" and not val_rows.is_empty()
    val = read(val_rows) if use_val else None
    method: Callable[..., np.ndarray] = knn if kind == "knn" else partial(linear_probe, seed=seed)
    if several:
        probabilities = each_class(method, train, labels > 0, annotated, test, val=val)
        return score_labels(
            lambda p, y, known: multilabel(p, y, classes=names, annotated=known),
            probabilities,
            truth,
            looked_for,
            names,
        )
    options = {} if val is None else {"val": val[:2]}
    probabilities = method(train, labels, test, classes=len(names), **options)
    return score_classes(lambda p, y: classification(p, y, classes=names), probabilities, truth, names)


def _check_leakage(folder: RunFolder, rows: pl.DataFrame, split: str) -> dict[str, int]:
    """How many of the rows' patients were seen before.

    Raises:
        VesaliusError: the run was trained on some (or chosen by some, of a test).
    """
    seen, keys = read_seen(folder), set(patient_keys(rows))
    learned = seen["train"] | (seen["val"] if split == "test" else set())
    if split != "train" and keys & learned:
        raise VesaliusError(
            f"{len(keys & learned)} of the {len(keys)} {split} patients are among those that the run learned from",
            path=folder.path,
            remedy="score other patients, or train again with this split",
        )
    return {"run": len(keys & learned), "backbone": len(keys & seen["backbone"])}


def _labelled_classes(task: LanguageSegmentation, rows: pl.DataFrame) -> list[str]:
    """Those of a Universal Model's classes that some case is annotated for."""
    named, _ = task.table.translate(rows)
    known = np.logical_or.reduce([task.table.labelled(names) for names in named["annotated"].to_list()])
    return [name for name, is_one in zip(task.table.names, known, strict=True) if is_one]


def _same_classes(table: pl.DataFrame, task: str, card: Card) -> tuple[str, ...]:
    """The run's classes, if the table knows any of them."""
    known = class_names(table, task)
    if card.classes and not set(card.classes) & set(known):
        raise ConfigError(
            f"the run tells {', '.join(card.classes)}, the table has {', '.join(known)}",
            remedy="index the masks or labels under the run's names",
        )
    return card.classes


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
