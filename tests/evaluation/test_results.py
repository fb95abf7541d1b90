"""The result file holds what its numbers depend on, in strict JSON."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from vesalius.errors import VesaliusError
from vesalius.evaluation.results import Result

RESULT = Result(
    run="runs/cls",
    protocol="task",
    task="classification",
    split="test",
    images=4,
    patients=3,
    metrics={"n": 4, "accuracy": 0.5, "per_class": {"a": {"n": 4, "auroc": float("nan")}, "b": {"n": 0, "auroc": 0.5}}},
    intervals={"accuracy": {"value": 0.5, "low": 0.25, "high": 0.75, "draws": 10}},
    config={"system": "usfm"},
    data_hash="d",
    split_hash="s",
    seed=0,
    code="0.1.0",
    leakage={"run": 0, "backbone": 2},
)


def test_a_result_is_strict_json_and_reads_back(tmp_path: Path):
    path = RESULT.save(tmp_path / "results.json")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    values = json.loads(path.read_text(), parse_constant=refuse)
    assert values["metrics"]["per_class"]["a"] == {"n": 4, "auroc": None}
    assert Result.load(path).intervals == RESULT.intervals
    path.write_text("{}")
    with pytest.raises(VesaliusError, match="not a result file"):
        Result.load(path)
    with pytest.raises(VesaliusError, match="evaluate the run first"):
        Result.load(tmp_path / "other.json")


def test_the_table_shows_scores_intervals_counts_and_leakage():
    console = Console(file=io.StringIO(), width=100)
    RESULT.show(console)
    text = console.file.getvalue()
    assert "4 images of 3 patients" in text
    assert "0.25 to 0.75" in text
    assert "–" in text
    assert "pre-trained (without labels) on 2 of these patients" in text


def test_the_table_says_over_how_many_classes_a_mean_is():
    metrics = {"mAP": 0.7, "classes_counted": 1, "absent": ["b"], "per_class": {"a": {"n": 2}, "b": {"n": 0}}}
    console = Console(file=io.StringIO(), width=100)
    replace(RESULT, metrics=metrics).show(console)
    assert "means over 1 of 2 classes; none of the images holds b" in console.file.getvalue()
    assert not RESULT.counted
