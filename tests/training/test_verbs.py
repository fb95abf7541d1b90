"""From a table to a foundation model to a task, as a user does it; and a kill in the middle of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vesalius.adapt.adaptation import Adaptation
from vesalius.adapt.networks import collapse_run, load_task
from vesalius.data.index import index
from vesalius.data.phantoms.ultrasound import ultrasound
from vesalius.errors import ConfigError, VesaliusError, WeightsError
from vesalius.files import sha256
from vesalius.published.card import Card
from vesalius.published.load import load_backbone
from vesalius.training.provenance import read_seen
from vesalius.training.runs import RunFolder
from vesalius.training.verbs import adapt_backbone, open_backbone, pretrain_system

SMALL = {"image_size": 32, "width": 32, "depth": 2, "heads": 2}
QUICK = {"batch_size": 4, "save_every": 2, "progress": False}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("us")
    ultrasound(folder / "images", n=24, size=32)
    index(folder / "images", folder / "us.parquet")
    return folder / "us.parquet"


@pytest.fixture(scope="module")
def usfm(table: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    out = tmp_path_factory.mktemp("runs") / "usfm"
    pretrain_system("usfm", data=table, out=out, model=SMALL, steps=6, **QUICK)
    return out


def test_a_killed_pre_training_ends_with_the_weights_of_an_unbroken_one(table: Path, usfm: Path, tmp_path: Path):
    out = tmp_path / "usfm"
    words = ["pretrain", "usfm", "--data", table, "--out", out, "--steps", 6, "--batch-size", 4, "--save-every", 2]
    words += [word for name, value in SMALL.items() for word in (f"--model.{name}", value)]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    process = subprocess.Popen([sys.executable, "-m", "vesalius.cli", *map(str, words)], env=environment)
    while not (out / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "weights.safetensors").exists()
    pretrain_system("usfm", data=table, out=out, model=SMALL, steps=6, resume=True, **QUICK)
    one, other = load_file(out / "weights.safetensors"), load_file(usfm / "weights.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_pre_trained_backbone_is_what_its_card_says(table: Path, usfm: Path):
    encoder = load_backbone(usfm)
    card = Card.load(usfm / "card.json")
    assert (card.system, card.part, card.contract.size) == ("usfm", "backbone", 32)
    assert encoder.config.width == 32
    assert RunFolder(usfm).read_config()["model"]["mask_ratio"] == 0.6
    with pytest.raises(VesaliusError, match="holds a finished run already"):
        pretrain_system("usfm", data=table, out=usfm, model=SMALL, steps=6, **QUICK)


def test_pre_training_continues_from_a_backbone_of_the_same_shape_only(table: Path, usfm: Path, tmp_path: Path):
    pretrain_system("usfm", data=table, out=tmp_path / "a", model=SMALL, init=str(usfm), steps=1, **QUICK)
    moved = load_file(tmp_path / "a" / "weights.safetensors")["blocks.0.attn.qkv.weight"]
    start = load_file(usfm / "weights.safetensors")["blocks.0.attn.qkv.weight"]
    assert (moved - start).abs().max() < 1e-2
    with pytest.raises(WeightsError, match="another network than the preset's"):
        pretrain_system("usfm", data=table, out=tmp_path / "b", model={**SMALL, "depth": 3}, init=str(usfm), **QUICK)


def test_the_deblurring_system_trains_too(table: Path, tmp_path: Path):
    pretrain_system("deblurring", data=table, out=tmp_path / "db", model=SMALL, steps=2, **QUICK)
    assert Card.load(tmp_path / "db" / "card.json").contract.blur is not None


@pytest.mark.parametrize(
    ("method", "task", "decoder"),
    [
        ("full", "classification", None),
        ("linear", "segmentation", "unetpp"),
        ("full", "enhancement", "pyramid"),
    ],
)
def test_adapting(method: str, task: str, decoder: str | None, table: Path, usfm: Path, tmp_path: Path):
    options = {"backbone": str(usfm), "task": task, "data": table, "decoder": decoder, "decoder_width": 16}
    summary = adapt_backbone(method, out=tmp_path / "run", steps=3, val_every=3, fraction=0.5, **options, **QUICK)
    assert summary["step"] == 3
    assert summary["val"]
    network, card = load_task(tmp_path / "run")
    assert (card.part, card.contract.size) == (task, 32)
    trunk = {name: value for name, value in network.encoder.state_dict().items() if not name.startswith("relative")}
    before = load_file(usfm / "weights.safetensors")
    same = all(torch.equal(before[name], value) for name, value in trunk.items())
    assert same == (method == "linear")
    seen = read_seen(RunFolder(tmp_path / "run"))
    assert seen["train"] < read_seen(RunFolder(usfm))["train"] <= seen["backbone"]


@pytest.mark.parametrize("method", ["linear", "bitfit", "lora", "ept", "vpt"])
def test_few_labels_store_what_they_trained_and_find_their_trunk_again(
    method: str, table: Path, usfm: Path, tmp_path: Path
):
    trunk = tmp_path / "usfm"
    shutil.copytree(usfm, trunk)
    options = {"backbone": str(trunk), "data": table, "task": "classification", "shots": 2}
    adapt_backbone(method, out=tmp_path / "run", steps=2, **options, **QUICK)
    stored = load_file(tmp_path / "run" / "weights.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) < 0.3 * sum(
        p.numel() for p in load_backbone(trunk).parameters()
    )
    network, card = load_task(tmp_path / "run")
    assert card.extra["trunk"]["sha256"] == sha256(trunk / "weights.safetensors")
    assert card.extra["method"]["name"] == method
    image = torch.rand(2, 1, 32, 32)
    with pytest.raises(WeightsError, match=f"holds what {method} trained, without the trunk"):
        load_backbone(tmp_path / "run")
    trunk.rename(tmp_path / "moved")
    with pytest.raises(WeightsError, match="--trunk"):
        load_task(tmp_path / "run")
    again, _ = load_task(tmp_path / "run", trunk=str(tmp_path / "moved"))
    torch.testing.assert_close(again(image), network(image))
    adapt_backbone("full", out=tmp_path / "other", backbone=str(tmp_path / "moved"), data=table, steps=1, **QUICK)
    with pytest.raises(WeightsError, match="its hash differs"):
        load_task(tmp_path / "run", trunk=str(tmp_path / "other"))


def test_a_timm_trunk_is_made_again_and_a_random_one_is_stored_whole(table: Path, tmp_path: Path):
    options = {"data": table, "task": "classification", "shots": 1, "image_size": 32, "steps": 1}
    adapt_backbone("ept", out=tmp_path / "timm", backbone="vit_tiny_patch16_224", seed=3, **options, **QUICK)
    assert (tmp_path / "timm" / "weights.safetensors").stat().st_size < 1e5
    network, _ = load_task(tmp_path / "timm")
    other, _ = load_task(tmp_path / "timm")
    assert torch.equal(network.encoder.cls_token, other.encoder.cls_token)
    adapt_backbone("ept", out=tmp_path / "random", backbone="random:usfm", **options, **QUICK)
    assert "trunk" not in load_task(tmp_path / "random")[1].extra


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_broken_off_run_of_few_labels_goes_on_without_a_copy_of_its_trunk(
    ema: float, table: Path, usfm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {"backbone": str(usfm), "data": table, "task": "classification", "steps": 6, "ema": ema, "lr": 0.1}
    adapt_backbone("ept", out=tmp_path / "whole", **options, **QUICK)

    def broken(self: Adaptation, batch: dict, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 4:
            raise KeyboardInterrupt
        return self.task.loss(self.task(batch["image"]), batch)

    with monkeypatch.context() as patch:
        patch.setattr(Adaptation, "training_step", broken)
        with pytest.raises(VesaliusError, match="interrupted at step 4"):
            adapt_backbone("ept", out=tmp_path / "broken", **options, **QUICK)
    checkpoint = torch.load(tmp_path / "broken" / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any(name.endswith("mlp.fc1.weight") for name in checkpoint["state_dict"])
    adapt_backbone("ept", out=tmp_path / "broken", resume=True, **options, **QUICK)
    one, other = (load_file(tmp_path / run / "weights.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_collapsed_prompts_give_the_same_outputs_from_a_smaller_file(table: Path, usfm: Path, tmp_path: Path):
    options = {"backbone": str(usfm), "data": table, "task": "classification", "steps": 2}
    adapt_backbone("ept", out=tmp_path / "run", lr=0.1, **options, **QUICK)
    small = collapse_run(tmp_path / "run", tmp_path / "small")
    network, folded = load_task(tmp_path / "run")[0], load_task(tmp_path / "small")[0]
    image = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(folded(image), network(image), rtol=1e-5, atol=1e-6)
    assert small.stat().st_size < 0.2 * (tmp_path / "run" / "weights.safetensors").stat().st_size
    assert read_seen(RunFolder(tmp_path / "small")) == read_seen(RunFolder(tmp_path / "run"))
    adapt_backbone("linear", out=tmp_path / "linear", **options, **QUICK)
    with pytest.raises(WeightsError, match="is a run of linear"):
        collapse_run(tmp_path / "linear", tmp_path / "no")


def test_from_scratch_is_the_same_network_with_fresh_weights(usfm: Path):
    torch.manual_seed(0)
    fresh, card = open_backbone(f"random:{usfm}")
    trained, _ = open_backbone(str(usfm))
    assert fresh.config == trained.config
    assert not torch.equal(fresh.patch_embed.proj.weight, trained.patch_embed.proj.weight)
    assert card.source == "random weights"
    assert open_backbone("random:deblurring/tiny", image_size=32)[0].image_size == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "tin"}, "did you mean 'tiny'"),
        ({"model": {"mask_ration": 0.5}}, "did you mean 'mask_ratio'"),
        ({"data": "nowhere.parquet"}, "is not there"),
    ],
)
def test_mistakes_of_pre_training_leave_nothing(options: dict, message: str, table: Path, tmp_path: Path):
    with pytest.raises(VesaliusError, match=message):
        pretrain_system("usfm", **{"data": table, "out": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


def test_mistakes_of_adapting_leave_nothing(table: Path, usfm: Path, tmp_path: Path):
    options = {"backbone": str(usfm), "data": table, "out": tmp_path / "run"}
    with pytest.raises(ConfigError, match="no image has the class 'benin'"):
        adapt_backbone("full", task="classification", classes=("benin", "malignant"), **options)
    with pytest.raises(ConfigError, match="did you mean 'full'"):
        adapt_backbone("ful", task="segmentation", **options)
    with pytest.raises(WeightsError, match="no such run folder"):
        adapt_backbone("full", task="segmentation", **{**options, "backbone": "nowhere"})
    assert not (tmp_path / "run").exists()
