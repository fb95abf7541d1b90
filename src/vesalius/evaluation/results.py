"""The result file: numbers with all that they depend on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from vesalius.errors import VesaliusError
from vesalius.files import write_text


@dataclass(frozen=True)
class Result:
    """The scores of one evaluation.

    Args:
        run: what was scored: a run folder or a backbone.
        protocol: task (the run's own predictions), linear_probe or knn (on frozen features).
        task: classification, segmentation or enhancement.
        split: which part of the table.
        images, patients: how many.
        metrics: scores by name; per_class holds those of each class with its counts. Undefined ones are NaN.
        intervals: name -> value, low, high, draws: 95 % bootstrap intervals over patients.
        config: what the run was asked for.
        data_hash, split_hash: of the table's rows that were used, and of who is in which split.
        seed: of the bootstrap, and of the choice of labels.
        code: version and commit.
        settings: what the evaluation was asked for.
        leakage: patients of this split that the run, or its backbone, had seen.
    """

    run: str
    protocol: str
    task: str
    split: str
    images: int
    patients: int
    metrics: dict[str, Any]
    intervals: dict[str, dict[str, float]]
    config: dict[str, Any]
    data_hash: str
    split_hash: str
    seed: int
    code: str
    settings: dict[str, Any] = field(default_factory=dict)
    leakage: dict[str, int] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON; what is undefined becomes null."""
        return write_text(path, json.dumps(_plain(asdict(self)), indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read a result.

        Raises:
            VesaliusError: there is none, or the file holds something else.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise VesaliusError("no results here", path=path, remedy="evaluate the run first") from error
        except (TypeError, ValueError) as error:
            raise VesaliusError(f"not a result file ({error})", path=path, remedy="evaluate again") from error

    @property
    def counted(self) -> str:
        """With several labels an image: over how many classes mAP and AUROC are means, and what is decided where.

        Otherwise empty.
        """
        counted, classes = self.metrics.get("classes_counted"), self.metrics.get("per_class", {})
        if counted is None:
            return ""
        absent = ", ".join(self.metrics.get("absent", ()))
        lacking = f"; none of the images holds {absent}" if absent else ""
        threshold = self.settings.get("threshold")
        decided = "" if threshold is None else f"; a class is predicted from a probability of {threshold} on"
        return f"mAP and AUROC are means over {counted} of {len(classes)} classes{lacking}{decided}"

    def show(self, console: Console | None = None) -> None:
        """Print the scores as tables."""
        console = console or Console()
        title = f"{self.run} · {self.protocol} · {self.split}: {self.images} images of {self.patients} patients"
        console.print(title, highlight=False, soft_wrap=True)
        table = Table("score", "value", "95 % interval")
        for name, value in self.metrics.items():
            if isinstance(value, float):
                interval = self.intervals.get(name)
                between = f"{_number(interval['low'])} to {_number(interval['high'])}" if interval else ""
                unit = self.metrics.get(f"{name}_unit", "")
                table.add_row(name, f"{_number(value)} {unit}".strip(), between)
        console.print(table)
        classes = self.metrics.get("per_class")
        if classes:
            rows = {name: _folded(row) for name, row in classes.items()}
            columns = list(dict.fromkeys(key for row in rows.values() for key, value in row.items() if value != "0"))
            per_class = Table(*(Column(name, overflow="fold") for name in ("class", *columns)))
            for name, row in rows.items():
                per_class.add_row(name, *(row.get(key, "0") for key in columns))
            console.print(per_class)
        if self.counted:
            console.print(f"Note: {self.counted}.", highlight=False, soft_wrap=True)
        if self.leakage.get("backbone"):
            console.print(
                f"Note: the backbone was pre-trained (without labels) on {self.leakage['backbone']} of these patients."
            )


def _folded(row: Mapping[str, Any]) -> dict[str, str]:
    """A class's values as text, the ends of an interval in one column; counts of 0 are shown only beside others."""
    text = {key: _number(value) for key, value in row.items() if not key.endswith(("_low", "_high"))}
    if "dice_low" in row:
        text["dice 95 %"] = f"{_number(row['dice_low'])} to {_number(row['dice_high'])}"
    return text


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
