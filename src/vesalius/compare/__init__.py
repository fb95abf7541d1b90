"""Few-shot comparison of ways to adapt backbones, with the controls that say what explains a gain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vesalius.errors import ConfigError, VesaliusError, nearest

TASKS = ("classification", "segmentation")


def compare_methods(
    *,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    backbones: Sequence[str] = (),
    methods: Sequence[str] = (),
    shots: Sequence[int | str] = (1, 5, 10),
    draws: int = 5,
    seeds: int = 3,
    controls: bool = True,
    task: Literal["classification", "segmentation"] = "classification",
    classes: Sequence[str] = (),
    lrs: Sequence[float | str] = (5e-4, 2e-3, 8e-3, 3e-2),
    steps: int = 50,
    batch_size: int = 8,
    views: int = 8,
    image_size: int | None = None,
    unit: Literal["patient", "study", "image"] = "patient",
    images: Literal["one", "all"] = "one",
    lists: str | Path | None = None,
    as_published: bool = False,
    base: str = "shapes:sam_tiny",
    workers: int = 2,
) -> dict[str, Any]:
    """Compare methods on backbones, with few labelled images, over many draws of them.

    One cell is a backbone, an arm (a method with settings, or a control), a number of shots, a draw and a seed:

    1. The support set is drawn from the training split (`vesalius.data.draws.draw`); validation and test images are of
       other patients. Test patients that a run of ours was trained on are refused, those that its backbone saw are
       reported.
    2. Each of its images has `views` augmented versions, drawn once for each draw and seed, the same for all arms; so
       the features of a frozen trunk are computed once, exactly.
    3. All arms train `steps` steps with AdamW from one initial head, with every learning rate of one grid. The one with
       the best validation score (then loss), with seed 0, is used for all seeds of the draw.
    4. The test images are scored once.

    Tables give mean and standard error over draws (seeds averaged first), and the differences to linear and of EPT and
    VPT to their controls, paired over draws, with p-values that Holm's method adjusts.

    A cell that was trained is not trained again: an interrupted comparison goes on where it stopped, and backbones,
    methods, shots, draws and seeds can be added to the same folder.

    A table of volumes is compared in another way (`vesalius.compare.volumes`): methods are sam3d, masam, lora_sam,
    transunet, swin_unetr and dynunet, with METHOD:SETTING=VALUE, too; each cell is a run of ``adapt`` that is scored by
    ``evaluate``. Of the options there are data, out, base, methods, shots (or all), seeds, classes, lrs and steps.

    Args:
        data: one or several tables (.parquet) made by `index`, with train, val and test images.
        out: folder for results.json, report.html, table.md and the cells.
        backbones: of images, as of `adapt`, separated by spaces or commas.
        methods: METHOD or METHOD:SETTING=VALUE, separated by spaces or commas; all by default. linear is always there.
        shots: labelled patients of each class; of volumes, labelled patients, or all.
        draws: support sets of each number of shots.
        seeds: trainings of each draw: augmentation, batches, initial weights.
        controls: add the frozen and collapsed controls of EPT and VPT.
        task: classification, or segmentation with a linear head.
        classes: which ones, in this order; by default all of the table.
        lrs: the grid of learning rates, for all arms.
        steps: of every training.
        batch_size: images a step, at most.
        views: augmented versions of each training image.
        image_size: pixels of the side; by default the backbone's.
        unit: what a shot is: patient, study or image.
        images: what a unit gives: one image, or all of the class.
        lists: folder of MedFMC's published draws, in place of our own.
        as_published: the lists with their leaks, and also scores as the published code counts.
        base: of volumes, the SAM that is adapted, as of ``adapt masam``.
        workers: processes, one thread each.

    Returns:
        What results.json holds: ``tables``, ``cells``, ``setup`` and more (see `vesalius.compare.tables.gather`).

    Raises:
        ConfigError: an unknown method, setting, task or class; numbers below 1.
        VesaliusError: a split is missing, patients of the test were learned from, or `out` holds another comparison.

    It takes minutes; a name that is not known is told at once:

    >>> compare_methods(data="us.parquet", backbones=["random:usfm"], methods=["lorra"], out="compare/us")
    Traceback (most recent call last):
    ...
    vesalius.errors.ConfigError: unknown method 'lorra'; did you mean 'lora'? known: adapter, bitfit, ...
    """
    # Imported here, because torch and matplotlib are not needed to show the options.
    from vesalius.adapt.labels import class_names
    from vesalius.compare.arms import DEFAULT, read_arms, split_words
    from vesalius.compare.plan import Setup
    from vesalius.compare.run import run
    from vesalius.compare.sets import Study, rows_for
    from vesalius.data.datasets import is_multilabel
    from vesalius.data.table import load_table
    from vesalius.training.provenance import data_hash, split_hash

    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}", remedy=nearest(task, TASKS))
    if as_published and lists is None:
        raise ConfigError("as_published without published lists", remedy="name their folder with --lists")
    paths = [data] if isinstance(data, str | Path) else list(data)
    if not backbones:
        grid = _numbers(lrs, float, "lrs")
        return _volumes(paths, Path(out), base, methods, shots, seeds=seeds, classes=classes, lrs=grid, steps=steps)
    arms = read_arms(methods or DEFAULT, controls=controls)
    specs = list(dict.fromkeys(split_words([str(spec) for spec in backbones])))
    counts, grid = _numbers(shots, int, "shots"), _numbers(lrs, float, "lrs")
    if min(draws, seeds, steps, batch_size, views, workers, *counts) < 1 or min(grid) <= 0 or not specs:
        raise ConfigError("nothing to compare, or a number below 1", remedy="see vesalius compare --help")
    table = load_table(paths)
    names = class_names(table, task, classes)
    rows = rows_for(table, task, names)
    if rows.is_empty():
        raise VesaliusError(f"the table has no images for {task}", remedy="index them with labels or masks")
    setup = Setup(
        task=task,
        classes=names,
        multilabel=task == "classification" and is_multilabel(rows, names),
        lrs=tuple(grid),
        steps=steps,
        batch_size=batch_size,
        views=views,
        image_size=image_size,
        unit=unit,
        images=images,
        published=lists is not None,
        as_published=as_published,
        data_hash=data_hash(rows),
        split_hash=split_hash(rows),
    )
    results = run(
        Study(rows, setup, None if lists is None else str(lists)),
        data=[str(path) for path in paths],
        out=Path(out),
        backbones=specs,
        arms=arms,
        shots=counts,
        draws=draws,
        seeds=seeds,
        workers=workers,
    )
    print(f"written: {Path(out) / 'report.html'}")
    return results


def _volumes(
    data: Sequence[str | Path],
    out: Path,
    base: str,
    methods: Sequence[str],
    shots: Sequence[int | str],
    *,
    seeds: int,
    classes: Sequence[str],
    lrs: Sequence[float],
    steps: int,
) -> dict[str, Any]:
    """The comparison of a table of volumes."""
    from vesalius.adapt.labels import class_names
    from vesalius.compare.volumes import METHODS, VolumeSetup, read_volume_arms, run_volumes
    from vesalius.data.table import load_table, select
    from vesalius.training.provenance import data_hash, split_hash

    rows = select(load_table(data), task="segmentation")
    if rows.is_empty() or any(size is None or len(size) != 3 for size in rows["size"].to_list()):
        raise ConfigError("no backbones for a table of images", remedy="name them with --backbones")
    lacking = sorted({"train", "val", "test"} - set(rows["split"].to_list()))
    if lacking:
        raise VesaliusError(
            f"the table has no volumes with masks in {', '.join(lacking)}", remedy="index with --resplit"
        )
    words = [word for shot in shots for word in str(shot).split(",") if word.strip()]
    counts = [*_numbers([word for word in words if word != "all"], int, "shots"), *([None] if "all" in words else [])]
    if min(seeds, steps, *(count or 1 for count in counts)) < 1 or min(lrs) <= 0:
        raise ConfigError("nothing to compare, or a number below 1", remedy="see vesalius compare --help")
    names = class_names(rows, "segmentation", classes)
    arms = read_volume_arms(methods or [m for m in METHODS if m != "sam3d" or len(names) == 1], names)
    known = sorted({name for given in rows["channels"].to_list() for name in given or ()})
    ct = set(rows["modality"].to_list()) == {"CT"}
    setup = VolumeSetup(
        classes=names,
        channels=tuple(known) or ("CT" if ct else "image",),
        base=base,
        lrs=tuple(lrs),
        steps=steps,
        data_hash=data_hash(rows),
        split_hash=split_hash(rows),
    )
    results = run_volumes(setup, data=[str(path) for path in data], out=out, arms=arms, shots=counts, seeds=seeds)
    print(f"written: {out / 'report.html'}")
    return results


def _numbers(values: Sequence[Any], kind: type, what: str) -> list[Any]:
    """Ascending numbers of words that may hold several, separated by commas."""
    words = [word for value in values for word in str(value).split(",") if word.strip()]
    try:
        return sorted({kind(word) for word in words})
    except ValueError as error:
        raise ConfigError(f"{what} cannot be {' '.join(words)!r}", remedy="give numbers, such as 1,5") from error
