"""Comparison of ways to segment volumes: adapted SAMs beside networks that are trained from scratch.

Every cell is an ordinary run of ``adapt``, which ``evaluate`` scores on the test patients: all methods learn from the
same patients, for as many steps, with the best of one grid of learning rates by the validation patients.

OUT/runs/METHOD/5-shot/lr0.001-seed0/     a run, with trial.json once it is trained
OUT/cells/METHOD/5-shot/seed0.json        the chosen rate and its scores; written whole, never again
OUT/results.json, table.md, report.html   made anew from the cells each time
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from vesalius.compare.arms import split_words
from vesalius.compare.plan import open_comparison, read_json
from vesalius.compare.statistics import differences, mean_and_error
from vesalius.data.progress import track
from vesalius.errors import ConfigError, nearest
from vesalius.evaluation.verbs import evaluate
from vesalius.files import output_folder, write_text
from vesalius.report.html import Block, Heading, Page, Table, Text
from vesalius.training.runs import environment
from vesalius.training.sam_verbs import adapt_masam, adapt_sam3d
from vesalius.training.transunet_verbs import adapt_transunet
from vesalius.training.volume_verbs import adapt_volumes

SCRATCH = {"swin_unetr": "random:brainsegfounder", "dynunet": "random:dynunet"}
"""3-D networks with fresh weights, without their preset."""
METHODS = ("sam3d", "masam", "lora_sam", "transunet", *SCRATCH)
LORA = {"width": 0, "rank": 0, "lora": 4}
"""LoRA of query and value in place of MA-SAM's adapters."""
SCORES = {"dice": "Dice", "nsd": "NSD", "hd95": "HD95"}
VALIDATIONS = 4
"""Of every training; the weights of the best one are kept."""
PROTOCOL = (
    "All methods learn from the same training patients ({shots}; each seed draws others where they are few) for "
    "{steps} steps. Of the learning rates {lrs} the one with the best Dice on the validation patients is chosen with "
    "the first seed and used for all. The weights of the best of {validations} validations are scored on the test "
    "patients. Mean and standard error are over seeds; differences are paired, p is of a t-test, adjusted by Holm. "
    "sam3d is told a click on what it shall find, drawn from the truth; the others are told nothing."
)


@dataclass(frozen=True)
class VolumeArm:
    """A method with settings, named as it was written."""

    name: str
    method: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class VolumeSetup:
    """What all cells have in common.

    Args:
        classes: in the networks' order.
        channels: that the volumes have.
        base: of the methods that adapt a SAM.
        lrs: the grid.
        steps: of every training.
        data_hash, split_hash: of the table's rows.
    """

    classes: tuple[str, ...]
    channels: tuple[str, ...]
    base: str
    lrs: tuple[float, ...]
    steps: int
    data_hash: str
    split_hash: str

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return json.loads(json.dumps(asdict(self)))


def read_volume_arms(words: Sequence[str], classes: Sequence[str]) -> list[VolumeArm]:
    """The arms that `words` name.

    Raises:
        ConfigError: an unknown method, one twice, a setting without a value, or sam3d for several classes.

    >>> read_volume_arms(["masam:adapters.width=8:slices=3"], ["liver"])[0].settings
    {'adapters': {'width': 8}, 'slices': 3}
    """
    arms: list[VolumeArm] = []
    for word in split_words(words):
        method, *parts = word.split(":")
        if method not in METHODS:
            raise ConfigError(f"unknown method of volumes {method!r}", remedy=nearest(method, METHODS))
        if method == "sam3d" and len(classes) != 1:
            raise ConfigError(f"sam3d for {len(classes)} classes", remedy="name the one that it finds with --classes")
        if word in [arm.name for arm in arms]:
            raise ConfigError(f"{word} is named twice", remedy="name every method once, or with other settings")
        settings: dict[str, Any] = {}
        for part in parts:
            name, equals, value = part.partition("=")
            if not equals:
                raise ConfigError(f"{word!r}: {part!r} sets nothing", remedy="write METHOD:SETTING=VALUE")
            *outer, last = name.split(".")
            place = settings
            for key in outer:
                place = place.setdefault(key, {})
            place[last] = yaml.safe_load(value)
        arms.append(VolumeArm(word, method, settings))
    return arms


