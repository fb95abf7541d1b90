"""Scoring and predicting with networks that were not trained: what counts is where the numbers and files come from."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image as Pillow

from vesalius.adapt.networks import load_task, save_task
from vesalius.data.contract import InputContract
from vesalius.data.table import make_table, save_table
from vesalius.errors import ConfigError, VesaliusError, WeightsError
from vesalius.evaluation.prediction import find_inputs
from vesalius.evaluation.verbs import evaluate, predict
from vesalius.nn.vit import ViT, ViTConfig
from vesalius.published.card import Card
from vesalius.published.load import save_weights
from vesalius.published.networks import architecture
from vesalius.tasks.classification import Classifier
from vesalius.tasks.enhancement import Enhancer
from vesalius.tasks.segmentation import Segmenter
from vesalius.training.provenance import write_seen
from vesalius.training.runs import RunFolder
from vesalius.training.verbs import adapt_backbone

CONTRACT = InputContract(32, 1, (0.5,), (0.25,))
NAMES = ("bright", "dark", "late", "never")
SPLITS = ["train"] * 8 + ["val"] * 4 + ["test"] * 4


def encoder() -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(image_size=32, patch_size=8, in_channels=1, width=16, depth=2, heads=2))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images of 48 x 40 with a bright or dark disc, its mask, and a copy without noise."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:48, :40]
    rows = []
    for number, split in enumerate(SPLITS):
        disc = (y - 20 - number) ** 2 + (x - 20) ** 2 < 64
        clean = np.where(disc, 220 if number % 2 else 40, 128).astype(np.uint8)
        noisy = (clean + generator.integers(-20, 20, clean.shape)).clip(0, 255).astype(np.uint8)
        for name, array in (("image", noisy), ("mask", disc.astype(np.uint8)), ("clean", clean)):
            Pillow.fromarray(array).save(folder / f"{name}{number}.png")
        rows.append(
            {
                "path": str(folder / f"image{number}.png"),
                "frames": 1,
                "patient": f"p{number // 2}",
                "size": [48, 40],
                "spacing": [0.5, 0.5],
                "split": split,
                "labels": ["bright" if number % 2 else "dark"],
                "annotated": ["dark", "bright", "disc"],
                "mask": str(folder / f"mask{number}.png"),
                "mask_classes": ["disc"],
                "target": str(folder / f"clean{number}.png"),
                "sha256": f"hash{number}",
                "dataset": "discs",
            }
        )
    return save_table(make_table(rows), folder / "discs.parquet")


@pytest.fixture
def findings(table: Path) -> Path:
    """The same images with any number of findings each; nobody looked for "bright" in image 12."""
    rows = pl.read_parquet(table)
    labels = [["bright"], ["dark", "late"], [], ["bright", "late"]] * 4
    annotated = [["dark", "late"] if n == 12 else ["dark", "bright", "late"] for n in range(16)]
    labels[12] = []
    changed = rows.with_columns(labels=pl.Series(labels), annotated=pl.Series(annotated), mask=None, mask_classes=[])
    return save_table(changed.cast(rows.schema), table.parent / "findings.parquet")


def make_run(task: str, folder: Path) -> Path:
    trunk = encoder()
    network = {
        "multilabel": lambda: Classifier(trunk, NAMES, multilabel=True, head_std=1.0),
        "classification": lambda: Classifier(trunk, ("dark", "bright")),
        "segmentation": lambda: Segmenter(trunk, ("disc",)),
        "enhancement": lambda: Enhancer(trunk, contract=CONTRACT),
    }[task]()
    card = Card("usfm", "backbone", architecture(trunk), CONTRACT, licence="CC-BY-NC 4.0")
    save_task(network, folder, contract=CONTRACT, backbone=card, source="a test")
    return folder


def test_a_task_is_written_and_read_whole(tmp_path: Path):
    run = make_run("segmentation", tmp_path)
    network, card = load_task(run)
    assert (card.part, card.classes, card.licence) == ("segmentation", ("disc",), "CC-BY-NC 4.0")
    again, _ = load_task(run / "weights.safetensors")
    image = torch.randn(1, 1, 32, 32)
    assert torch.equal(network.predict(image), again.predict(image))
    save_weights(encoder(), tmp_path / "b", Card("usfm", "backbone", architecture(encoder()), CONTRACT))
    with pytest.raises(WeightsError, match="not a task"):
        load_task(tmp_path / "b")


@pytest.mark.parametrize(
    ("task", "score"), [("classification", "balanced_accuracy"), ("segmentation", "dice"), ("enhancement", "psnr")]
)
def test_scores_come_with_counts_intervals_and_hashes(task: str, score: str, table: Path, tmp_path: Path):
    run = make_run(task, tmp_path)
    result = evaluate(run, table, draws=50)
    assert (result.images, result.patients, result.task) == (4, 2, task)
    assert result.intervals[score]["value"] == pytest.approx(result.metrics[score])
    written = json.loads((run / "results.json").read_text())
    assert written["data_hash"] != written["split_hash"]
    cases = pl.read_csv(run / "cases.csv")
    assert len(cases) == 4
    if task == "segmentation":
        assert result.metrics["hd95_unit"] == "mm"
        assert cases["dice disc"].mean() == pytest.approx(result.metrics["dice"])
    if task == "enhancement":  # a residual head starts as the identity, up to the resize
        assert result.metrics["psnr"] == pytest.approx(result.metrics["psnr_of_input"], abs=6)


def test_patients_that_the_run_learned_from_are_refused(table: Path, tmp_path: Path):
    run = make_run("classification", tmp_path)
    rows = pl.read_parquet(table).with_columns(pl.col("path"))
    seen = rows.filter(pl.col("patient") == "p7")
    write_seen(RunFolder(run), train=seen, val=seen.head(0), backbone=["x"])
    with pytest.raises(VesaliusError, match="1 of the 2 test patients are among those that the run learned from"):
        evaluate(run, table)
    assert not (run / "results.json").exists()
    assert evaluate(run, table, split="val", draws=10).leakage == {"run": 0, "backbone": 0}


@pytest.mark.parametrize("protocol", ["linear_probe", "knn"])
def test_a_backbone_is_scored_by_its_features(protocol: str, table: Path, tmp_path: Path):
    run = tmp_path / "backbone"
    save_weights(encoder(), run, Card("usfm", "backbone", architecture(encoder()), CONTRACT))
    with pytest.raises(ConfigError, match="--protocol linear_probe or knn"):
        evaluate(run, table)
    result = evaluate(run, table, protocol=protocol, draws=20)
    assert result.metrics["auroc"] == 1.0  # a random trunk tells bright from dark
    assert (run / f"results_{protocol}.json").exists()


def test_any_number_of_labels_is_scored_over_patients(findings: Path, tmp_path: Path):
    run = make_run("multilabel", tmp_path / "run")
    result = evaluate(run, findings, draws=200)
    counts = {name: (row["n"], row["annotated"]) for name, row in result.metrics["per_class"].items()}
    assert counts == {"bright": (1, 3), "dark": (1, 4), "late": (2, 4), "never": (0, 0)}
    assert (result.metrics["classes_counted"], result.metrics["absent"]) == (3, ["never"])
    for score in ("mAP", "auroc"):
        interval = result.intervals[score]
        assert interval["value"] == pytest.approx(result.metrics[score])
        assert interval["low"] <= interval["value"] <= interval["high"]
    assert (
        "3 of 4 classes; none of the images holds never; a class is predicted from a probability of 0.5"
        in result.counted
    )
    # draws of two patients twice the same one have fewer classes, and still a score
    assert result.intervals["mAP"]["draws"] == 200
    cases = list(csv.DictReader((run / "cases.csv").open()))
    assert [row["label"] for row in cases] == ["", "dark;late", "", "bright;late"]
    assert cases[0]["annotated"] == "dark;late" and set(cases[0]) >= {"p_bright", "p_never", "predicted"}
    predict(run, findings.parent / "image13.png", out=tmp_path / "out")
    (row,) = csv.DictReader((tmp_path / "out" / "scores.csv").open())
    assert row["predicted"] == ";".join(name for name in NAMES if float(row[f"p_{name}"]) >= 0.5)
    assert float(row["p_late"]) == pytest.approx(float(cases[1]["p_late"]), abs=1e-5)


@pytest.mark.parametrize("protocol", ["linear_probe", "knn"])
def test_a_backbone_is_scored_on_any_number_of_labels(protocol: str, findings: Path, tmp_path: Path):
    run = tmp_path / "backbone"
    save_weights(encoder(), run, Card("usfm", "backbone", architecture(encoder()), CONTRACT))
    result = evaluate(run, findings, protocol=protocol, draws=20)
    assert list(result.metrics["per_class"]) == ["bright", "dark", "late"]
    assert result.metrics["per_class"]["bright"]["annotated"] == 3


def test_masks_lie_on_their_images_and_bad_files_are_listed(table: Path, tmp_path: Path):
    run = make_run("segmentation", tmp_path / "run")
    inputs = tmp_path / "in"
    (inputs / "sub").mkdir(parents=True)
    Pillow.open(table.parent / "image0.png").save(inputs / "a.png")
    (inputs / "a.jpg").write_bytes(b"\xff\xd8\xff damaged")
    affine = np.diag([-0.5, -0.7, 2.0, 1.0])
    volume = np.random.default_rng(0).integers(0, 200, (20, 24, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, affine), inputs / "sub" / "v.nii.gz")
    counts = predict(run, inputs, out=tmp_path / "out")
    assert counts == {"predicted": 2, "skipped": 0, "failed": 1}
    with Pillow.open(tmp_path / "out" / "a_png.png") as mask:
        assert mask.size == (40, 48)
    mask = nibabel.load(tmp_path / "out" / "sub" / "v.nii.gz")
    assert mask.shape == (20, 24, 3)
    np.testing.assert_allclose(mask.affine, affine)
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert [row["frame"] for row in rows] == ["", "0", "1", "2"]
    assert float(rows[1]["disc_mm2"]) == pytest.approx(int(rows[1]["disc_pixels"]) * 0.35, abs=1e-3)
    failed = list(csv.DictReader((tmp_path / "out" / "failed.csv").open()))
    assert [Path(row["path"]).name for row in failed] == ["a.jpg"]
    assert failed[0]["reason"].count("\n") == 0


def test_predictions_go_on_where_they_stopped_and_mix_with_no_others(table: Path, tmp_path: Path):
    run = make_run("segmentation", tmp_path / "run")
    inputs = [table.parent / f"image{number}.png" for number in range(3)]
    out = tmp_path / "out"
    predict(run, inputs[:2], out=out, overlays=False)
    (out / "image1.png").unlink()
    scores = out / "scores.csv"
    scores.write_text(scores.read_text() + "half a li")
    assert predict(run, inputs, out=out, overlays=False) == {"predicted": 2, "skipped": 1, "failed": 0}
    assert len(list(csv.DictReader(scores.open()))) == 3
    with pytest.raises(VesaliusError, match="other weights or with other options"):
        predict(run, inputs, out=out, overlays=False, formats=["nifti"])
    assert predict(run, inputs, out=out, formats=["nifti"], overwrite=True)["predicted"] == 3


@pytest.mark.parametrize("task", ["classification", "enhancement"])
def test_other_tasks_write_scores_and_restored_images(task: str, table: Path, tmp_path: Path):
    run = make_run(task, tmp_path / "run")
    predict(run, table.parent / "image3.png", out=tmp_path / "out")
    (row,) = csv.DictReader((tmp_path / "out" / "scores.csv").open())
    if task == "classification":
        assert float(row["p_dark"]) + float(row["p_bright"]) == pytest.approx(1, abs=1e-5)
    else:
        with Pillow.open(tmp_path / "out" / row["outputs"]) as restored:
            assert (restored.size, restored.mode) == ((40, 48), "L")


def test_a_batch_of_which_nothing_can_be_predicted_is_an_error(tmp_path: Path):
    run = make_run("classification", tmp_path / "run")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(VesaliusError, match=r"failed\.csv: none of the 1 inputs could be predicted"):
        predict(run, tmp_path / "a.png", out=tmp_path / "out")
    with pytest.raises(VesaliusError, match="holds no images"):
        predict(run, (tmp_path / "empty").mkdir() or tmp_path / "empty", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="did you mean 'nifti'"):
        predict(make_run("segmentation", tmp_path / "s"), tmp_path / "a.png", out=tmp_path / "o", formats=["nifty"])


def test_inputs_of_one_name_do_not_overwrite_each_other(tmp_path: Path):
    for name in ("x/a.png", "y/a.png", "y/b.dcm", "y/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    stems = [source.stem.as_posix() for source in find_inputs([tmp_path / "x", tmp_path / "y"])]
    assert len(set(stems)) == 4


def test_findings_are_learned_scored_and_predicted(findings: Path, tmp_path: Path):
    save_weights(encoder(), tmp_path / "trunk", Card("usfm", "backbone", architecture(encoder()), CONTRACT))
    adapt_backbone(
        "ept",
        backbone=str(tmp_path / "trunk"),
        data=findings,
        out=tmp_path / "run",
        model={"length": 3},
        steps=60,
        batch_size=8,
        lr=0.02,
        val_every=30,
        progress=False,
    )
    assert "val/mAP" in pl.read_csv(tmp_path / "run" / "metrics.csv").columns
    result = evaluate(tmp_path / "run", split="train", draws=20)
    assert result.metrics["per_class"]["bright"]["ap"] > 0.9  # that bright discs are bright can be learned
    predict(tmp_path / "run", findings.parent / "image0.png", out=tmp_path / "out")
    (row,) = csv.DictReader((tmp_path / "out" / "scores.csv").open())
    assert set(row) == {"path", "frame", "predicted", "p_bright", "p_dark", "p_late", "outputs"}
