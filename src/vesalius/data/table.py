"""The table of images: one row per image, frame or volume, with the same columns whatever the dataset.

Stored as Parquet, with paths relative to the file where they lie beneath it, so that a folder can be moved whole.
Reading checks what silently spoils results: files that are gone, misspelt columns, a patient in two splits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from vesalius.errors import VesaliusError, nearest
from vesalius.files import atomic

SPLITS = ("train", "val", "test")
MASK_SEPARATOR = ";"
"""Between the files of one mask that is stored in several (BUSI: one per lesion), or of a case's channels."""

COLUMNS: dict[str, pl.DataType] = {
    "path": pl.String(),
    "frame": pl.Int32(),
    "frames": pl.Int32(),
    "modality": pl.String(),
    "organ": pl.String(),
    "patient": pl.String(),
    "study": pl.String(),
    "size": pl.List(pl.Int32()),
    "spacing": pl.List(pl.Float64()),
    "split": pl.String(),
    "labels": pl.List(pl.String()),
    "annotated": pl.List(pl.String()),
    "mask": pl.String(),
    "mask_classes": pl.List(pl.String()),
    "target": pl.String(),
    "sha256": pl.String(),
    "duplicate_of": pl.String(),
    "dataset": pl.String(),
    "channels": pl.List(pl.String()),
}
"""Names and types of the columns.

- ``path``: the image file.  ``frame``: which frame (a slice of a volume counts as one), null where the row is the whole
  file.  ``frames``: how many the file holds.
- ``modality``: DICOM's code.  ``organ``: what is seen, for organ-balanced sampling.
- ``patient``: unique over all tables: DICOM's patient ID, or ``dataset/id`` where the id is only a dataset's own; null
  where it is not known, the file then counting as a patient.  ``study``: DICOM's study UID.
- ``size``: pixels (H, W) or (D, H, W).  ``spacing``: mm along the same axes, null where the file does not say.
- ``split``: train, val or test.
- ``labels``: names of the image's classes.  ``annotated``: the classes that were looked for, in labels and mask.
- ``mask``: file of the segmentation, several joined by ``;`` being one mask by OR.  ``mask_classes``: value i + 1 is
  name i (an empty name: no class has the value), 0 the background, 255 pixels to be ignored.
- ``target``: the paired clean image, for enhancement.
- ``sha256``: of the file's bytes.  ``duplicate_of``: the first file with the same bytes.  ``dataset``: its name.
- ``channels``: names of a volume's channels; ``path`` is then as many files joined by ``;``, or one 4-D file. Empty
  where there is one channel without a name. A DICOM series is the path of its folder, or of one of its files.
"""

LISTS = ("labels", "annotated", "mask_classes", "channels")
LATER = ("channels",)
"""Columns that tables of earlier versions lack; they are then empty."""
PATHS = ("path", "mask", "target", "duplicate_of")


