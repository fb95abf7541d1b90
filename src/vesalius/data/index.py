"""From a folder of files to a table: find the images, look into each, and split them by patient.

Files that cannot be used are listed with the reason beside the table, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from vesalius import files
from vesalius.data import masks
from vesalius.data.entry import Entry, Folder, organ_of
from vesalius.data.layouts import choose
from vesalius.data.lists import join_list
from vesalius.data.progress import track
from vesalius.data.split_files import with_split
from vesalius.data.splits import Groups, split_by_group
from vesalius.data.table import (
    MASK_SEPARATOR,
    SPLITS,
    check_splits,
    label_names,
    make_table,
    parquet_path,
    save_table,
    select,
    shorten,
)
from vesalius.data.volumes.cases import probe_case, read_case
from vesalius.data.volumes.layouts import by_file, with_series
from vesalius.errors import ConfigError, UnreadableImage, VesaliusError
from vesalius.images import Header, probe, read

NOT_PICTURES = {"SEG": "a segmentation", "RTDOSE": "a dose distribution"}
"""DICOM modalities that hold pixels, but not of a patient."""
SHOWN = 20
"""Unreadable files listed on the screen; the file beside the table lists all."""


def index(
    folder: str | Path,
    output: str | Path,
    *,
    layout: str = "auto",
    labels: str | Path | None = None,
    organ: str | None = None,
    group: str | None = None,
    mask_classes: Sequence[str] = (),
    dataset: str | None = None,
    val: float = 0.15,
    test: float = 0.15,
    seed: int = 0,
    resplit: bool = False,
    splits: str | Path | None = None,
    fold: int = 0,
    frames: int | Literal["all"] = "all",
    volumes: bool = False,
    keep_duplicates: bool = True,
    check: bool = False,
    workers: int = 4,
) -> pl.DataFrame:
    r"""Make the table of a folder's images and write it as Parquet.

    What cannot be used (truncated, NaN, constant, a mask of another shape) is written with the reason to
    ``OUTPUT.unreadable.csv``. Exact duplicates are kept in one split with their original.

    Args:
        folder: DICOM, NIfTI, PNG, JPEG, TIFF or BMP files, at any depth, or a public dataset as it comes.
        output: the table, ``NAME.parquet``.
        layout: how the folder is organised: msd, list (CSV), brats, atlas, kits, lits, btcv, prostate, cases, hc18,
            medfmc, usfm, voc, paired, busi, image-folders, folder; or auto, to find out (see `vesalius.data.layouts`).
        labels: a CSV file with columns such as path, label, patient, split, joined by path or file name.
        organ: what the images show, where neither folders nor lists say.
        group: regular expression that finds the patient in a path relative to `folder` (its first group, if it has
            one), such as ``r"^(\d+)_"``.
        mask_classes: names of the mask values 1, 2, ..., where the dataset does not name them.
        dataset: name of the dataset; the folder's by default.
        val: fraction of the images for validation, where the dataset has no split.
        test: fraction of the images for testing, where the dataset has no split.
        seed: of the split.
        resplit: split anew although the dataset has a split.
        splits: a published split: the authors' pickle of folds (3DSAM-adapter's split.pkl, read without running it), or
            masam or transunet for BTCV's test cases. Images that it does not name are left out.
        fold: of that pickle.
        frames: all frames of a file, or this many, evenly spaced.
        volumes: one row for a NIfTI volume, a DICOM series or a case of several channels, not one for each slice.
        keep_duplicates: keep exact copies (with ``duplicate_of``) rather than leave them out.
        check: decode every frame; otherwise the first of each file.
        workers: files looked into at a time.

    Returns:
        The table, with absolute paths (see `vesalius.data.table.COLUMNS`).

    Raises:
        VesaliusError: the folder holds no usable image, the output cannot be written, or the dataset's own split puts a
            patient in two sets.

    >>> import tempfile
    >>> from vesalius import phantom
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = phantom("ultrasound", folder / "us", n=6, size=32)
    >>> table = index(folder / "us", folder / "us.parquet")
    >>> table.height, table["modality"][0], table["mask_classes"].to_list()[0]
    (6, 'US', ['lesion'])
    """
    output = parquet_path(output)
    if frames != "all" and (not isinstance(frames, int) or frames < 1):
        raise ConfigError(f"frames = {frames!r}", remedy="use 'all' or a number of at least 1")
    root = Path(folder).resolve()
    found = Folder.walk(root)
    files.output_folder(output.parent)
    form = choose(layout, found)
    found.notes.insert(0, f"layout: {form.name} ({form.describes})")
    entries = with_series(form.entries(found)) if volumes else by_file(form.entries(found))
    if labels is not None:
        entries = join_list(entries, Path(labels), found)
    if group is not None:
        entries = _group_by(entries, group, root)
    if splits is not None:
        entries = with_split(entries, splits, fold, found)
    entries = _merge_repeated(entries)
    if not entries:
        raise VesaliusError("holds no images", path=root, remedy="Vesalius reads DICOM, NIfTI, PNG, JPEG, TIFF, BMP")

    by_path: dict[Path, list[Entry]] = {}
    for entry in entries:
        by_path.setdefault(entry.path, []).append(entry)
    unnamed = not mask_classes and any(entry.masks and entry.mask_classes is None for entry in entries)
    most = None if frames == "all" else frames
    work = [_Work(path, listed, most, volumes, check, unnamed) for path, listed in by_path.items()]
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        looked = list(track(pool.map(_look, work), len(work), f"reading {root.name}"))
    bad = [problem for one in looked for problem in one.bad]
    _write_unreadable(output, bad, root)
    if not any(one.rows for one in looked):
        raise VesaliusError(
            f"none of its {len(work)} images can be used (the first: {bad[0][1]})",
            path=root,
            remedy=f"see {_unreadable(output)}",
        )

    if unnamed:
        count = masks.class_count(set().union(*(one.values for one in looked)), root)
        mask_classes = ["foreground"] if count == 1 else [f"class_{value}" for value in range(1, count + 1)]
        found.notes.append(f"the masks' classes are not named, and called {', '.join(mask_classes)} (see mask_classes)")
    name = dataset or root.name
    root_organ = organ or organ_of(root.name)
    rows = [_row(found, tuple(mask_classes), name, root_organ) for one in looked for found in one.rows]
    _mark_duplicates(rows)
    rows = [row for row in rows if keep_duplicates or row["duplicate_of"] is None]
    _say_annotated(rows)
    _split(rows, val=val, test=test, seed=seed, resplit=resplit)
    table = check_splits(make_table(rows))
    save_table(table, output)
    _report(table, found, bad, output)
    return table


@dataclass(frozen=True)
class _Work:
    """One file to look into: its entries, and how."""

    path: Path
    entries: list[Entry]
    frames: int | None
    volumes: bool
    check: bool
    values: bool


@dataclass(frozen=True)
class _Found:
    """An image that can be used, and its file."""

    entry: Entry
    frame: int | None
    header: Header
    sha256: str


@dataclass
class _Looked:
    """What was found in a file: images that can be used, and (path, reason) of what cannot."""

    rows: list[_Found] = field(default_factory=list)
    values: set[int] = field(default_factory=set)
    bad: list[tuple[str, str]] = field(default_factory=list)


def _look(work: _Work) -> _Looked:
    looked = _Looked()
    entry = work.entries[0]
    case = work.volumes and bool(entry.files or entry.channels)
    try:
        if case:
            header, sources = probe_case(entry.files or [work.path], entry.channels)
        else:
            header, sources = probe(work.path), (work.path,)
        if header.modality in NOT_PICTURES:
            raise UnreadableImage(f"is {NOT_PICTURES[header.modality]} ({header.modality}), not a picture")
        sha256 = _sha256(sources)
        if case:
            rows: list[tuple[Entry, int | None]] = [(entry, None)]
            read_case(entry.files or [work.path], entry.channels).check()
        else:
            rows = [(entry, frame) for entry in work.entries for frame in _frames(work, entry, header)]
            # A volume's first slice is often empty: the volume is looked at whole.
            read(work.path, None if _is_volume(header) else rows[0][1]).check()
    except (VesaliusError, OSError) as error:
        looked.bad.append((str(work.path), _reason(error, work.path)))
        return looked
    companions: dict[Path, Header] = {}
    for entry, frame in rows:
        try:
            if work.check and frame is not None:
                read(work.path, frame).check()
            _check_companions(entry, frame, _size(header, frame), companions)
            if work.values:
                looked.values.update(*(_values(path, frame) for path in entry.masks))
            looked.rows.append(_Found(entry, frame, header, sha256))
        except (VesaliusError, OSError) as error:
            where = "" if frame is None else f"frame {frame}: "
            looked.bad.append((str(work.path), where + _reason(error, work.path)))
    return looked


def _sha256(paths: Sequence[Path]) -> str:
    """Of a file; of several files that are one image, of their hashes."""
    hashes = [files.sha256(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _reason(error: VesaliusError | OSError, path: Path) -> str:
    """What is wrong, and with which file if it is not `path` itself."""
    named = getattr(error, "path", None)
    return error.what if isinstance(error, VesaliusError) and named in (None, path) else str(error)


def _frames(work: _Work, entry: Entry, header: Header) -> list[int | None]:
    """The frames of a file that get a row; None for the file as a whole."""
    if entry.frame is not None:
        return [entry.frame]
    volume = _is_volume(header)
    if len(header.size) == 3 and not volume and not work.volumes:
        raise UnreadableImage(
            f"holds {header.frames} volumes of {header.size}", path=work.path, remedy="split it, or index volumes"
        )
    if header.frames == 1 or (volume and work.volumes):
        return [None]
    if work.frames is None or work.frames >= header.frames:
        return list(range(header.frames))
    # Centres of equal parts, so that one frame is the middle one.
    return [int((k + 0.5) * header.frames / work.frames) for k in range(work.frames)]


def _is_volume(header: Header) -> bool:
    """Whether the file is one volume, whose frames are its slices."""
    return len(header.size) == 3 and header.volumes == 1


def _size(header: Header, frame: int | None) -> tuple[int, ...]:
    """(H, W) of a frame or a slice, (D, H, W) of a volume."""
    return header.size[1:] if _is_volume(header) and frame is not None else header.size


def _check_companions(entry: Entry, frame: int | None, size: tuple[int, ...], headers: dict[Path, Header]) -> None:
    """Masks and target must be there and of the image's shape; `headers` keeps those read before."""
    for path in (*entry.masks, *([entry.target] if entry.target else [])):
        if path not in headers:
            headers[path] = probe(path)
        shape = _size(headers[path], frame)
        # A volume's mask may lie along other axes: volumes are placed by their affines.
        if shape != size and not (len(size) == 3 and sorted(shape) == sorted(size)):
            raise masks.shape_error(path, shape, entry.path, size)


