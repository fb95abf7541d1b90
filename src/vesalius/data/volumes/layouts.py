"""Public datasets of volumes as they come on disk, and DICOM series in any folder.

A volume is an `Entry` whose ``files`` are one for each of its ``channels``, or the folder (or one file) of a series.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from vesalius.data.entry import Entry, Folder, organ_of, split_of, stem
from vesalius.data.table import shorten
from vesalius.images import group_series, is_image

SEQUENCES = {
    "flair": ("flair", "fla", "t2f"),
    "t1": ("t1", "t1n"),
    "t1ce": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
}
"""The channels of a glioma case, and what their files end in: BraTS until 2021, BraTS-Toolkit, BraTS from 2023."""
_CHANNEL = {ending: channel for channel, endings in SEQUENCES.items() for ending in endings}
_ENDING = re.compile(rf"(?:^|[_-])({'|'.join(sorted((*_CHANNEL, 'seg'), key=len, reverse=True))})$")
REGIONS = {
    # Until 2022 enhancing tumour is 4, and no voxel 3; the names then end in _flair, _t1ce, ...
    "_": ("necrotic core", "oedema", "", "enhancing tumour"),
    "-": ("necrotic core", "oedema", "enhancing tumour"),
}
"""Names of a BraTS mask's values, by what separates a file's ending from its case."""
ATLAS_IMAGE, ATLAS_MASK = "_T1w", re.compile(r"_label-.*_mask$")


def _brats_cases(folder: Folder) -> dict[Path, dict[str, Path]]:
    """By folder and what its names have in common, files of several sequences, or of one and ``seg``, by channel."""
    found: dict[Path, dict[str, Path]] = {}
    for file in folder.files:
        if ".nii" in file.name and (ending := _ENDING.search(stem(file).lower())):
            case = file.parent / (stem(file)[: ending.start()] or file.parent.name)
            found.setdefault(case, {})[_CHANNEL.get(ending[1], ending[1])] = file
    return {case: parts for case, parts in found.items() if len(parts) > 1}


def fits_brats(folder: Folder) -> bool:
    """Some case has several MR sequences, or one and its labels."""
    return bool(_brats_cases(folder))


def brats(folder: Folder) -> list[Entry]:
    """``CASE/CASE_flair.nii.gz``, ``_t1``, ``_t1ce``, ``_t2`` and ``_seg``; or ``CASE-t2f.nii.gz``, ``-t1n``, ...

    Channels are flair, t1, t1ce and t2 (those that are there). A case is a patient, but for the time points of
    ``BraTS-GLI-00000-000`` and ``-001``; cases may share a folder.
    """
    entries, alone = [], []
    cases = sorted(_brats_cases(folder).items())
    folders = Counter(case.parent for case, _ in cases)
    for case, parts in cases:
        # A folder of its own names a case better than its files do.
        name = case.parent.name if folders[case.parent] == 1 and case.parent.name else case.name
        channels = tuple(channel for channel in SEQUENCES if channel in parts)
        if len(channels) < len(SEQUENCES):
            alone.append(str(case))
        mask = parts.get("seg")
        separator = "-" if mask is not None and stem(mask).lower().endswith("-seg") else "_"
        paths = tuple(folder.root / parts[channel] for channel in channels)
        entries.append(
            Entry(
                paths[0],
                files=paths,
                channels=channels,
                masks=(folder.root / mask,) if mask else (),
                mask_classes=REGIONS[separator] if mask else None,
                split=split_of(case),
                patient=re.sub(r"^(BraTS-\w+-\d+)-\d+$", r"\1", name),
                organ="brain",
                modality="MR",
            )
        )
    if alone:
        folder.notes.append(f"cases without all of {', '.join(SEQUENCES)}: {shorten(alone)}")
    return entries


def fits_atlas(folder: Folder) -> bool:
    """BIDS with ATLAS's lesion masks."""
    return any(ATLAS_MASK.search(stem(file)) and "T1lesion" in file.name for file in folder.files)


def atlas(folder: Folder) -> list[Entry]:
    """ATLAS v2.0: ``sub-X/ses-Y/anat/sub-X_..._T1w.nii.gz`` with ``..._label-L_desc-T1lesion_mask.nii.gz`` beside it.

    Several masks of a scan are one. The hidden test cases have none; they are split like the others, as images without
    annotation.
    """
    entries = []
    for file in folder.files:
        if not stem(file).endswith(ATLAS_IMAGE):
            continue
        masks = [one for one in folder.files if one.parent == file.parent and ATLAS_MASK.search(stem(one))]
        subject = next((part for part in file.parts if part.startswith("sub-")), None)
        entries.append(
            Entry(
                folder.root / file,
                files=(folder.root / file,),
                channels=("t1",),
                masks=tuple(folder.root / mask for mask in masks),
                mask_classes=("stroke lesion",) if masks else None,
                patient=subject,
                organ="brain",
                modality="MR",
            )
        )
    return entries


def by_file(entries: Iterable[Entry]) -> list[Entry]:
    """Cases of several files as an entry for each file: for indexes of slices."""
    return [
        replace(entry, path=file, files=(), channels=()) for entry in entries for file in entry.files or (entry.path,)
    ]


def with_series(entries: Iterable[Entry]) -> list[Entry]:
    """Entries whose DICOM files are put together to series; those without a place in the patient stay by themselves.

    Files of one series in one folder become one entry: the folder, or its first file where the folder holds several.
    """
    singles: dict[Path, list[Entry]] = {}
    kept: list[Entry] = []
    for entry in entries:
        if entry.path.is_dir():
            kept.append(replace(entry, files=entry.files or (entry.path,)))
        elif entry.files or entry.channels or entry.masks or entry.frame is not None or ".nii" in entry.path.name:
            kept.append(entry)
        else:
            singles.setdefault(entry.path.parent, []).append(entry)
    for parent, beside in singles.items():
        by_path = {entry.path: entry for entry in beside}
        found = group_series(by_path, placed=True)
        series = {uid: paths for uid, paths in found.items() if paths and (uid or len(paths) > 1)}  # UIDs may be gone
        # A folder stands for a series only where it holds nothing else that is an image.
        whole = len(series) == 1 and set(next(iter(series.values()))) == {p for p in parent.iterdir() if is_image(p)}
        for paths in series.values():
            first = by_path[paths[0]]
            place = parent if whole and len(paths) > 1 else first.path
            organ = first.organ or next((o for part in reversed(place.parts) if (o := organ_of(part))), None)
            kept.append(replace(first, path=place, files=(place,), organ=organ))
        together = {path for paths in series.values() for path in paths}
        kept += [entry for entry in beside if entry.path not in together]
    return kept