def run_volumes(
    setup: VolumeSetup,
    *,
    data: Sequence[str],
    out: Path,
    arms: Sequence[VolumeArm],
    shots: Sequence[int | None],
    seeds: int,
) -> dict[str, Any]:
    """Run what is missing, a seed after the other, and write the tables.

    Args:
        setup: see there.
        data: tables.
        out: the comparison's folder.
        arms: the first one is what the others are compared with.
        shots: labelled patients, None for all.
        seeds: trainings of each.

    Returns:
        What results.json holds.

    Raises:
        VesaliusError: as of the methods' verbs; `out` holds another comparison.
    """
    out = output_folder(out)
    open_comparison(out, setup, {})
    jobs = [(seed, shot, arm) for seed in range(seeds) for shot in shots for arm in arms]
    todo = [job for job in jobs if not _cell(out, *job).is_file()]
    for seed, shot, arm in track(todo, len(todo), "training"):
        trials = []
        if seed == 0:
            trials = [_trial(arm, setup, data, out, shot, seed, lr) for lr in setup.lrs]
            chosen = max(trials, key=lambda trial: trial["val"])
        else:
            chosen = _trial(arm, setup, data, out, shot, seed, read_json(_cell(out, 0, shot, arm))["lr"])
        metrics = evaluate(chosen["run"], list(data), seed=seed).metrics
        cell = {
            "arm": arm.name,
            "method": arm.method,
            "config": arm.settings,
            "shots": shot,
            "seed": seed,
            "lr": chosen["lr"],
            "trials": trials or [chosen],
            "test": {name: metrics[name] if math.isfinite(metrics[name]) else None for name in SCORES},
            "hd95_unit": metrics["hd95_unit"],
        }
        write_text(_cell(out, seed, shot, arm), json.dumps(cell, indent=1) + "\n")
    cells = [read_json(path) for path in sorted((out / "cells").glob("*/*/seed*.json"))]
    results = gather_volumes(cells, setup, first=arms[0].name)
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(out / "table.md", markdown(results))
    page(results).save(out / "report.html")
    return results


