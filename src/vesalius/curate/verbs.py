"""The annotation project on the command line: ``vesalius curate atlas init``, ``step``, ``status`` and so on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.table import Table

from vesalius.curate.predictors import Predictor
from vesalius.curate.project import CASES, SUMMARY, Atlas, new_folder
from vesalius.curate.records import Settings
from vesalius.curate.steps import Engine, experience, run_step, write_queue
from vesalius.data.class_tables import ClassTable
from vesalius.data.index import index
from vesalius.data.table import load_table
from vesalius.errors import ConfigError


def init(
    atlas: str,
    *,
    volumes: str,
    predictors: Sequence[str],
    classes: str | None = None,
    targets: Sequence[str] = (),
    settings: str | None = None,
    group: str | None = None,
) -> int:
    """Start an annotation project: which volumes, which structures, who proposes.

    Args:
        atlas: the project's folder.
        volumes: a folder of NIfTI files or DICOM series, or a table of `vesalius index --volumes`. Masks that come with
            a data set stay: nobody is asked about them again.
        predictors: a YAML file each: a run, a command that writes NIfTI, or a folder of masks.
        classes: the class table (classes.yaml); by default the Universal Model's 32 classes of abdominal CT.
        targets: the classes to map, rank and review; all by default.
        settings: YAML with thresholds, weights, minutes, order, stop_gain.
        group: regular expression that finds the patient in a path, so that a patient's volumes share a split.
    """
    folder, table = new_folder(atlas), ClassTable.load(classes)
    members = [Predictor.load(path, table) for path in predictors]
    twice = [name for name, count in Counter(one.name for one in members).items() if count > 1]
    if twice:
        raise ConfigError(f"two predictors are called {twice[0]!r}", remedy="rename a file, or give it a name")
    rows = (
        load_table(volumes)
        if Path(volumes).suffix == ".parquet"
        else index(volumes, folder / CASES, volumes=True, group=group)
    )
    made = Atlas.create(
        folder,
        rows,
        classes=table,
        predictors={one.name: one.to_dict() for one in members},
        targets=[table.resolve(name) or name for name in targets],
        settings=Settings.from_dict(yaml.safe_load(Path(settings).read_text("utf-8")) or {}) if settings else None,
    )
    print(f"{atlas}: {len(made.cases())} cases, {len(made.targets)} structures, {len(members)} predictors")
    print(f"next: vesalius curate atlas step {atlas}")
    return 0


def step(
    atlas: str,
    *,
    engine: Engine = "processes",
    workers: int = 1,
    simulate: str | None = None,
    minutes: float | None = None,
    error: float = 0.0,
    seed: int = 0,
) -> int:
    """Let every predictor propose, map where they disagree, and rank what to review; what is done stays.

    Args:
        atlas: the project's folder.
        engine: processes of this machine, or ray (needs vesalius[ray]).
        workers: that share the cases.
        simulate: masks (a folder, as of a predictor) of a simulated annotator, who then reviews from the queue's top.
        minutes: of the simulated annotator; by default until the queue is empty.
        error: share of the voxels at the surface that the simulated annotator gets wrong.
        seed: of the simulated annotator.
    """
    project = Atlas.open(atlas)
    report = run_step(project, engine=engine, workers=workers)
    print("\n".join(report.lines()))
    if simulate is not None:
        from vesalius.curate.simulate import Annotator, annotate

        someone = Annotator(simulate, error=error, seed=seed)
        done = annotate(project, someone, minutes=minutes)
        write_queue(project)
        print(f"simulated annotator: {len(done)} reviews in {sum(one.seconds for one in done) / 60:.1f} minutes")
    _say(project)
    return 1 if report.failed else 0


def status(atlas: str) -> int:
    """What is done, what waits, and what it is expected to cost.

    Args:
        atlas: the project's folder.
    """
    project = Atlas.open(atlas)
    cases = project.cases()
    table = Table("predictor", "cases", "seconds a case", title=f"{atlas}: {len(cases)} cases, round {project.round()}")
    for name in project.predictors:
        done = list(filter(None, (project.done(name, case) for case in cases)))
        seconds = sum(one["seconds"] for one in done) / max(len(done), 1)
        table.add_row(name, f"{len(done)} of {len(cases)}", f"{seconds:.2f}")
    mapped = sum((project.map_folder(case) / SUMMARY).is_file() for case in cases)
    table.add_row("maps", f"{mapped} of {len(cases)}", "")
    Console().print(table)
    _say(project)
    return 0


def _say(atlas: Atlas) -> None:
    """Where the queue stands."""
    queue, reviews = atlas.queue(), atlas.all_reviews()
    states = Counter(item.state for item in queue)
    waiting = [item for item in queue if item.state == "open"]
    minutes, share = experience(atlas)
    spent = sum(one.seconds for one in reviews) / 60
    print(f"reviewed: {states['done']} of {len(queue)} structures; {states['cannot_tell']} wait for a second reader")
    print(f"spent: {spent:.1f} minutes on {len(reviews)} reviews by {len({one.who for one in reviews})} readers")
    cost, gain = sum(minutes(item.mm3) for item in waiting), sum(share * item.mm3 for item in waiting) / 1000
    print(f"waiting: {len(waiting)} structures, about {cost:.0f} minutes, expected to change {gain:.1f} ml")
    if waiting:
        first = waiting[0]
        print(f"first: {first.structure} of {first.case} ({first.mm3 / 1000:.1f} ml marked)")


def import_(
    atlas: str,
    files: Sequence[str],
    *,
    who: str,
    case: str | None = None,
    structure: str | None = None,
    reader: Literal["first", "second"] = "first",
    comment: str = "",
) -> int:
    """Take masks that were edited in another program (3D Slicer, ITK-SNAP) as reviews: NIfTI, or DICOM-SEG.

    A file is named CASE.nii.gz (a label map of the project's classes), CASE_STRUCTURE.nii.gz, or lies as
    CASE/STRUCTURE.nii.gz; other names need `case` (and `structure`). Structures whose mask is as it was are accepted.

    Args:
        atlas: the project's folder.
        files: the files, or folders of them.
        who: the reader's name or initials.
        case: that the files belong to, where their names do not say.
        structure: that they hold, where their names do not say.
        reader: first or second.
        comment: kept with the reviews.
    """
    from vesalius.curate.imports import import_masks

    project = Atlas.open(atlas)
    saved = import_masks(
        project, [Path(file) for file in files], who=who, case=case, structure=structure, reader=reader, comment=comment
    )
    for one in saved:
        print(f"{one.case}: {one.structure} version {one.version}, {one.verdict}, {one.changed} voxels changed")
    return 0


def next_(
    atlas: str,
    *,
    workers: int = 0,
    force: bool = False,
) -> int:
    """Train the runs among the predictors again on what was reviewed, for the next round; or say that it may stop.

    Args:
        atlas: the project's folder.
        workers: processes that load data.
        force: train even if the queue is expected to gain too little.
    """
    from vesalius.curate.rounds import next_round

    outcome = next_round(Atlas.open(atlas), workers=workers, force=force)
    print(outcome.text)
    return 0


def assemble(
    atlas: str,
    *,
    out: str,
    dicom_seg: bool = False,
    trust: str | None = None,
    licence: str = "",
) -> int:
    """Put the masks together into a dataset: NIfTI, dataset.json, index, report, datasheet, checksums.

    Args:
        atlas: the project's folder.
        out: the dataset's folder.
        dicom_seg: write a DICOM segmentation of each case that is a DICOM series, too; it names the patient as that
            does.
        trust: YAML with the order of original, revised and proposal, by data set and structure.
        licence: of the masks, for the datasheet.
    """
    from vesalius.curate.release import release

    done: dict[str, Any] = release(Atlas.open(atlas), out, dicom_seg=dicom_seg, trust=trust, licence=licence)
    print(
        f"release {done['release']}: {done['cases']} cases, {done['conflicts']} conflicts, {done['findings']} findings"
    )
    print(f"page: {Path(out, 'report.html')}")
    return 0
