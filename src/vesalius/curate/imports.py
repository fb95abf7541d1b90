"""Reviews that were made in another program (3D Slicer, ITK-SNAP): NIfTI and DICOM segmentations as they come back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vesalius.curate.masks import member_mask, read_labels
from vesalius.curate.project import Atlas
from vesalius.curate.records import Review
from vesalius.data.masks import IGNORE
from vesalius.errors import VesaliusError
from vesalius.images import Image

SUFFIXES = (".nii.gz", ".nii", ".dcm")


def import_masks(
    atlas: Atlas,
    files: Sequence[Path],
    *,
    who: str,
    case: str | None = None,
    structure: str | None = None,
    reader: str = "first",
    comment: str = "",
) -> list[Review]:
    """Save what files hold as reviews, based on the newest version of each structure.

    All files are read and checked before the first review is saved. A structure that a label map leaves as it is counts
    as accepted where it was in the queue, and is passed over elsewhere.

    Args:
        atlas: the project.
        files: NIfTI or DICOM-SEG files, or folders of them: named CASE, CASE_STRUCTURE, or lying as CASE/STRUCTURE.
        who: the reader's name or initials.
        case, structure: that the files hold, where their names do not say.
        reader: first or second.
        comment: kept with the reviews.

    Raises:
        VesaliusError: a file names no case, does not lie on it, or its labels have no meaning here.
    """
    named = [(path, *_place(atlas, path, case, structure)) for path in _files(files)]
    queued = {(item.case, item.structure) for item in atlas.queue()}
    found: list[tuple[str, str, NDArray[np.bool_], int]] = []
    for path, where, what in named:
        masks = _masks(atlas, path, atlas.image(where), what)
        for name, mask in masks.items():
            version, before = atlas.current(where, name)
            if what is not None or (where, name) in queued or not np.array_equal(mask, before):
                found.append((where, name, mask, version))
    saved = []
    for where, name, mask, version in found:
        same = np.array_equal(mask, atlas.version_mask(where, name, version))
        saved.append(
            atlas.save_review(
                where,
                name,
                mask,
                based_on=version,
                verdict="accept" if same else "corrected",
                who=who,
                reader=reader,
                comment=comment,
            )
        )
    return saved


def _files(paths: Sequence[Path]) -> list[Path]:
    found = []
    for path in paths:
        if not path.exists():
            raise VesaliusError("is not there", path=path, remedy="check the path")
        inside = sorted(one for one in path.rglob("*") if one.name.endswith(SUFFIXES)) if path.is_dir() else [path]
        if not inside:
            raise VesaliusError("holds no .nii.gz, .nii or .dcm", path=path, remedy="save the masks as NIfTI")
        found += inside
    return found


def _place(atlas: Atlas, path: Path, case: str | None, structure: str | None) -> tuple[str, str | None]:
    """The case that a file belongs to, and the structure where it holds one alone."""
    stem = path.name
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    known = atlas.cases()
    if case is None:
        beginning = [one for one in known if stem == one or stem.startswith(f"{one}_")]
        case = max(beginning, key=len, default=path.parent.name)
        if case not in known:
            raise VesaliusError("its name says no case", path=path, remedy="give --case, or name it CASE_STRUCTURE")
    if structure is None:
        rest = stem.removeprefix(case).strip("_")
        structure = atlas.classes.resolve(rest) if rest else None
    return case, structure


def _masks(atlas: Atlas, path: Path, image: Image, structure: str | None) -> dict[str, NDArray[np.bool_]]:
    """The structures in a file, by name."""
    table = atlas.classes
    values, names = read_labels(path, image)
    values = np.where(values == IGNORE, 0, values)
    if names:
        meant = [table.resolve(name) for name in names]
        if structure is None or structure in meant:
            wanted = [name for name in meant if name in table.names and structure in (None, name)]
            if not wanted:
                raise VesaliusError(
                    f"has the segments {', '.join(names)}, none of which is a class", path=path, remedy="rename them"
                )
            return {name: values == meant.index(name) + 1 for name in wanted}
    if structure is not None:
        if len(np.setdiff1d(values, 0)) < 2:
            return {structure: values > 0}
        wanted_value = table.names.index(structure) + 1
        if wanted_value not in values:
            raise VesaliusError(
                f"holds {len(np.setdiff1d(values, 0))} labels, none of them {wanted_value} for {structure}",
                path=path,
                remedy="save that structure alone",
            )
        return {structure: values == wanted_value}
    if values.max() > len(table.names):
        raise VesaliusError(
            f"holds the value {values.max()}, the project has {len(table.names)} classes",
            path=path,
            remedy="number the labels as atlas.yaml does, or give --structure",
        )
    return {name: member_mask(table, values.astype(np.uint8), name) for name in atlas.targets}
