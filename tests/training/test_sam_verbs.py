"""Segment Anything on volumes from tables to label maps: stacks, boxes and clicks, in the input's own geometry."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import polars as pl
import pytest

from vesalius.cli import main
from vesalius.data.index import index
from vesalius.data.phantoms.torso import ct
from vesalius.data.table import load_table, save_table
from vesalius.data.volumes.intensity import ClipZScore, Window
from vesalius.errors import ConfigError, VesaliusError
from vesalius.evaluation.verbs import evaluate, predict
from vesalius.images import read_segmentation, read_volume
from vesalius.published.card import Card
from vesalius.training.runs import RunFolder
from vesalius.training.sam_verbs import adapt_masam, adapt_sam3d

QUICK: dict[str, Any] = {"base": "random:sam_tiny", "steps": 2, "val_every": 2, "batch_size": 1, "progress": False}
STACK = {"frame": [32, 32], "slices": 3, "adapters": {"width": 8}}
CROP = {"crop": [16], "spacing": [12.0]}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with torsos that have a tumour in the liver, as DICOM series, and as a table."""
    folder = tmp_path_factory.mktemp("torsos")
    look = {"tumors": 1.0, "organs": ("liver",), "radius": (35, 40), "spacing": (16, 12, 12)}
    ct(folder / "ct", n=4, size=(20, 30, 30), format="dicom", **look)
    index(folder / "ct", folder / "ct.parquet", volumes=True, val=0.25, test=0.25)
    return folder


@pytest.fixture(scope="module")
def stacks(tables: Path, one_thread: None) -> Path:
    out = tables / "runs" / "stacks"
    adapt_masam(data=tables / "ct.parquet", out=out, classes=["liver", "spleen"], model=STACK, **QUICK)
    return out


@pytest.fixture(scope="module")
def clicked(tables: Path, one_thread: None) -> Path:
    out = tables / "runs" / "clicked"
    adapt_sam3d(data=tables / "ct.parquet", out=out, target="liver tumor", **CROP, **QUICK)
    return out


def test_stacks_are_scored_on_all_classes(stacks: Path, tables: Path):
    result = evaluate(stacks, draws=10, empty="masam")
    assert set(result.metrics["per_class"]) == {"liver", "spleen"}
    card = Card.load(stacks / "card.json")
    assert card.contract.intensity == Window(-200, 250)
    assert "doi:10.1016/j.media.2024.103310" in card.citation
    config = RunFolder(stacks).read_config()
    assert (config["config"]["slices"], config["config"]["adapters"]["rank"]) == (3, 8)  # the rest is the preset's
    with pytest.raises(ConfigError, match="neither point nor box"):
        predict(stacks, tables / "ct" / "ct_001", out=tables / "no", point=["1,2,3"])
    with pytest.raises(ConfigError, match="flips with a run on SAM"):
        predict(stacks, tables / "ct" / "ct_001", out=tables / "no", flips=True)


def test_boxes_are_drawn_around_the_truth_and_given_to_predict(tables: Path):
    out = tables / "runs" / "boxed"
    with pytest.raises(ConfigError, match="name the one"):
        adapt_masam(data=tables / "ct.parquet", out=out, box=True, model=STACK, **QUICK)
    adapt_masam(data=tables / "ct.parquet", out=out, box=True, classes=["liver"], model=STACK, **QUICK)
    result = evaluate(out, draws=10)
    assert result.settings["prompts"] == "boxes"
    said = pl.read_csv(out / "cases.csv")["prompts"][0]
    assert len(said.split()) == 6
    with pytest.raises(ConfigError, match="in a box; say where with --box"):
        predict(out, tables / "ct" / "ct_001", out=tables / "no")
    box = ",".join(said.split())
    predict(out, tables / "ct" / "ct_001", out=tables / "boxed", box=[box], overlays=False)
    low, high = np.array(said.split(), float).astype(int).reshape(2, 3)[:, ::-1]
    mask, _ = read_segmentation(tables / "boxed" / "ct_001.dcm", read_volume(tables / "ct" / "ct_001"))
    beyond = np.ones(mask.shape[0], bool)
    beyond[low[0] : high[0] + 1] = False
    assert not mask[beyond].any()


def test_clicks_are_drawn_by_the_seed_and_recorded(clicked: Path, tables: Path):
    scores, said = [], []
    for seed in (0, 0, 1):
        result = evaluate(clicked, clicks=2, seed=seed, draws=10, empty="sam3d")
        scores.append(result.metrics["dice"])
        said.append(pl.read_csv(clicked / "cases.csv")["prompts"].to_list())
    assert said[0] == said[1] != said[2]
    assert scores[0] == scores[1]
    assert result.settings["clicks"] == 2
    (row,) = load_table(tables / "ct.parquet").filter(pl.col("split") == "test").to_dicts()
    truth = read_volume(row["mask"]).array[0] == row["mask_classes"].index("liver tumor") + 1
    places = [tuple(map(int, click.split())) for click in said[2][0].split("; ")]
    assert len(places) == 2
    assert all(truth[z, y, x] for x, y, z in places)


