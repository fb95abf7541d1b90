"""Procedural images with truth, written as real files: data to try everything on when there is none.

One module per kind of image, each with one function ``(out, *, n, seed, size, ...) -> table``.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl

from vesalius.errors import ConfigError, nearest

PHANTOMS = {
    "ultrasound": "vesalius.data.phantoms.ultrasound:ultrasound",
    "brain": "vesalius.data.phantoms.brain:brain",
    "ct": "vesalius.data.phantoms.torso:ct",
    "mr": "vesalius.data.phantoms.torso:mr",
}
"""Name -> module and function, imported when it is wanted."""


def phantom(kind: str, out: str | Path, **options: Any) -> pl.DataFrame:
    """Write a collection of phantoms, with truth, as real files.

    Args:
        kind: which: ultrasound, brain (MR), ct or mr (of the torso).
        out: folder to write.
        options: of that kind's function, such as `n`, `seed` and `size`.

    Raises:
        ConfigError: an unknown kind.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     phantom("ultrasound", folder, n=3, size=32).height
    3
    """
    if kind not in PHANTOMS:
        raise ConfigError(f"there are no {kind!r} phantoms", remedy=nearest(kind, PHANTOMS))
    module, function = PHANTOMS[kind].split(":")
    return getattr(import_module(module), function)(out, **options)
