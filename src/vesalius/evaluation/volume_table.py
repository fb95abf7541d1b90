"""The table that a volume evaluation ends in: each class's scores with counts and confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.evaluation.metrics import bootstrap
from vesalius.tasks.metrics import defined_mean
from vesalius.tasks.volume_metrics import summarise


def class_table(
    cases: Sequence[Mapping[str, Mapping[str, float]]],
    *,
    classes: Sequence[str],
    scores: Sequence[str] = ("dice", "nsd", "hd95"),
    groups: Sequence[Any] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """`vesalius.tasks.volume_metrics.summarise` by class, with a bootstrap interval of each score.

    Args:
        cases: one `case_scores` a case.
        classes: rows of the table.
        scores: columns of the table.
        groups: a patient a case, who are then drawn whole.
        draws, seed: of the bootstrap.

    Returns:
        class -> n, empty, missed, invented, unannotated, and for each score dict(value, low, high, draws).

    >>> cases = [{"liver": {"dice": dice, "voxels": 9, "predicted_voxels": 9}} for dice in (0.9, 0.8, 0.95)]
    >>> row = class_table(cases, classes=["liver"], scores=["dice"], draws=100)["liver"]
    >>> row["n"], row["dice"]["low"] < row["dice"]["value"] < row["dice"]["high"]
    (3, True)
    """
    counts = summarise(cases, classes)["per_class"]
    table: dict[str, dict[str, Any]] = {}
    for name in classes:
        row: dict[str, Any] = {key: counts[name][key] for key in ("n", "empty", "missed", "invented", "unannotated")}
        for score in scores:
            values = np.array([case.get(name, {}).get(score, np.nan) for case in cases])
            mean = partial(_mean, values)
            row[score] = bootstrap(mean, len(cases), groups=groups, draws=draws, seed=seed)
        table[name] = row
    return table


def _mean(values: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
    return defined_mean(values[rows])
