"""Whole comparisons: killed and resumed, refused, reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vesalius.cli import main
from vesalius.compare import compare_methods
from vesalius.compare.cells import open_trunk
from vesalius.data.table import load_table
from vesalius.errors import VesaliusError
from vesalius.published.load import save_weights
from vesalius.training.backbones import open_backbone
from vesalius.training.provenance import write_seen
from vesalius.training.runs import RunFolder

OPTIONS = {"shots": [1, 2], "draws": 2, "seeds": 2, "lrs": [1e-3, 1e-2], "steps": 3, "views": 2, "image_size": 32}
SHORT = {**OPTIONS, "methods": ["mlp3"], "shots": [1], "draws": 1, "seeds": 1, "workers": 1}


def words(table: Path, out: Path, *more: str) -> list[str]:
    command = ["compare", "--data", str(table), "--backbones", "random:usfm", "--methods", "ept:length=3"]
    command += ["--shots", "1,2", "--draws", "2", "--seeds", "2", "--lrs", "1e-3,1e-2", "--steps", "3"]
    return [*command, "--views", "2", "--image_size", "32", "--out", str(out), *more]


def cells(out: Path) -> dict[str, dict]:
    """Name -> cell, without what a clock says, and the code's version."""
    found = {}
    for path in sorted((out / "cells").rglob("draw*.json")):
        cell = json.loads(path.read_text())
        del cell["code"]
        for timed in (cell, *cell["trials"]):
            del timed["seconds"]
        found[path.relative_to(out).as_posix()] = cell
    return found


@pytest.fixture(scope="module")
def whole(table, tmp_path_factory) -> Path:
    """An unbroken comparison."""
    out = tmp_path_factory.mktemp("whole")
    assert main(words(table, out, "--workers", "1")) == 0
    return out


def test_a_comparison_that_is_killed_goes_on_where_it_was(table, whole, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "vesalius.cli", *words(table, out, "--workers", "2")]
    log = tmp_path / "log"
    with log.open("w") as stream:
        run = subprocess.Popen(command, start_new_session=True, stderr=stream, stdout=stream)
    try:
        deadline = time.monotonic() + 250
        while len(list((out / "cells").rglob("draw*.json"))) < 6:
            assert run.poll() is None and time.monotonic() < deadline, log.read_text()[-500:]
            time.sleep(0.02)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    done = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("draw*.json")}
    assert 6 <= len(done) < len(cells(whole))
    assert not (out / "report.html").exists()
    assert main(words(table, out, "--workers", "1")) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())  # none was trained again
    assert not list(out.rglob(".*"))
    assert cells(out) == cells(whole)


def test_the_results_can_be_computed_again_and_show_the_controls(whole):
    results = json.loads((whole / "results.json").read_text())
    assert list(results["arms"]) == ["linear", "ept:length=3", *controls()]
    assert [table["shots"] for table in results["tables"]] == [1, 2]
    (row,) = (row for row in results["tables"][1]["rows"] if row["arm"] == "linear")
    mine = [cell for cell in results["cells"] if cell["arm"] == "linear" and cell["shots"] == 2]
    by_draw = {draw: [cell["test"]["balanced_accuracy"] for cell in mine if cell["draw"] == draw] for draw in (0, 1)}
    assert row["mean"] == pytest.approx(sum(map(sum, by_draw.values())) / 4)
    assert row["per_draw"]["1"] == pytest.approx(sum(by_draw[1]) / 2)
    (ept,) = (row for row in results["tables"][0]["rows"] if row["arm"] == "ept:length=3")
    assert list(ept["over_controls"]) == controls()
    for name in ("table.md", "report.html"):
        text = (whole / name).read_text()
        assert all(control in text for control in controls()), name
    assert "<b>" not in (whole / "table.md").read_text()


def controls() -> list[str]:
    return ["ept-collapsed:length=3", "ept-frozen:length=3"]


def test_methods_and_draws_can_be_added(table, tmp_path):
    first = compare_methods(data=table, backbones=["random:usfm"], out=tmp_path, **SHORT)
    kept = cells(tmp_path)
    more = {**SHORT, "methods": ["bitfit"], "draws": 2}
    second = compare_methods(data=table, backbones=["random:usfm"], out=tmp_path, **more)
    assert list(first["arms"]) == ["linear", "mlp3"] and list(second["arms"]) == ["linear", "mlp3", "bitfit"]
    assert {name: cell for name, cell in cells(tmp_path).items() if name in kept} == kept
    rows = {row["arm"]: row for row in second["tables"][0]["rows"]}
    assert rows["bitfit"]["over_baseline"]["draws"] == 2 and rows["mlp3"]["over_baseline"]["draws"] == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 4}, "steps = 3; this one has steps = 4"),
        ({"lrs": [1e-3]}, "lrs"),
        ({"views": 3}, "views"),
        ({"classes": ["fine", "coarse"]}, "classes"),
    ],
)
def test_another_set_up_is_refused(table, whole, changes, says):
    with pytest.raises(VesaliusError, match=says):
        compare_methods(data=table, backbones=["random:usfm"], out=whole, **{**OPTIONS, **changes})


def test_other_weights_under_the_same_name_are_refused(table, tmp_path):
    spec = backbone(tmp_path / "run", 0)
    compare_methods(data=table, backbones=[spec], out=tmp_path / "out", **SHORT)
    compare_methods(data=table, backbones=[spec], out=tmp_path / "out", **SHORT)
    open_trunk.cache_clear()  # as in another process
    backbone(tmp_path / "run", 1)
    with pytest.raises(VesaliusError, match="other weights"):
        compare_methods(data=table, backbones=[spec], out=tmp_path / "out", **SHORT)


def test_a_backbone_that_learned_from_test_patients_is_refused_and_one_that_saw_others_reported(table, tmp_path):
    rows = load_table(table)
    parts = {name: rows.filter(rows["split"] == name) for name in ("train", "val", "test")}
    spec = backbone(tmp_path / "run", 0)
    write_seen(RunFolder(Path(spec)), train=parts["train"], val=parts["val"][:2])
    results = compare_methods(data=table, backbones=[spec], out=tmp_path / "out", **SHORT)
    assert results["leakage"] == {spec: {"train": 18, "val": 2, "test": 0}}
    assert "2 of the val patients" in (tmp_path / "out" / "report.html").read_text()
    write_seen(RunFolder(Path(spec)), train=parts["test"][:1], val=parts["val"])
    with pytest.raises(VesaliusError, match="1 of the 12 test patients"):
        compare_methods(data=table, backbones=[spec], out=tmp_path / "other", **SHORT)


def test_what_does_not_fit_is_told_before_anything_is_trained(table, tmp_path):
    with pytest.raises(VesaliusError, match="blocks"):
        compare_methods(
            data=table, backbones=["random:usfm"], out=tmp_path, **{**SHORT, "methods": ["partial1:blocks=99"]}
        )
    assert not (tmp_path / "cells").exists()


def backbone(folder: Path, seed: int) -> str:
    """A run's folder with a small random network."""
    torch.manual_seed(seed)
    encoder, card = open_backbone("random:usfm", image_size=32)
    save_weights(encoder, folder, card)
    return str(folder)