def _values(mask: Path, frame: int | None) -> list[int]:
    return [int(value) for value in np.unique(masks.read_values(mask, frame))]


def _row(found: _Found, mask_classes: tuple[str, ...], dataset: str, organ: str | None) -> dict[str, Any]:
    """The table's row of an image, but for what depends on the others."""
    entry, header = found.entry, found.header
    size = _size(header, found.frame)
    spacing = header.spacing or entry.spacing
    seen = header.tags.get("body_part", "").strip().lower()
    return {
        "path": MASK_SEPARATOR.join(map(str, entry.files or [entry.path])),
        "channels": list(entry.channels),
        "frame": found.frame,
        "frames": header.frames,
        "modality": header.modality or entry.modality,
        "organ": entry.organ or organ or seen or None,
        "patient": f"{dataset}/{entry.patient}" if entry.patient else header.tags.get("patient") or None,
        "study": entry.study or header.tags.get("study"),
        "size": list(size),
        "spacing": list(spacing[-len(size) :]) if spacing else None,
        "split": entry.split,
        "labels": None if entry.labels is None else list(entry.labels),
        "annotated": entry.annotated,
        "mask": MASK_SEPARATOR.join(map(str, entry.masks)) or None,
        "mask_classes": list(mask_classes or entry.mask_classes or ()) if entry.masks else [],
        "target": str(entry.target) if entry.target else None,
        "sha256": found.sha256,
        "dataset": dataset,
    }


