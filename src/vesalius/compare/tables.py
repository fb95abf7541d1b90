"""A comparison's results, made from its cells alone: one table for each backbone and number of shots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from vesalius.compare.arms import BASELINE, DEFAULT
from vesalius.compare.reading import METRIC
from vesalius.compare.statistics import differences, mean_and_error, over_draws
from vesalius.training.runs import environment

Cell = Mapping[str, Any]
LABELS = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "ece": "calibration error",
    "mAP": "mAP",
    "CF1": "CF1",
    "OF1": "OF1",
    "classes_counted": "classes counted",
    "scatter": "scatter within classes",
    "dice": "Dice",
    "iou": "IoU",
}
"""Scores that the page shows, in this order; results.json has all."""


def gather(
    cells: Sequence[Cell],
    setup: Mapping[str, Any],
    *,
    leakage: Mapping[str, Mapping[str, int]],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What results.json holds.

    Args:
        cells: see `vesalius.compare.cells.run_cell`.
        setup: the comparison's.
        leakage: backbone -> how many patients of each split it has seen.
        notes: to be read beside the tables.

    Returns:
        setup, metric, leakage, notes, environment; arms: name -> method, config, controls; tables: backbone, shots and
        rows (see `_row`); cells, as they are.
    """
    metric = METRIC["multilabel" if setup["multilabel"] else setup["task"]]
    arms = {cell["arm"]: {name: cell[name] for name in ("method", "config", "controls")} for cell in cells}
    order = _ordered(arms)
    backbones = list(dict.fromkeys([*leakage, *(cell["backbone"] for cell in cells)]))
    tables = []
    for backbone in backbones:
        for shots in sorted({cell["shots"] for cell in cells if cell["backbone"] == backbone}):
            chosen = [cell for cell in cells if (cell["backbone"], cell["shots"]) == (backbone, shots)]
            tables.append({"backbone": backbone, "shots": shots, "rows": _rows(chosen, order, arms, metric, setup)})
    return {
        "setup": dict(setup),
        "metric": metric,
        "leakage": {name: dict(counts) for name, counts in leakage.items()},
        "notes": list(notes),
        "environment": environment(),
        "arms": {name: arms[name] for name in order},
        "tables": tables,
        "cells": list(cells),
    }


def _ordered(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """In the order in which methods are listed, the baseline first, each with its controls behind it."""
    own = sorted(
        (name for name, arm in arms.items() if not arm["controls"]),
        key=lambda name: (DEFAULT.index(arms[name]["method"]), name),
    )
    return [one for name in own for one in (name, *(c for c, arm in arms.items() if arm["controls"] == name))]


def _rows(
    cells: Sequence[Cell],
    order: Iterable[str],
    arms: Mapping[str, Mapping[str, Any]],
    metric: str,
    setup: Mapping[str, Any],
) -> list[dict[str, Any]]:
    of_arm = {name: [cell for cell in cells if cell["arm"] == name] for name in order}
    of_arm = {name: found for name, found in of_arm.items() if found}
    draws = {name: _draws(found, metric) for name, found in of_arm.items()}
    baseline = draws.get(BASELINE, {})
    gains = differences({name: (scores, baseline) for name, scores in draws.items() if name != BASELINE})
    pairs = {
        control: (draws[arms[control]["controls"]], scores)
        for control, scores in draws.items()
        if arms[control]["controls"] in draws
    }
    controlled = differences(pairs)
    return [
        {
            "arm": name,
            "controls": arms[name]["controls"],
            **_row(found, metric, setup),
            "over_baseline": gains[name].plain() if name in gains else None,
            "over_controls": {
                control: one.plain() for control, one in controlled.items() if arms[control]["controls"] == name
            },
        }
        for name, found in of_arm.items()
    ]


def _row(cells: Sequence[Cell], metric: str, setup: Mapping[str, Any]) -> dict[str, Any]:
    """One arm's line: mean and standard error of every score over draws; the metric of each draw; and what it cost.

    ``at_edge`` counts the draws whose learning rate is the lowest or highest of the grid; ``lrs`` tells how often each
    was chosen; ``sensitivity`` is the mean validation score of each.
    """
    names = list(dict.fromkeys(name for cell in cells for name in cell["test"]))
    means = {name: mean_and_error(list(_draws(cells, name).values())) for name in names}
    choices = [cell for cell in cells if len(cell["trials"]) == len(setup["lrs"])]
    grid = setup["lrs"]
    trials = {lr: [t["val"] for cell in choices for t in cell["trials"] if t["lr"] == lr] for lr in grid}
    trials = {lr: [value for value in values if value == value] for lr, values in trials.items()}
    mean, se = means[metric]
    return {
        "mean": mean,
        "se": se,
        "per_draw": {str(draw): value for draw, value in _draws(cells, metric).items()},
        "seeds": len({cell["seed"] for cell in cells}),
        "scores": {name: {"mean": value, "se": error} for name, (value, error) in means.items()},
        "trained": cells[0]["trained"],
        "of_head": cells[0]["of_head"],
        "seconds": fmean(cell["seconds"] for cell in cells),
        "memory": max(cell["memory"] for cell in cells),
        "images": fmean(cell["images"]["train"] for cell in cells),
        "lrs": {str(lr): sum(cell["lr"] == lr for cell in choices) for lr in grid},
        "at_edge": sum(cell["lr"] in (grid[0], grid[-1]) for cell in choices) if len(grid) > 1 else 0,
        "choices": len(choices),
        "sensitivity": {str(lr): fmean(values) if values else None for lr, values in trials.items()},
    }


def _draws(cells: Iterable[Cell], metric: str) -> dict[int, float]:
    return over_draws({(cell["draw"], cell["seed"]): cell["test"].get(metric, float("nan")) for cell in cells})
