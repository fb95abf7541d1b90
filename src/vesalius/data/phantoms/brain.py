"""Brain MR with truth: T1, contrast-enhanced T1, T2 and FLAIR, healthy or with gliomas, from tissues to grey values.

A map of tissues (`brain_anatomy`, or any label map) is turned into images by one of two rules. "mri" is the spin-echo
equation with typical relaxation times; "random" gives every label a random grey value, bright or dark as it falls
(Billot et al., SynthSeg, 2023, doi:10.1016/j.media.2023.102789), so that what is learned holds for any contrast. Both
then go through texture, the scanner's point spread, thick slices, a receive field and Rician noise.

A glioma is a necrotic core in an enhancing rim of uneven thickness, in oedema that follows the white matter and spares
the cortex; it pushes the brain aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from vesalius.data.phantoms.brain_anatomy import BRAIN, NUMBER, TISSUES, Head, head
from vesalius.data.phantoms.brain_lesions import LESION_LABELS, Glioma
from vesalius.data.phantoms.relaxation import Pulse, Tissue
from vesalius.data.phantoms.solids import Field, Grid, acquire, middle, warped
from vesalius.data.phantoms.volume_files import check_collection, write_cases, write_nifti, write_series
from vesalius.data.volumes.layouts import SEQUENCES
from vesalius.errors import ConfigError, nearest
from vesalius.files import atomic, output_folder
from vesalius.images import Image, read

CONTRASTS = ("mri", "random")
HEAD_VIEW, BRAIN_VIEW = (225.0, 240.0, 200.0), (176.0, 192.0, 160.0)
"""mm along (D, H, W) of a volume whose spacing is not given."""


PULSES = {
    "t1": Pulse(2300, 4, 1050),
    "t1ce": Pulse(2300, 4, 1050, agent=True),
    "t2": Pulse(5000, 95),
    "flair": Pulse(9000, 110, 2500),
}
"""Channel -> sequence. The inversion time of FLAIR is where liquor passes zero."""


class BrainVolume(TypedDict):
    """What `brain_volume` returns.

    ``images [C, D, H, W]`` float32 from 0, ``channels`` their names, ``labels [D, H, W]`` uint8 lesions as in BraTS (0,
    1, 2, 4), ``tissues [D, H, W]`` the map they were made from (`TISSUES`, or the values of the map that was given),
    ``spacing`` mm along (D, H, W), ``affine`` from (column, row, slice) to LPS mm.
    """

    images: np.ndarray
    channels: tuple[str, ...]
    labels: np.ndarray
    tissues: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray


def brain_volume(
    seed: int,
    number: int = 1,
    *,
    size: int | Sequence[int] = 96,
    spacing: Sequence[float] = (),
    channels: Sequence[str] = tuple(PULSES),
    lesions: int = 0,
    contrast: str = "mri",
    skull: bool = False,
    label_map: Image | None = None,
    oblique: float = 0.0,
    noise: float = 0.006,
    bias: float = 0.12,
    blur: float = 0.5,
) -> BrainVolume:
    """One person's brain in several contrasts; a function of (`seed`, `number`), the same anatomy on any grid.

    Args:
        seed, number: of the collection, and of the person in it.
        size: voxels (D, H, W), or one number for all three.
        spacing: mm along (D, H, W); empty: so that the volume holds the brain.
        channels: t1, t1ce, t2, flair, in any order; with random contrast any names.
        lesions: how many gliomas.
        contrast: mri or random.
        skull: keep skull, scalp and face.
        label_map: make the images of this map ``[1, D, H, W]`` of integers instead, deformed a little from person to
            person; its 0 is outside. With contrast mri its values are those of `TISSUES` (1 liquor, 2 grey, 3 white).
        oblique: degrees by which the volume is tilted in the patient.
        noise: standard deviation of the noise before the magnitude; white matter is about 0.34 in T1, 0.14 in FLAIR.
        bias: standard deviation of the receive field's logarithm.
        blur: standard deviation of the point spread, in voxels.

    Raises:
        ConfigError: an unknown channel or contrast, an impossible size or spacing, or a label map without affine or
            whose values are no tissues.

    >>> brain = brain_volume(0, size=32, lesions=1)
    >>> brain["images"].shape, brain["channels"], sorted({*brain["labels"].ravel().tolist()})
    ((4, 32, 32, 32), ('t1', 't1ce', 't2', 'flair'), [0, 1, 2, 4])
    """
    _check_contrast(contrast, channels)
    rng = np.random.default_rng((seed, number, 1))
    grid = Grid.axial(size, spacing, view=HEAD_VIEW if skull else BRAIN_VIEW, oblique=oblique)
    if label_map is not None:
        grid = _over(grid, label_map, bool(len(spacing)))
    fine, parts = grid.finer()

    if label_map is None:
        person = Head.draw(rng)
        gliomas = [Glioma.draw(np.random.default_rng((seed, number, 10 + k))) for k in range(lesions)]
        if gliomas:
            first = gliomas[0]
            person = Head(person.scale, person.ventricles, person.sulci, (*first.centre, first.radius))
        tissues = head(fine, person, rng, skull=skull)
        seats = fine.points() / np.array(person.scale, dtype=np.float32).reshape(3, 1, 1, 1)
        room, white = np.isin(tissues, [NUMBER[name] for name in BRAIN]), tissues == NUMBER["white matter"]
    else:
        tissues = _deformed(label_map, fine, rng)
        room = white = tissues > 0
        seats = fine.points()
        gliomas = [
            Glioma.draw(np.random.default_rng((seed, number, 10 + k)), seats, room, fine.spacing)
            for k in range(lesions if room.any() else 0)
        ]
    marks = np.zeros(fine.size, dtype=np.uint8)
    for glioma in gliomas:
        glioma.paint(marks, seats, room, white)

    mixed = _labelled(tissues, marks)
    signals = _signals(mixed, channels, contrast, np.random.default_rng((seed, number, 2)))
    rng = np.random.default_rng((seed, number, 3))
    images = np.stack([_scanned(values, mixed, fine, grid, parts, rng, noise, bias, blur) for values in signals])
    coarse = middle(tissues, parts)
    if not skull:
        images[:, coarse == 0] = 0
    return {
        "images": images,
        "channels": tuple(channels),
        "labels": middle(marks, parts),
        "tissues": coarse,
        "spacing": grid.spacing,
        "affine": grid.affine,
    }


def brain(
    out: str | Path,
    *,
    n: int = 20,
    seed: int = 0,
    size: Sequence[int] = (96,),
    spacing: Sequence[float] = (),
    channels: Sequence[str] = tuple(PULSES),
    lesions: float = 1.0,
    contrast: str = "mri",
    skull: bool = False,
    label_map: str | Path | None = None,
    format: str = "nifti",
    orientation: str = "LPS",
    oblique: float = 0.0,
    noise: float = 0.006,
    bias: float = 0.12,
    blur: float = 0.5,
    tissues: bool = False,
    workers: int = 1,
) -> pl.DataFrame:
    """Write `n` brains in several MR contrasts, with the labels of their gliomas, in files named as in BraTS.

    Args:
        out: folder to write: ``brain_001/brain_001_t1.nii.gz``, ``_t1ce``, ``_t2``, ``_flair`` and ``_seg`` (1 necrotic
            core, 2 oedema, 4 enhancing tumour), and ``lesions.csv``; as DICOM ``brain_001/t1/*.dcm`` and so on, with
            3 for the enhancing tumour, as in BraTS from 2023, and ``index.csv``. There is such a list (and a 3), too,
            where names do not say all: for one channel without labels, and for channels that BraTS does not have.
        n: number of people.
        seed: seed of everything.
        size: voxels (D, H, W), or one number for all three.
        spacing: mm along (D, H, W); by default so that the volume holds the brain.
        channels: which contrasts to write.
        lesions: share of the people with one to three gliomas; with 0 no label files are written.
        contrast: mri, or random for a random grey value of each tissue.
        skull: keep skull, scalp and face, which BraTS takes away.
        label_map: NIfTI map of integer labels to make the images from, instead of the built-in anatomy.
        format: nifti, or dicom for a series of slices for each contrast (labels remain NIfTI).
        orientation: where the NIfTI files' axes run to.
        oblique: degrees by which the volume is tilted in the patient.
        noise: standard deviation of the noise; white matter is about 0.34 in T1, 0.14 in FLAIR.
        bias: standard deviation of the receive field's logarithm.
        blur: standard deviation of the point spread, in voxels.
        tissues: also write the map of tissues, ``_tissues``.
        workers: processes.

    Returns:
        One row per person: case, lesions, and volumes of the lesions' parts in ml.

    Raises:
        ConfigError: an unknown channel, contrast, format or orientation, or a number out of range.
        VesaliusError: the folder cannot be written, or the label map cannot be read.
    """
    check_collection(n, format, orientation, lesions=lesions)
    _check_contrast(contrast, channels)
    options = {
        "size": tuple(size),
        "spacing": tuple(spacing),
        "channels": tuple(channels),
        "contrast": contrast,
        "skull": skull,
        "label_map": read(label_map) if label_map is not None else None,
        "oblique": oblique,
        "noise": noise,
        "bias": bias,
        "blur": blur,
    }
    out = output_folder(out)
    for old in ("index.csv", "lesions.csv"):
        (out / old).unlink(missing_ok=True)  # an old list must not describe new files
    named = set(channels) <= SEQUENCES.keys() and (len(channels) > 1 or lesions > 0)
    listed = format == "dicom" or not named
    write = partial(
        _write_case,
        out=out,
        seed=seed,
        lesions=lesions,
        listed=listed,
        options=options,
        format=format,
        orientation=orientation,
        tissues=tissues,
    )
    table = pl.DataFrame(write_cases(write, n, workers=workers, text="brains"))
    with atomic(out / "lesions.csv") as temporary:
        table.write_csv(temporary)
    if listed:
        files = "{case}/{channel}" if format == "dicom" else "{case}/{case}_{channel}.nii.gz"
        with atomic(out / "index.csv") as temporary:
            _list(table["case"].to_list(), seed, channels, lesions > 0, files).write_csv(temporary)
    return table


def _check_contrast(contrast: str, channels: Sequence[str]) -> None:
    if contrast not in CONTRASTS:
        raise ConfigError(f"unknown contrast {contrast!r}", remedy=nearest(contrast, CONTRASTS))
    for channel in channels:
        if contrast == "mri" and channel not in PULSES:
            raise ConfigError(f"unknown channel {channel!r}", remedy=nearest(channel, PULSES))
    if not channels or len(set(channels)) < len(channels):
        raise ConfigError(f"channels = {list(channels)}", remedy="name each channel once")


def _over(grid: Grid, label_map: Image, given: bool) -> Grid:
    """`grid` in the middle of a label map, and as large unless its spacing was given."""
    if label_map.affine is None or label_map.array.ndim != 4 or label_map.spacing is None:
        raise ConfigError(
            f"{label_map.path}: a label map must be a volume with an affine", remedy="store it as NIfTI with an sform"
        )
    edge = (np.array(label_map.size[::-1]) - 1) / 2
    x, y, z = (float(v) for v in label_map.affine[:3, :3] @ edge + label_map.affine[:3, 3])
    spacing = grid.spacing
    if not given:
        reach = np.abs(label_map.affine[:3, :3]) @ np.array(label_map.size[::-1])
        d, h, w = (float(side / n) for side, n in zip(reach[::-1], grid.size, strict=True))
        spacing = (d, h, w)
    return Grid(grid.size, spacing, grid.rotation, (x, y, z))


def _deformed(label_map: Image, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """The map's labels ``[D, H, W]`` on a grid, turned, scaled and warped a little."""
    assert label_map.affine is not None  # _over has looked
    centre = np.array(grid.centre).reshape(3, 1, 1, 1)
    turn = Rotation.from_rotvec(np.deg2rad(rng.uniform(-7, 7, size=3))).as_matrix() * rng.uniform(0.94, 1.06, size=3)
    points = np.tensordot(turn, grid.points() - centre, axes=1)
    points = warped(points.astype(np.float32), rng, amplitude=2.0, length=50.0) + centre
    inverse = np.linalg.inv(label_map.affine)
    index = np.tensordot(inverse[:3, :3], points, axes=1) + inverse[:3, 3].reshape(3, 1, 1, 1)
    return map_coordinates(label_map.array[0].astype(np.int32), index[::-1], order=0, prefilter=False, cval=0)


def _labelled(tissues: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Tissues and lesions as one map; in a map of other values lesions are negative."""
    named = tissues.dtype == np.uint8
    mixed = tissues.astype(np.int32)
    for name, value in LESION_LABELS.items():
        mixed[marks == value] = NUMBER[name] if named else -value
    return mixed


def _signals(mixed: np.ndarray, channels: Sequence[str], contrast: str, rng: np.random.Generator) -> list[np.ndarray]:
    """A noiseless grey value ``[D, H, W]`` for every channel."""
    values, places = np.unique(mixed, return_inverse=True)
    places = places.reshape(mixed.shape)
    if contrast == "random":
        draws = rng.uniform(0.08, 1.0, size=(len(channels), len(values))).astype(np.float32)
        draws[:, values == 0] = 0
        return list(draws[:, places])
    lesions = {-value: name for name, value in LESION_LABELS.items()}
    names = list(TISSUES)
    if values.max() >= len(names):
        raise ConfigError(f"label {values.max()} is no tissue (0 to {len(names) - 1})", remedy="use contrast random")
    known = [lesions.get(int(value)) or names[int(value)] for value in values]
    wobble = rng.normal(1, 0.04, size=(len(TISSUES), 3))  # the same tissue in every channel
    times = rng.normal(1, 0.04, size=(len(PULSES), 2))
    signals = []
    for channel in channels:
        tr, te = times[list(PULSES).index(channel)]
        pulse = PULSES[channel]
        # A FLAIR that is not set to its liquor is no FLAIR, and both T1s are one protocol.
        pulse = Pulse(pulse.tr * tr, pulse.te * te, pulse.ti, pulse.agent) if not pulse.ti else pulse
        table = []
        for name in known:
            tissue, (density, t1, t2) = TISSUES[name], wobble[NUMBER[name]]
            enhanced = tissue.enhanced and tissue.enhanced * t1
            table.append(pulse.signal(Tissue(tissue.density * density, tissue.t1 * t1, tissue.t2 * t2, enhanced)))
        signals.append(np.array(table, dtype=np.float32)[places])
    return signals


def _scanned(
    values: np.ndarray,
    mixed: np.ndarray,
    fine: Grid,
    grid: Grid,
    parts: tuple[int, int, int],
    rng: np.random.Generator,
    noise: float,
    bias: float,
    blur: float,
) -> np.ndarray:
    """Texture, point spread, thick slices, receive field and Rician noise; ``[D, H, W]`` from 0, typically to 1000."""
    texture = rng.normal(1, 0.03, size=fine.size).astype(np.float32)
    image = acquire(values * texture, parts, blur)
    image *= np.exp(bias * Field(rng, 180.0)(grid.points()))
    real = image + noise * rng.standard_normal(grid.size, dtype=np.float32)
    imaginary = noise * rng.standard_normal(grid.size, dtype=np.float32)
    return np.hypot(real, imaginary) * np.float32(1000 * rng.uniform(0.8, 1.6))


def _write_case(
    number: int,
    *,
    out: Path,
    seed: int,
    lesions: float,
    listed: bool,
    options: dict[str, Any],
    format: str,
    orientation: str,
    tissues: bool,
) -> list[dict[str, Any]]:
    """Write one person's files; their row of the list."""
    rng = np.random.default_rng((seed, number, 0))
    count = int(rng.choice((1, 2, 3), p=(0.7, 0.2, 0.1))) if rng.random() < lesions else 0
    made = brain_volume(seed, number, lesions=count, **options)
    case = f"brain_{number:03d}"
    for order, (channel, image) in enumerate(zip(made["channels"], made["images"], strict=True), start=1):
        pixels = np.rint(np.clip(image, 0, 4095)).astype(np.int16)
        if format == "nifti":
            name = out / case / f"{case}_{channel}.nii.gz"
            write_nifti(pixels, made["affine"], name, orientation=orientation)
        else:
            pulse = PULSES.get(channel)
            tags: dict[str, Any] = {"BodyPartExamined": "BRAIN", "MRAcquisitionType": "3D", "ScanningSequence": "SE"}
            tags |= {"SequenceVariant": "NONE", "ScanOptions": "", "EchoTrainLength": 1}
            if pulse is not None and options["contrast"] == "mri":
                tags |= {"RepetitionTime": f"{pulse.tr:g}", "EchoTime": f"{pulse.te:g}"}
                tags |= {"InversionTime": f"{pulse.ti:g}", "ScanningSequence": ["SE", "IR"]} if pulse.ti else {}
                tags |= {"ContrastBolusAgent": "gadolinium"} if pulse.agent else {}
            identity = f"brain-phantom-{seed}-{number:03d}"
            folder = out / case / channel
            write_series(
                pixels,
                made["affine"],
                folder,
                modality="MR",
                identity=identity,
                series=channel,
                number=order,
                tags=tags,
            )
    turned = orientation if format == "nifti" else "LPS"
    if lesions > 0:
        labels = made["labels"]
        if listed:
            labels = np.where(labels == 4, 3, labels).astype(np.uint8)  # a list names the values without a gap
        write_nifti(labels, made["affine"], out / case / f"{case}_seg.nii.gz", orientation=turned)
    if tissues:
        values = made["tissues"].astype(np.uint8 if made["tissues"].max() < 256 else np.int32)
        write_nifti(values, made["affine"], out / case / f"{case}_tissues.nii.gz", orientation=turned)
    millilitres = float(np.prod(made["spacing"])) / 1000
    volumes = {
        f"{name.replace(' ', '_')}_ml": round(float((made["labels"] == value).sum()) * millilitres, 2)
        for name, value in LESION_LABELS.items()
    }
    return [{"case": case, "lesions": count, **volumes}]


def _list(cases: Sequence[str], seed: int, channels: Sequence[str], labelled: bool, files: str) -> pl.DataFrame:
    """The rows of ``index.csv``, which `vesalius.index` reads; `files` is the pattern of their names."""
    columns = {
        "path": [";".join(files.format(case=case, channel=channel) for channel in channels) for case in cases],
        "channels": [";".join(channels)] * len(cases),
        "group": [_identity(seed, case) for case in cases],
        "organ": ["brain"] * len(cases),
        "modality": ["MR"] * len(cases),
    }
    if labelled:
        columns["mask"] = [f"{case}/{case}_seg.nii.gz" for case in cases]
        columns["mask_classes"] = [";".join(LESION_LABELS)] * len(cases)
    return pl.DataFrame(columns)


def _identity(seed: int, case: str) -> str:
    return f"phantom-{seed}-{case}"
