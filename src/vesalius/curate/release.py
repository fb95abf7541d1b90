"""A release: the masks of an annotation project put together into a dataset that others can load, check and cite.

```
dataset/ imagesTr, labelsTr, imagesTs, labelsTs    NIfTI of the training and validation, and of the test cases
         segmentations/                            DICOM-SEG of the cases that are DICOM series, if asked for
         dataset.json, index.parquet               for MONAI and nnU-Net, for Vesalius; splits by patient
         provenance.csv                            of every mask: source, reader, version, round, models, ml
         conflicts.csv, findings.csv               voxels that two structures claimed; what quality control found
         report.html, datasheet.md                 for people
         SHA256SUMS, release.json                  what was released; the last file to be written
```
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from vesalius import __version__
from vesalius.curate import datasheet
from vesalius.curate.assembly import Assembled, Conflict, Source, Trust
from vesalius.curate.assembly import assemble as put_together
from vesalius.curate.checks import Finding, check_case, odd_volumes
from vesalius.curate.masks import read_values, write_values, write_volume
from vesalius.curate.project import AVERAGE, Atlas
from vesalius.data.class_tables import Sides
from vesalius.data.progress import track
from vesalius.data.table import make_table, save_table
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.prepare import prepare
from vesalius.data.volumes.transforms import Grid, grid_of
from vesalius.errors import ConfigError, VesaliusError
from vesalius.files import output_folder, sha256, write_text
from vesalius.images import Image, write_mask

Mask = NDArray[np.bool_]
RECORD, SUMS = "release.json", "SHA256SUMS"


@dataclass
class Released:
    """What a release holds, for its report and its records.

    Args:
        number: of the release.
        rows: of the index.
        provenance: a mask each.
        conflicts, findings: a dictionary each.
        volumes: case -> structure -> ml.
    """

    number: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    volumes: dict[str, dict[str, float]] = field(default_factory=dict)


def release(
    atlas: Atlas,
    out: str | Path,
    *,
    dicom_seg: bool = False,
    trust: str | Path | None = None,
    licence: str = "",
) -> dict[str, Any]:
    """Put the masks of a project together into a dataset.

    Args:
        atlas: the project, all of whose cases have proposals.
        out: the dataset's folder; an interrupted release is made again in it, a finished one is never changed.
        dicom_seg: write DICOM segmentations of DICOM series, which name the patient as the series do.
        trust: YAML: ``default: [original, revised, proposal]`` and ``datasets: {NAME: {STRUCTURE: [...]}}``.
        licence: of the masks.

    Returns:
        What ``release.json`` says: number, counts, checksum.

    Raises:
        VesaliusError: a case has no mask at all, or `out` holds a release.
    """
    out = output_folder(out)
    if (out / RECORD).exists():
        raise VesaliusError("holds a release, which does not change", path=out, remedy="choose another --out")
    rules = _trust(trust)
    done = Released(number=len(list(atlas.path.glob("releases/*.json"))) + 1)
    patients: dict[str, str] = {}
    cases = atlas.cases()
    for case in track(cases, len(cases), "assembling"):
        _release_case(atlas, case, out, done, patients, rules, dicom_seg)
    done.findings += odd_volumes(done.volumes)
    name = atlas.path.resolve().name
    save_table(make_table({**row, "dataset": name} for row in done.rows), out / "index.parquet")
    write_text(out / "dataset.json", json.dumps(_decathlon(atlas, name, done.rows), indent=1) + "\n")
    for file, rows, columns in (
        ("provenance.csv", done.provenance, None),
        ("conflicts.csv", done.conflicts, ["case", *Conflict.__dataclass_fields__]),
        ("findings.csv", [asdict(one) for one in done.findings], list(Finding.__dataclass_fields__)),
    ):
        write_text(out / file, _csv(rows, columns))
    summary = datasheet.facts(atlas, done.provenance, done.conflicts, done.findings)
    write_text(out / "datasheet.md", datasheet.datasheet(atlas, done.number, summary, licence=licence))
    pictures = datasheet.pictures(atlas, out, done.rows, done.provenance)
    datasheet.report(atlas, done.number, summary, done.findings, pictures).save(out / "report.html")
    return _finish(atlas, out, done)


def sources(atlas: Atlas, case: str, structure: str, grid: Grid, drawn: Mapping[str, Mask]) -> dict[Source, Mask]:
    """The masks that there are of a structure, on axes that go right, forward and up.

    Args:
        atlas, case, structure: which.
        grid: of the image.
        drawn: the masks that came with the data set, by structure, on these axes.
    """
    found: dict[Source, Mask] = {}
    if structure in drawn:
        found["original"] = drawn[structure]
    if any(review.mask for review in atlas.reviews(case, structure)):
        found["revised"] = grid.apply(atlas.current(case, structure)[1], labels=True)
    if path := atlas.map_path(case, AVERAGE, structure):
        found["proposal"] = grid.apply(read_values(path) > 0, labels=True)
    return found


def assembled(
    atlas: Atlas, case: str, image: Image, trust: Trust | None = None
) -> tuple[Assembled, Grid, dict[str, Mask]]:
    """A case put together, on axes that go right, forward and up; its grid, and the masks that its data set drew.

    Raises:
        VesaliusError: no structure has a mask.
    """
    grid = grid_of(image, orientation="RAS", spacing=None)
    drawn = originals(atlas, case, image)
    done = put_together(
        lambda structure: sources(atlas, case, structure, grid, drawn),
        atlas.classes,
        dataset=atlas.row(case)["dataset"],
        trust=trust,
        spacing=grid.spacing,
    )
    return done, grid, drawn


def originals(atlas: Atlas, case: str, image: Image) -> dict[str, Mask]:
    """The masks that came with the data set, ``[D, H, W]`` each on axes that go right, forward and up."""
    table = atlas.classes
    if not atlas.annotated(case):
        return {}
    rows, _ = table.translate(make_table([atlas.row(case)]))
    contract = VolumeContract(image.channels)
    mask = prepare(rows.to_dicts()[0], contract, classes=table.sources, relabel=Sides(table)).mask
    assert mask is not None
    labelled = table.labelled(rows["annotated"].to_list()[0])
    return {name: table.members[:, k][mask] for k, name in enumerate(table.names) if labelled[k]}


def _release_case(
    atlas: Atlas,
    case: str,
    out: Path,
    done: Released,
    patients: dict[str, str],
    trust: Trust,
    dicom_seg: bool,
) -> None:
    image, row, table = atlas.image(case), atlas.row(case), atlas.classes
    try:
        whole, grid, drawn = assembled(atlas, case, image, trust)
    except VesaliusError as error:
        raise VesaliusError(f"{case}: {error.what}", remedy=error.remedy) from error
    part = "Ts" if row["split"] == "test" else "Tr"
    labels = grid.invert(whole.labels)
    picture, mask = out / f"images{part}" / f"{case}.nii.gz", out / f"labels{part}" / f"{case}.nii.gz"
    write_volume(image.array if len(image.array) > 1 else image.array[0], image, picture)
    write_values(labels, image, mask)
    if dicom_seg and image.slices:
        write_mask(labels, image, out / "segmentations" / f"{case}.dcm", classes=table.names)

    def read(structure: str) -> Mask | None:
        chosen = whole.sources.get(structure)
        return None if chosen is None else sources(atlas, case, structure, grid, drawn)[chosen]

    findings, volumes = check_case(case, read, table, spacing=grid.spacing)
    done.findings += [one for one in findings if one.check != "missing" or one.structure in atlas.targets]
    done.volumes[case] = volumes
    done.conflicts += [{"case": case, **asdict(one)} for one in whole.conflicts]
    done.provenance += [
        _origin(atlas, case, structure, source, volumes.get(structure, float("nan")))
        for structure, source in whole.sources.items()
    ]
    known = row["patient"] or row["path"]
    done.rows.append(
        {
            "path": str(picture.resolve()),
            "mask": str(mask.resolve()),
            "patient": patients.setdefault(known, f"patient-{len(patients) + 1:05}"),
            "split": row["split"],
            "modality": row["modality"],
            "organ": row["organ"],
            "size": list(image.size),
            "spacing": None if image.spacing is None else list(image.spacing),
            "mask_classes": list(table.names),
            "annotated": list(whole.sources),
            "channels": row["channels"],
            "sha256": sha256(picture),
        }
    )


def _origin(atlas: Atlas, case: str, structure: str, source: Source, ml: float) -> dict[str, Any]:
    """Where a mask is from, in one row."""
    row: dict[str, Any] = {"case": case, "structure": structure, "source": source, "ml": round(ml, 4)}
    review = atlas.newest(case, structure) if source == "revised" else None
    for name in ("version", "verdict", "who", "reader", "when"):
        row[name] = "" if review is None else getattr(review, name)
    row["round"] = atlas.round() if review is None else review.round
    members = [name for name in atlas.predictors if structure in atlas.done(name, case).get("structures", ())]
    row["models"] = "" if source == "original" else " ".join(members)
    return row


def _decathlon(atlas: Atlas, name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``dataset.json`` as the Decathlon has it; MONAI reads the lists, nnU-Net the folders."""
    splits: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for row in rows:
        which = {"val": "validation", "test": "test"}.get(row["split"] or "", "training")
        places = (Path(row[key]).relative_to(Path(row[key]).parents[1]).as_posix() for key in ("path", "mask"))
        splits[which].append(dict(zip(("image", "label"), (f"./{place}" for place in places), strict=True)))
    channels = rows[0]["channels"] or [rows[0]["modality"] or "image"]
    return {
        "name": name,
        "description": f"made with vesalius curate atlas, {len(rows)} cases",
        "tensorImageSize": "3D",
        "modality": {str(number): channel for number, channel in enumerate(channels)},
        "labels": {str(value): label for value, label in enumerate(["background", *atlas.classes.names])},
        "numTraining": len(splits["training"]) + len(splits["validation"]),
        "numTest": len(splits["test"]),
        **splits,
    }


