"""Any number of labels an image: the loss of such a classifier, and its scores.

Classes that were not looked for in an image (`annotated`) count for nothing, in the loss and in the scores. A class
without examples has no score: it is NaN, means leave it out, and the number of classes that were counted is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error

from vesalius.errors import VesaliusError
from vesalius.tasks.metrics import BINS, defined_mean, ratio

SEPARATOR = ";"
"""Between the names of an image's classes in a table of predictions."""
THRESHOLD = 0.5
"""A class is predicted from this probability on."""


def binary_cross_entropy(logits: Tensor, labels: Tensor, annotated: Tensor | None = None) -> Tensor:
    """Binary cross-entropy with logits, summed over the classes and averaged over the images, as EPT trains.

    It is K times the plain mean; learning rates are tied to that.

    Args:
        logits, labels: ``[B, K]``, labels 0 or 1.
        annotated: ``[B, K]`` bool, which classes were looked for; the others give neither loss nor gradient.

    >>> binary_cross_entropy(torch.zeros(2, 3), torch.ones(2, 3)) / 3
    tensor(0.6931)
    """
    losses = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    if annotated is not None:
        losses = losses * annotated
    return losses.sum() / len(logits)


def multilabel(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    classes: Sequence[str],
    annotated: ArrayLike | None = None,
    threshold: float = THRESHOLD,
    as_published: bool = False,
) -> dict[str, Any]:
    """Scores of a classifier that gives any number of labels an image.

    Args:
        probabilities: ``[N, K]``, each in [0, 1] by itself (a sigmoid).
        labels: ``[N, K]`` of 0 and 1.
        classes: K names.
        annotated: ``[N, K]`` bool, which classes were looked for in which image; all by default.
        threshold: a class is predicted from this probability on.
        as_published: as EPT's code counts: the average precision of a class without positives, its recall, and the
            precision of a class that is never predicted are 0 and part of the means.

    Returns:
        n; mAP (non-interpolated average precision) and auroc: means over the classes that have positives and
        negatives; at the threshold CP, CR: means over the classes of precision and recall, CF1: their harmonic mean,
        OP, OR, OF1: precision, recall and F1 of all decisions together; ece: mean over the classes of the expected
        calibration error, that is the gap between a class's probability and how often it is there, in 15 bins of equal
        width; classes_counted: how many are in mAP and auroc; per_class: name -> n (images that hold it), annotated
        (images in which it was looked for), ap, auroc, sensitivity, precision, f1, ece; absent: names of
        the classes that no image holds.

    Raises:
        VesaliusError: shapes that do not fit.

    >>> scores = multilabel([[0.9, 0.2], [0.4, 0.1]], [[1, 0], [0, 0]], classes=("polyp", "tumor"))
    >>> scores["mAP"], scores["classes_counted"], scores["absent"]
    (1.0, 1, ['tumor'])
    >>> multilabel([[0.9, 0.2], [0.4, 0.1]], [[1, 0], [0, 0]], classes=("a", "b"), as_published=True)["mAP"]
    0.5
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels) > 0
    known = np.ones(y.shape, bool) if annotated is None else np.asarray(annotated, bool)
    k = len(classes)
    if p.ndim != 2 or not p.shape == y.shape == known.shape == (len(p), k) or len(p) == 0:
        raise VesaliusError(f"probabilities {list(p.shape)} for labels {list(y.shape)} and {k} classes")
    ranking = Ranking(p, y, known)
    ap, auroc = ranking.average_precision(), ranking.auroc()
    guess = p >= threshold
    tp, fp, fn, tn = ((known & m).sum(0) for m in (guess & y, guess & ~y, ~guess & y, ~guess & ~y))
    counted = int(np.isfinite(ap).sum())
    precision, sensitivity = ratio(tp, tp + fp), ratio(tp, tp + fn)
    if as_published:
        ap = np.where(tp + fn == 0, 0.0, np.where(fp + tn == 0, 1.0, ap))
        precision, sensitivity = np.nan_to_num(precision), np.nan_to_num(sensitivity)
    columns = {
        "n": tp + fn,
        "annotated": known.sum(0),
        "ap": ap,
        "auroc": auroc,
        "sensitivity": sensitivity,
        "precision": precision,
        "f1": np.where(tp + fn > 0, ratio(2 * tp, 2 * tp + fp + fn), np.nan),
        "ece": np.array([_calibration_error(p[known[:, c], c], y[known[:, c], c]) for c in range(k)]),
    }
    cp, cr = defined_mean(precision), defined_mean(sensitivity)
    op, recall = (float(ratio(tp.sum(), whole.sum())) for whole in (tp + fp, tp + fn))
    return {
        "n": len(p),
        "mAP": defined_mean(ap),
        "auroc": defined_mean(auroc),
        "CF1": _harmonic(cp, cr),
        "CP": cp,
        "CR": cr,
        "OF1": _harmonic(op, recall),
        "OP": op,
        "OR": recall,
        "ece": defined_mean(columns["ece"]),
        "classes_counted": counted,
        "per_class": {name: {key: v[i].item() for key, v in columns.items()} for i, name in enumerate(classes)},
        "absent": [name for name, n in zip(classes, tp + fn, strict=True) if n == 0],
    }


class Ranking:
    """Every class's images from the highest probability down, sorted once for any weights of the images.

    Agrees with scikit-learn's scores with sample weights; thousands of bootstrap draws need no sorting this way.

    Args:
        probabilities: ``[N, K]``.
        labels: ``[N, K]`` bool.
        annotated: ``[N, K]`` bool, which classes were looked for; all if None.

    >>> ranking = Ranking(np.array([[0.9], [0.8], [0.1]]), np.array([[True], [False], [True]]))
    >>> ranking.average_precision().round(3), ranking.auroc()
    (array([0.833]), array([0.5]))
    """

    def __init__(
        self,
        probabilities: NDArray[np.floating],
        labels: NDArray[np.bool_],
        annotated: NDArray[np.bool_] | None = None,
    ) -> None:
        n, k = probabilities.shape
        self._order = np.argsort(-probabilities, axis=0, kind="stable")
        found = np.take_along_axis(labels, self._order, 0)
        known = np.ones_like(found) if annotated is None else np.take_along_axis(annotated, self._order, 0)
        self._positive, self._negative = (found & known).astype(float), (~found & known).astype(float)
        ordered = np.take_along_axis(probabilities, self._order, 0)
        edge = np.ones((n + 1, k), bool)  # between different probabilities; equal ones share a rank
        edge[1:-1] = ordered[1:] != ordered[:-1]
        rows = np.arange(n)[:, None]
        first = np.maximum.accumulate(np.where(edge[:-1], rows, 0), axis=0)
        last = np.minimum.accumulate(np.where(edge[1:], rows, n)[::-1], axis=0)[::-1]
        self._at = np.nonzero(self._positive)  # both scores are sums over the positives
        self._first, self._last = (first[self._at], self._at[1]), (last[self._at], self._at[1])

    def average_precision(self, weights: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
        """Non-interpolated average precision ``[K]``, NaN for a class without positives or negatives.

        Args:
            weights: ``[N]`` of the images, such as how often a bootstrap draw holds each; 1 by default.
        """
        tp, fp = self._weighted(weights)
        hits, alarms = tp.cumsum(0), fp.cumsum(0)
        precision = ratio(hits[self._last], hits[self._last] + alarms[self._last])
        return np.where(alarms[-1] > 0, ratio(self._summed(tp, np.nan_to_num(precision)), hits[-1]), np.nan)

    def auroc(self, weights: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
        """Area under the ROC curve ``[K]``, NaN for a class without positives or negatives; see `average_precision`."""
        tp, fp = self._weighted(weights)
        alarms = fp.cumsum(0)
        above = (alarms[self._first] - fp[self._first] + alarms[self._last]) / 2  # equal ones count half
        return 1 - ratio(self._summed(tp, above), tp.sum(0) * alarms[-1])

    def _summed(self, tp: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Class by class the sum of `values`, one a positive, by the positives' weights."""
        sums = np.bincount(self._at[1], tp[self._at] * values, minlength=tp.shape[1])
        return sums.astype(np.float64)

    def _weighted(self, weights: NDArray[np.floating] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if weights is None:
            return self._positive, self._negative
        ordered = np.asarray(weights, float)[self._order]
        return self._positive * ordered, self._negative * ordered


def named(probabilities: ArrayLike, classes: Sequence[str]) -> str:
    """The classes of one image whose probability ``[K]`` reaches the threshold, joined by ``;``.

    >>> named([0.9, 0.1, 0.5], ("ulcer", "polyp", "tumor"))
    'ulcer;tumor'
    """
    return SEPARATOR.join(name for name, p in zip(classes, np.asarray(probabilities), strict=True) if p >= THRESHOLD)


def _calibration_error(probability: NDArray[np.float64], label: NDArray[np.bool_]) -> float:
    if not len(label):
        return float("nan")
    p, y = torch.from_numpy(probability), torch.from_numpy(label.astype(np.int64))
    return float(binary_calibration_error(p, y, n_bins=BINS))


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0
