"""BrainSegFounder from tables to label maps: two stages, a kill, few labels, and files in their own geometry."""

from __future__ import annotations

import csv
import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import polars as pl
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from safetensors.torch import load_file

from vesalius.data.index import index
from vesalius.data.phantoms.brain import brain
from vesalius.data.table import load_table, save_table
from vesalius.errors import ConfigError, VesaliusError, WeightsError
from vesalius.evaluation import volumes
from vesalius.evaluation.verbs import evaluate, predict
from vesalius.evaluation.volume_tasks import load_volume_task
from vesalius.evaluation.volumes import check_flips, find_cases
from vesalius.images import read_segmentation, read_volume
from vesalius.nn.swin_unetr import SwinConfig, SwinUNETR
from vesalius.nn.volumes import VolumeSegmenter
from vesalius.pretrain.brainsegfounder import PRESETS, BrainSegFounder
from vesalius.published.brainsegfounder import contract
from vesalius.published.card import Card
from vesalius.published.load import load, load_backbone, save_weights
from vesalius.published.networks import architecture
from vesalius.published.volumes import load_volume_trunk
from vesalius.training.provenance import read_seen
from vesalius.training.runs import RunFolder
from vesalius.training.verbs import adapt_backbone, pretrain_system

QUICK = {"batch_size": 1, "save_every": 1, "progress": False}
CLASSES = ("necrotic core", "oedema", "enhancing tumour")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with healthy brains in two contrasts, and brains with gliomas in four, as tables."""
    folder = tmp_path_factory.mktemp("brains")
    brain(folder / "healthy", n=3, size=(32,), channels=("t1", "flair"), lesions=0.0)
    brain(folder / "disease", n=6, size=(32,), seed=1)
    index(folder / "healthy", folder / "healthy.parquet", volumes=True, val=0.34, test=0.0)
    index(folder / "disease", folder / "disease.parquet", volumes=True, val=0.2, test=0.34)
    return folder


@pytest.fixture(scope="module")
def stage1(tables: Path, one_thread: None) -> Path:
    pretrain_system("brainsegfounder", data=tables / "healthy.parquet", out=tables / "runs" / "s1", steps=3, **QUICK)
    return tables / "runs" / "s1"


@pytest.fixture(scope="module")
def segmenter(tables: Path, stage1: Path) -> Path:
    out = tables / "runs" / "seg"
    options = {"regions": ["brats"], "channels": ["t1", "flair"], "steps": 2, "val_every": 2, **QUICK}
    adapt_backbone("full", backbone=str(stage1), data=tables / "disease.parquet", out=out, **options)
    return out


def test_a_killed_pre_training_ends_with_the_weights_of_an_unbroken_one(tables: Path, stage1: Path):
    out, data = tables / "runs" / "killed", tables / "healthy.parquet"
    words = ["pretrain", "brainsegfounder", "--data", data, "--out", out, "--steps", 3]
    words += ["--batch-size", 1, "--save-every", 1]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    process = subprocess.Popen([sys.executable, "-m", "vesalius.cli", *map(str, words)], env=environment)
    while not (out / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "weights.safetensors").exists()
    pretrain_system("brainsegfounder", data=data, out=out, steps=3, resume=True, **QUICK)
    one, other = load_file(out / "weights.safetensors"), load_file(stage1 / "weights.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_task_is_logged_by_name(stage1: Path):
    names = set((stage1 / "metrics.csv").read_text().splitlines()[0].split(","))
    for task in ("rotation_loss", "contrastive_loss", "reconstruction_loss", "rotation_accuracy"):
        assert {f"train/{task}", f"val/{task}"} <= names


def test_the_second_stage_keeps_the_channels_that_it_knows_by_name(tables: Path, stage1: Path):
    options = {"data": tables / "disease.parquet", "stage": 2, "init": str(stage1), **QUICK}
    # The first step has a learning rate of 0: what comes out is what went in.
    pretrain_system("brainsegfounder", out=tables / "runs" / "s2", steps=1, **options)
    before, after = (load_file(tables / "runs" / run / "weights.safetensors") for run in ("s1", "s2"))
    for name, dim in (("encoder.swin.patch_embed.proj.weight", 1), ("reconstruction.20.weight", 0)):
        t1, flair = before[name].unbind(dim)
        kept = after[name].unbind(dim)  # flair, t1ce, t1, t2
        assert torch.equal(kept[0], flair)
        assert torch.equal(kept[2], t1)
        assert not kept[1].any()
        assert not kept[3].any()
    assert torch.equal(before["rotation.0.weight"], after["rotation.0.weight"])
    card = Card.load(tables / "runs" / "s2" / "card.json")
    assert card.notes == ("Matched channels t1, flair -> flair, t1ce, t1, t2; new: t1ce, t2",)
    first = read_seen(RunFolder(stage1))
    assert read_seen(RunFolder(tables / "runs" / "s2"))["backbone"] == first["train"] | first["val"]
    with pytest.raises(WeightsError, match="its width is 12, the system's 24"):
        pretrain_system("brainsegfounder", out=tables / "runs" / "x", model={"width": 24}, **options)


def test_pre_training_goes_on_from_published_weights_in_their_own_order_only(tables: Path, tmp_path: Path):
    config = replace(PRESETS["tiny"], merging="legacy")
    module = BrainSegFounder(config)
    save_weights(
        module.network, tmp_path / "w", Card("brainsegfounder", "pretrain", module.architecture, module.contract)
    )
    options = {"data": tables / "healthy.parquet", "init": str(tmp_path / "w"), "steps": 1, **QUICK}
    with pytest.raises(WeightsError, match="its merging is legacy, the system's repaired"):
        pretrain_system("brainsegfounder", out=tables / "runs" / "m", **options)
    pretrain_system("brainsegfounder", out=tables / "runs" / "m", model={"merging": "legacy"}, **options)
    after = load_file(tables / "runs" / "m" / "weights.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in module.network.state_dict().items())


def test_what_the_first_stage_cannot_read_is_said_by_the_channels_name(tables: Path):
    with pytest.raises(VesaliusError, match="has no channel 't1ce'"):
        pretrain_system("brainsegfounder", data=tables / "healthy.parquet", stage=2, out=tables / "runs" / "y", **QUICK)
    with pytest.raises(ConfigError, match="usfm has no stage 2"):
        pretrain_system("usfm", data=tables / "healthy.parquet", stage=2, out=tables / "runs" / "y")


def test_a_linear_head_leaves_the_encoder_as_it_was(tables: Path, stage1: Path):
    options = {"backbone": str(stage1), "data": tables / "disease.parquet", "shots": 1, "steps": 2, **QUICK}
    before = load_volume_trunk(stage1).state_dict()
    for decoder in ("linear", "unetr"):
        out = tables / "runs" / f"frozen_{decoder}"
        summary = adapt_backbone("linear", out=out, decoder=decoder, **options)
        assert "val/dice" in summary["val"]
        task, card = load_volume_task(out)
        frozen = task.encoder if decoder == "linear" else task.encoder.encoder
        assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())
        assert card.classes == CLASSES
        assert len(read_seen(RunFolder(out))["train"]) == 1


def test_a_published_segmentation_is_a_task_as_it_is(tmp_path: Path):
    network = VolumeSegmenter(SwinUNETR(SwinConfig(in_channels=4, width=12, window=4, merging="legacy")), classes=3)
    config = {"encoder": architecture(network.encoder), "classes": 3}
    card = Card(
        "brainsegfounder", "segmentation", {"name": "volume_segmenter", "config": config}, contract("segmentation", 4)
    )
    save_weights(network, tmp_path / "brats", card)
    task, found = load_volume_task(tmp_path / "brats")
    assert (task.scored, found.classes, found.contract.channels[0]) == (("TC", "WT", "ET"), CLASSES, "flair")
    volume = torch.rand(1, 4, 64, 32, 32)
    with torch.no_grad():
        assert torch.equal(task(volume), network.eval()(volume))


def test_options_that_say_nothing_about_volumes_are_refused(tables: Path, stage1: Path):
    options = {"backbone": str(stage1), "data": tables / "disease.parquet", "out": tables / "runs" / "z"}
    for method, wrong, message in (
        ("lora", {}, "lora with a backbone of volumes; use one of full, linear"),
        ("full", {"image_size": 32}, "image_size with .*, which reads volumes"),
        ("full", {"task": "classification"}, "task classification with"),
        ("full", {"regions": ["WT=oedema+core"]}, "no mask has the class 'core'"),
        ("full", {"crop": [40]}, "give one or three multiples of 32"),
        ("full", {"crop": [32]}, "leaves the bottleneck one position"),
        ("full", {"flip": 2.0}, "flip = 2.0"),
        ("full", {"scale": -1.0}, "scale = -1.0"),
        ("full", {"foreground": 2.0}, "foreground = 2.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            adapt_backbone(method, **options, **wrong)
    with pytest.raises(ConfigError, match="regions with random:usfm, which reads 2-D images"):
        adapt_backbone("full", **{**options, "backbone": "random:usfm"}, regions=["brats"])
    with pytest.raises(ConfigError, match="shift with random:usfm, which reads 2-D images"):
        adapt_backbone("full", **{**options, "backbone": "random:usfm"}, shift=0.0)
    for read, message in (
        (lambda: load_backbone(stage1), "reads volumes; .*load_volume_trunk"),
        (lambda: load("brainsegfounder", stage1), "is a folder, .*load_weights"),
    ):
        with pytest.raises(WeightsError, match=message):
            read()


def test_mirror_images_are_refused_where_they_are_other_anatomy(tables: Path, stage1: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="flips with 'Left-Hippocampus', which a mirror image"):
        check_flips(tmp_path, ["brain", "Left-Hippocampus"])
    check_flips(tmp_path, ["bright spot", "leftover"])
    options = {"flip": 0.0, "scale": 0.2, "shift": 0.0, "foreground": 0.5, "shots": 1, "steps": 1, **QUICK}
    out = tables / "runs" / "unmirrored"
    adapt_backbone("linear", backbone=str(stage1), data=tables / "disease.parquet", out=out, **options)
    used = RunFolder(out).read_config()["config"]
    assert [used[name] for name in ("flip", "scale", "shift", "foreground")] == [0.0, 0.2, 0.0, 0.5]
    with pytest.raises(ConfigError, match="unmirrored, which was trained without mirroring"):
        predict(out, tables / "disease" / "brain_001", out=tmp_path / "out", flips=True)


def test_training_from_scratch_takes_a_preset_by_name(tables: Path):
    options = {"data": tables / "disease.parquet", "channels": ["flair"], "classes": ["oedema"], "steps": 1, **QUICK}
    adapt_backbone("full", backbone="random:brainsegfounder/tiny", out=tables / "runs" / "scratch", **options)
    card = Card.load(tables / "runs" / "scratch" / "card.json")
    assert (card.contract.channels, card.classes) == (("flair",), ("oedema",))
    with pytest.raises(ConfigError, match="brainsegfounder has no preset 'big'"):
        adapt_backbone("full", backbone="random:brainsegfounder/big", out=tables / "runs" / "b", **options)


def test_eight_orientations_of_a_volume_get_one_answer(tables: Path, segmenter: Path, tmp_path: Path):
    folder = tables / "disease" / "brain_001"
    for codes in itertools.product("RL", "AP", "SI"):
        turned = "".join(codes[axis] for axis in (2, 0, 1))  # with permuted axes
        case = tmp_path / "in" / turned
        case.mkdir(parents=True)
        for name in ("t1", "flair"):
            image = nibabel.load(folder / f"brain_001_{name}.nii.gz")
            to = ornt_transform(io_orientation(image.affine), axcodes2ornt(turned))
            nibabel.save(image.as_reoriented(to), case / f"{turned}_{name}.nii.gz")
    assert predict(segmenter, tmp_path / "in", out=tmp_path / "out", overlays=False)["predicted"] == 8
    found = [nibabel.as_closest_canonical(nibabel.load(file)) for file in sorted((tmp_path / "out").glob("*.nii.gz"))]
    first = np.asanyarray(found[0].dataobj)
    assert len(found) == 8
    assert len(np.unique(first)) > 1
    assert all(np.array_equal(np.asanyarray(one.dataobj), first) for one in found)
    assert all(np.allclose(one.affine, found[0].affine, atol=1e-4) for one in found)


def test_a_dicom_case_comes_back_as_segmentation_and_as_nifti(tables: Path, segmenter: Path, tmp_path: Path):
    options = {"channels": ("t1", "flair"), "format": "dicom", "oblique": 25.0, "spacing": (8, 5, 6)}
    brain(tmp_path / "in", n=1, size=(24, 36, 30), seed=3, **options)
    predict(segmenter, tmp_path / "in", out=tmp_path / "out", formats=["dicom-seg,nifti"])
    image = read_volume(tmp_path / "in" / "brain_001" / "t1")
    nifti = read_volume(tmp_path / "out" / "brain_001.nii.gz")
    mask, names = read_segmentation(tmp_path / "out" / "brain_001.dcm", image)
    assert names == CLASSES
    assert len(np.unique(mask)) > 1
    assert np.array_equal(nifti.array[0], mask)
    assert np.allclose(nifti.affine, image.affine, atol=1e-3)
    # read by another program, voxel by voxel in the patient
    other = highdicom.seg.segread(tmp_path / "out" / "brain_001.dcm").get_volume(combine_segments=True)
    places = np.argwhere(other.array > 0)
    at = np.linalg.inv(image.affine) @ other.affine @ np.c_[places, np.ones(len(places))].T
    column, row, depth = np.rint(at[:3]).astype(int)
    assert np.array_equal(mask[depth, row, column], other.array[tuple(places.T)])
    assert len(places) == (mask > 0).sum()
    (scores,) = csv.DictReader((tmp_path / "out" / "scores.csv").open())
    assert int(scores["oedema_voxels"]) == (mask == 2).sum()
    assert float(scores["oedema_ml"]) == pytest.approx((mask == 2).sum() * 0.24)
    pictures = {f"brain_001_{view}.png" for view in ("axial", "coronal", "sagittal")}
    assert pictures <= set(scores["outputs"].split(";"))


def test_bad_volumes_are_listed_and_the_rest_goes_on(tables: Path, segmenter: Path, tmp_path: Path):
    for name in ("good", "nan", "other"):
        (tmp_path / name).mkdir()
        for channel in ("t1", "flair"):
            image = nibabel.load(tables / "disease" / "brain_002" / f"brain_002_{channel}.nii.gz")
            voxels = image.get_fdata(dtype=np.float32)
            if name == "nan" and channel == "t1":
                voxels[3, 3, 3] = np.nan
            ending = "t2" if name == "other" and channel == "flair" else channel
            nibabel.save(nibabel.Nifti1Image(voxels, image.affine), tmp_path / name / f"{name}_{ending}.nii.gz")
    folders = [tmp_path / name for name in ("good", "nan", "other")]
    counts = predict(segmenter, folders, out=tmp_path / "out", overlays=False)
    assert counts == {"predicted": 1, "skipped": 0, "failed": 2}
    reasons = [row["reason"] for row in csv.DictReader((tmp_path / "out" / "failed.csv").open())]
    assert "1 voxels are NaN or infinite" in reasons[0]
    assert "has no channel 'flair'" in reasons[1]
    assert predict(segmenter, folders, out=tmp_path / "out", overlays=False)["skipped"] == 1


def test_files_beside_each_other_are_one_case_by_their_channels(tmp_path: Path):
    for name in ("a_T1.nii.gz", "a_T2-FLAIR.nii.gz", "b_t1.nii.gz", "b_flair.nii.gz", "c.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)), tmp_path / name)
    cases = find_cases(sorted(tmp_path.iterdir()), ("t1", "flair"))
    names = {case.stem.as_posix(): [path.name for path in case.paths] for case in cases}
    assert names == {
        "a": ["a_T1.nii.gz", "a_T2-FLAIR.nii.gz"],
        "b": ["b_t1.nii.gz", "b_flair.nii.gz"],
        "c": ["c.nii.gz"],
    }


def test_a_segmentation_is_scored_on_the_images_own_voxels(tables: Path, segmenter: Path, monkeypatch):
    result = evaluate(segmenter, draws=20, lesions="brats2023")
    assert tuple(result.metrics["per_class"]) == ("TC", "WT", "ET")
    assert result.settings["empty"] == "vesalius"
    assert {"dice", "dice WT", "f1"} <= result.intervals.keys()
    assert result.images == 2
    table = load_table(tables / "disease.parquet")
    seen = table.with_columns(pl.when(pl.col("split") == "train").then(pl.lit("test")).alias("split"))
    save_table(seen, tables / "seen.parquet")
    with pytest.raises(VesaliusError, match="patients are among those that the run learned from"):
        evaluate(segmenter, tables / "seen.parquet")

    masks = [read_volume(path).array[0] for path in table.filter(pl.col("split") == "test")["mask"]]
    truths = iter([np.array([0, 1, 2, 0, 3], np.uint8)[mask] for mask in masks])  # 4 is enhancing tumour in the files
    monkeypatch.setattr(volumes, "label_map", lambda *args, **kwargs: next(truths))
    exact = evaluate(segmenter, draws=5).metrics
    assert (exact["dice"], exact["nsd"], exact["hd95"]) == (1, 1, 0)