def make_table(rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """A table of `rows`; columns that a row lacks are null, or empty lists of names.

    Raises:
        VesaliusError: a key is not a column.

    >>> make_table([{"path": "a.png", "frames": 1, "labels": ["benign"]}])["labels"].to_list()
    [['benign']]
    """
    rows = [{**{name: [] for name in LISTS}, **row} for row in rows]
    for name in {key: None for row in rows for key in row}:
        if name not in COLUMNS:
            raise VesaliusError(f"unknown column {name!r}", remedy=nearest(name, COLUMNS))
    return pl.DataFrame(rows, schema=COLUMNS)


def save_table(table: pl.DataFrame, path: str | Path) -> Path:
    """Write `table` as Parquet, whole or not at all; paths beneath its folder become relative to it.

    Raises:
        VesaliusError: the name does not end in .parquet, or the folder cannot be written.
    """
    path = parquet_path(path)
    base = path.parent.resolve()

    def relative(name: str) -> str:
        full = Path(name)
        return full.relative_to(base).as_posix() if full.is_absolute() and full.is_relative_to(base) else name

    with atomic(path) as temporary:
        _map_paths(table, relative).write_parquet(temporary)
    return path


def parquet_path(path: str | Path) -> Path:
    """`path` as a Path, if its name says Parquet.

    Raises:
        VesaliusError: it does not.
    """
    path = Path(path)
    if path.suffix != ".parquet":
        raise VesaliusError("a table is written as Parquet", path=path, remedy="give a name that ends in .parquet")
    return path


def load_table(paths: str | Path | Sequence[str | Path]) -> pl.DataFrame:
    """Read one table, or several as one, with absolute paths.

    Names that differ only in case, spaces, ``-`` or ``_`` ("Fetal head", "fetal_head") become one name, spelt as where
    it first occurs, so that the labels of several datasets merge.

    Raises:
        VesaliusError: a table or an image is missing, a column is missing or unknown, an image is in two tables, or
            `check_splits` finds one patient in two splits.

    >>> import tempfile
    >>> from vesalius import index, phantom
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = phantom("ultrasound", folder / "us", n=6, size=32)
    >>> _ = index(folder / "us", folder / "us.parquet")
    >>> Path(load_table(folder / "us.parquet")["path"][0]).is_absolute()
    True
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not files:
        raise VesaliusError("no table was given", remedy="name a .parquet file that `vesalius index` wrote")
    table = _one_spelling(pl.concat([_read(path) for path in files]))
    _check_files(table, files)
    twice = table.filter(pl.struct("path", "frame").is_duplicated())
    if len(twice):
        raise VesaliusError(
            f"{len(twice)} rows name an image that another row names too", path=twice["path"][0], remedy="list it once"
        )
    check_splits(table)
    return table


def check_splits(table: pl.DataFrame) -> pl.DataFrame:
    """Itself, if every patient, and every file's content, is in one split only.

    Raises:
        VesaliusError: a split has an unknown name, or a patient (or an exact copy of an image) is in two.
    """
    unknown = set(table["split"].drop_nulls()) - set(SPLITS)
    if unknown:
        name = min(unknown)
        raise VesaliusError(f"unknown split {name!r}", remedy=nearest(name, SPLITS))
    remedy = "index again with resplit, which splits by patient, or correct the split column"
    for key, what in ((pl.coalesce("patient", "path"), "patient"), (pl.col("sha256"), "image content")):
        split = (
            table.filter(pl.col("split").is_not_null() & key.is_not_null())
            .group_by(key.alias("key"), maintain_order=True)
            .agg(pl.col("split").unique().sort(), pl.col("path").first())
            .filter(pl.col("split").list.len() > 1)
        )
        if len(split):
            column = "key" if what == "patient" else "path"
            named = [f"{name} ({' and '.join(splits)})" for name, splits in split.select(column, "split").rows()]
            raise VesaliusError(
                f"{len(split)} {what}{'s are' if len(split) > 1 else ' is'} in more than one split: {shorten(named)}",
                remedy=remedy,
            )
    return table


def select(table: pl.DataFrame, *, split: str | None = None, task: str | None = None) -> pl.DataFrame:
    """The rows of one split that carry what a task learns from.

    Args:
        table: any table.
        split: train, val or test; None for all.
        task: classification keeps rows that were labelled, segmentation those with a mask, enhancement those with a
            target, None all.

    >>> table = make_table([{"path": "a.png", "split": "train"}, {"path": "b.png", "split": "val", "mask": "m.png"}])
    >>> select(table, task="segmentation")["path"].to_list()
    ['b.png']
    """
    if split is not None:
        table = table.filter(pl.col("split") == split)
    if task == "classification":
        # A row that was looked at and has none of the labels counts as labelled.
        others = pl.col("annotated").list.set_difference("mask_classes").list.len()
        table = table.filter((pl.col("labels").list.len() > 0) | (others > 0))
    elif task in TASK_COLUMN:
        table = table.filter(pl.col(TASK_COLUMN[task]).is_not_null())
    return table


TASK_COLUMN = {"segmentation": "mask", "enhancement": "target"}
"""The column that holds what a task learns from, where it is a file."""


def label_names(table: pl.DataFrame) -> tuple[str, ...]:
    """All label names, in alphabetical order."""
    return tuple(sorted(set(table["labels"].explode().drop_nulls())))


def mask_names(table: pl.DataFrame) -> tuple[str, ...]:
    """All classes of the masks, in the order in which they first occur."""
    return tuple(name for name in table["mask_classes"].explode().drop_nulls().unique(maintain_order=True) if name)


def shorten(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many there are besides.

    >>> shorten(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _read(path: Path) -> pl.DataFrame:
    if path.suffix != ".parquet" or not path.is_file():
        what = "is not there" if not path.exists() else "is not a table"
        source = path if path.is_dir() else path.parent
        raise VesaliusError(what, path=path, remedy=f"make one with `vesalius index {source} -o NAME.parquet`")
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise VesaliusError(f"cannot be read as Parquet ({error})", path=path, remedy="index again") from error
    for name in table.columns:
        if name not in COLUMNS:
            raise VesaliusError(f"unknown column {name!r}", path=path, remedy=nearest(name, COLUMNS))
    missing = [name for name in COLUMNS if name not in table.columns and name not in LATER]
    if missing:
        raise VesaliusError(f"lacks the columns {', '.join(missing)}", path=path, remedy="index again")
    if table.is_empty():
        raise VesaliusError("has no rows", path=path, remedy="index a folder that holds images")
    table = table.with_columns(pl.lit([], COLUMNS[name]).alias(name) for name in LATER if name not in table.columns)
    try:
        table = table.select(list(COLUMNS)).cast(pl.Schema(COLUMNS))
    except pl.exceptions.PolarsError as error:
        raise VesaliusError(f"a column is of another type ({error})", path=path, remedy="index again") from error
    base = path.parent.resolve()
    return _map_paths(table, lambda name: os.path.normpath(base / name))


def _map_paths(table: pl.DataFrame, change: Callable[[str], str]) -> pl.DataFrame:
    def mapped(value: str | None) -> str | None:
        return None if value is None else MASK_SEPARATOR.join(change(part) for part in value.split(MASK_SEPARATOR))

    columns = [pl.Series(name, [mapped(value) for value in table[name]], pl.String()) for name in PATHS]
    return table.with_columns(columns)


def _one_spelling(table: pl.DataFrame) -> pl.DataFrame:
    spelling: dict[str, str] = {}

    def first(name: str | None) -> str | None:
        return None if name is None else spelling.setdefault(re.sub(r"[\s_-]+", " ", name.strip()).casefold(), name)

    lists = [
        pl.Series(column, [[first(name) for name in names or ()] for names in table[column].to_list()], COLUMNS[column])
        for column in LISTS
    ]
    spelling.clear()  # an organ and a class may share a name, but need not share its spelling
    return table.with_columns(*lists, pl.Series("organ", [first(name) for name in table["organ"]], pl.String()))


def _check_files(table: pl.DataFrame, files: Sequence[Path]) -> None:
    named = {
        part
        for column in ("path", "mask", "target")
        for value in table[column].drop_nulls().unique()
        for part in value.split(MASK_SEPARATOR)
    }
    missing = sorted(name for name in named if not Path(name).exists())
    if missing:
        raise VesaliusError(
            f"{len(missing)} of the {len(named)} files it names are not there: {shorten(missing)}",
            path=", ".join(map(str, files)),
            remedy="put the table back beside its images, or index again",
        )
