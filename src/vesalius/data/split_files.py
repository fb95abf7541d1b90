"""Published splits of public sets: files that the authors pickled, and lists of test cases that papers print.

A pickle can run anything when it is read. `read_pickle` reads plain values and numpy arrays only, and refuses a file
that names any other function or class.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy._core import multiarray

from vesalius.data.entry import SPLIT_NAMES, Entry, Folder, stem
from vesalius.data.table import shorten
from vesalius.errors import ConfigError, VesaliusError, nearest

TEST_CASES: dict[str, tuple[str, ...]] = {
    "masam": tuple(f"img{number:04}" for number in range(35, 41)),
    "transunet": tuple(f"img{number:04}" for number in (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)),
}
"""Test cases of BTCV's thirty by whom they are: MA-SAM's six, and the twelve of TransUNet and its successors."""
GENERIC = ("image", "imaging", "data", "volume")
"""File names that every case has."""


def _bytes(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes, of which arrays are made: as a text to encode."""
    return text.encode("latin-1") if encoding in ("latin1", "latin-1") else text.encode("utf-8")


class _Plain(pickle.Unpickler):
    """Dicts, lists, tuples, sets, strings, numbers and numpy arrays of them."""

    ALLOWED: Mapping[tuple[str, str], Any] = {
        ("_codecs", "encode"): _bytes,
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        **{
            (f"numpy.{core}.multiarray", name): getattr(multiarray, name)
            for core in ("core", "_core")  # before and since numpy 2
            for name in ("_reconstruct", "scalar")
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may call."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.ALLOWED[module, name]


def read_pickle(path: str | Path) -> Any:
    """A pickle of plain values and numpy arrays.

    Raises:
        VesaliusError: it asks for anything else, which is then not run; or it is no pickle.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            return _Plain(stream).load()
    except FileNotFoundError as error:
        raise VesaliusError("is not there", path=path, remedy="check the path") from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise VesaliusError(
            f"is not a pickle of plain values ({error}), and was not run",
            path=path,
            remedy="write the split as a CSV list with the columns path and split",
        ) from error


def with_split(entries: Sequence[Entry], splits: str | Path, fold: int, folder: Folder) -> list[Entry]:
    """The entries that a published split has, each with its part.

    An entry is found by the last two parts of its path, else by the name of its case. What the split does not name is
    left out, with a note: drawn at random it might teach what others test on.

    Args:
        entries: of a layout.
        splits: a pickle as of 3DSAM-adapter (a list of folds, each a dict of train, val and test, each a dict from case
            to image and mask), or a name of `TEST_CASES`, whose other cases train.
        fold: of a pickle.
        folder: for the note.

    Raises:
        ConfigError: no such name or fold.
        VesaliusError: the file is no such split, or names none of the entries.
    """
    if str(splits) in TEST_CASES:
        test = TEST_CASES[str(splits)]
        labelled = [entry for entry in entries if entry.masks]
        found = {id(entry): "test" if entry.patient in test else "train" for entry in labelled}
        if "test" not in found.values():
            raise VesaliusError(f"none of {len(entries)} images is one of {shorten(test)}", path=folder.root)
    else:
        if not Path(splits).suffix:
            raise ConfigError(f"no split is called {str(splits)!r}", remedy=nearest(str(splits), TEST_CASES))
        parts = _fold(Path(splits), fold)
        found = {id(entry): part for entry in entries if (part := _part(entry, parts))}
        if not found:
            raise VesaliusError(
                f"names none of the {len(entries)} images (such as {shorten(list(parts))})",
                path=splits,
                remedy=f"see whether it belongs to {folder.root}",
            )
    left = [str(entry.path.relative_to(folder.root)) for entry in entries if id(entry) not in found]
    if left:
        folder.notes.append(f"{len(left)} images are not in the split and left out: {shorten(left)}")
    return [replace(entry, split=found[id(entry)]) for entry in entries if id(entry) in found]


def _fold(path: Path, fold: int) -> dict[str, str]:
    """Of one fold, what may name an image (a case, or the end of a path) -> its part."""
    wrong = VesaliusError(
        "is not a split of 3DSAM-adapter's form", path=path, remedy="see vesalius.data.split_files.with_split"
    )
    folds = read_pickle(path)
    folds = [folds] if isinstance(folds, Mapping) else folds
    if not isinstance(folds, list | tuple) or not all(isinstance(one, Mapping) for one in folds):
        raise wrong
    if not 0 <= fold < len(folds):
        raise ConfigError(f"fold {fold} of {path}", remedy=f"it has {len(folds)} folds, from 0")
    parts: dict[str, str] = {}  # of cases
    names: dict[str, set[str]] = {}  # parts of what else an image may be known by
    for word, cases in folds[fold].items():
        part = SPLIT_NAMES.get(str(word).lower())
        if part is None or not isinstance(cases, Mapping):
            raise wrong
        for case, files in cases.items():
            if parts.setdefault(str(case), part) != part:
                raise VesaliusError(f"has case {case} in two parts of fold {fold}", path=path, remedy="correct it")
            image = PurePath(str(files[0] if isinstance(files, list | tuple | np.ndarray) else files))
            for name in ("/".join(image.parts[-2:]), _bare(image)):
                names.setdefault(name, set()).add(part)
    # A file name that two parts have tells nothing.
    return {**{name: next(iter(some)) for name, some in names.items() if name and len(some) == 1}, **parts}


def _part(entry: Entry, parts: Mapping[str, str]) -> str | None:
    """Where an entry belongs, by the most particular name that the split knows."""
    ending = "/".join(entry.path.parts[-2:])
    for name in (ending, entry.patient or "", _bare(entry.path), entry.path.parent.name):
        if name in parts:
            return parts[name]
    return None


def _bare(path: PurePath) -> str:
    """A file's name without suffix, '' where every case has it."""
    name = stem(Path(path))
    return "" if name in GENERIC else name
