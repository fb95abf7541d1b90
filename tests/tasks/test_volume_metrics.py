"""Scores of volumes have the values that can be worked out by hand, and empty masks follow a named rule."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss

from vesalius.errors import ConfigError, VesaliusError
from vesalius.tasks.brats import REGIONS, regions
from vesalius.tasks.volume_metrics import EMPTY, case_scores, lesion_scores, mask_scores, summarise


def cube(*corner: int, side: int = 8, size: int = 24) -> np.ndarray:
    mask = np.zeros((size, size, size), bool)
    mask[tuple(slice(start, start + side) for start in corner)] = True
    return mask


def test_a_shifted_cube() -> None:
    truth, shifted = cube(4, 4, 4), cube(6, 4, 4)
    scores = mask_scores(shifted, truth, spacing=(1.5, 1, 1), tolerance=3.0)
    assert scores["dice"] == 0.75 and scores["hd95"] == 3 and scores["nsd"] == 1
    assert mask_scores(truth, shifted, tolerance=2.0)["nsd"] == 1 and mask_scores(shifted, truth)["hd95"] == 2
    # Two faces are off, and the four others but for 28 of their 30 slices: 28 / 30 * 4 * 30 * 45 of 7200 mm^2.
    large = cube(4, 4, 4, side=30, size=40), cube(6, 4, 4, side=30, size=40)
    assert mask_scores(*large, spacing=(1.5, 1, 1), tolerance=0.1)["nsd"] == pytest.approx(0.7, abs=0.03)
    assert mask_scores(truth, shifted, spacing=(1.5, 1, 1), tolerance=3.0) == scores


def test_a_mask_at_the_border_and_distances_in_a_large_volume() -> None:
    truth = cube(0, 0, 0)
    assert mask_scores(truth, truth, tolerance=0.0) == {"dice": 1, "nsd": 1, "hd95": 0}
    far = mask_scores(cube(0, 0, 0, side=1, size=60), cube(0, 0, 59, side=1, size=60), spacing=(1, 1, 2))
    assert far == {"dice": 0, "nsd": 0, "hd95": 118}


@pytest.mark.parametrize(
    ("rule", "both", "missed", "invented"),
    [
        ("vesalius", math.nan, 0, 0),
        ("monai", math.nan, 0, math.nan),
        ("medpy", 1, 0, 0),
        ("masam", 1, 0, 0),
        ("transunet", 0, 0, 1),
    ],
)
def test_empty_masks_by_name(rule: str, both: float, missed: float, invented: float) -> None:
    some, none = cube(4, 4, 4), np.zeros((24, 24, 24), bool)
    for (prediction, truth), expected in {(0, 0): both, (0, 1): missed, (1, 0): invented}.items():
        masks = [some if one else none for one in (prediction, truth)]
        for scores in (mask_scores(*masks, empty=rule), lesion_scores(*masks, empty=rule)):
            values = [scores[key] for key in ("dice", "nsd", "f1", "lesion_dice") if key in scores]
            assert np.array_equal(values, [expected] * 2, equal_nan=True)
    assert set(EMPTY) == {"vesalius", "monai", "medpy", "masam", "sam3d", "transunet"}
    with pytest.raises(ConfigError, match="did you mean 'medpy'"):
        mask_scores(some, none, empty="medpi")


def test_the_dice_of_3dsam_is_the_complement_of_a_smoothed_loss() -> None:
    some, shifted, none = cube(4, 4, 4), cube(5, 4, 4), np.zeros((24, 24, 24), bool)
    loss = DiceLoss(smooth_nr=1e-5, smooth_dr=1e-5)
    for prediction, truth in itertools.product((some, shifted, none), repeat=2):
        p, t = (torch.from_numpy(mask).double()[None, None] for mask in (prediction, truth))
        expected = 1 - loss(p, t).item()
        assert mask_scores(prediction, truth, empty="sam3d")["dice"] == pytest.approx(expected, abs=1e-12)
    assert mask_scores(none, none, empty="sam3d")["nsd"] == 1


def test_lesions_are_found_missed_and_invented() -> None:
    truth = cube(1, 1, 1, side=4) | cube(10, 10, 10, side=4) | cube(18, 18, 1, side=2)
    # The first is found in two pieces, the second missed, the third found exactly; one is made up.
    found = cube(1, 1, 1, side=1) | cube(4, 4, 4, side=1) | cube(18, 18, 1, side=2) | cube(18, 2, 18, side=3)
    scores = lesion_scores(found, truth, spacing=(2, 1, 1))
    assert (scores["found"], scores["missed"], scores["false"]) == (2, 1, 1)
    assert scores["f1"] == pytest.approx(4 / 6) and scores["sensitivity"] == scores["precision"] == pytest.approx(2 / 3)
    assert scores["lesion_dice"] == pytest.approx((2 * 2 / (64 + 2) + 0 + 1) / 4)
    assert scores["count_difference"] == 1 and scores["volume_difference"] == 2 * (64 + 64 + 8 - (2 + 8 + 27))


def test_brats_joins_near_lesions_and_leaves_out_small_ones() -> None:
    truth = cube(2, 2, 2, side=5) | cube(2, 2, 9, side=5) | cube(18, 18, 18, side=3)
    found = cube(2, 2, 2, side=5)
    atlas, brats = lesion_scores(found, truth), lesion_scores(found, truth, rule="brats2023")
    assert atlas["missed"] == 2 and atlas["lesion_dice"] == pytest.approx(1 / 3)
    assert brats["missed"] == 0 and brats["lesion_dice"] == pytest.approx(2 * 125 / (125 + 250))


def test_a_case_and_its_summary() -> None:
    truth = np.zeros((24, 24, 24), np.uint8)
    truth[2:10, 2:10, 2:10], truth[14:18, 14:18, 14:18] = 1, 2
    truth[10:12] = 255
    prediction = np.where(truth == 255, 1, truth)
    classes = ("liver", "tumour", "cyst")
    perfect = case_scores(prediction, truth, classes=classes, spacing=(1, 1, 1), lesions={"tumour": "atlas"})
    assert perfect["liver"]["dice"] == perfect["tumour"]["f1"] == 1 and "f1" not in perfect["liver"]
    missed = case_scores(prediction * (prediction < 2), truth, classes=classes, annotated=(True, True, False))
    assert set(missed) == {"liver", "tumour"}
    summary = summarise([perfect, missed], classes)
    tumour, cyst = summary["per_class"]["tumour"], summary["per_class"]["cyst"]
    assert tumour["dice"] == 0.5 and (tumour["n"], tumour["missed"], tumour["invented"]) == (2, 1, 0)
    assert math.isnan(cyst["dice"]) and (cyst["n"], cyst["empty"], cyst["unannotated"]) == (0, 1, 1)
    assert summary["dice"] == 0.75
    with pytest.raises(VesaliusError, match="compare at the image's own size"):
        case_scores(prediction[:5], truth, classes=classes)


def test_regions_overlap() -> None:
    label = np.zeros((24, 24, 24), np.uint8)
    label[2:14, 2:14, 2:14], label[4:10, 4:10, 4:10], label[5:8, 5:8, 5:8] = 2, 1, 4
    wrong = np.where(label == 4, 1, label)
    scores = case_scores(regions(wrong), regions(label), classes=REGIONS, lesions=dict.fromkeys(REGIONS, "brats2023"))
    assert scores["TC"]["dice"] == scores["WT"]["dice"] == 1 and scores["ET"]["dice"] == 0
    assert scores["WT"]["lesion_dice"] == 1 and scores["ET"]["f1"] == 0
