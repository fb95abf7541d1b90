"""Runs as predictors, and the round after which they know what was reviewed."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from vesalius.cli import main
from vesalius.curate.masks import read_values
from vesalius.curate.project import Atlas
from vesalius.curate.rounds import next_round, open_gain
from vesalius.data.index import index
from vesalius.data.phantoms.volume_files import write_dataset_json
from vesalius.data.table import load_table, save_table
from vesalius.errors import ConfigError, VesaliusError
from vesalius.training.verbs import pretrain_system

MODEL = {"width": 8, "spacing": [12.0, 12.0, 12.0], "crop": [16, 16, 16]}
TINY = {"preset": "tiny", "model": MODEL, "steps": 2, "batch_size": 1, "progress": False}


@pytest.fixture(scope="module")
def run(phantoms, tmp_path_factory):
    """A Universal Model of two steps, trained on two labelled phantoms."""
    folder = tmp_path_factory.mktemp("run")
    labelled = folder / "labelled"
    (labelled / "imagesTr").mkdir(parents=True)
    (labelled / "labelsTr").mkdir()
    for name in ("ct_003.nii.gz", "ct_004.nii.gz"):
        (labelled / "imagesTr" / name).symlink_to(phantoms / "cts" / name)
        (labelled / "labelsTr" / name).symlink_to(phantoms / "truth" / name)
    names = list(yaml.safe_load((phantoms / "truth.yaml").read_text())["labels"].values())
    write_dataset_json(labelled, name="phantoms", description="", modality="CT", labels=names, cases=[])
    table = index(labelled, folder / "labelled.parquet", volumes=True, val=0, test=0)
    assert table["split"].to_list() == ["train", "train"]
    pretrain_system(
        "universal",
        data=folder / "labelled.parquet",
        out=folder / "universal",
        classes=phantoms / "classes.yaml",
        **TINY,
    )
    return folder / "universal"


def test_a_run_proposes_is_trained_again_and_proposes_anew(run, phantoms, tmp_path, capsys):
    (tmp_path / "u.yaml").write_text(yaml.safe_dump({"run": str(run), "retrain": {"method": "universal", **TINY}}))
    settings = tmp_path / "settings.yaml"
    settings.write_text("stop_gain: 0.001\nminutes: {each: 1.0, per_ml: 0.0}\n")
    words = ["curate", "atlas", "init", str(tmp_path / "atlas"), "--volumes", str(phantoms / "cts")]
    words += ["--classes", f"{phantoms}/classes.yaml", "--settings", str(settings)]
    assert main([*words, "--predictors", str(tmp_path / "u.yaml"), str(phantoms / "b.yaml")]) == 0
    path = str(tmp_path / "atlas")
    step = ["curate", "atlas", "step", path]
    assert main(step) == 0
    atlas = Atlas.open(path)
    case = atlas.cases()[0]
    soft = read_values(atlas.prediction("u", case) / "liver.prob.nii.gz")
    assert soft.shape == atlas.image(case).size and 0 < soft.max() <= 255
    with pytest.raises(VesaliusError, match="nothing outside the test split was reviewed"):
        next_round(atlas, force=True)
    assert main([*step, "--simulate", str(phantoms / "truth.yaml"), "--minutes", "8"]) == 0
    assert open_gain(atlas) > 0.001
    before = atlas.done("u", case)["key"]
    reviewed = atlas.all_reviews()
    assert main(["curate", "atlas", "next", path]) == 0
    assert "round 1: trained u again" in capsys.readouterr().out
    atlas = Atlas.open(path)
    assert atlas.round() == 1 and atlas.predictors["u"]["run"].endswith("rounds/1/runs/u")
    trained = load_table(tmp_path / "atlas" / "rounds" / "1" / "train.parquet")
    assert len(trained) == len({one.case for one in reviewed if atlas.row(one.case)["split"] != "test"})
    assert main(step) == 0
    assert atlas.done("u", case)["key"] != before and atlas.done("u", case)["round"] == 1
    assert atlas.done("b", case)["round"] == 0
    first = reviewed[0]
    assert np.array_equal(
        atlas.current(first.case, first.structure)[1], atlas.version_mask(first.case, first.structure, 1)
    )


def test_without_runs_there_is_no_next_round(phantoms, tmp_path):
    table = index(phantoms / "cts", tmp_path / "index.parquet", volumes=True)
    save_table(table, tmp_path / "index.parquet")
    words = ["curate", "atlas", "init", str(tmp_path / "atlas"), "--volumes", str(tmp_path / "index.parquet")]
    words += ["--classes", f"{phantoms}/classes.yaml", "--predictors", str(phantoms / "a.yaml")]
    assert main(words) == 0
    with pytest.raises(ConfigError, match="no predictor is a run"):
        next_round(Atlas.open(tmp_path / "atlas"), force=True)
    assert next_round(Atlas.open(tmp_path / "atlas")).stop
