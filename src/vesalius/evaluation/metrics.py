"""Scores (from `vesalius.tasks.metrics`, where the tasks need them too) and their confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.data.progress import track
from vesalius.errors import VesaliusError
from vesalius.tasks.metrics import (
    batch_overlap,
    classification,
    deblurring_scores,
    defined_mean,
    enhancement,
    foreground_scores,
    segmentation,
    surface_hd95,
    within_class_scatter,
)
from vesalius.tasks.multilabel import multilabel

__all__ = [
    "batch_overlap",
    "bootstrap",
    "classification",
    "deblurring_scores",
    "defined_mean",
    "enhancement",
    "foreground_scores",
    "multilabel",
    "segmentation",
    "surface_hd95",
    "within_class_scatter",
]


def bootstrap(
    score: Callable[[NDArray[np.int64]], float],
    n: int,
    *,
    groups: Sequence[Any] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """A percentile bootstrap interval of any score.

    Args:
        score: from row indices (repeats happen) to a number; NaN draws are left out and counted.
        n: number of images.
        groups: a patient an image; then patients are drawn, each with all its images, because images of one
            patient are not independent.
        draws: bootstrap samples.  level: of the interval.  seed: of the draws.

    Returns:
        value (on all images), low, high, draws (those that counted).

    >>> dice = np.array([0.8, 0.9, 0.7, 0.85])
    >>> interval = bootstrap(lambda rows: float(dice[rows].mean()), len(dice), draws=200)
    >>> interval["low"] < interval["value"] < interval["high"]
    True
    """
    if groups is not None and len(groups) != n:
        raise VesaliusError(f"{len(groups)} groups for {n} images", remedy="give one patient per image")
    names = np.arange(n) if groups is None else np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    members = [np.flatnonzero(names == name) for name in range(int(names.max()) + 1)]
    generator = np.random.default_rng(seed)
    values = np.array(
        [
            score(np.concatenate([members[g] for g in generator.integers(len(members), size=len(members))]))
            for _ in track(range(draws), draws, "drawing intervals")
        ]
    )
    kept = values[~np.isnan(values)]
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2]) if len(kept) else (np.nan, np.nan)
    return {"value": score(np.arange(n)), "low": float(low), "high": float(high), "draws": len(kept)}
