"""What a release says of itself: a quality report for the browser, and a datasheet for whoever uses the masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vesalius import __version__
from vesalius.curate.assembly import SOURCES
from vesalius.curate.checks import Finding
from vesalius.curate.masks import read_values
from vesalius.curate.project import Atlas
from vesalius.images import read_volume
from vesalius.images.overlays import overlay
from vesalius.report.html import Block, Card, Cards, Details, Gallery, Heading, Page, Table, Text
from vesalius.tasks.volume_segmentation import middle_slices

SHOWN = 40
"""Findings and conflicts in the report; the CSV files have all."""
PICTURES = 6


@dataclass(frozen=True)
class Facts:
    """Counts for the report and the datasheet.

    Args:
        cases: of the release.
        structures: rows of (structure, originals, revised, proposals, least, median, most ml).
        conflicts: rows of (kept, lost, cases, ml).
        findings: by check.
        readers: rows of (who, reader, reviews, minutes).
        agreement: rows of (structure, cases that two readers drew, mean Dice between them).
        minutes: spent on reviews.
        revised: masks that a reader accepted or corrected.
        masks: altogether.
        waiting: structures that the queue still holds.
        models: rows of (predictor, what it is, masks that it took part in).
    """

    cases: int
    structures: list[tuple[Any, ...]]
    conflicts: list[tuple[Any, ...]]
    findings: dict[str, int]
    readers: list[tuple[Any, ...]]
    agreement: list[tuple[Any, ...]]
    minutes: float
    revised: int
    masks: int
    waiting: int
    models: list[tuple[Any, ...]]


def facts(
    atlas: Atlas,
    provenance: Sequence[Mapping[str, Any]],
    conflicts: Sequence[Mapping[str, Any]],
    findings: Sequence[Finding],
) -> Facts:
    """Count what a release holds.

    Args:
        atlas: the project.
        provenance: a row a mask.  conflicts: a row each.
        findings: of quality control.
    """
    structures: list[tuple[Any, ...]] = []
    for name in atlas.classes.names:
        rows = [row for row in provenance if row["structure"] == name]
        if rows:
            counts = Counter(row["source"] for row in rows)
            ml = [row["ml"] for row in rows if row["ml"] > 0] or [float("nan")]
            volumes = (float(min(ml)), float(np.median(ml)), float(max(ml)))
            structures.append((name, *(counts[source] for source in SOURCES), *volumes))
    pairs: dict[tuple[str, str], list[float]] = {}
    for row in conflicts:
        pairs.setdefault((row["kept"], row["lost"]), []).append(row["mm3"] / 1000)
    reviews = atlas.all_reviews()
    work: dict[tuple[str, str], list[float]] = {}
    for one in reviews:
        work.setdefault((one.who, one.reader), []).append(one.seconds / 60)
    took_part = Counter(name for row in provenance for name in row["models"].split())
    kinds = {
        name: next(key for key in ("run", "command", "masks") if key in one) for name, one in atlas.predictors.items()
    }
    return Facts(
        cases=len({row["case"] for row in provenance}),
        structures=structures,
        conflicts=sorted(((*pair, len(ml), sum(ml)) for pair, ml in pairs.items()), key=lambda row: -row[3]),
        findings=dict(Counter(one.check for one in findings)),
        readers=[(*who, len(minutes), sum(minutes)) for who, minutes in sorted(work.items())],
        agreement=_agreement(atlas),
        minutes=sum(one.seconds for one in reviews) / 60,
        revised=sum(row["source"] == "revised" for row in provenance),
        masks=len(provenance),
        waiting=sum(item.state != "done" for item in atlas.queue()),
        models=[(name, kinds[name], took_part[name]) for name in atlas.predictors],
    )


def _agreement(atlas: Atlas) -> list[tuple[Any, ...]]:
    """Mean Dice between a structure's last masks of the first and of the second reader."""
    scores: dict[str, list[float]] = {}
    for case, structure in dict.fromkeys((one.case, one.structure) for one in atlas.all_reviews()):
        last = {one.reader: one.version for one in atlas.reviews(case, structure) if one.mask}
        if len(last) == 2:
            first, second = (atlas.version_mask(case, structure, version) for version in last.values())
            total = int(first.sum()) + int(second.sum())
            scores.setdefault(structure, []).append(2 * int((first & second).sum()) / total if total else 1.0)
    return [(name, len(values), float(np.mean(values))) for name, values in scores.items()]


