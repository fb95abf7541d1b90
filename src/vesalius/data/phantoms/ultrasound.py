"""A collection of B-mode ultrasound images with truth: organs of unequal number, patients of several frames, lesions.

The files are what a small hospital export would be: pictures (PNG, or multi-frame DICOM), lesion masks, a compounded
acquisition of each picture as the target of image enhancement, and ``index.csv``, which `vesalius.index` reads.
Everything about a patient is a function of the seed and the patient's number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

from vesalius.data.phantoms.us_anatomy import LABELS, ORGANS, make_probe
from vesalius.data.phantoms.us_physics import bmode
from vesalius.data.progress import track
from vesalius.errors import ConfigError, nearest
from vesalius.files import atomic, output_folder

SHARES = {"breast": 0.55, "thyroid": 0.25, "liver": 0.15, "kidney": 0.05}
"""Share of the patients by organ."""
LABEL_SHARES = (0.30, 0.38, 0.32)
"""Share of the patients who are normal, have a benign and have a malignant lesion."""
MOST_FRAMES = 4
FORMATS = ("png", "dicom")


@dataclass(frozen=True)
class Frame:
    """One picture and its truth.

    Args:
        image: ``[H, W]`` uint8, as acquired.
        target: ``[H, W]`` uint8, the same view with speckle averaged and a sharper beam.
        mask: ``[H, W]`` bool, the lesion.
        spacing: mm per pixel.
    """

    image: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    spacing: float


def ultrasound(
    out: str | Path,
    *,
    n: int = 200,
    seed: int = 0,
    size: int = 128,
    organs: Mapping[str, float] | None = None,
    format: str = "png",
    workers: int = 1,
) -> pl.DataFrame:
    """Write `n` ultrasound images of several organs, with masks, clean counterparts and labels.

    Args:
        out: folder to write: ``<organ>/p001_f0.png`` (or ``<organ>/p001.dcm``), ``masks/``, ``high_quality/`` and
            ``index.csv``, which appears last.
        n: number of images; a patient has 1 to 4.
        seed: seed of everything.
        size: pixels of the square images' side.
        organs: share of the patients by organ (breast, thyroid, liver, kidney); 55, 25, 15 and 5 % by default, so
            unequal that organ-balanced sampling matters.
        format: png, or dicom for one multi-frame file per patient with spacing and patient ID.
        workers: processes.

    Returns:
        The rows of ``index.csv``.

    Raises:
        ConfigError: an unknown organ or format, or a number out of range.
        VesaliusError: the folder cannot be written.
    """
    shares = _shares(SHARES if organs is None else organs)
    if n < 1 or size < 32:
        raise ConfigError(f"n = {n}, size = {size}", remedy="give n of 1 or more and a size of 32 or more")
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}", remedy=nearest(format, FORMATS))
    out = output_folder(out)
    (out / "index.csv").unlink(missing_ok=True)  # an old index must not describe new files
    jobs = list(_patients(n, seed, shares))
    common = (repeat(out), repeat(seed), repeat(size), repeat(format))
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            done = list(track(pool.map(_write_patient, jobs, *common, chunksize=4), len(jobs), "patients"))
    else:
        done = list(track(map(_write_patient, jobs, *common), len(jobs), "patients"))
    table = pl.DataFrame([row for rows in done for row in rows])
    with atomic(out / "index.csv") as temporary:
        table.write_csv(temporary)
    return table


def patient(seed: int, number: int, organ: str, *, frames: int = 1, size: int = 128) -> tuple[str, list[Frame]]:
    """One patient's label and frames: the same anatomy seen from slightly different places, with new speckle.

    >>> label, (first, second) = patient(0, 1, "breast", frames=2, size=64)
    >>> label, first.image.shape, bool(first.mask.any())
    ('malignant', (64, 64), True)
    """
    rng = np.random.default_rng((seed, number, 1))
    label = LABELS[int(rng.choice(len(LABELS), p=LABEL_SHARES))]
    anatomy = ORGANS[organ](rng, label)
    probe = make_probe(anatomy, size)
    beams, pixels = probe.beam_grid(), probe.pixel_grid()
    seen = probe.field_of_view()
    made = []
    for index in range(frames):
        rng = np.random.default_rng((seed, number, 2 + index))
        pose = _Pose.draw(rng, probe.depth)
        scene = anatomy.scene(*pose(*beams))
        gain, slope = rng.uniform(-4, 4), rng.uniform(-5, 5)
        image = bmode(scene, probe, rng, gain=gain, slope=slope)
        target = bmode(scene, probe, rng, gain=gain, slope=slope, looks=6, sharpness=1.5, noise=-60.0, zones=2)
        mask = np.zeros((size, size), dtype=bool)
        if anatomy.lesion is not None:
            mask = (anatomy.lesion.distance(*pose(*pixels)) < 0) & seen
        made.append(Frame(_eight_bits(image), _eight_bits(target), mask, probe.spacing))
    return label, made


@dataclass(frozen=True)
class _Pose:
    """Where the probe is: moved along the skin, tilted (a shear, the skin stays at the probe), pressed."""

    shift: float
    shear: float
    press: float
    stretch: float

    @classmethod
    def draw(cls, rng: np.random.Generator, depth: float) -> _Pose:
        return cls(
            shift=rng.uniform(-0.05, 0.05) * depth,
            shear=rng.uniform(-0.06, 0.06),
            press=rng.uniform(0.95, 1.05),
            stretch=rng.uniform(0.95, 1.05),
        )

    def __call__(self, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return y * self.press, x * self.stretch + self.shift + self.shear * y


@dataclass(frozen=True)
class _Job:
    number: int
    organ: str
    frames: int


def _shares(organs: Mapping[str, float]) -> dict[str, float]:
    for organ, share in organs.items():
        if organ not in ORGANS:
            raise ConfigError(f"unknown organ {organ!r}", remedy=nearest(organ, ORGANS))
        if share < 0:
            raise ConfigError(f"share {share} of {organ}", remedy="give shares of 0 or more")
    total = sum(organs.values())
    if total <= 0:
        raise ConfigError("the organs' shares add up to 0", remedy="give one of them a share")
    return {organ: share / total for organ, share in organs.items()}


def _patients(n: int, seed: int, shares: Mapping[str, float]) -> Iterator[_Job]:
    """Patients until they have `n` frames; a golden-ratio sequence keeps the organs' shares also when `n` is small."""
    start = np.random.default_rng((seed, 0)).random()
    limits = np.cumsum(list(shares.values()))
    number, left = 0, n
    while left > 0:
        number += 1
        position = (start + number * (np.sqrt(5) - 1) / 2) % 1
        organ = list(shares)[min(int(np.searchsorted(limits, position, side="right")), len(shares) - 1)]
        frames = min(int(np.random.default_rng((seed, number, 0)).integers(1, MOST_FRAMES + 1)), left)
        left -= frames
        yield _Job(number, organ, frames)


