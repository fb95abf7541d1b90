"""Means over draws, and differences between arms of the same draw, from a comparison's cells alone.

A draw is the unit: seeds are averaged within it first. Draws share the pool that they are drawn from and the test
images, so that standard errors and p-values tell how a result varies with *which* few images are labelled, not with
which patients it is tested on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

SIGNIFICANT = 0.05
"""Differences with an adjusted p-value below this are marked."""


@dataclass(frozen=True)
class Difference:
    """How much better an arm is than another, paired over the draws that both have.

    Args:
        mean, se: over draws; se is None for one draw.
        low, high: 95 % interval by Student's t, None for one draw.
        p: of the paired two-sided t-test, None where there is none (one draw, or the same
            difference in all).
        adjusted: p after Holm's correction for all arms of the table.
        draws: how many.
    """

    mean: float
    se: float | None
    low: float | None
    high: float | None
    p: float | None
    adjusted: float | None
    draws: int

    @property
    def significant(self) -> bool:
        """Whether the adjusted p-value is below `SIGNIFICANT`."""
        return self.adjusted is not None and self.adjusted < SIGNIFICANT

    def plain(self) -> dict[str, Any]:
        """As results.json holds it."""
        return {**asdict(self), "significant": self.significant}


def over_draws(scores: Mapping[tuple[int, int], float]) -> dict[int, float]:
    """(draw, seed) -> score becomes draw -> mean over its seeds, leaving out what is not defined.

    >>> over_draws({(0, 0): 0.25, (0, 1): 0.75, (1, 0): 1.0})
    {0: 0.5, 1: 1.0}
    """
    grouped: dict[int, list[float]] = {}
    for (draw, _), value in sorted(scores.items()):
        if math.isfinite(value):
            grouped.setdefault(draw, []).append(value)
    return {draw: float(np.mean(values)) for draw, values in grouped.items()}


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error (None for one value; NaN and None for none).

    >>> mean_and_error([1.0, 2.0, 3.0])
    (2.0, 0.577...)
    """
    if not values:
        return math.nan, None
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(np.mean(values)), error


def differences(
    pairs: Mapping[str, tuple[Mapping[int, float], Mapping[int, float]]],
) -> dict[str, Difference]:
    """The difference of every pair, their p-values adjusted together.

    Args:
        pairs: name -> (draw -> score of the arm, draw -> score of what it is compared with). Pairs without a common
            draw are left out.
    """
    found: dict[str, Difference] = {}
    for name, (arm, other) in pairs.items():
        common = sorted(arm.keys() & other.keys())
        if common:
            found[name] = _difference([arm[draw] - other[draw] for draw in common])
    adjusted = holm({name: one.p for name, one in found.items() if one.p is not None})
    return {name: replace(one, adjusted=adjusted.get(name)) for name, one in found.items()}


def _difference(gains: Sequence[float]) -> Difference:
    mean, se = mean_and_error(gains)
    if se is None:
        return Difference(mean, None, None, None, None, None, len(gains))
    if se <= 1e-12:  # the same in every draw: no spread to test against, which happens with few test images
        return Difference(mean, 0.0, mean, mean, None, None, len(gains))
    reach = float(stats.t.ppf(0.975, len(gains) - 1)) * se
    p = float(stats.ttest_1samp(gains, 0.0).pvalue)
    return Difference(mean, se, mean - reach, mean + reach, p, None, len(gains))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment: an adjusted p-value below alpha keeps the error of the whole family below alpha.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted: dict[str, float] = {}
    reached = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        reached = max(reached, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = reached
    return adjusted
