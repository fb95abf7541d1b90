"""Scores against the authors' numbers, against ones done by hand, and where they are undefined."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from vesalius.errors import VesaliusError
from vesalius.published.fixture import Fixture
from vesalius.tasks import metrics

PARITY = Path(__file__).parents[1] / "parity"


def square(side: int = 20, top: int = 5, left: int = 5, size: int = 8, value: int = 1) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    mask[top : top + size, left : left + size] = value
    return mask


def test_foreground_scores_agree_with_usfm():
    fixture = Fixture.read(PARITY / "usfm_seg_metrics.json.gz")
    pairs = zip(fixture.inputs["prediction"], fixture.inputs["truth"], strict=True)
    rows = [metrics.foreground_scores(p, t) for p, t in pairs]
    keys = ("iou", "accuracy", "sensitivity", "specificity")
    assert fixture.error("dice", np.array([row["dice"] for row in rows])) < 1e-5
    assert fixture.error("iou_acc_se_sp", np.array([[row[key] for key in keys] for row in rows])) < 1e-5


def test_scores_agree_with_deblurring_mim():
    fixture = Fixture.read(PARITY / "deblur_seg_metrics.json.gz")
    pairs = zip(fixture.inputs["probability"], fixture.inputs["truth"], strict=True)
    rows = [metrics.deblurring_scores(p, t) for p, t in pairs]
    ours = np.array([[row[key] for key in ("iou", "dice", "hd95")] for row in rows])
    assert fixture.error("iou_dice_hd95", ours) < 1e-5


def test_batch_overlap_agrees_with_deblurring_mim():
    fixture = Fixture.read(PARITY / "deblur_dice_loss_a.json.gz")
    ours = metrics.batch_overlap(fixture.inputs["probability"], fixture.inputs["truth"])
    assert max(fixture.error(name, np.asarray(ours[name])) for name in ("fscore", "iou")) < 1e-6


def test_hd95_is_between_surfaces_and_in_millimetres():
    # a block within one that is larger by 3 at the bottom only: the far surface is 3 rows away
    truth, prediction = square(size=8), square(size=8)
    prediction[13:16, 5:13] = 1
    per_pixel = metrics.surface_hd95(prediction > 0, truth > 0)
    assert per_pixel == pytest.approx(3)
    assert metrics.surface_hd95(prediction > 0, truth > 0, spacing=(0.5, 9.0)) == pytest.approx(1.5)


def test_volumes_have_anisotropic_spacing():
    truth = np.zeros((6, 16, 16), np.uint8)
    truth[1:3, 4:9, 4:9] = 1
    prediction = truth.copy()
    prediction[3, 4:9, 4:9] = 1  # one slice of 3 mm too many
    scores = metrics.segmentation([prediction], [truth], classes=("n",), spacings=[(3, 0.5, 0.5)])
    assert scores["hd95"] == pytest.approx(3) and scores["dice"] == pytest.approx(4 / 5)


def test_published_hd95_is_diluted_by_inner_pixels():
    truth, prediction = square(40, size=20), square(40, size=20)
    prediction[25, 5:25] = 1  # a row too many: 20 of 420 pixels, but 20 of 78 on the surface
    assert metrics.surface_hd95(prediction > 0, truth > 0) == pytest.approx(1)
    assert metrics.deblurring_scores(prediction, truth)["hd95"] == 0


def test_classes_are_scored_apart():
    truth = square(value=1)
    truth[15:19, 15:19] = 2
    confused = np.where(truth > 0, 3 - truth, 0)
    scores = metrics.segmentation([confused], [truth], classes=("nodule", "cyst"))
    assert scores["dice"] == 0
    assert metrics.foreground_scores(confused, truth)["dice"] == pytest.approx(1)


def test_what_is_undefined_is_nan_and_counted():
    empty, full = np.zeros((20, 20), np.uint8), square()
    scores = metrics.segmentation([empty, empty, full, full], [empty, full, empty, full], classes=("nodule",))
    row = scores["per_class"]["nodule"]
    assert (row["n"], row["empty"], row["missed"], row["invented"]) == (2, 1, 1, 1)
    assert scores["dice"] == pytest.approx(1 / 3) and scores["hd95"] == 0
    images = scores["per_image"]["nodule"]
    assert math.isnan(images[0]["dice"]) and math.isnan(images[1]["hd95"]) and images[1]["dice"] == 0


def test_ignored_pixels_count_for_nothing():
    truth, prediction = square(), square()
    prediction[:3] = 1
    truth[:3] = 255
    assert metrics.segmentation([prediction], [truth], classes=("nodule",))["dice"] == 1


def test_hd95_is_in_pixels_unless_every_image_has_a_spacing():
    pair = [square(), square(top=7)]
    truth = [square(), square()]
    some = metrics.segmentation(pair, truth, classes=("n",), spacings=[(0.5, 0.5), None])
    every = metrics.segmentation(pair, truth, classes=("n",), spacings=[(0.5, 0.5)] * 2)
    assert (some["hd95_unit"], every["hd95_unit"]) == ("px", "mm")
    assert every["hd95"] == pytest.approx(some["hd95"] / 2) and some["hd95"] > 0


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(VesaliusError, match=r"\[20, 20\] against a truth of \[20, 19\]"):
        metrics.segmentation([square()], [square()[:, :19]], classes=("n",))


def test_classification_by_hand():
    p = np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    scores = metrics.classification(p, [0, 0, 1, 1], classes=("a", "b"))
    assert scores["accuracy"] == 0.75 and scores["balanced_accuracy"] == 0.75
    assert scores["confusion"] == [[2, 0], [1, 1]]
    assert scores["per_class"]["b"] == pytest.approx(
        {"n": 2, "sensitivity": 0.5, "specificity": 1, "precision": 1, "f1": 2 / 3, "auroc": 0.5}
    )
    assert scores["ece"] == pytest.approx((0.2 + 0.4 + 0.3 + 0.9) / 4)


def test_published_auc_is_of_another_ranking():
    # equal probabilities of "a" with the rest spread or gathered: a second softmax tells them apart
    p = np.array([[0.4, 0.3, 0.3], [0.4, 0.6, 0.0], [0.5, 0.5, 0.0]])
    honest, published = (
        metrics.classification(p, [0, 1, 1], classes=("a", "b", "c"), as_published=flag)["per_class"]["a"]["auroc"]
        for flag in (False, True)
    )
    assert (honest, published) == (0.25, 0.5)
    two = np.array([[0.8, 0.2], [0.6, 0.4], [0.7, 0.3]])
    assert metrics.classification(two, [0, 1, 1], classes=("a", "b"), as_published=True)["auroc"] == 1


def test_scatter_within_classes_by_hand_and_unlike_scale():
    features, labels = np.array([[0.0, 0], [2, 0], [10, 0], [10, 6], [10, 3]]), ["a", "a", "b", "b", "b"]
    scatter = metrics.within_class_scatter(features, labels)
    assert scatter["per_class"] == {"a": 1.0, "b": 6.0} and scatter["within"] == pytest.approx((2 * 1 + 3 * 6) / 5)
    covariance = np.cov(features.T, bias=True)
    assert scatter["total"] == pytest.approx(np.trace(covariance))
    wider = metrics.within_class_scatter(7 * features + 1, labels)
    assert wider["within"] == pytest.approx(49 * scatter["within"])
    assert wider["ratio"] == pytest.approx(scatter["ratio"])
    assert metrics.within_class_scatter(features[[0, 0, 2, 2, 2]], labels)["ratio"] == 0
    with pytest.raises(VesaliusError, match=r"features \[5, 2\] for labels \[4\]"):
        metrics.within_class_scatter(features, labels[:4])


def test_absent_classes_are_named_and_left_out_of_means():
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1]])
    scores = metrics.classification(p, [0, 1, 1], classes=("a", "b", "c"))
    assert scores["absent"] == ["c"] and scores["balanced_accuracy"] == 0.75
    row = scores["per_class"]["c"]
    assert row["n"] == 0 and all(math.isnan(row[key]) for key in ("sensitivity", "f1", "auroc"))
    assert row["specificity"] == pytest.approx(2 / 3)
    only = metrics.classification(p[:1], [0], classes=("a", "b", "c"))
    assert math.isnan(only["auroc"]) and only["accuracy"] == 1


def test_enhancement_by_hand():
    target = np.random.default_rng(0).random((1, 16, 24), dtype=np.float32) * 0.8
    scores = metrics.enhancement([target + 0.1, target], [target, target])
    assert scores["psnr"] == pytest.approx(20, abs=1e-3) and scores["exact"] == 1
    assert scores["per_image"][1]["ssim"] == pytest.approx(1) and scores["per_image"][0]["ssim"] < 1
