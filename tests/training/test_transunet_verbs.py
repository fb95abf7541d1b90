"""Baselines of volumes that are trained from scratch, from tables to label maps: TransUNet and nnU-Net's network."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import polars as pl
import pytest

from vesalius.cli import main
from vesalius.data.index import index
from vesalius.data.phantoms.torso import ct
from vesalius.data.table import load_table
from vesalius.errors import ConfigError
from vesalius.evaluation.verbs import evaluate, predict
from vesalius.evaluation.volume_tasks import load_volume_task
from vesalius.tasks.slices import SliceSegmentation
from vesalius.training.runs import RunFolder
from vesalius.training.transunet_verbs import adapt_transunet
from vesalius.training.volume_verbs import reads_volumes

QUICK = ["--steps", "2", "--val_every", "2", "--batch_size", "2", "--no_progress", "--seed", "1"]


@pytest.fixture(scope="module")
def torsos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torsos")
    ct(folder / "ct", n=4, size=(16, 24, 24), spacing=(20, 16, 16))
    index(folder / "ct", folder / "ct.parquet", volumes=True, val=0.25, test=0.25)
    return folder


def test_slices_become_label_maps(torsos: Path, one_thread: None):
    run = torsos / "runs" / "slices"
    asked = ["--data", f"{torsos / 'ct.parquet'}", "--out", f"{run}", "--classes", "liver", "spleen", *QUICK]
    network = ["--model.frame", "[32,32]", "--model.network.depth", "1", "--lr", "0.02"]
    assert main(["adapt", "transunet", *asked, *network]) == 0
    config = RunFolder(run).read_config()["config"]
    assert (config["lr"], config["network"]["depth"], config["network"]["width"]) == (0.02, 1, 16)
    task, card = load_volume_task(run)
    assert isinstance(task, SliceSegmentation)
    assert card.contract.intensity.low == -125
    result = evaluate(run, draws=10, empty="transunet")
    assert set(result.metrics["per_class"]) == {"liver", "spleen"}
    image = load_table(torsos / "ct.parquet").filter(pl.col("split") == "test")["path"][0]
    predict(run, image, out=torsos / "out", overlays=False)
    (mask,) = (torsos / "out").rglob("*.nii.gz")
    assert nibabel.load(mask).shape == nibabel.load(image).shape
    with pytest.raises(ConfigError, match="unknown preset"):
        adapt_transunet(data=torsos / "ct.parquet", out=torsos / "x", preset="small")


def test_the_network_of_nnunet_is_a_backbone(torsos: Path, one_thread: None):
    assert reads_volumes("random:dynunet")
    run, asked = torsos / "runs" / "dynunet", ["--data", f"{torsos / 'ct.parquet'}", "--classes", "liver", *QUICK]
    words = ["adapt", "full", "--backbone", "random:dynunet/tiny", "--crop", "16", "--out", f"{run}", *asked]
    assert main(words) == 0
    card = json.loads((run / "card.json").read_text())
    assert card["contract"]["channels"] == ["CT"]
    assert "nnU-Net" in card["citation"]
    assert 0 <= evaluate(run, draws=10).metrics["per_class"]["liver"]["dice"] <= 1
    words[3] = "random:dynunet/huge"
    assert main(words) == 2
