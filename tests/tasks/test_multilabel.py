"""Several labels an image: scores against scikit-learn and by hand, and what happens without examples or annotation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from vesalius.errors import VesaliusError
from vesalius.tasks.multilabel import Ranking, binary_cross_entropy, multilabel, named

CLASSES = ("ulcer", "polyp", "tumor")


def cases(n: int = 60, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with many ties, and labels."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 12, (n, k)) / 11, generator.random((n, k)) < 0.3


def test_the_ranking_agrees_with_scikit_learn_with_and_without_weights():
    p, y = cases()
    weights = np.random.default_rng(1).integers(0, 4, len(p)).astype(float)
    for given in (None, weights):
        ranking = Ranking(p, y)
        ap = [average_precision_score(y[:, c], p[:, c], sample_weight=given) for c in range(3)]
        auc = [roc_auc_score(y[:, c], p[:, c], sample_weight=given) for c in range(3)]
        np.testing.assert_allclose(ranking.average_precision(given), ap)
        np.testing.assert_allclose(ranking.auroc(given), auc)


def test_a_class_is_ranked_on_the_images_in_which_it_was_looked_for():
    p, y = cases()
    known = np.random.default_rng(2).random(p.shape) < 0.6
    scores = multilabel(p, y, classes=CLASSES, annotated=known)
    for c, name in enumerate(CLASSES):
        alone = multilabel(p[known[:, c]][:, [c]], y[known[:, c]][:, [c]], classes=[name])
        assert scores["per_class"][name] == pytest.approx(alone["per_class"][name])
        assert scores["per_class"][name]["annotated"] == known[:, c].sum()
    assert scores["mAP"] == pytest.approx(np.mean([row["ap"] for row in scores["per_class"].values()]))


def test_precision_and_recall_by_hand():
    p = [[0.9, 0.8, 0.1], [0.7, 0.2, 0.1], [0.4, 0.6, 0.2], [0.1, 0.3, 0.9]]
    y = [[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 1]]
    scores = multilabel(p, y, classes=CLASSES)
    # of 2, 2 and 1 decisions 1, 1 and 1 are right; of 2, 2 and 1 positives as many are found
    assert scores["CP"] == pytest.approx(2 / 3) and scores["CR"] == pytest.approx(2 / 3)
    assert scores["OP"] == pytest.approx(3 / 5) and scores["OR"] == pytest.approx(3 / 5)
    assert scores["per_class"]["ulcer"]["ap"] == pytest.approx((1 + 2 / 3) / 2)
    strict = multilabel(p, y, classes=CLASSES, threshold=0.85)
    assert math.isnan(strict["per_class"]["polyp"]["precision"]) and strict["CP"] == 1
    assert strict["CR"] == pytest.approx((1 / 2 + 0 + 1) / 3)


def test_a_class_without_positives_is_counted_out_and_as_published_as_zero():
    p, y = cases()
    y[:, 2] = False
    honest, published = (multilabel(p, y, classes=CLASSES, as_published=flag) for flag in (False, True))
    assert honest["absent"] == ["tumor"] and honest["classes_counted"] == published["classes_counted"] == 2
    assert math.isnan(honest["per_class"]["tumor"]["ap"]) and math.isnan(honest["per_class"]["tumor"]["auroc"])
    assert published["mAP"] == pytest.approx(honest["mAP"] * 2 / 3)
    assert published["CR"] == pytest.approx(honest["CR"] * 2 / 3)
    assert 0 < honest["per_class"]["tumor"]["ece"] < 1  # it can still be called too often
    nothing = multilabel(p, np.zeros_like(y), classes=CLASSES)
    assert math.isnan(nothing["mAP"]) and nothing["classes_counted"] == 0


def test_calibration_error_by_hand():
    # two bins are used: 0.1 is right 1 of 4 times, 0.8 2 of 2
    p, y = [[0.1]] * 4 + [[0.8]] * 2, [[1], [0], [0], [0], [1], [1]]
    assert multilabel(p, y, classes=["a"])["ece"] == pytest.approx((4 * 0.15 + 2 * 0.2) / 6)


def test_the_loss_is_summed_over_the_annotated_classes():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]])
    known = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).bool()
    whole = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(binary_cross_entropy(logits, labels), 3 * whole)
    binary_cross_entropy(logits, labels, known).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad != 0, known)


def test_names_of_an_image_are_those_that_reach_one_half():
    assert named([0.9, 0.5, 0.49], CLASSES) == "ulcer;polyp" and named([0.1, 0.2, 0.3], CLASSES) == ""


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(VesaliusError, match=r"probabilities \[2, 2\] for labels \[2, 3\] and 2 classes"):
        multilabel(np.zeros((2, 2)), np.zeros((2, 3)), classes=("a", "b"))