def _write_patient(job: _Job, out: Path, seed: int, size: int, format: str) -> list[dict[str, object]]:
    """Write one patient's files; their rows of the index."""
    label, frames = patient(seed, job.number, job.organ, frames=job.frames, size=size)
    name, identity = f"p{job.number:03d}", f"us-phantom-{seed}-p{job.number:03d}"
    if format == "dicom":
        _write_dicom(out / job.organ / f"{name}.dcm", frames, identity, job.organ)
    rows: list[dict[str, object]] = []
    for index, frame in enumerate(frames):
        picture = f"{name}_f{index}.png"
        _write_png(out / "masks" / picture, frame.mask.astype(np.uint8) * 255)
        _write_png(out / "high_quality" / picture, frame.target)
        if format == "png":
            _write_png(out / job.organ / picture, frame.image)
        rows.append(
            {
                "path": f"{job.organ}/{picture if format == 'png' else name + '.dcm'}",
                "frame": index if format == "dicom" and len(frames) > 1 else None,
                "label": label,
                "mask": f"masks/{picture}",
                "mask_classes": "lesion",
                "target": f"high_quality/{picture}",
                "group": identity,
                "organ": job.organ,
                "modality": "US",
                "spacing": f"{frame.spacing:.6g}",
            }
        )
    return rows


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _write_dicom(path: Path, frames: list[Frame], identity: str, organ: str) -> None:
    """An Ultrasound Multi-frame Image (PS3.3 A.7) with one calibrated 2-D region."""
    pixels = np.stack([frame.image for frame in frames])
    count, height, width = pixels.shape
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[identity, "instance"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = generate_uid(entropy_srcs=[identity, "study"])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=[identity, "series"])
    data.PatientID, data.PatientName, data.PatientSex, data.PatientBirthDate = identity, "Phantom^Ultrasound", "O", ""
    data.StudyDate = data.StudyTime = data.AccessionNumber = data.ReferringPhysicianName = data.StudyID = ""
    data.Modality, data.BodyPartExamined, data.Manufacturer = "US", organ.upper(), "Vesalius phantom"
    data.SeriesNumber = data.InstanceNumber = 1
    data.ImageType = ["ORIGINAL", "PRIMARY"]
    data.PatientOrientation = ""
    data.NumberOfFrames, data.Rows, data.Columns = count, height, width
    data.FrameTime, data.FrameIncrementPointer = "40", 0x00181063
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = width - 1, height - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
    region.PhysicalDeltaX = region.PhysicalDeltaY = frames[0].spacing / 10
    data.SequenceOfUltrasoundRegions = [region]
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    data["PixelData"].VR = "OB"
    with atomic(path) as temporary:
        data.save_as(temporary, enforce_file_format=True)


def _eight_bits(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