def test_a_click_in_mm_and_in_voxels_is_one(clicked: Path, tables: Path):
    series = tables / "ct" / "ct_001"
    image = read_volume(series)
    lps = image.affine @ [15, 14, 9, 1]
    ways = {"voxel": "15,14,9", "lps": ",".join(map(str, lps[:3])), "ras": ",".join(map(str, lps[:3] * [-1, -1, 1]))}
    masks = []
    for space, point in ways.items():
        out = tables / "clicked" / space
        words = [clicked, series, "--out", out, "--point", point, "--space", space, "--formats", "nifti"]
        assert main(["predict", *map(str, words), *([] if space == "voxel" else ["--no_overlays"])]) == 0
        masks.append(nibabel.load(out / "ct_001.nii.gz").get_fdata())
        with (out / "scores.csv").open() as stream:
            (row,) = csv.DictReader(stream)
        assert row["prompts"] == "15 14 9"
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])
    assert masks[0].shape == image.size[::-1]
    assert (tables / "clicked" / "voxel" / "ct_001_axial.png").exists()
    with pytest.raises(VesaliusError, match="none of the 1 inputs"):
        predict(clicked, series, out=tables / "no", point=["300,1,1"])
    assert "outside" in (tables / "no" / "failed.csv").read_text()


def test_intensities_and_targets_by_name(tables: Path, clicked: Path, tmp_path: Path):
    card = Card.load(clicked / "card.json")
    found = card.contract.intensity
    assert isinstance(found, ClipZScore)
    assert found.low < 20 < found.mean < 80 < found.high < 200  # of the tumours, and their fuzzy borders
    assert card.contract.spacing == (12, 12, 12)
    options = {**QUICK, **CROP, "data": tables / "ct.parquet", "steps": 1}
    value = load_table(tables / "ct.parquet")["mask_classes"][0].to_list().index("liver tumor") + 1
    adapt_sam3d(out=tmp_path / "kits", target=str(value), intensity="kits", **options)
    kits = Card.load(tmp_path / "kits" / "card.json")
    assert kits.classes == ("liver tumor",)
    assert (kits.contract.intensity.low, kits.contract.intensity.mean) == (-54, 59.53867)
    for wrong, match in (
        ({"target": "99"}, "target 99"),
        ({"target": "tumour"}, "liver tumor"),
        ({"target": "liver", "intensity": "kit"}, "LOW:HIGH"),
        ({"target": "liver", "crop": [15]}, "multiples of"),
        ({"target": "liver", "spacing": [1.0, 2.0]}, "one or three"),
        ({"target": "liver", "preset": "small"}, "preset"),
    ):
        with pytest.raises(ConfigError, match=match):
            adapt_sam3d(out=tmp_path / "x", **{**options, **wrong})


def test_a_table_that_does_not_say_what_it_holds(tables: Path, tmp_path: Path):
    table = load_table(tables / "ct.parquet").with_columns(pl.lit(None, pl.String).alias("modality"))
    save_table(table, tmp_path / "t.parquet")
    options = {**QUICK, "data": tmp_path / "t.parquet", "out": tmp_path / "x", "classes": ["liver"]}
    with pytest.raises(ConfigError, match="CT or MR; give --intensity"):
        adapt_masam(**options)
    adapt_masam(**{**options, "intensity": "-100:200", "model": STACK, "steps": 1})
    assert Card.load(tmp_path / "x" / "card.json").contract.intensity == Window(-100, 200)


def test_a_run_is_resumed_from_the_command_line(tables: Path, capsys: pytest.CaptureFixture[str]):
    out = tables / "runs" / "command"
    words = ["adapt", "masam", "--base", "random:sam_tiny", "--data", tables / "ct.parquet", "--out", out]
    words += ["--classes", "liver", "--batch_size", 1, "--model.frame", "[32,32]", "--model.adapters.width", 8]
    assert main([*map(str, words), "--steps", "1"]) == 0
    assert json.loads((out / "card.json").read_text())["architecture"]["config"]["adapters"]["width"] == 8
    assert main([*map(str, words), "--steps", "1", "--resume"]) == 0
    assert main([*map(str, words), "--steps", "1", "--resume", "--lr", "1"]) == 2
    assert "config.lr was" in capsys.readouterr().err
