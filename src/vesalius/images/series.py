"""A DICOM series as one volume: slices in the order in which they lie in the patient, or an error that names them.

File names and instance numbers say nothing about place, and are not looked at. What would make a volume wrong without
a word (a missing slice, two in one place, a scout among the axial ones, another pixel size) is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.errors import UnreadableImage
from vesalius.images.dicom import channel_names, decode_frames, frame_count, header_tags, read_header
from vesalius.images.geometry import geometry
from vesalius.images.image import Image
from vesalius.images.reading import LARGEST, Header, reading

PARALLEL = 2e-3
"""Difference of direction cosines (0.1 degree) and of pixel sizes (mm) that rounding may make within a series."""
EVEN = 0.1
"""Part of the slice spacing by which a slice may be off its place in an evenly spaced row."""
GAP = 1.5
"""Slice spacings from one slice to the next above which one is missing between them."""


@dataclass(frozen=True)
class Slice:
    """A slice, by its header.

    Args:
        path, frame: where it is stored.
        affine: 4x4, from (column, row, slice) to LPS mm.
        size: (H, W).
        series: the series' UID.
        channels, modality, tags: as in `Image`.
    """

    path: Path
    frame: int
    affine: np.ndarray
    size: tuple[int, int]
    series: str
    channels: tuple[str, ...]
    modality: str | None
    tags: dict[str, str]

    def __str__(self) -> str:
        return f"{self.path.name} frame {self.frame}" if self.frame else self.path.name


def read_series(source: str | PathLike[str] | Sequence[str | PathLike[str]]) -> Image:
    """Read a DICOM series as one volume.

    Args:
        source: a folder that holds one series; a file, which stands for the series that it belongs to in its folder; an
            enhanced or other multi-frame file, whose frames are the slices; or a list of files.

    Returns:
        An image ``[C, D, H, W]``. D goes along the slices' normal (row direction x column direction), so that the
        affine is right-handed however the series was acquired or stored. Its step is the mean one; where the gantry was
        tilted it is not along the normal. ``slices`` tells the file and frame of each slice.

    Raises:
        UnreadableImage: slices are missing, in one place twice, of different orientations, pixel sizes or shapes,
            without a position; there are several series or one slice. The error names the files.
    """
    place, slices = _sorted_slices(source)
    first, step = slices[0], _step(slices)
    arrays: list[np.ndarray] = []
    windows: list[tuple[float, float] | None] = []
    for path, frames in _runs(slices):
        for array, window in decode_frames(path, frames):
            arrays.append(array)
            windows.append(window)
    affine = first.affine.copy()
    affine[:3, 2] = step
    return Image(
        np.stack(arrays, axis=1),  # to a common dtype, where slices have rescale slopes of their own
        first.channels,
        spacing=_spacing(slices, step),
        affine=affine,
        window=windows[len(windows) // 2],
        modality=first.modality,
        path=place,
        frames=len(slices),
        tags=first.tags,
        slices=tuple((one.path, one.frame) for one in slices),
    )


def probe_series(source: str | PathLike[str] | Sequence[str | PathLike[str]]) -> tuple[Header, tuple[Path, ...]]:
    """Size, spacing and provenance of the volume that `read_series` returns, and its files, without their pixels.

    Raises:
        UnreadableImage: as `read_series`, but for damaged pixels.
    """
    _, slices = _sorted_slices(source)
    first = slices[0]
    spacing = _spacing(slices, _step(slices))
    header = Header(len(slices), (len(slices), *first.size), first.channels, spacing, first.modality, first.tags)
    return header, tuple(dict.fromkeys(one.path for one in slices))


def group_series(files: Iterable[Path], *, placed: bool = False) -> dict[str, list[Path]]:
    """The files of each series, by the series' UID; files that are no DICOM image are passed over.

    Args:
        files: any files.
        placed: pass over files without a place in the patient (ultrasound, radiographs), too, and those of series that
            are one file of one frame.
    """
    series: dict[str, list[Path]] = {}
    frames: Counter[str] = Counter()
    for path in files:
        if not _may_be_dicom(path):
            continue
        try:
            with reading(path), path.open("rb") as stream:
                dataset = read_header(path, stream)
                if placed and geometry(path, dataset, 0).affine is None:
                    continue
                uid = str(dataset.get("SeriesInstanceUID") or "")
                frames[uid] += frame_count(path, dataset)
        except UnreadableImage:
            continue
        series.setdefault(uid, []).append(path)
    return {uid: paths for uid, paths in series.items() if frames[uid] > 1 or not placed}


def _sorted_slices(source: str | PathLike[str] | Sequence[str | PathLike[str]]) -> tuple[Path, list[Slice]]:
    """What the source is called in errors, and its slices along their normal, once they are known to be one volume."""
    if isinstance(source, str | PathLike):
        place = Path(source)
        if place.is_dir():
            files = sorted(file for file in place.iterdir() if file.is_file() and not file.name.startswith("."))
            slices = [one for file in files if _may_be_dicom(file) for one in _slices(file)]
        else:
            slices = _slices(place)
            if len(slices) == 1:
                beside = group_series(sorted(file for file in place.parent.iterdir() if _may_be_dicom(file)))
                slices = [one for file in beside.get(slices[0].series, [place]) for one in _slices(file)]
    else:
        files = [Path(file) for file in source]
        if not files:
            raise UnreadableImage("no files were given", remedy="name the files of a series")
        place, slices = files[0].parent, [one for file in files for one in _slices(file)]
    if not slices:
        raise UnreadableImage("holds no DICOM images", path=place, remedy="name the folder of one series")
    _check_alike(place, slices)
    normal = np.cross(slices[0].affine[:3, 0], slices[0].affine[:3, 1])
    normal /= np.linalg.norm(normal)
    slices.sort(key=lambda one: float(one.affine[:3, 3] @ normal))
    _check_places(place, slices, normal)
    total = len(slices) * int(np.prod(slices[0].size)) * 4
    if total > LARGEST:
        raise UnreadableImage(f"decodes to {total / 2**30:.1f} GiB", path=place, remedy="split or resample it")
    return place, slices


def _may_be_dicom(path: Path) -> bool:
    """A file with DICM after its preamble, or without a suffix that says something else."""
    if not path.is_file() or path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return False
    with path.open("rb") as stream:
        start = stream.read(132)
    return start[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom", ".ima")


def _slices(path: Path) -> list[Slice]:
    """The header of each frame of a file."""
    with reading(path), path.open("rb") as stream:
        dataset = read_header(path, stream)
        tags, modality = header_tags(dataset)
        tags.pop("sop", None)  # a volume is of many
        slices = []
        for frame in range(frame_count(path, dataset)):
            affine = geometry(path, dataset, frame).affine
            if affine is None:
                raise UnreadableImage(
                    "has no place in the patient (ImagePositionPatient, ImageOrientationPatient, PixelSpacing)",
                    path=path,
                    remedy="leave it out of the series, or read it as a 2-D image",
                )
            size = int(dataset.Rows), int(dataset.Columns)
            series = tags.get("series", "")
            slices.append(Slice(path, frame, affine, size, series, channel_names(dataset), modality, tags))
        return slices


def _check_alike(place: Path, slices: list[Slice]) -> None:
    """One series, shape, colour, pixel size and orientation, or an error that names those of the smaller part."""
    if len(slices) == 1:
        raise UnreadableImage("holds one slice, which is no volume", path=place, remedy="read it as a 2-D image")
    series = Counter(one.series for one in slices)
    if len(series) > 1:
        counts = ", ".join(f"{uid} ({count} slices)" for uid, count in series.most_common(3))
        raise UnreadableImage(
            f"holds {len(series)} series: {counts}", path=place, remedy="name one file of the series that you mean"
        )

    def rounded(values: np.ndarray) -> tuple[float, ...]:
        return tuple(float(value) + 0.0 for value in values.round(2))  # no minus zero in an error

    traits: list[tuple[str, Callable[[Slice], Any]]] = [
        ("shapes", lambda one: one.size),
        ("channels", lambda one: one.channels),
        ("pixel sizes", lambda one: np.linalg.norm(one.affine[:3, :2], axis=0)),
        ("orientations", lambda one: (one.affine[:3, :2] / np.linalg.norm(one.affine[:3, :2], axis=0)).T.ravel()),
    ]
    for what, trait in traits:
        groups: list[tuple[Any, list[Slice]]] = []
        for one in slices:
            value = trait(one)
            same = next((members for other, members in groups if _same(value, other)), None)
            if same is None:
                groups.append((value, same := []))
            same.append(one)
        if len(groups) > 1:
            groups.sort(key=lambda group: -len(group[1]))
            odd = [str(one) for _, members in groups[1:] for one in members]
            value, other = (rounded(v) if isinstance(v, np.ndarray) else v for v in (groups[0][0], groups[1][0]))
            raise UnreadableImage(
                f"slices of different {what} ({value} and {other}): {_listed(odd)} differ from the other "
                f"{len(slices) - len(odd)}",
                path=place,
                remedy="leave them out (scouts and dose reports are often stored along)",
            )


def _same(value: Any, other: Any) -> bool:
    return np.allclose(value, other, atol=PARALLEL, rtol=0) if isinstance(value, np.ndarray) else value == other


def _check_places(place: Path, slices: list[Slice], normal: np.ndarray) -> None:
    """Slices lie evenly, each in a place of its own, along a straight line."""
    heights = np.array([one.affine[:3, 3] @ normal for one in slices])
    gaps = np.diff(heights)
    typical = float(np.median(gaps))
    same = np.flatnonzero(gaps <= EVEN * typical) if typical > 0 else np.flatnonzero(gaps <= 1e-3)
    if len(same):
        pairs = [f"{slices[k]} and {slices[k + 1]}" for k in same]
        raise UnreadableImage(
            f"two slices in one place: {_listed(pairs)}",
            path=place,
            remedy="leave the copies out, or split it by time point or echo",
        )
    wide = np.flatnonzero(gaps > GAP * typical)
    if len(wide):
        where = [
            f"{max(round(gaps[k] / typical) - 1, 1)} between {slices[k]} and {slices[k + 1]} "
            f"({gaps[k]:.4g} instead of {typical:.4g} mm)"
            for k in wide
        ]
        raise UnreadableImage(f"slices are missing: {_listed(where)}", path=place, remedy="copy the whole series")
    origins = np.array([one.affine[:3, 3] for one in slices])
    even = origins[0] + np.linspace(0, 1, len(slices))[:, None] * (origins[-1] - origins[0])
    off = np.linalg.norm(origins - even, axis=1)
    if off.max() > EVEN * typical:
        worst = slices[int(off.argmax())]
        raise UnreadableImage(
            f"slices are unevenly spaced ({gaps.min():.4g} to {gaps.max():.4g} mm; {worst} is {off.max():.3g} mm off)",
            path=place,
            remedy="resample it to even slices first",
        )


def _step(slices: list[Slice]) -> np.ndarray:
    """From one slice to the next in LPS mm."""
    step: np.ndarray = (slices[-1].affine[:3, 3] - slices[0].affine[:3, 3]) / (len(slices) - 1)
    return step


def _spacing(slices: list[Slice], step: np.ndarray) -> tuple[float, float, float]:
    along_row, down_column = np.linalg.norm(slices[0].affine[:3, :2], axis=0)
    return float(np.linalg.norm(step)), float(down_column), float(along_row)


def _runs(slices: list[Slice]) -> Iterable[tuple[Path, list[int]]]:
    """Consecutive slices of one file, so that a multi-frame file is opened once."""
    runs: list[tuple[Path, list[int]]] = []
    for one in slices:
        if not runs or runs[-1][0] != one.path:
            runs.append((one.path, []))
        runs[-1][1].append(one.frame)
    return runs


def _listed(names: list[str], most: int = 3) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
