"""The page of a run shows what the run's files say, and never fails because one is not there yet."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from vesalius.data.contract import InputContract
from vesalius.errors import VesaliusError
from vesalius.evaluation.results import Result
from vesalius.published.card import Card
from vesalius.report.run import run_report
from vesalius.tasks.multilabel import multilabel

RESULT = Result(
    run="runs/usfm_cls",
    protocol="task",
    task="classification",
    split="test",
    images=40,
    patients=17,
    metrics={
        "n": 40,
        "accuracy": 0.8131,
        "balanced_accuracy": float("nan"),
        "confusion": [[20, 3], [4, 13]],
        "per_class": {"benign": {"n": 23, "f1": 0.851}, "<malignant>": {"n": 17, "f1": float("nan")}},
    },
    intervals={"accuracy": {"value": 0.8131, "low": 0.7014, "high": 0.9021, "draws": 1000}},
    config={},
    data_hash="5fa1c0",
    split_hash="77aa",
    seed=3,
    code="abc123",
    leakage={"backbone": 11},
)


def _folder(tmp_path, *, finished: bool):
    folder = tmp_path / "usfm_cls"
    folder.mkdir()
    config = {"system": "usfm", "train": {"steps": 30, "batch_size": 8, "accumulate": 2}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = ["step,train/loss,lr,val/loss", "10,2.5,0.001,", "10,,,2.25", "20,1.5,0.001,", "20,,,1.75", "30,1."]
    (folder / "metrics.csv").write_text("\n".join(lines))
    if finished:
        RESULT.save(folder / "results.json")
        (folder / "environment.json").write_text(json.dumps({"packages": {"torch": "2.14"}, "code": "abc123"}))
        (folder / "weights.safetensors").touch()
        Card("usfm", "classification", {"name": "vit"}, InputContract(size=96), citation="Jiao 2024").save(
            folder / "card.json"
        )
    return folder


def test_finished_run(tmp_path):
    html = run_report(_folder(tmp_path, finished=True)).read_text(encoding="utf-8")
    for text in (
        "usfm, classification: vit at 96 px",
        "0.813",
        "0.851",
        "0.701 to 0.902",
        "40 images of 17 patients",
        "on 11 of these patients",
        "Jiao 2024",
        "5fa1c0",
        "packages.torch",
        "abc123",
    ):
        assert text in html
    assert "&lt;malignant&gt;" in html and "<malignant>" not in html
    assert "not finished" not in html and ">nan<" not in html
    assert "1.75" in html, "the last validation loss"
    assert "480" in html, "30 steps of 2 x 8 images"


def test_several_labels_an_image_are_shown_class_by_class(tmp_path):
    folder = _folder(tmp_path, finished=True)
    scores = multilabel([[0.9, 0.2], [0.4, 0.1]], [[1, 0], [0, 0]], classes=("polyp", "tumor"))
    intervals = {"mAP": {"value": 1.0, "low": 0.613, "high": 1.0, "draws": 9}}
    replace(RESULT, metrics=scores, intervals=intervals).save(folder / "results.json")
    html = run_report(folder).read_text(encoding="utf-8")
    for text in ("mAP", "0.613 to 1.000", "means over 1 of 2 classes", "holds tumor", "polyp", ">AP<"):
        assert text in html
    assert "Confusions" not in html


def test_unfinished_run_gets_a_page_of_what_there_is(tmp_path):
    folder = _folder(tmp_path, finished=False)
    assert "not finished" in run_report(folder).read_text(encoding="utf-8")
    (folder / "metrics.csv").unlink()
    assert "Learning" not in run_report(folder).read_text(encoding="utf-8")


def test_errors_name_the_file(tmp_path):
    with pytest.raises(VesaliusError, match=r"config\.yaml is missing"):
        run_report(tmp_path)
    folder = _folder(tmp_path, finished=True)
    (folder / "results.json").write_text("{")
    with pytest.raises(VesaliusError, match=r"results\.json: not a result file"):
        run_report(folder)
