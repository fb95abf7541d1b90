"""In which order volumes and structures are reviewed, what that is expected to change, and what it costs.

Published (Li 2024; Qu 2023): volumes by the number of attended voxels, the structures of a volume by the sum of their
attention maps; the first few of a hundred are revised in a round, and rounds end when the first ones need no change.
Counts of voxels depend on how finely a scanner samples, so that here a volume is ranked by cubic millimetres, and a
reader's minutes and what a review is expected to change are said for every structure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import nnls

from vesalius.errors import VesaliusError

Summary = Mapping[str, float]
"""Of one structure of one volume: `vesalius.curate.attention.StructureMaps.summary`."""
Order = Literal["attention", "uncertainty", "random"]
PRECISION = 0.3
"""Share of attended volume that a review changes, before there are reviews: about what phantoms show."""
PRIOR_MM3 = 10_000.0
"""Attended volume in reviews from which on they count for more than `PRECISION`."""
ENOUGH = 5
"""Reviews from which minutes are estimated."""


@dataclass(frozen=True)
class Minutes:
    """What a review costs a reader: so much for each structure, and so much for each millilitre that is marked in it.

    Args:
        each: minutes to open, look at and judge a structure.
        per_ml: minutes to correct a millilitre of attended volume.

    >>> Minutes(each=0.5, per_ml=2.0)(1500.0)
    3.5
    """

    each: float = 0.5
    per_ml: float = 0.5

    def __call__(self, mm3: float) -> float:
        """Minutes for a structure with that attended volume."""
        return self.each + self.per_ml * mm3 / 1000

    def fit(self, reviews: Sequence[tuple[float, float]]) -> Minutes:
        """As earlier reviews went, by non-negative least squares; itself while there are fewer than five.

        Args:
            reviews: attended mm^3 and seconds spent, a pair each.

        >>> Minutes().fit([(1000.0 * ml, 60.0 + 30.0 * ml) for ml in range(6)])
        Minutes(each=1.0, per_ml=0.5)
        """
        if len(reviews) < ENOUGH:
            return self
        mm3, seconds = np.array(reviews, dtype=float).T
        (each, per_ml), _ = nnls(np.stack([np.ones_like(mm3), mm3 / 1000], axis=1), seconds / 60)
        return Minutes(round(float(each), 6), round(float(per_ml), 6))


@dataclass(frozen=True)
class Ranked:
    """A structure of a volume, in its place in the queue.

    Args:
        case, structure: which.
        score: what it is ranked by: mm^3, or voxels as published; 0 to 1 in random order.
        mm3: attended volume.
        gain: mm^3 that a review is expected to change.
        minutes: that it is expected to take.
    """

    case: str
    structure: str
    score: float
    mm3: float
    gain: float
    minutes: float


def rank(
    summaries: Mapping[str, Mapping[str, Summary]],
    *,
    order: Order = "attention",
    minutes: Minutes | None = None,
    precision: float = PRECISION,
    as_published: bool = False,
    seed: int = 0,
) -> list[Ranked]:
    """The queue: the volume with most to look at first, and its structures one after the other.

    Structures without attention are left out; in random order, too, so that the orders differ in nothing else.

    Args:
        summaries: case -> structure -> its summary.
        order: by attended volume, by the uncertain part of it alone, or by chance.
        minutes: what a review costs.
        precision: share of attended volume that a review changes, see `revised_share`.
        as_published: voxels instead of mm^3, and the structures of a volume by the sum of their maps.
        seed: of the random order.

    Raises:
        VesaliusError: volumes whose voxels have no size, and they are not ranked as published.

    >>> size = {"voxels": 50, "mm3": 400.0, "voxel_mm3": 8.0, "uncertainty": 10, "heat": 900}
    >>> small = {**size, "voxels": 20, "mm3": 160.0}
    >>> [(one.case, one.structure) for one in rank({"a": {"liver": small}, "b": {"aorta": small, "liver": size}})]
    [('b', 'liver'), ('b', 'aorta'), ('a', 'liver')]
    """
    minutes = minutes or Minutes()
    chance = np.random.default_rng(seed)
    cases = []
    for case, structures in summaries.items():
        items, place = [], float(chance.random())
        for structure, summary in structures.items():
            if not summary["voxels"]:
                continue
            mm3 = summary["mm3"]
            if np.isnan(mm3) and not as_published:
                raise VesaliusError(f"{case} does not say how large its voxels are", remedy="rank as_published")
            score = float(summary["voxels"]) if as_published else mm3
            if order == "uncertainty":
                score = summary["uncertainty"] * (1.0 if as_published else summary["voxel_mm3"])
            within = summary["heat"] if as_published else score
            shown = place if order == "random" else score
            items.append((within, Ranked(case, structure, shown, mm3, precision * mm3, minutes(mm3))))
        items.sort(key=lambda item: -item[0])
        total = place if order == "random" else sum(item.score for _, item in items)
        cases.append((total, [item for _, item in items]))
    cases.sort(key=lambda item: -item[0])
    return [item for _, items in cases for item in items]


def revised_share(reviews: Sequence[tuple[float, float]], *, prior: float = PRECISION) -> float:
    """The share of attended volume that reviews changed so far, drawn towards `prior` while they are few.

    Args:
        reviews: attended mm^3 and changed mm^3, a pair each; changes elsewhere count too, up to what was attended.

    >>> revised_share([]), round(revised_share([(30_000.0, 21_000.0)]), 3)
    (0.3, 0.6)
    """
    marked = sum(attended for attended, _ in reviews)
    changed = sum(min(attended, changed) for attended, changed in reviews)
    return (changed + prior * PRIOR_MM3) / (marked + PRIOR_MM3)


def published_case_order(summaries: Mapping[str, Mapping[str, Summary]]) -> list[str]:
    """Cases by falling number of attended voxels, summed over structures."""
    return sorted(summaries, key=lambda case: -sum(one["voxels"] for one in summaries[case].values()))


def published_structure_order(structures: Mapping[str, Summary]) -> list[str]:
    """The structures of a case by the falling sum of their attention maps; those without attention left out."""
    return sorted((name for name in structures if structures[name]["heat"]), key=lambda name: -structures[name]["heat"])


def published_attention_size(structures: Mapping[str, Summary], slices: int) -> float:
    """The authors' other score of a case, drawn as a histogram to choose how many are revised: heat a slice.

    Every map is divided by its own maximum, so that a structure with little attention may weigh as much as one with a
    lot, and the two scores may order cases differently.
    """
    return sum(structure["heat"] for structure in structures.values()) / 255 / slices
