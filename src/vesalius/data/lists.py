"""Lists in CSV form: a dataset's own, or the user's labels for a folder of files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import polars as pl

from vesalius.data.entry import SPLIT_NAMES, Entry, Folder, stem
from vesalius.data.table import shorten
from vesalius.errors import VesaliusError, nearest

NAMES = {
    "path": ("path", "image", "file", "filename", "file_name", "image_path", "image_index", "image_id", "img"),
    "frame": ("frame",),
    "labels": ("label", "labels", "class", "classes", "finding_labels", "diagnosis"),
    "masks": ("mask", "mask_path", "segmentation"),
    "mask_classes": ("mask_classes",),
    "target": ("target", "clean"),
    "split": ("split", "set", "subset"),
    "patient": ("patient", "group", "patient_id", "subject", "subject_id", "case"),
    "study": ("study", "study_id"),
    "organ": ("organ", "body_part"),
    "modality": ("modality",),
    "channels": ("channels",),
    "spacing": ("spacing", "pixel_mm", "pixel_size_mm", "pixel_size"),
}
"""What a column may be called; case, spaces and punctuation do not matter. Other columns are passed over."""


def find_list(root: Path) -> Path | None:
    """The folder's list: ``index.csv``, or the only CSV file in it that has a path column."""
    if (root / "index.csv").is_file():
        return root / "index.csv"
    lists = [path for path in sorted(root.glob("*.csv")) if _column(_header(path), "path") is not None]
    return lists[0] if len(lists) == 1 else None


def read_list(path: Path, folder: Folder) -> list[Entry]:
    """The images of a CSV file, one a row, with files relative to it.

    Several labels, mask files, mask classes or channels (with as many paths) in a field are separated by ``;`` or
    ``|``. A name that is not beside the list is looked for in the folders beneath. An empty label field means that
    nothing was found where other rows have several labels, and that nobody looked where each row has at most one. A
    split called other than train, val or test (or the like) counts as none.

    Args:
        path: the CSV file.
        folder: the folder it belongs to.

    Raises:
        VesaliusError: it cannot be read, or has no column of paths.
    """
    try:
        separator = max(",;\t", key=_header_line(path).count)
        table = pl.read_csv(path, separator=separator, infer_schema=False, encoding="utf8-lossy")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise VesaliusError(f"cannot be read as CSV ({error})", path=path, remedy="save it as UTF-8 CSV") from error
    columns = {field: _column(table.columns, field) for field in NAMES}
    if columns["path"] is None:
        raise VesaliusError(
            "has no column of paths", path=path, remedy=nearest("path", table.columns) + "; call it 'path'"
        )
    unused = [name for name in table.columns if name not in columns.values()]
    if unused:
        folder.notes.append(f"columns of {path.name} not used: {', '.join(unused)}")

    by_name: dict[str, list[Path]] = {}
    for file in folder.files:
        by_name.setdefault(file.name, []).append(folder.root / file)

    def located(name: str) -> Path:
        beside = path.parent / name
        if not beside.exists() and len(same := by_name.get(Path(name).name, [])) == 1:
            return same[0]
        return beside

    rows = [{field: _text(row[name]) if name else None for field, name in columns.items()} for row in table.to_dicts()]
    rows = [row for row in rows if row["path"]]
    multilabel = any(len(_several(row["labels"])) > 1 for row in rows)
    other = sorted({row["split"] for row in rows if row["split"] and row["split"].lower() not in SPLIT_NAMES})
    if other:
        folder.notes.append(f"splits of {path.name} not used: {', '.join(other)}")
    return [
        Entry(
            path=located(_several(row["path"])[0] if row["channels"] else row["path"] or ""),
            frame=None if row["frame"] is None else int(_number(row["frame"], "frame", path)),
            labels=_several(row["labels"]) or (() if multilabel else None),
            masks=tuple(located(name) for name in _several(row["masks"])),
            mask_classes=_several(row["mask_classes"]) or None,
            target=located(row["target"]) if row["target"] else None,
            split=SPLIT_NAMES.get((row["split"] or "").lower()),
            patient=row["patient"],
            study=row["study"],
            organ=row["organ"],
            modality=row["modality"],
            spacing=_spacing(row["spacing"], path),
            files=tuple(located(name) for name in _several(row["path"])) if row["channels"] else (),
            channels=_several(row["channels"]),
        )
        for row in rows
    ]


def join_list(entries: list[Entry], path: Path, folder: Folder) -> list[Entry]:
    """`entries` with what the CSV file says about them, matched by path or by the file's name without suffix.

    Raises:
        VesaliusError: no row fits a file, or a name fits several.
    """
    rows = read_list(path, folder)
    by_path: dict[Path, list[Entry]] = {}
    by_stem: dict[str, set[Path]] = {}
    for entry in entries:
        by_path.setdefault(entry.path.resolve(), []).append(entry)
        by_stem.setdefault(stem(entry.path), set()).add(entry.path.resolve())
    said: dict[Path, list[Entry]] = {}
    lost = []
    for row in rows:
        places = [row.path.resolve()]
        if row.path.is_relative_to(path.parent):
            places.append((folder.root / row.path.relative_to(path.parent)).resolve())
        full = next((place for place in places if place in by_path), None)
        if full is not None:
            said.setdefault(full, []).append(row)
        else:
            # A bare id ("1.2.840.7") has no suffix to take off.
            same = by_stem.get(row.path.name) or by_stem.get(stem(row.path), set())
            if len(same) > 1:
                raise VesaliusError(
                    f"{row.path.name} fits {len(same)} files", path=path, remedy="give the path relative to the folder"
                )
            if same:
                said.setdefault(next(iter(same)), []).append(row)
            else:
                lost.append(row.path.name)
    if not said:
        raise VesaliusError(
            f"none of its {len(rows)} rows names a file in {folder.root} (the first: {shorten(lost)})",
            path=path,
            remedy="give paths relative to the folder, or file names",
        )
    if lost:
        folder.notes.append(f"{len(lost)} rows of {path.name} name no file: {shorten(lost)}")
    return [
        _update(entry, row) if row else entry for entry in entries for row in said.get(entry.path.resolve(), [None])
    ]


def _update(entry: Entry, row: Entry) -> Entry:
    given = {name: value for name, value in vars(row).items() if name != "path" and value not in (None, ())}
    if row.labels == ():
        given["labels"] = ()
    return replace(entry, **given)


def _header_line(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        return stream.readline().strip()


def _header(path: Path) -> list[str]:
    line = _header_line(path)
    return [name.strip('"') for name in line.split(max(",;\t", key=line.count))]


def _column(columns: Iterable[str], field: str) -> str | None:
    """The column that holds `field`, the usual names in their order."""
    plain = {re.sub(r"[\W_]+", "_", name.lower()).strip("_"): name for name in columns}
    return next((plain[name] for name in NAMES[field] if name in plain), None)


def _text(value: str | None) -> str | None:
    return (value or "").strip() or None


def _several(value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(r"[;|]", value or "") if part.strip())


def _number(value: str, field: str, path: Path) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise VesaliusError(f"{field} {value!r} is no number", path=path, remedy="correct it") from error


def _spacing(value: str | None, path: Path) -> tuple[float, ...] | None:
    """Spacing in mm along (H, W); one number is both."""
    sides = tuple(_number(side, "spacing", path) for side in _several(value))
    return (sides * 2 if len(sides) == 1 else sides) or None
