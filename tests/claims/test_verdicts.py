from __future__ import annotations

import numpy as np
import pytest

from vesalius.claims.verdicts import Comparison, Metric, judge, summarise

METRICS = {"dice": Metric("Dice"), "error": Metric("error", higher=False), "dice_all": Metric("Dice, all")}


def verdict(ours: list, theirs: list, metric: str = "dice") -> dict:
    values = {"a": [{metric: x} for x in ours], "b": [{metric: x} for x in theirs]}
    return judge(Comparison("A", "a beats b", metric, "a", "b"), METRICS, values)


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ([0.61, 0.62, 0.63], "held"),
        ([0.59, 0.58, 0.57], "lost"),
        ([0.61, 0.59, 0.63], "not held"),  # another sign in one seed
        ([0.601, 0.6001, 0.67], "not held"),  # one seed carries it: the mean is within the spread
        ([0.60, 0.62, 0.63], "not held"),  # no difference in one seed
        ([0.61, 0.62], "no verdict"),
    ],
)
def test_rule(ours, expected):
    assert verdict(ours, [0.6] * len(ours))["verdict"] == expected


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([[0.1, 0.0], [0.1, 0.0], [0.1, 0.0]], "held"),
        ([[-0.1, 0.0], [-0.1, 0.0], [-0.1, 0.0]], "lost"),
        ([[0.2, 0.2], [0.2, 0.2], [0.1, -0.1]], "not held"),  # nothing in one seed
        ([[0.5, -0.4], [0.5, -0.4], [0.5, -0.4]], "not held"),  # the mean is within its standard error
    ],
)
def test_rule_of_draws(gains, expected):
    result = verdict([[0.6 + gain for gain in seed] for seed in gains], [[0.6, 0.6]] * 3)
    assert result["verdict"] == expected
    assert result["se"] == pytest.approx(np.std(gains, ddof=1) / np.sqrt(6))


def test_less_may_be_better():
    assert verdict([0.5, 0.51, 0.52], [0.6, 0.6, 0.6], metric="error")["verdict"] == "held"


def test_differences_are_taken_within_a_seed():
    result = verdict([0.1, 0.5, 0.9], [0.05, 0.44, 0.85])
    assert result["gains"] == pytest.approx([0.05, 0.06, 0.05])
    assert result["verdict"] == "held"


def test_few_labels_against_all():
    comparison = Comparison("B", "a with few beats b with all", "dice", "a", "b", "dice_all")
    values = {"a": [{"dice": 0.7}] * 3, "b": [{"dice": 0.1, "dice_all": 0.6}] * 3}
    assert judge(comparison, METRICS, values)["mean"] == pytest.approx(0.1)


def test_an_arm_without_the_metric_gives_no_verdict():
    comparison = Comparison("A", "a beats b", "dice", "a", "b")
    assert judge(comparison, METRICS, {"a": [{"dice": 1.0}], "b": [{"error": 1.0}]}) is None
    assert judge(comparison, METRICS, {"a": [{"dice": 1.0}]}) is None


def test_summary():
    summary = summarise({"a": [{"dice": 0.5}, {"dice": 0.7}], "b": [{"dice": 0.5}]})
    assert summary["a"]["dice"]["mean"] == pytest.approx(0.6)
    assert summary["a"]["dice"]["sd"] == pytest.approx(0.1414, abs=1e-4)
    assert summary["b"]["dice"]["sd"] is None
    assert "each" not in summary["a"]["dice"]


def test_summary_of_draws():
    summary = summarise({"a": [{"dice": [0.4, 0.6]}, {"dice": [0.7, 0.9]}]})["a"]["dice"]
    assert summary["values"] == pytest.approx([0.5, 0.8])
    assert summary["each"] == [[0.4, 0.6], [0.7, 0.9]]
