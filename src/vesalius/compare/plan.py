"""What a comparison consists of: its set-up, its cells, and where they lie.

OUT/setup.json                                          what every cell depends on
OUT/cells/BACKBONE/ARM/5-shot/draw0-seed0.json          one training, chosen and scored; written whole, never again
OUT/cache/                                              pixels and frozen features; may be deleted at any time
OUT/results.json, table.md, report.html                 made anew from the cells each time
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from vesalius.compare.arms import Arm
from vesalius.errors import VesaliusError
from vesalius.files import write_text


@dataclass(frozen=True)
class Setup:
    """What all cells of a comparison have in common.

    Args:
        task: classification or segmentation.
        classes: in the network's order.
        multilabel: any number of classes an image.
        lrs: the grid of learning rates, ascending.
        steps: of every training.
        batch_size: images a step, at most (a smaller support set is seen whole at every step).
        views: augmented versions of each training image.
        image_size: pixels of the side; None = each backbone's own.
        unit, images: what a shot is, see `vesalius.data.draws.draw`.
        published: the draws are those of published lists.
        as_published: with their leaks, and scores as the published code counts.
        data_hash, split_hash: of the table's rows for the task.
    """

    task: str
    classes: tuple[str, ...]
    multilabel: bool
    lrs: tuple[float, ...]
    steps: int
    batch_size: int
    views: int
    image_size: int | None
    unit: str
    images: str
    published: bool
    as_published: bool
    data_hash: str
    split_hash: str

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Job:
    """The missing seeds of one arm on one draw; the learning rate is chosen with the first and used for all.

    Args:
        data: tables.
        lists: folder of published draws.
        out: the comparison's folder.
        setup: see `Setup`.
        backbone: as of `open_backbone`.
        arm: see `Arm`.
        shots: units of each class.
        draw: number of the support set.
        seeds: those whose cells are missing.
    """

    data: tuple[str, ...]
    lists: str | None
    out: str
    setup: Setup
    backbone: str
    arm: Arm
    shots: int
    draw: int
    seeds: tuple[int, ...]

    @property
    def trainings(self) -> int:
        """How many trainings it takes."""
        return len(self.seeds) + (len(self.setup.lrs) - 1) * (0 in self.seeds)

    def cell(self, seed: int) -> Path:
        """Where the result of one seed goes."""
        folder = Path(self.out) / "cells" / quote(self.backbone, safe="") / quote(self.arm.name, safe="")
        return folder / f"{self.shots}-shot" / f"draw{self.draw}-seed{seed}.json"


def plan(
    *,
    data: Sequence[str],
    lists: str | None,
    out: Path,
    setup: Setup,
    backbones: Sequence[str],
    arms: Sequence[Arm],
    shots: Sequence[int],
    draws: int,
    seeds: int,
) -> list[Job]:
    """The jobs with missing cells, a draw after the other, so that a comparison that is stopped early is balanced."""
    jobs = []
    for draw in range(draws):
        for shot in shots:
            for backbone in backbones:
                for arm in arms:
                    job = Job(tuple(data), lists, str(out), setup, backbone, arm, shot, draw, tuple(range(seeds)))
                    missing = tuple(seed for seed in job.seeds if not job.cell(seed).exists())
                    if missing:
                        jobs.append(Job(tuple(data), lists, str(out), setup, backbone, arm, shot, draw, missing))
    return jobs


class Described(Protocol):
    """A set-up, of images or of volumes."""

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""


def open_comparison(out: Path, setup: Described, trunks: Mapping[str, str]) -> None:
    """Write setup.json, or check that the one there is the same.

    Args:
        out: the comparison's folder.
        setup: see `Setup`.
        trunks: backbone -> hash of its weights.

    Raises:
        VesaliusError: `out` holds a comparison of another set-up, or of other weights under a backbone's name.
    """
    path = out / "setup.json"
    known: dict[str, str] = {}
    if path.exists():
        stored = read_json(path)
        try:
            old, known = stored["setup"], stored["trunks"]
        except (KeyError, TypeError) as error:
            raise VesaliusError("is not a comparison's set-up", path=path, remedy="choose another --out") from error
        for name, value in setup.plain().items():
            if old.get(name) != value:
                raise VesaliusError(
                    f"holds a comparison with {_said(name, old.get(name))}; this one has {_said(name, value)}",
                    path=out,
                    remedy="give the same options or choose another --out",
                )
        for name, weights in trunks.items():
            if known.get(name, weights) != weights:
                raise VesaliusError(
                    f"holds results of other weights of {name}", path=out, remedy="choose another --out"
                )
    for stray in (*(out / "cells").rglob(".*.json"), *(out / "cache").glob(".*")):  # of a kill in the middle of a write
        stray.unlink()
    write_text(path, json.dumps({"setup": setup.plain(), "trunks": {**known, **trunks}}, indent=2) + "\n")


def read_cells(out: Path) -> list[dict[str, Any]]:
    """All cells that are there, of earlier commands, too, in the order of their names."""
    return [read_json(path) for path in _sorted((out / "cells").glob("*/*/*-shot/draw*-seed*.json"))]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        VesaliusError: it is damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise VesaliusError(f"is damaged ({error})", path=path, remedy="delete it and run the command again") from error


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.as_posix())


def _said(name: str, value: Any) -> str:
    return f"another {name.replace('_', ' ')}" if name.endswith("_hash") else f"{name} = {value}"
