"""The proof that published weights mean here what they mean in their authors' code: fixtures, recomputed."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table

from vesalius.errors import ConfigError, VesaliusError, nearest
from vesalius.evaluation.parity import FAMILIES
from vesalius.files import atomic, output_folder
from vesalius.published.fixture import Fixture


@dataclass(frozen=True)
class Row:
    """One output of one fixture.

    Args:
        error: relative, over the kept positions; in grey levels (the largest) where the fixture counts in levels.
            Infinite where nothing could be computed.
        tolerance: what the fixture allows.  seconds: that the whole fixture took.
        note: why nothing could be computed.
    """

    fixture: str
    output: str
    error: float
    tolerance: float
    seconds: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """The error is within the tolerance."""
        return self.error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "ok": self.ok}


def verify(paths: Iterable[str | Path], *, save: str | Path | None = None) -> list[Row]:
    """Rebuild each fixture's checkpoint, load it through the ordinary loader, and compare what it computes.

    Args:
        paths: fixtures, ``NAME.json.gz`` with ``NAME.npz`` beside.
        save: folder for ``NAME.npz`` with the computed arrays, whole, under the fixture's output names.

    Returns:
        One row an output, in the order of the files. What cannot be computed has a row with an infinite error and the
        reason, and the rest goes on.

    Raises:
        VesaliusError: `save` cannot be written.

    >>> rows = verify(["tests/parity/mae_lr_schedule.json.gz"])  # from the root of the source tree
    >>> rows[0].output, rows[0].ok
    ('lr', True)
    """
    folder = output_folder(save) if save is not None else None
    rows = []
    for path in paths:
        start = time.perf_counter()
        try:
            fixture = Fixture.read(path)
            outputs = compute(fixture)
        except (VesaliusError, KeyError) as error:
            reason = f"the fixture lacks {error}" if isinstance(error, KeyError) else str(error)
            name = Path(path).name.removesuffix(".json.gz")
            rows.append(Row(name, "(all)", float("inf"), 0.0, time.perf_counter() - start, reason))
            continue
        seconds = time.perf_counter() - start
        for name in fixture.outputs:
            error, tolerance = compare(fixture, name, outputs[name])
            rows.append(Row(fixture.name, name, error, tolerance, seconds))
        if folder is not None:
            with atomic(folder / f"{fixture.name}.npz") as temporary, temporary.open("wb") as stream:
                np.savez(stream, **outputs)
    return rows


def compute(fixture: Fixture) -> dict[str, np.ndarray]:
    """A fixture's outputs as this library computes them, whole."""
    adapter = FAMILIES[family(fixture.name)]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "published.pth"
        if fixture.keys:
            torch.save(fixture.checkpoint(), file)
        computed = adapter(fixture, file)
        return {name: np.asarray(computed[name]) for name in fixture.outputs}


def family(name: str) -> str:
    """The family of a fixture: the longest that its name starts with.

    >>> family("deblur_mae_pyramid_b"), family("deblur_mae_b")
    ('deblur_mae_pyramid', 'deblur_mae')
    """
    known = [prefix for prefix in FAMILIES if name == prefix or name.startswith(prefix + "_")]
    if not known:
        raise ConfigError(f"no adapter for the fixture {name!r}", remedy=nearest(name, FAMILIES))
    return max(known, key=len)


def compare(fixture: Fixture, name: str, actual: np.ndarray) -> tuple[float, float]:
    """An output's error and what is allowed.

    Images of grey levels are compared by their largest difference, everything else by its relative error. Small
    differences of large numbers have a tolerance of their own, which the fixture's text gives.
    """
    if "tolerance_levels" not in fixture.meta:
        own = re.search(rf"{name} = [^=]*compare (?:it )?at ~([\d.e-]+)", fixture.meta.get("call", ""))
        return fixture.error(name, actual), float(own[1]) if own else fixture.tolerance
    kept = fixture.outputs[name]
    allowed = float(fixture.meta["tolerance_levels"])
    note = str(fixture.config.get(name.split("_")[0], ""))
    if "(tolerance " in note:  # an operator with its own
        allowed = float(note.split("(tolerance ")[1].split()[0])
    if actual.shape != tuple(kept.get("shape", kept["value"].shape)):
        return float("inf"), allowed
    at = kept.get("index", slice(None))
    return float(np.abs(actual.reshape(-1)[at].astype(float) - kept["value"].reshape(-1)).max()), allowed


def table(rows: list[Row]) -> Table:
    """The rows, to print."""
    good = sum(row.ok for row in rows)
    page = Table(
        "fixture",
        "output",
        "error",
        "tolerance",
        "",
        "seconds",
        title=f"{good} of {len(rows)} outputs within tolerance",
    )
    for row in rows:
        mark = "[green]ok[/]" if row.ok else f"[red]FAIL[/] {escape(row.note)}"
        page.add_row(row.fixture, row.output, f"{row.error:.2g}", f"{row.tolerance:.2g}", mark, f"{row.seconds:.1f}")
    return page