def report(
    atlas: Atlas, number: int, facts: Facts, findings: Sequence[Finding], pictures: Sequence[tuple[np.ndarray, str]]
) -> Page:
    """The quality report.

    Args:
        atlas: the project.
        number: of the release.
        facts: of `facts`.
        findings: of quality control.
        pictures: of `pictures`.
    """
    name = atlas.path.resolve().name
    odd = sum(facts.findings.values())
    share = 100 * facts.revised / max(facts.masks, 1)
    cards = [
        Card("Cases", f"{facts.cases}", f"{len(facts.structures)} structures, {facts.masks} masks"),
        Card("Reviewed", f"{facts.revised}", f"{share:.1f} % of the masks"),
        Card("Annotator time", f"{facts.minutes:.0f} min", f"{len(facts.readers)} readers"),
        Card("Conflicts", f"{sum(row[2] for row in facts.conflicts)}", "voxels that two structures claimed"),
        Card("Findings", f"{odd}", "of quality control"),
    ]
    columns = ["structure", "public", "reviewed", "model", "least ml", "median ml", "most ml"]
    sections: list[Block] = [
        Cards(cards),
        Heading("Structures"),
        Table(columns, facts.structures, "Masks by source, and their volumes where they are not empty.", digits=1),
        Heading("Readers"),
        Table(["who", "reader", "reviews", "minutes"], facts.readers, "Work on reviews.", digits=1),
        Table(["structure", "cases", "Dice"], facts.agreement, "Agreement of the first with the second reader.")
        if facts.agreement
        else Text("No mask was drawn by two readers."),
        Heading("Conflicts"),
        Table(["kept", "lost", "cases", "ml"], facts.conflicts[:SHOWN], "Who kept voxels that two claimed.", digits=2)
        if facts.conflicts
        else Text("No voxel was claimed by two structures."),
        Heading("Findings"),
        Text(", ".join(f"{check}: {count}" for check, count in facts.findings.items()) or "Nothing odd was found."),
    ]
    if findings:
        rows = [(one.case, one.structure, one.check, one.text) for one in findings[:SHOWN]]
        table = Table(["case", "structure", "check", "finding"], rows)
        sections.append(Details(f"The first {len(rows)} of {len(findings)}; findings.csv has all", [table]))
    sections += [
        Heading("Models"),
        Table(["predictor", "kind", "masks"], facts.models, "Who proposed, and in how many of the masks."),
    ]
    if pictures:
        sections += [Heading("Cases to look at"), Gallery(pictures, "Those that needed most review.", tile=14)]
    subtitle = f"release {number}, round {atlas.round()}, {facts.waiting} structures still wait in the queue"
    return Page(f"{name}: quality report", subtitle, sections, f"Vesalius {__version__}")


def pictures(
    atlas: Atlas, out: Path, rows: Sequence[Mapping[str, Any]], provenance: Sequence[Mapping[str, Any]]
) -> list[tuple[np.ndarray, str]]:
    """Slices of the cases with most reviewed masks, with the released masks over them."""
    reviewed = Counter(row["case"] for row in provenance if row["source"] == "revised")
    by_case = {Path(row["path"]).name.removesuffix(".nii.gz"): row for row in rows}
    found = []
    for case in sorted(by_case, key=lambda one: (-reviewed[one], one))[:PICTURES]:
        row = by_case[case]
        image = read_volume(row["path"], 0 if len(row["channels"]) > 1 else None)
        slices = middle_slices(image, read_values(Path(row["mask"])).astype(np.uint8))
        for view in ("axial", "coronal"):
            picture, marks = slices[view]
            text = f"{case}, {view}: {reviewed[case]} masks reviewed"
            found.append((overlay(picture, marks, classes=atlas.classes.names), text))
    return found


def datasheet(atlas: Atlas, number: int, facts: Facts, *, licence: str = "") -> str:
    """Markdown: what was annotated by whom, with which models, and what is not known (after Gebru et al., 2021)."""
    name = atlas.path.resolve().name
    public, reviewed, model = (sum(row[k] for row in facts.structures) for k in (1, 2, 3))
    readers = "\n".join(
        f"- {who}, {reader} reader: {count} reviews, {minutes:.0f} minutes"
        for who, reader, count, minutes in facts.readers
    )
    agreement = "\n".join(f"- {one}: Dice {dice:.3f} over {count} cases" for one, count, dice in facts.agreement)
    models = "\n".join(f"- {one} ({kind}): took part in {count} masks" for one, kind, count in facts.models)
    structures = "\n".join(f"| {row[0]} | {row[1]} | {row[2]} | {row[3]} | {row[5]:.1f} |" for row in facts.structures)
    odd = ", ".join(f"{check} {count}" for check, count in facts.findings.items()) or "none"
    maps = atlas.settings.attention
    return f"""# {name}, release {number}

Made on {datetime.now(UTC).date()} with Vesalius {__version__}, round {atlas.round()} of the project.

## What there is
{facts.cases} volumes with {facts.masks} masks of {len(facts.structures)} structures, in the volumes' own voxels.
{public} masks came with public data sets, {reviewed} were accepted or corrected by a reader, {model} are what models
propose and **nobody has looked at them one by one**: they were not marked as disputed, or still wait
({facts.waiting} structures do). `provenance.csv` says which is which.

| structure | public | reviewed | model | median ml |
|---|---|---|---|---|
{structures}

## Who annotated
{readers or "Nobody yet."}

Agreement of two readers:
{agreement or "- no mask was drawn by two readers"}

## Which models proposed
{models}

A structure was put before a reader where the models' probabilities differ (standard deviation above
{maps.inconsistency}), where they are unsure (mean -p ln p above {maps.uncertainty}), or where two structures overlap.

## Labels
Value i + 1 of a label map is the i-th class of `dataset.json`. A tumour's voxels have the tumour's value and belong to
its organ, too. Voxels that two other structures claim are in `conflicts.csv`, with who kept them.

## Splits
By patient; patients have numbers here that say nothing about them. `index.parquet` and `dataset.json` have the splits.

## Quality control
Findings: {odd} (`findings.csv`). A finding changes nothing: it says where to look.

## Licence
{licence or "Not stated. The volumes keep the licence that they came with."}
"""