def gather_volumes(cells: Sequence[Mapping[str, Any]], setup: VolumeSetup, *, first: str) -> dict[str, Any]:
    """One table for each number of shots, from the cells alone.

    Args:
        cells: of `run_volumes`.
        setup: of all of them.
        first: the arm that the others are compared with.
    """
    tables = []
    for shot in sorted({cell["shots"] for cell in cells}, key=lambda shot: math.inf if shot is None else shot):
        names = dict.fromkeys([first, *(cell["arm"] for cell in cells if cell["shots"] == shot)])
        of_arm = {name: [c for c in cells if (c["arm"], c["shots"]) == (name, shot)] for name in names}
        of_arm = {name: found for name, found in of_arm.items() if found}
        dice = {name: _over_seeds(found, "dice") for name, found in of_arm.items()}
        gains = differences({name: (one, dice.get(first, {})) for name, one in dice.items() if name != first})
        rows = [
            {
                "arm": name,
                "scores": {score: _mean(_over_seeds(found, score)) for score in SCORES},
                "over_first": gains[name].plain() if name in gains else None,
                "lr": found[0]["lr"],
                "seeds": len(found),
                "seconds": sum(trial["seconds"] for cell in found for trial in cell["trials"]),
            }
            for name, found in of_arm.items()
        ]
        tables.append({"shots": shot, "rows": rows})
    return {
        "setup": setup.plain(),
        "first": first,
        "hd95_unit": cells[0]["hd95_unit"],
        "environment": environment(),
        "tables": tables,
        "cells": list(cells),
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    lines = []
    for table in _tables(results):
        lines += [
            f"### {table.caption}",
            "",
            "| " + " | ".join(table.columns) + " |",
            "|---" * len(table.columns) + "|",
        ]
        lines += [
            "| " + " | ".join(f"{c.text} ± {c.spread}" if c.spread else c.text for c in row) + " |"
            for row in table.cells()
        ]
        lines.append("")
    return "\n".join(lines)


def page(results: Mapping[str, Any]) -> Page:
    """The comparison's page."""
    setup = results["setup"]
    shots = ", ".join(_shots(table["shots"]) for table in results["tables"])
    said = PROTOCOL.format(shots=shots, steps=setup["steps"], lrs=setup["lrs"], validations=VALIDATIONS)
    blocks: list[Block] = [Heading("Test patients"), *_tables(results), Heading("How it was done"), Text(said)]
    title = f"{', '.join(setup['classes'])}; SAM: {setup['base']}"
    return Page("Segmentation of volumes compared", title, blocks, footer=results["environment"]["code"])


def _tables(results: Mapping[str, Any]) -> list[Table]:
    columns = ["method", "Dice", "NSD", f"HD95 ({results['hd95_unit']})", f"Dice − {results['first']}", "p"]
    columns += ["learning rate", "seeds", "s"]
    best: Any = {"Dice": "max", "NSD": "max", columns[3]: "min"}
    tables = []
    for table in results["tables"]:
        rows: list[list[Any]] = []
        for row in table["rows"]:
            scores = [
                None if one is None else (one[0], math.nan if one[1] is None else one[1])
                for one in row["scores"].values()
            ]
            gain = row["over_first"] or {}
            others = [f"{row['lr']:g}", row["seeds"], round(row["seconds"], 1)]
            rows.append([row["arm"], *scores, gain.get("mean"), gain.get("adjusted"), *others])
        tables.append(Table(columns, rows, _shots(table["shots"]), best))
    return tables


def _trial(
    arm: VolumeArm, setup: VolumeSetup, data: Sequence[str], out: Path, shot: int | None, seed: int, lr: float
) -> dict[str, Any]:
    """One training: its rate, run, validation Dice and seconds."""
    run = out / "runs" / quote(arm.name, safe="") / _shots(shot).replace(" ", "-") / f"lr{lr:g}-seed{seed}"
    if (run / "trial.json").is_file():
        return read_json(run / "trial.json")
    start = time.perf_counter()
    train, settings = _training(arm, setup)
    summary = train(
        data=list(data),
        out=run,
        shots=shot,
        lr=lr,
        steps=setup.steps,
        val_every=max(setup.steps // VALIDATIONS, 1),
        seed=seed,
        cache=out / "cache",
        resume=(run / "config.yaml").is_file(),
        progress=False,
        **settings,
    )
    best = max(point["val/dice"] for point in summary["history"] if "val/dice" in point)
    trial = {"lr": lr, "run": str(run), "val": best, "seconds": time.perf_counter() - start}
    write_text(run / "trial.json", json.dumps(trial) + "\n")
    return trial


def _training(arm: VolumeArm, setup: VolumeSetup) -> tuple[Callable[..., dict[str, Any]], dict[str, Any]]:
    """The verb of a method, and its options."""
    classes, settings = list(setup.classes), dict(arm.settings)
    fresh = arm.method == "transunet" or arm.method in SCRATCH
    preset = settings.pop("preset", "tiny" if fresh else "auto")
    if arm.method == "sam3d":
        return adapt_sam3d, {"base": setup.base, "preset": preset, "target": classes[0], "model": settings}
    if arm.method == "masam":
        return adapt_masam, {"base": setup.base, "preset": preset, "classes": classes, "model": settings}
    if arm.method == "lora_sam":
        model = {**settings, "adapters": {**LORA, **settings.get("adapters", {})}}
        return adapt_masam, {"base": setup.base, "preset": preset, "classes": classes, "model": model}
    if arm.method == "transunet":
        return adapt_transunet, {"preset": preset, "classes": classes, "model": settings}
    backbone = f"{SCRATCH[arm.method]}/{preset}"

    def train(**options: Any) -> dict[str, Any]:
        return adapt_volumes("full", **options)

    return train, {"backbone": backbone, "channels": setup.channels, "classes": classes, **settings}


def _over_seeds(cells: Sequence[Mapping[str, Any]], score: str) -> dict[int, float]:
    values = {cell["seed"]: cell["test"][score] for cell in cells}
    return {seed: value for seed, value in sorted(values.items()) if value is not None and math.isfinite(value)}


def _mean(values: Mapping[int, float]) -> tuple[float, float | None] | None:
    """Mean and standard error over seeds; None where no seed has a score, as of surfaces where nothing was found."""
    return mean_and_error(list(values.values())) if values else None


def _cell(out: Path, seed: int, shot: int | None, arm: VolumeArm) -> Path:
    folder = out / "cells" / quote(arm.name, safe="")
    return folder / _shots(shot).replace(" ", "-") / f"seed{seed}.json"


def _shots(shot: int | None) -> str:
    return "all patients" if shot is None else f"{shot} patients"