def _trust(path: str | Path | None) -> Trust:
    if path is None:
        return Trust()
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        return Trust(**{**values, **({"default": tuple(values["default"])} if "default" in values else {})})
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"{path} is no table of trust ({error})", remedy="give default and datasets") from error


def _csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None) -> str:
    rows, stream = list(rows), io.StringIO()
    writer = csv.DictWriter(stream, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _finish(atlas: Atlas, out: Path, done: Released) -> dict[str, Any]:
    """Checksums of everything, and the records, in the dataset and in the project."""
    for stray in out.rglob(".*-*.*"):  # of a release that was killed
        stray.unlink(missing_ok=True)
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name not in (SUMS, RECORD))
    lines = [f"{sha256(path)}  {path.relative_to(out).as_posix()}" for path in files]
    text = "\n".join(lines) + "\n"
    write_text(out / SUMS, text)
    record = {
        "release": done.number,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cases": len(done.rows),
        "masks": len(done.provenance),
        "reviewed": sum(row["source"] == "revised" for row in done.provenance),
        "conflicts": len(done.conflicts),
        "findings": len(done.findings),
        "round": atlas.round(),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "version": __version__,
    }
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
    write_text(atlas.path / "releases" / f"{done.number:04}.json", json.dumps(record, indent=1) + "\n")
    return record
