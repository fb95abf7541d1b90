"""What a run learned from, as hashes: enough to refuse a test on patients it has seen, without naming them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from vesalius.errors import VesaliusError
from vesalius.files import write_text
from vesalius.training.runs import RunFolder


def patient_keys(table: pl.DataFrame) -> list[str]:
    """One hash a row: of the patient, or where it is not known of the image's content.

    >>> from vesalius.data.table import make_table
    >>> a, b, c = patient_keys(make_table([{"path": p, "patient": who} for p, who in ("ax", "bx", "cy")]))
    >>> a == b, a == c
    (True, False)
    """
    names = table.select(pl.coalesce("patient", "sha256", "path")).to_series()
    return [_hash([name])[:16] for name in names]


def data_hash(table: pl.DataFrame) -> str:
    """Of images (their SHA-256), frames, labels and masks' names; neither order nor place of the files matters."""
    names = pl.coalesce("sha256", "path").alias("image")
    rows = table.select(names, "frame", pl.col("labels").list.sort(), "mask", "target").rows()
    place = [
        (image, frame, *labels, Path(mask or "").name, Path(target or "").name)
        for image, frame, labels, mask, target in rows
    ]
    return _hash(sorted(repr(row) for row in place))


def split_hash(table: pl.DataFrame) -> str:
    """Of which patient is in which split."""
    return _hash(sorted({f"{key} {split}" for key, split in zip(patient_keys(table), table["split"], strict=True)}))


def write_seen(
    run: RunFolder,
    *,
    train: pl.DataFrame,
    val: pl.DataFrame,
    backbone: Iterable[str] = (),
    earlier: Mapping[str, set[str]] | None = None,
) -> None:
    """Write seen.json.

    Args:
        train, val: the rows that the run learned from, and was chosen by.
        backbone: keys of those whom the backbone had seen.
        earlier: of `read_seen`, where the run goes on from another with the same task.
    """
    earlier = earlier or {}
    seen = {"train": train, "val": val}
    lists = {name: sorted({*patient_keys(table), *earlier.get(name, ())}) for name, table in seen.items()}
    write_text(run.seen, json.dumps({**lists, "backbone": sorted(set(backbone))}, indent=1) + "\n")


def read_seen(run: RunFolder) -> dict[str, set[str]]:
    """The keys in seen.json by name; empty sets where there is no such file (weights from elsewhere)."""
    empty: dict[str, set[str]] = {name: set() for name in ("train", "val", "backbone")}
    if not run.seen.is_file():
        return empty
    try:
        return empty | {name: set(keys) for name, keys in json.loads(run.seen.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise VesaliusError("is damaged", path=run.seen, remedy="restore it; it keeps tests honest") from error


def _hash(parts: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()
