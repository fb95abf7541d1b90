"""How a claim is judged: by the differences between arms of the same seed, or of the same draw of the same seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RULE = (
    "For each seed the difference between the two arms is taken (same data, same initial weights, same order of "
    "images). Held: it has the claimed sign in every seed and its mean exceeds its standard deviation over seeds. "
    "Lost: the same with the opposite sign. Not held: neither. With fewer than 3 seeds there is no verdict."
)
RULE_OF_DRAWS = (
    "For each draw of each seed the difference between the two arms is taken (same trunk, labelled images, head at the "
    "start, order of images, test images). The gain is the mean of these differences and its standard error: their "
    "standard deviation over all draws of all seeds, divided by the square root of how many they are. Held: the mean "
    "over draws has the claimed sign in every seed, and the mean over all exceeds its standard error. Lost: the same "
    "with the opposite sign. Not held: neither. With fewer than 3 seeds there is no verdict. Draws of one seed share "
    "trunk and test images, so the error tells how the gain varies with which few images are labelled."
)
MIN_SEEDS = 3
Score = float | Sequence[float]
"""A seed's number, or its numbers of several draws."""


@dataclass(frozen=True)
class Metric:
    """A number that an arm ends with: what it is called, and whether more is better."""

    label: str
    higher: bool = True


@dataclass(frozen=True)
class Comparison:
    """One sentence that can be false.

    Args:
        name: short, unique.
        statement: the sentence.
        metric: of the arm `better`.
        better, worse: arms; the claim is that the first does better.
        worse_metric: of the arm `worse`, where it is another one (few labels against all).
        control: not the paper's claim but a check on what explains it.
    """

    name: str
    statement: str
    metric: str
    better: str
    worse: str
    worse_metric: str | None = None
    control: bool = False


def judge(
    comparison: Comparison, metrics: Mapping[str, Metric], values: Mapping[str, Sequence[Mapping[str, Score]]]
) -> dict[str, Any] | None:
    """The verdict, or None where an arm lacks the metric.

    Args:
        values: arm -> one dict of metrics a seed, in the order of the seeds.

    Returns:
        The comparison, ``gains`` (one a seed), their ``mean`` and ``sd`` over seeds, ``se`` (over draws and seeds; None
        without draws) and the ``verdict``.
    """
    other = comparison.worse_metric or comparison.metric
    first, second = values.get(comparison.better, ()), values.get(comparison.worse, ())
    if not first or len(first) != len(second):
        return None
    if not all(comparison.metric in a and other in b for a, b in zip(first, second, strict=True)):
        return None
    sign = 1 if metrics[comparison.metric].higher else -1
    differences = [
        [sign * (x - y) for x, y in zip(_draws(a[comparison.metric]), _draws(b[other]), strict=True)]
        for a, b in zip(first, second, strict=True)
    ]
    gains = [statistics.fmean(seed) for seed in differences]
    mean = statistics.fmean(gains)
    sd = statistics.stdev(gains) if len(gains) > 1 else 0.0
    every = [difference for seed in differences for difference in seed]
    se = statistics.stdev(every) / math.sqrt(len(every)) if len(every) > len(gains) else None
    spread = sd if se is None else se
    if len(gains) < MIN_SEEDS:
        verdict = "no verdict"
    elif min(gains) > 0 and mean > spread:
        verdict = "held"
    elif max(gains) < 0 and -mean > spread:
        verdict = "lost"
    else:
        verdict = "not held"
    return {
        "name": comparison.name,
        "statement": comparison.statement,
        "control": comparison.control,
        "metric": comparison.metric,
        "better": comparison.better,
        "worse": comparison.worse,
        "gains": gains,
        "mean": mean,
        "sd": sd,
        "se": se,
        "verdict": verdict,
    }


def summarise(values: Mapping[str, Sequence[Mapping[str, Score]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Arm -> metric -> values over seeds, their mean and standard deviation; ``each`` has the numbers of every draw."""
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, seeds in values.items():
        summary[arm] = {}
        for metric in seeds[0] if seeds else ():
            scores = [one[metric] for one in seeds if metric in one]
            numbers = [statistics.fmean(_draws(score)) for score in scores]
            sd = statistics.stdev(numbers) if len(numbers) > 1 else None
            summary[arm][metric] = {"values": numbers, "mean": statistics.fmean(numbers), "sd": sd}
            if any(isinstance(score, Sequence) for score in scores):
                summary[arm][metric]["each"] = scores
    return summary


def _draws(score: Score) -> Sequence[float]:
    return score if isinstance(score, Sequence) else [score]
