"""Support sets for few-shot learning: K patients of each class, drawn so that two laboratories draw the same ones.

Every unit (a patient, a study or an image) has a rank that is a hash of the seed, the draw's number, the class and the
unit's own name, and the K lowest ranks of a class are drawn. So a draw depends on nothing else: not on the order of the
rows, not on the folder that the images lie in, not on the other classes; what K shots hold, K + 1 hold, too; and a
patient who leaves the table changes nothing for the others but that one of them moves up.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Literal, get_args

import polars as pl

from vesalius.data.table import label_names
from vesalius.errors import ConfigError, nearest

Unit = Literal["patient", "study", "image"]
"""What a shot is. Where a table knows no patient or study, an image (with its exact copies) counts as one."""
Images = Literal["one", "all"]
"""What a unit gives to a class it is drawn for: one of its images of that class, or all of them."""


def draw(
    table: pl.DataFrame,
    *,
    classes: Sequence[str],
    shots: int,
    number: int,
    seed: int = 0,
    unit: Unit = "patient",
    images: Images = "one",
) -> pl.DataFrame:
    """The rows of one support set: `shots` units of each class, sorted by path and frame.

    An image of several labels can be drawn for each of them, and is in the set once; it keeps all its labels, so that a
    class may have more images than were drawn for it. A class of fewer units gives all it has, with a UserWarning that
    says so (`units` counts them beforehand). Images of none of the classes are never drawn.

    Rows come from `table` alone: given the rows of the training split, no patient of the support set is in another.

    Args:
        table: labelled rows to draw from.
        classes: class names; none for all rows as one class (segmentation without labels).
        shots: units of each class.
        number: of the draw, from 0.
        seed: of the series of draws.
        unit: patient, study or image.
        images: what a unit gives: one image, or all its images of the class (as MedFMC does for endo and colon).

    Raises:
        ConfigError: a class that no image has; shots below 1, a negative number, or another unit.

    >>> from vesalius.data.table import make_table
    >>> rows = [{"path": f"{i}.png", "patient": f"p{i // 2}", "labels": ["ab"[i % 4 // 2]]} for i in range(40)]
    >>> one, five = (draw(make_table(rows), classes="ab", shots=shots, number=0) for shots in (1, 5))
    >>> one.height, five.height, set(one["path"]) < set(five["path"])
    (2, 10, True)
    >>> draw(make_table(rows), classes="ab", shots=1, number=0, images="all").height
    4
    """
    if shots < 1 or number < 0:
        raise ConfigError(f"shots = {shots} and number = {number}", remedy="give shots from 1 and a number from 0")
    if images not in get_args(Images):
        raise ConfigError(f"images = {images!r}", remedy=nearest(images, get_args(Images)))
    names = [f"{image}\0{frame}" for image, frame in table.select(_CONTENT, "frame").rows()]
    paths = table["path"].to_list()
    kept: set[int] = set()
    for label, members in _members(table, classes, unit).items():
        if len(members) < shots:
            what = f"class {label!r}" if classes else "the table"
            warnings.warn(f"{what} has {len(members)} of {shots} shots (unit: {unit})", stacklevel=2)
        for one in sorted(members, key=lambda one: _rank(seed, number, label, one))[:shots]:
            rows = members[one]
            if images == "one":
                rows = [min(rows, key=lambda row: (_rank(seed, number, label, names[row]), paths[row]))]
            kept.update(rows)
    return table[sorted(kept)].sort("path", "frame")


def units(table: pl.DataFrame, *, classes: Sequence[str], unit: Unit = "patient") -> dict[str, int]:
    """How many units of each class there are to draw: the most shots that a comparison can ask for.

    Raises:
        ConfigError: as of `draw`.

    >>> from vesalius.data.table import make_table
    >>> rows = [("1", ["cyst", "tumour"]), ("1", ["cyst"]), ("2", ["cyst"])]
    >>> table = make_table({"path": f"{i}.png", "patient": who, "labels": what} for i, (who, what) in enumerate(rows))
    >>> units(table, classes=("cyst", "tumour")), units(table, classes=("cyst",), unit="image")
    ({'cyst': 2, 'tumour': 1}, {'cyst': 3})
    """
    return {label: len(members) for label, members in _members(table, classes, unit).items()}


_CONTENT = pl.coalesce("sha256", "path")
"""An image's name wherever its file lies; the path, where the content was never hashed."""
_UNITS = {
    "patient": pl.coalesce("patient", _CONTENT),
    # A dataset may count the studies of each patient from 1.
    "study": pl.coalesce(pl.concat_str(pl.col("patient").fill_null(""), "study", separator="\0"), "patient", _CONTENT),
    "image": pl.concat_str(_CONTENT, pl.col("frame").cast(pl.String).fill_null(""), separator="\0"),
}


def _members(table: pl.DataFrame, classes: Sequence[str], unit: Unit) -> dict[str, dict[str, list[int]]]:
    """Class -> unit -> the rows of that unit that have the class."""
    if unit not in _UNITS:
        raise ConfigError(f"unknown unit {unit!r}", remedy=nearest(unit, _UNITS))
    members: dict[str, dict[str, list[int]]] = {label: {} for label in classes or [""]}
    rows = table.select(_UNITS[unit].alias("unit"), "labels").rows()
    for row, (one, labels) in enumerate(rows):
        for label in members:
            if not classes or label in labels:
                members[label].setdefault(one, []).append(row)
    for label, found in members.items():
        if not found and not classes:
            raise ConfigError("there are no images to draw from", remedy="choose a split that has some")
        if not found:
            raise ConfigError(f"no image has the class {label!r}", remedy=nearest(label, label_names(table)))
    return members


def _rank(seed: int, number: int, *names: str) -> bytes:
    """Where a name stands in the order of a draw: uniform, and independent for any two names, classes or draws."""
    return hashlib.blake2b("\0".join((str(seed), str(number), *names)).encode(), digest_size=16).digest()
