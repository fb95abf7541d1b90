"""What may be continued, what is refused, and what a run writes about itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vesalius.data.table import make_table
from vesalius.errors import VesaliusError
from vesalius.training.callbacks import read_metrics
from vesalius.training.provenance import data_hash, patient_keys, read_seen, split_hash, write_seen
from vesalius.training.runs import RunFolder, open_run

CONFIG = {"system": "usfm", "train": {"steps": 3, "workers": 0}, "betas": (0.9, 0.95)}


def test_a_started_run_is_continued_only_as_it_was_asked_for(tmp_path: Path):
    run = open_run(tmp_path / "run", CONFIG)
    assert run.read_config() == {"system": "usfm", "train": {"steps": 3, "workers": 0}, "betas": [0.9, 0.95]}
    assert json.loads(run.environment.read_text())["packages"]["torch"]
    open_run(run.path, CONFIG)  # nothing was trained yet
    run.last.parent.mkdir()
    run.last.write_bytes(b"")
    (run.last.parent / ".x-last.ckpt").write_bytes(b"")
    with pytest.raises(VesaliusError, match="an unfinished run already; continue it with --resume"):
        open_run(run.path, CONFIG)
    with pytest.raises(VesaliusError, match=r"train\.steps was 3, now 4"):
        open_run(run.path, {**CONFIG, "train": {"steps": 4, "workers": 0}}, resume=True)
    open_run(run.path, {**CONFIG, "train": {"steps": 3, "workers": 2}}, resume=True)
    assert [path.name for path in run.last.parent.iterdir()] == ["last.ckpt"]


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "run").write_text("")
    with pytest.raises(VesaliusError, match="output folder cannot be written"):
        open_run(tmp_path / "run", CONFIG)
    with pytest.raises(VesaliusError, match="no run here"):
        RunFolder(tmp_path / "other").read_config()


def test_a_line_that_a_kill_cut_short_is_left_out_of_the_curve(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,lr,val/loss\n10,0.5,0.1,\n10,,,0.7\n20,0.4,0.1,\n30,0.")
    assert read_metrics(path, until=25) == [
        {"step": 10, "train/loss": 0.5, "lr": 0.1},
        {"step": 10, "val/loss": 0.7},
        {"step": 20, "train/loss": 0.4, "lr": 0.1},
    ]
    assert read_metrics(path)[-1]["step"] == 20


def test_hashes_follow_content_and_not_place():
    rows = [{"path": f"/a/{i}.png", "sha256": str(i), "patient": str(i // 2), "split": "train"} for i in range(4)]
    table, moved = make_table(rows), make_table([{**row, "path": f"/b{row['path']}"} for row in rows[::-1]])
    assert data_hash(table) == data_hash(moved)
    assert split_hash(table) == split_hash(moved)
    assert data_hash(table) != data_hash(make_table([{**rows[0], "labels": ["x"]}, *rows[1:]]))
    assert split_hash(table) != split_hash(make_table([{**rows[0], "split": "test"}, *rows[1:]]))


def test_seen_names_nobody(tmp_path: Path):
    table = make_table([{"path": "a.png", "patient": "Mrs Smith"}])
    run = RunFolder(tmp_path)
    assert read_seen(run) == {"train": set(), "val": set(), "backbone": set()}
    write_seen(run, train=table, val=table.head(0))
    assert "Smith" not in run.seen.read_text()
    assert read_seen(run)["train"] == set(patient_keys(table))
    run.seen.write_text("[")
    with pytest.raises(VesaliusError, match=r"seen\.json: is damaged"):
        read_seen(run)