def _group_by(entries: list[Entry], pattern: str, root: Path) -> list[Entry]:
    """`entries` with the patient that `pattern` finds in their relative paths."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"group {pattern!r} is no regular expression ({error})", remedy="see Python's re") from error

    def patient(path: Path) -> str | None:
        match = compiled.search(Path(os.path.relpath(path, root)).as_posix())
        return match[1 if compiled.groups else 0] if match else None

    found = [patient(entry.path) for entry in entries]
    if not any(found):
        raise ConfigError(f"group {pattern!r} is found in no path (such as {entries[0].path})", remedy="correct it")
    return [replace(entry, patient=one or entry.patient) for entry, one in zip(entries, found, strict=True)]


def _merge_repeated(entries: list[Entry]) -> list[Entry]:
    """One entry per image: a list may have a row for each of an image's labels."""
    merged: dict[tuple[Path, int | None], Entry] = {}
    for entry in entries:
        first = merged.setdefault((entry.path, entry.frame), entry)
        if first is not entry and entry.labels:
            labels = tuple(dict.fromkeys((first.labels or ()) + entry.labels))
            merged[entry.path, entry.frame] = replace(first, labels=labels)
    return list(merged.values())


def _mark_duplicates(rows: list[dict[str, Any]]) -> None:
    """The first file by name is the original."""
    first: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["path"]):
        original = first.setdefault(row["sha256"], row["path"])
        row["duplicate_of"] = original if original != row["path"] else None


