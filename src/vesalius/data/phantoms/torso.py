"""Torso CT and MR with truth: fifteen organs, tumours of a chosen contrast in four of them, and what looks like them.

A map of structures (`torso_anatomy`) is turned into Hounsfield units (typical values at 120 kV, with contrast medium in
the portal venous phase or without) or into spin-echo MR. Every patient has unevenness of the organs, the point spread,
thick slices that average what they cut (partial volume), and noise as reconstruction correlates it.

A look-alike is drawn as a tumour is, from the same distribution, but belongs to its organ in the labels: only somebody
who points at the right one can tell. That is what experiments with clicks and boxes need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl
from scipy.ndimage import gaussian_filter

from vesalius.data.phantoms.relaxation import Pulse
from vesalius.data.phantoms.solids import Field, Grid, acquire, middle
from vesalius.data.phantoms.torso_anatomy import NUMBER, STRUCTURES, torso
from vesalius.data.phantoms.torso_lesions import HOSTS, Lesion, check_lesions, grow, label_of
from vesalius.data.phantoms.volume_files import (
    check_collection,
    write_cases,
    write_dataset_json,
    write_nifti,
    write_series,
)
from vesalius.errors import ConfigError, nearest
from vesalius.files import atomic, output_folder

VIEW, CENTRE = (320.0, 370.0, 370.0), (0.0, -36.0, -10.0)
"""mm along (D, H, W) of a volume whose spacing is not given, and its middle."""
WINDOW = (50.0, 400.0)
PULSES = {"t1": Pulse(450, 8), "t2": Pulse(3200, 80)}
"""MR weightings."""


LABELS = (
    *dict.fromkeys(structure.label for structure in STRUCTURES.values() if structure.label),
    *(f"{organ} tumor" for organ in HOSTS),
)
"""Names of the label values 1, 2, ...."""


class TorsoVolume(TypedDict):
    """What `torso_volume` returns.

    ``images [1, D, H, W]`` float32, HU or MR from 0; ``channels`` ("ct",), ("t1",) or ("t2",); ``labels [D, H, W]``
    uint8, value i + 1 being ``LABELS[i]``; ``instances [D, H, W]`` uint8, which of ``lesions`` a voxel belongs to;
    ``spacing`` mm along (D, H, W); ``affine`` from (column, row, slice) to LPS mm.
    """

    images: np.ndarray
    channels: tuple[str, ...]
    labels: np.ndarray
    instances: np.ndarray
    lesions: list[Lesion]
    spacing: tuple[float, float, float]
    affine: np.ndarray


def torso_volume(
    seed: int,
    number: int = 1,
    *,
    size: int | Sequence[int] = (64, 128, 128),
    spacing: Sequence[float] = (),
    weighting: str = "ct",
    tumors: Sequence[str] = (),
    lookalikes: int = 0,
    contrast: float | None = None,
    radius: Sequence[float] = (),
    agent: float = 1.0,
    oblique: float = 0.0,
    noise: float | None = None,
    blur: float = 0.5,
) -> TorsoVolume:
    """One patient's torso; a function of (`seed`, `number`), the same anatomy on any grid.

    Args:
        seed, number: of the collection, and of the patient in it.
        size: voxels (D, H, W), or one number for all three.
        spacing: mm along (D, H, W); empty: so that the volume spans 320 x 370 x 370 mm.
        weighting: ct, t1 or t2.
        tumors: an organ (liver, kidney, pancreas, colon) for each tumour.
        lookalikes: how many of them in every organ that has a tumour.
        contrast: of tumours and look-alikes against their organ, in HU, or in percent in MR; None: as `HOSTS` says.
        radius: mm, from and to; empty: as `HOSTS` says.
        agent: contrast medium, 0 (none) to 1.
        oblique: degrees by which the volume is tilted in the patient.
        noise: standard deviation in HU, or in MR's units of about 0.3; None: 12 or 0.008.
        blur: standard deviation of the point spread, in voxels.

    Raises:
        ConfigError: an unknown weighting or organ, or an impossible size, spacing or radius.

    >>> ct = torso_volume(0, size=32, tumors=["liver"], lookalikes=1)
    >>> ct["images"].shape, ct["labels"].dtype.name, [(one.organ, one.tumor) for one in ct["lesions"]]
    ((1, 32, 32, 32), 'uint8', [('liver', True), ('liver', False)])
    """
    if weighting not in ("ct", *PULSES):
        raise ConfigError(f"unknown weighting {weighting!r}", remedy=nearest(weighting, ("ct", *PULSES)))
    check_lesions(tumors, radius)
    grid = replace(Grid.axial(size, spacing, view=VIEW, oblique=oblique), centre=CENTRE)
    fine, parts = grid.finer()
    patient = torso(fine, np.random.default_rng((seed, number, 1)))
    structures = patient.canvas.labels
    instances, lesions = grow(patient, tumors, lookalikes, radius, np.random.default_rng((seed, number, 2)))

    rng = np.random.default_rng((seed, number, 3))
    grain = Field(rng, 9.0)(fine.points()) + 0.6 * rng.standard_normal(fine.size, dtype=np.float32)
    if weighting == "ct":
        values, uneven = _hounsfield(agent, rng)
    else:
        values, uneven = _weighted(PULSES[weighting], rng)
    clean = values[structures] + uneven[structures] * grain
    for one in lesions:
        host = HOSTS[one.organ]
        level = values[NUMBER[host["like"]]]
        if weighting == "ct":
            level = level + (host["contrast"] if contrast is None else contrast)
        else:
            level = level * (1 + (host["percent"] if contrast is None else contrast) / 100)
        here = instances == one.value
        clean[here] = level + uneven[NUMBER[host["like"]]] * grain[here]
    image = acquire(clean, parts, blur)
    if weighting == "ct":
        image = image + _reconstruction_noise(rng, grid.size, 12.0 if noise is None else noise)
        image = np.clip(image, -1024, 3071)
    else:
        image = image * np.exp(0.12 * Field(rng, 220.0)(grid.points()))
        sigma = 0.008 if noise is None else noise
        parts_of_noise = sigma * rng.standard_normal((2, *grid.size), dtype=np.float32)
        image = np.hypot(image + parts_of_noise[0], parts_of_noise[1]) * 1000

    marks = middle(instances, parts)
    lookup = np.array([LABELS.index(s.label) + 1 if s.label else 0 for s in STRUCTURES.values()], dtype=np.uint8)
    labels = lookup[middle(structures, parts)]
    for one in lesions:
        # A look-alike that has left its organ's outline belongs to the organ all the same.
        name = f"{one.organ} tumor" if one.tumor else label_of(one)
        labels[marks == one.value] = LABELS.index(name) + 1
    return {
        "images": image[None].astype(np.float32),
        "channels": (weighting,),
        "labels": labels,
        "instances": marks,
        "lesions": [replace(one, voxels=int((marks == one.value).sum())) for one in lesions],
        "spacing": grid.spacing,
        "affine": grid.affine,
    }


def ct(
    out: str | Path,
    *,
    n: int = 20,
    seed: int = 0,
    size: Sequence[int] = (64, 128, 128),
    spacing: Sequence[float] = (),
    tumors: float = 0.5,
    organs: Sequence[str] = tuple(HOSTS),
    lookalikes: int = 0,
    contrast: float | None = None,
    radius: Sequence[float] = (),
    agent: float = 1.0,
    classes: Sequence[str] = (),
    format: str = "nifti",
    orientation: str = "LPS",
    oblique: float = 0.0,
    noise: float = 12.0,
    blur: float = 0.5,
    workers: int = 1,
) -> pl.DataFrame:
    """Write `n` abdominal CTs with labels of organs and tumours, in the layout of the Medical Segmentation Decathlon.

    Args:
        out: folder to write: ``imagesTr/ct_001.nii.gz``, ``labelsTr/`` and ``dataset.json``; as DICOM
            ``ct_001/*.dcm``, ``labels/`` and ``index.csv``.
        n: number of patients.
        seed: seed of everything.
        size: voxels (D, H, W), or one number for all three.
        spacing: mm along (D, H, W), one number for all three; by default the volume spans 320 x 370 x 370 mm.
        tumors: chance that a patient has one to three tumours in an organ, for each organ.
        organs: where tumours grow: liver, kidney, pancreas, colon.
        lookalikes: lesions that look like the tumours and are not labelled, in every organ with a tumour.
        contrast: of tumours against their organ in HU; by default -45 in the liver, -75, -40 and +15 in the others.
        radius: mm of the tumours' radius, from and to; by default each organ's own.
        agent: contrast medium, 0 (none) to 1 (portal venous phase).
        classes: which labels were annotated, the others being background, as in a partially labelled dataset; all by
            default.
        format: nifti, or dicom for a series of slices (labels remain NIfTI, on the series' voxels).
        orientation: where the NIfTI files' axes run to.
        oblique: degrees by which the volume is tilted in the patient.
        noise: standard deviation in HU.
        blur: standard deviation of the point spread, in voxels.
        workers: processes.

    Returns:
        One row per lesion: case, organ, whether it is labelled, radius in mm, voxels.

    Raises:
        ConfigError: an unknown organ, class, format or orientation, or a number out of range.
        VesaliusError: the folder cannot be written.
    """
    options = {"size": tuple(size), "spacing": tuple(spacing), "lookalikes": lookalikes, "contrast": contrast}
    options |= {"radius": tuple(radius), "agent": agent, "oblique": oblique, "noise": noise, "blur": blur}
    return _write(Path(out), "ct", n, seed, tumors, organs, classes, format, orientation, workers, options)


def mr(
    out: str | Path,
    *,
    n: int = 20,
    seed: int = 0,
    size: Sequence[int] = (64, 128, 128),
    spacing: Sequence[float] = (),
    weighting: str = "t2",
    tumors: float = 0.5,
    organs: Sequence[str] = tuple(HOSTS),
    lookalikes: int = 0,
    contrast: float | None = None,
    radius: Sequence[float] = (),
    classes: Sequence[str] = (),
    format: str = "nifti",
    orientation: str = "LPS",
    oblique: float = 0.0,
    noise: float = 0.008,
    blur: float = 0.5,
    workers: int = 1,
) -> pl.DataFrame:
    """Write `n` abdominal MRs of the same anatomy as `ct`, T1- or T2-weighted, with labels.

    Args:
        out: folder to write: ``imagesTr/mr_001.nii.gz``, ``labelsTr/`` and ``dataset.json``; as DICOM
            ``mr_001/*.dcm``, ``labels/`` and ``index.csv``.
        n: number of patients.
        seed: seed of everything.
        size: voxels (D, H, W), or one number for all three.
        spacing: mm along (D, H, W), one number for all three; by default the volume spans 320 x 370 x 370 mm.
        weighting: t1 or t2.
        tumors: chance that a patient has one to three tumours in an organ, for each organ.
        organs: where tumours grow: liver, kidney, pancreas, colon.
        lookalikes: lesions that look like the tumours and are not labelled, in every organ with a tumour.
        contrast: of tumours against their organ in percent; by default each organ's own.
        radius: mm of the tumours' radius, from and to; by default each organ's own.
        classes: which labels were annotated, the others being background; all by default.
        format: nifti, or dicom for a series of slices (labels remain NIfTI, on the series' voxels).
        orientation: where the NIfTI files' axes run to.
        oblique: degrees by which the volume is tilted in the patient.
        noise: standard deviation before the magnitude; the liver is about 0.13 in T2.
        blur: standard deviation of the point spread, in voxels.
        workers: processes.

    Returns:
        One row per lesion: case, organ, whether it is labelled, radius in mm, voxels.

    Raises:
        ConfigError: an unknown weighting, organ, class, format or orientation, or a number out of range.
        VesaliusError: the folder cannot be written.
    """
    if weighting not in PULSES:
        raise ConfigError(f"unknown weighting {weighting!r}", remedy=nearest(weighting, PULSES))
    options = {"size": tuple(size), "spacing": tuple(spacing), "lookalikes": lookalikes, "contrast": contrast}
    options |= {"radius": tuple(radius), "weighting": weighting, "oblique": oblique, "noise": noise, "blur": blur}
    return _write(Path(out), "mr", n, seed, tumors, organs, classes, format, orientation, workers, options)


def _hounsfield(agent: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """HU of every structure in this patient, and its unevenness; contrast medium arrives more or less strongly."""
    strength = agent * rng.uniform(0.85, 1.15)
    spread = {"liver": 6.0}  # more or less fat
    values = [s.hu + strength * s.gain + rng.normal(0, spread.get(name, 2.5)) for name, s in STRUCTURES.items()]
    for side in ("cortex", "medulla"):
        values[NUMBER[f"left kidney {side}"]] = values[NUMBER[f"right kidney {side}"]]
    return np.array(values, dtype=np.float32), np.array([s.grain for s in STRUCTURES.values()], dtype=np.float32)


def _weighted(pulse: Pulse, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """MR signal of every structure in this patient, and its unevenness."""
    made = []
    for structure in STRUCTURES.values():
        tissue, (density, t1, t2) = structure.tissue, rng.normal(1, 0.04, size=3)
        made.append(
            pulse.signal(tissue._replace(density=tissue.density * density, t1=tissue.t1 * t1, t2=tissue.t2 * t2))
        )
    values = np.array(made, dtype=np.float32)
    for side in ("cortex", "medulla"):
        values[NUMBER[f"left kidney {side}"]] = values[NUMBER[f"right kidney {side}"]]
    return values, 0.05 * values


def _reconstruction_noise(rng: np.random.Generator, size: tuple[int, int, int], sigma: float) -> np.ndarray:
    """Noise of that deviation, correlated in the plane of the slices as filtered back-projection does."""
    white = rng.standard_normal(size, dtype=np.float32)
    smooth = gaussian_filter(white, (0, 0.6, 0.6), truncate=3.0)
    return sigma * smooth / max(float(smooth.std()), 1e-6)


def _write(
    out: Path,
    kind: str,
    n: int,
    seed: int,
    tumors: float,
    organs: Sequence[str],
    classes: Sequence[str],
    format: str,
    orientation: str,
    workers: int,
    options: dict[str, Any],
) -> pl.DataFrame:
    """Write a collection of CT or MR."""
    check_collection(n, format, orientation, tumors=tumors)
    check_lesions(organs, options["radius"])
    for name in classes:
        if name not in LABELS:
            raise ConfigError(f"unknown class {name!r}", remedy=nearest(name, LABELS))
    Grid.axial(options["size"], options["spacing"], view=VIEW)  # a wrong size ends here, not in a worker
    out = output_folder(out)
    for old in ("dataset.json", "index.csv", "lesions.csv"):
        (out / old).unlink(missing_ok=True)  # an old list must not describe new files
    named = tuple(name for name in LABELS if name in classes) or LABELS
    write = partial(
        _write_case,
        out=out,
        kind=kind,
        seed=seed,
        tumors=tumors,
        organs=tuple(organs),
        classes=named,
        format=format,
        orientation=orientation,
        options=options,
    )
    rows = write_cases(write, n, workers=workers, text=f"{kind.upper()} volumes")
    schema = {"case": pl.String, "organ": pl.String, "tumor": pl.Boolean, "radius": pl.Float64, "voxels": pl.Int64}
    table = pl.DataFrame(rows, schema=schema)
    with atomic(out / "lesions.csv") as temporary:
        table.write_csv(temporary)
    cases = [f"{kind}_{number:03d}" for number in range(1, n + 1)]
    if format == "nifti":
        write_dataset_json(
            out,
            name=f"{kind.upper()} torso phantoms",
            description="Procedural volumes by vesalius phantom",
            modality="CT" if kind == "ct" else "MRI",
            labels=named,
            cases=cases,
        )
    else:
        columns = {
            "path": cases,
            "channels": [options.get("weighting", kind)] * n,
            "mask": [f"labels/{case}.nii.gz" for case in cases],
            "mask_classes": [";".join(named)] * n,
            "group": [_identity(kind, seed, number) for number in range(1, n + 1)],
            "modality": [kind.upper()] * n,
        }
        with atomic(out / "index.csv") as temporary:
            pl.DataFrame(columns).write_csv(temporary)
    return table


def _write_case(
    number: int,
    *,
    out: Path,
    kind: str,
    seed: int,
    tumors: float,
    organs: tuple[str, ...],
    classes: tuple[str, ...],
    format: str,
    orientation: str,
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    """Write one patient's files; the rows of the lesions."""
    rng = np.random.default_rng((seed, number, 0))
    grown = [organ for organ in organs if rng.random() < tumors for _ in range(int(rng.integers(1, 4)))]
    made = torso_volume(seed, number, tumors=grown, **options)
    case, pixels = f"{kind}_{number:03d}", np.rint(made["images"][0]).astype(np.int16)
    lookup = np.array([0, *(classes.index(name) + 1 if name in classes else 0 for name in LABELS)], dtype=np.uint8)
    labels = lookup[made["labels"]]
    if format == "nifti":
        write_nifti(pixels, made["affine"], out / "imagesTr" / f"{case}.nii.gz", orientation=orientation)
        write_nifti(labels, made["affine"], out / "labelsTr" / f"{case}.nii.gz", orientation=orientation)
    else:
        tags: dict[str, Any] = {"BodyPartExamined": "ABDOMEN"}
        if kind == "ct":
            tags |= {"KVP": "120", "AcquisitionNumber": 1}
        else:
            pulse = PULSES[options["weighting"]]
            tags |= {"ScanningSequence": "SE", "SequenceVariant": "NONE", "ScanOptions": "", "EchoTrainLength": 1}
            tags |= {"MRAcquisitionType": "2D", "RepetitionTime": f"{pulse.tr:g}", "EchoTime": f"{pulse.te:g}"}
        write_series(
            pixels,
            made["affine"],
            out / case,
            modality=kind.upper(),
            identity=_identity(kind, seed, number),
            series="abdomen" if kind == "ct" else options["weighting"],
            window=WINDOW if kind == "ct" else None,
            tags=tags,
        )
        write_nifti(labels, made["affine"], out / "labels" / f"{case}.nii.gz")
    return [
        {"case": case, **{key: asdict(one)[key] for key in ("organ", "tumor", "radius", "voxels")}}
        for one in made["lesions"]
    ]


def _identity(kind: str, seed: int, number: int) -> str:
    return f"{kind}-phantom-{seed}-{number:03d}"
