"""A case of one or several files as one image with named channels.

The channels of a case come as files of their own (BraTS: one per MR sequence), as the volumes of one 4-D NIfTI (the
Decathlon), or there is one channel. Whichever, a case is an `Image` whose channels have names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.data.table import MASK_SEPARATOR
from vesalius.errors import UnreadableImage, VesaliusError
from vesalius.images import Header, Image, probe, probe_series, read_volume

PLACE = 1e-2
"""Millimetres between corners up to which two channels lie in the same place."""


def read_case(paths: Sequence[str | Path] | Mapping[str, str | Path], channels: Sequence[str] = ()) -> Image:
    """Read a case as one volume.

    Args:
        paths: a file (or a series' folder) for each channel, by name or in the order of `channels`; or one file that
            holds all of them as a 4-D NIfTI.
        channels: their names; none for a file that does not say.

    Returns:
        ``[C, D, H, W]``; geometry, provenance and ``path`` are the first channel's.

    Raises:
        UnreadableImage: a file cannot be read as a volume, or is 4-D without a name for each of its volumes; or the
            channels differ in shape or place.
        VesaliusError: there are not as many names as files.
    """
    if isinstance(paths, Mapping):
        channels, paths = tuple(paths), tuple(paths.values())
    files = [Path(path) for path in paths]
    if len(files) == 1 and len(channels) != 1:
        _check_volumes(files[0], channels)
        parts = [read_volume(files[0], k) for k in range(len(channels))] if channels else [read_volume(files[0])]
    elif len(files) != len(channels):
        raise VesaliusError(
            f"{len(channels)} channel names for {len(files)} files", path=files[0], remedy="name every channel"
        )
    else:
        parts = [read_volume(file) for file in files]
    first = parts[0]
    for part in parts[1:]:
        _check_same_place(part, first)
    if not channels:
        return first
    for part, name in zip(parts, channels, strict=True):
        if len(part.channels) != 1:
            raise UnreadableImage(f"is in colours, channel {name!r} is one", path=part.path, remedy="export it as grey")
    array = parts[0].array if len(parts) == 1 else np.concatenate([part.array for part in parts])
    return replace(first, array=array, channels=tuple(channels), frame=None)


def probe_case(paths: Sequence[str | Path], channels: Sequence[str] = ()) -> tuple[Header, tuple[Path, ...]]:
    """The header of what `read_case` reads, and all files that it is stored in; no pixels are read.

    Raises:
        UnreadableImage: as `read_case`, as far as headers tell.
    """
    headers: list[Header] = []
    files: list[Path] = []
    for path in map(Path, paths):
        header, parts = (probe(path), (path,)) if is_nifti(path) else probe_series(path)
        headers.append(header)
        files += parts
    first = headers[0]
    if len(first.size) != 3:
        raise UnreadableImage(f"is 2-D {first.size}, not a volume", path=paths[0], remedy="give a volume")
    if len(headers) == 1 and len(channels) != 1:
        _check_volumes(Path(paths[0]), channels)
    for header, other in zip(headers[1:], paths[1:], strict=True):
        if header.size != first.size:
            raise _misplaced(Path(other), header.size, Path(paths[0]), first.size)
    return first, tuple(files)


def is_nifti(path: Path) -> bool:
    """Whether a volume is a file of its own, by its name; else it is a DICOM series."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def case_of(row: Mapping[str, Any]) -> Image:
    """The image of a table's row; see `read_case`."""
    frame = row.get("frame")
    if frame is not None:
        return read_volume(row["path"], frame)
    return read_case(row["path"].split(MASK_SEPARATOR), row.get("channels") or ())


def _check_volumes(path: Path, channels: Sequence[str]) -> None:
    """A 4-D file holds as many volumes as there are names; without names it must not be 4-D."""
    volumes, meant = probe(path).volumes if is_nifti(path) else 1, max(len(channels), 1)
    if volumes != meant:
        found = f"is 4-D, with {volumes} volumes" if volumes > 1 else "holds one volume"
        raise UnreadableImage(
            f"{found}, where {meant} {'is' if meant == 1 else 'are'} meant",
            path=path,
            remedy="name its channels in their order, or give one volume per file",
        )


def _check_same_place(part: Image, first: Image) -> None:
    if part.size != first.size:
        raise _misplaced(part.path, part.size, first.path, first.size)
    if part.affine is None or first.affine is None:
        return
    ends = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*np.array(first.size[::-1]) - 1, 1]
    off = float(np.abs(ends @ (part.affine - first.affine).T).max())
    if off > PLACE:
        raise UnreadableImage(
            f"lies up to {off:.3g} mm from {first.path}, of which it is another channel",
            path=part.path,
            remedy="register the channels and resample them to one grid",
        )


def _misplaced(path: Path, size: Sequence[int], first: Path, first_size: Sequence[int]) -> UnreadableImage:
    return UnreadableImage(
        f"has the shape {tuple(size)}, {first}, of which it is another channel, {tuple(first_size)}",
        path=path,
        remedy="resample the channels to one grid",
    )