def _say_annotated(rows: list[dict[str, Any]]) -> None:
    """What was looked for: in a labelled image what its layout says or every label, and the classes of its mask."""
    names = sorted({name for row in rows for name in row["labels"] or ()})
    for row in rows:
        looked_for = [] if row["labels"] is None else [*(row["annotated"] or names), *row["labels"]]
        row["annotated"] = [name for name in dict.fromkeys([*looked_for, *row["mask_classes"]]) if name]
        row["labels"] = row["labels"] or []


def _split(rows: list[dict[str, Any]], *, val: float, test: float, seed: int, resplit: bool) -> None:
    groups = Groups()
    for row in rows:
        if row["patient"]:
            groups.join(f"patient {row['patient']}", row["path"])
        if row["duplicate_of"]:
            groups.join(row["path"], row["duplicate_of"])
    given = [None if resplit else row["split"] for row in rows]
    strata = [(row["organ"], *row["labels"], row["mask"] is not None) for row in rows]
    names = [groups.find(row["path"]) for row in rows]
    for row, split in zip(rows, split_by_group(names, strata, given, val=val, test=test, seed=seed), strict=True):
        row["split"] = split


def _unreadable(output: Path) -> Path:
    return output.with_name(output.stem + ".unreadable.csv")


def _write_unreadable(output: Path, bad: list[tuple[str, str]], root: Path) -> None:
    path = _unreadable(output)
    if bad:
        with files.atomic(path) as temporary:
            pl.DataFrame(bad, schema=["path", "reason"], orient="row").write_csv(temporary)
    else:
        path.unlink(missing_ok=True)


def _report(table: pl.DataFrame, folder: Folder, bad: list[tuple[str, str]], output: Path) -> None:
    """What was found, on standard error."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for note in folder.notes:
        console.print(note, markup=False)
    per_file = table.unique("path")
    known = per_file["patient"].drop_nulls().n_unique()
    unknown = per_file["patient"].null_count()
    if unknown:
        console.print(
            f"no patient is named for {unknown} of {len(per_file)} files: each counts as a patient of its own "
            "(give group, or a list with a patient column)",
            style="yellow",
        )
    splits = Counter(table["split"])
    organs = ", ".join(f"{organ or 'not named'} {count}" for organ, count in Counter(table["organ"]).most_common())
    parts = ", ".join(f"{splits[name]} {name}" for name in SPLITS)
    copies = per_file["duplicate_of"].drop_nulls().len()
    console.print(f"{len(table)} images in {len(per_file)} files, {known} patients, {copies} exact duplicates: {parts}")
    console.print(f"organs: {organs}", markup=False)
    _report_labels(table, console)
    empty = [name for name in SPLITS if not splits[name]]
    if empty:
        console.print(
            f"no image is in {' or '.join(empty)}: too few patients, or the dataset's own split", style="yellow"
        )
    if bad:
        shown = Table("file", "reason", title=f"{len(bad)} could not be used (all in {_unreadable(output)})")
        for path, reason in bad[:SHOWN]:
            relative = Path(path)
            relative = relative.relative_to(folder.root) if relative.is_relative_to(folder.root) else relative
            shown.add_row(str(relative), reason)
        console.print(shown)
    console.print(f"written: {output}", markup=False)


def _report_labels(table: pl.DataFrame, console: Console) -> None:
    """How many images each label has, and which labels a split has no image of."""
    looked_at = select(table, task="classification")
    asked_for = looked_at.select(pl.col("annotated").list.set_difference("mask_classes"))
    names = sorted({*label_names(looked_at), *asked_for["annotated"].explode().drop_nulls()})
    if not names:
        return
    counts, each = Counter(looked_at["labels"].explode()), looked_at["labels"].list.len()
    several, none = (each > 1).sum(), (each == 0).sum()
    kinds = f" ({several} images have several, {none} none)" if several or none else ""
    console.print(f"labels: {', '.join(f'{name} {counts[name]}' for name in names)}{kinds}", markup=False)
    for split in SPLITS:
        part = looked_at.filter(pl.col("split") == split)
        lacking = [name for name in names if name not in label_names(part)]
        if len(part) and lacking:
            console.print(f"no image in {split} has the label {shorten(lacking)}", style="yellow", markup=False)
