"""Scores as pure functions: arrays in, plain dict out.

One rule for what is undefined: it is NaN, it is counted, and means leave it out. A class that no image holds has no
Dice, a class without examples has no sensitivity; neither is 0 or 1. Scores ``as published`` follow the authors' code
where that differs, and say so.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from scipy.special import softmax
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from vesalius.data.masks import IGNORE
from vesalius.errors import VesaliusError

BINS = 15
"""Of equal width, for the expected calibration error."""
SSIM_REACH = 5
"""Pixels from the centre to the edge of SSIM's window."""

# --- classification


def classification(
    probabilities: ArrayLike, labels: ArrayLike, *, classes: Sequence[str], as_published: bool = False
) -> dict[str, Any]:
    """Scores of a single-label classifier.

    Args:
        probabilities: ``[N, K]``, rows summing to 1 (a softmax).
        labels: ``[N]`` class indices.
        classes: K names.
        as_published: the AUC as EPT's code has it, of a softmax of the probabilities, which for more than two classes
            is another ranking.

    Returns:
        n; accuracy; balanced_accuracy (mean sensitivity), f1, auroc (one against the rest): means over the classes that
        have the score; ece: expected calibration error, the gap between the highest probability and how often it is
        right, in 15 bins of equal width, each weighing as many images as it has; confusion ``[K][K]``, rows the truth;
        per_class: name -> n, sensitivity, specificity, precision, f1, auroc; absent: names of the classes without an
        example.

    >>> scores = classification([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], [0, 1], classes=("a", "b", "c"))
    >>> scores["accuracy"], scores["absent"], scores["per_class"]["c"]["sensitivity"]
    (1.0, ['c'], nan)
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    k = len(classes)
    if p.ndim != 2 or p.shape != (len(y), k) or len(y) == 0:
        raise VesaliusError(f"probabilities {list(p.shape)} for {len(y)} labels and {k} classes")
    if y.min() < 0 or y.max() >= k:
        raise VesaliusError(f"a label is outside 0 ... {k - 1}", remedy="index with the classes of the training set")
    confusion = np.zeros((k, k), np.int64)
    np.add.at(confusion, (y, p.argmax(1)), 1)
    tp, truth, guess = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    sensitivity = ratio(tp, truth)
    specificity = ratio(len(y) - truth - guess + tp, len(y) - truth)
    precision = ratio(tp, guess)
    f1 = np.where(truth > 0, ratio(2 * tp, truth + guess), np.nan)
    auroc = np.full(k, np.nan)
    ranked = softmax(p, axis=1) if as_published else p
    for c in np.flatnonzero((truth > 0) & (truth < len(y))):
        auroc[c] = float(binary_auroc(torch.from_numpy(ranked[:, c]), torch.from_numpy((y == c).astype(np.int64))))
    ece = multiclass_calibration_error(torch.from_numpy(p), torch.from_numpy(y), num_classes=k, n_bins=BINS)
    columns = {
        "n": truth,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": precision,
        "f1": f1,
        "auroc": auroc,
    }
    return {
        "n": len(y),
        "accuracy": float(tp.sum() / len(y)),
        "balanced_accuracy": defined_mean(sensitivity),
        "f1": defined_mean(f1),
        "auroc": defined_mean(auroc),
        "ece": float(ece),
        "confusion": confusion.tolist(),
        "per_class": {name: {key: v[i].item() for key, v in columns.items()} for i, name in enumerate(classes)},
        "absent": [name for name, n in zip(classes, truth, strict=True) if n == 0],
    }


def within_class_scatter(features: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """How compact the classes are in feature space: the within-class scatter Sigma_W of EPT's section on calibration.

    ``Sigma_W = 1/N sum_i (x_i - m_i)(x_i - m_i)^T`` with m_i the mean of the features of image i's class; its trace is
    given, the mean squared distance of an image to its class's mean. That depends on the scale of the features; the
    ratio to the total scatter (the same about the mean of all) does not, and compares networks: 0 where every class is
    one point, 1 where the classes have one mean. A class of few images looks more compact than it is.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``, one class an image.

    Returns:
        within, total: the traces; ratio: within / total, NaN where all features are equal; per_class: label -> the
        class's own mean squared distance.

    Raises:
        VesaliusError: other shapes.

    >>> scatter = within_class_scatter([[0.0], [2.0], [10.0], [12.0]], ["a", "a", "b", "b"])
    >>> scatter["within"], scatter["total"]
    (1.0, 26.0)
    """
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    if x.ndim != 2 or y.shape != x.shape[:1] or len(x) == 0:
        raise VesaliusError(f"features {list(x.shape)} for labels {list(y.shape)}")
    names, classes, counts = np.unique(y, return_inverse=True, return_counts=True)
    means = np.stack([x[classes == c].mean(0) for c in range(len(names))])
    per_class = np.bincount(classes, ((x - means[classes]) ** 2).sum(1)) / counts
    within, total = float(per_class @ counts / len(x)), float(((x - x.mean(0)) ** 2).sum(1).mean())
    return {
        "within": within,
        "total": total,
        "ratio": float(ratio(within, total)),
        "per_class": dict(zip(names.tolist(), per_class.tolist(), strict=True)),
    }


# --- segmentation


def segmentation(
    predictions: Sequence[ArrayLike],
    truths: Sequence[ArrayLike],
    *,
    classes: Sequence[str],
    spacings: Sequence[tuple[float, ...] | None] | None = None,
) -> dict[str, Any]:
    """Dice, IoU and surface HD95 of every class, a mean over images.

    Per image and class: absent from prediction and truth -> all NaN (counted as ``empty``); absent from one of them ->
    Dice and IoU 0, HD95 NaN (counted as ``missed`` or ``invented``). Pixels of 255 in the truth count for nothing.

    Args:
        predictions, truths: ``[H, W]`` or ``[D, H, W]`` integers, value i + 1 = ``classes[i]``, one pair an image;
            sizes may differ between images.
        classes: foreground names.
        spacings: mm per step along the axes, or None, one an image. HD95 is in mm when every image has one, else in
            pixels.

    Returns:
        n; dice, iou, hd95: means over classes of the per-class means; hd95_unit; per_class: name -> dice, iou, hd95,
        n (images whose truth holds it), empty, missed, invented; per_image: name -> list of dict(dice, iou, hd95).

    >>> scores = segmentation([[[0, 1]], [[0, 0]]], [[[0, 1]], [[0, 0]]], classes=("nodule",))
    >>> scores["dice"], scores["per_class"]["nodule"]["empty"]
    (1.0, 1)
    """
    if len(predictions) != len(truths) or not truths:
        raise VesaliusError(f"{len(predictions)} predictions for {len(truths)} masks")
    spacings = [None] * len(truths) if spacings is None else list(spacings)
    in_mm = all(spacing is not None for spacing in spacings)
    values = np.full((len(truths), len(classes), 3), np.nan)
    kinds = np.zeros((len(truths), len(classes), 4), bool)  # truth holds it, empty, missed, invented
    for i, (prediction, truth, spacing) in enumerate(zip(predictions, truths, spacings, strict=True)):
        p, t = _same_shape(prediction, truth)
        valid = t != IGNORE
        for c in range(len(classes)):
            a, b = (p == c + 1) & valid, (t == c + 1) & valid
            some_a, some_b = bool(a.any()), bool(b.any())
            kinds[i, c] = some_b, not (some_a or some_b), some_b and not some_a, some_a and not some_b
            if some_a or some_b:
                both, either = np.count_nonzero(a & b), np.count_nonzero(a | b)
                values[i, c, :2] = 2 * both / (both + either), both / either
            if some_a and some_b:
                values[i, c, 2] = surface_hd95(a, b, spacing=spacing if in_mm else None)
    per_class = {}
    for c, name in enumerate(classes):
        dice, iou, hd95 = (defined_mean(values[:, c, m]) for m in range(3))
        n, empty, missed, invented = (int(count) for count in kinds[:, c].sum(0))
        per_class[name] = {
            "dice": dice,
            "iou": iou,
            "hd95": hd95,
            "n": n,
            "empty": empty,
            "missed": missed,
            "invented": invented,
        }
    keys = ("dice", "iou", "hd95")
    return {
        "n": len(truths),
        **{key: defined_mean(np.array([row[key] for row in per_class.values()])) for key in keys},
        "hd95_unit": "mm" if in_mm else "px",
        "per_class": per_class,
        "per_image": {
            name: [dict(zip(keys, map(float, row), strict=True)) for row in values[:, c]]
            for c, name in enumerate(classes)
        },
    }


def surface_hd95(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], *, spacing: tuple[float, ...] | None = None
) -> float:
    """The larger of both directions' 95th percentiles of distances between the surfaces; NaN if a mask is empty.

    Args:
        prediction, truth: ``[H, W]`` or ``[D, H, W]``.
        spacing: mm per step along the axes; without it the distance is in pixels.
    """
    if not (prediction.any() and truth.any()):
        return float("nan")
    p, t = (torch.from_numpy(np.ascontiguousarray(m))[None, None].float() for m in (prediction, truth))
    steps = None if spacing is None else tuple(float(step) for step in spacing)  # MONAI refuses mixed types
    with warnings.catch_warnings():  # MONAI calls its own deprecated argument
        warnings.simplefilter("ignore", FutureWarning)
        return float(compute_hausdorff_distance(p, t, include_background=True, percentile=95, spacing=steps))


def foreground_scores(prediction: ArrayLike, truth: ArrayLike, *, smooth: float = 1e-5) -> dict[str, float]:
    """USFM's scores of one image, as published: every label >= 1 is foreground, so confused classes go unnoticed.

    Returns:
        dice, iou, accuracy, sensitivity, specificity; 1 where both masks are empty.
    """
    p, t = _same_shape(prediction, truth)
    p, t = p >= 1, t >= 1
    tp, fp, fn, tn = (int(np.count_nonzero(m)) for m in (p & t, p & ~t, ~p & t, ~p & ~t))

    def smoothed(part: int, whole: int) -> float:
        return (part + smooth) / (whole + smooth)

    return {
        "dice": smoothed(2 * tp, 2 * tp + fp + fn),
        "iou": smoothed(tp, tp + fp + fn),
        "accuracy": smoothed(tp + tn, p.size),
        "sensitivity": smoothed(tp, tp + fn),
        "specificity": smoothed(tn, tn + fp),
    }


def deblurring_scores(probability: ArrayLike, truth: ArrayLike, *, threshold: float = 0.5) -> dict[str, float]:
    """Deblurring MIM's scores of one image, as published.

    HD95 measures from ALL foreground pixels of one mask to the nearest one of the other, not between surfaces. Without
    overlap one true positive is made up, and an empty mask gets one pixel in the corner (0, 0).

    Args:
        probability, truth: ``[H, W]`` in [0, 1].
        threshold: foreground is at least this.

    Returns:
        iou, dice, hd95 (pixels).
    """
    p, t = _same_shape(probability, truth)
    p, t = p >= threshold, t >= threshold
    tp, fp, fn = (int(np.count_nonzero(m)) for m in (p & t, p & ~t, ~p & t))
    tp = max(tp, 1)
    points = []
    for mask in (p, t):
        where = np.argwhere(mask)
        points.append(where if len(where) else np.zeros((1, 2), int))
    distances = (cKDTree(points[1]).query(points[0])[0], cKDTree(points[0]).query(points[1])[0])
    return {
        "iou": tp / (tp + fp + fn),
        "dice": 2 * tp / (2 * tp + fp + fn),
        "hd95": float(max(np.percentile(d, 95) for d in distances)),
    }


def batch_overlap(probability: ArrayLike, truth: ArrayLike, *, threshold: float = 0.5) -> dict[str, float]:
    """Dice (``fscore``) and IoU over all pixels of a batch at once, as Deblurring MIM watches while training."""
    p, t = _same_shape(probability, truth)
    p, t, eps = p > threshold, t > threshold, 1e-7
    both, p_sum, t_sum = (int(np.count_nonzero(m)) for m in (p & t, p, t))
    return {
        "fscore": (2 * both + eps) / (p_sum + t_sum + eps),
        "iou": (both + eps) / (p_sum + t_sum - both + eps),
    }


# --- enhancement


def enhancement(restored: Sequence[ArrayLike], targets: Sequence[ArrayLike]) -> dict[str, Any]:
    """PSNR (dB) and SSIM (NaN for images of 5 pixels or less) of images in [0, 1], a mean over images.

    Args:
        restored, targets: ``[C, H, W]``, one pair an image; sizes may differ between images.

    Returns:
        n, psnr, ssim, exact (images restored without any error, whose PSNR is infinite and left out of the mean), and
        per_image: list of dict(psnr, ssim).
    """
    if len(restored) != len(targets) or not targets:
        raise VesaliusError(f"{len(restored)} restored images for {len(targets)} targets")
    rows = []
    for image, target in zip(restored, targets, strict=True):
        x, y = (torch.from_numpy(a.astype(np.float32)).unsqueeze(0) for a in _same_shape(image, target))
        psnr = peak_signal_noise_ratio(x, y, data_range=1.0)
        row = {"psnr": float(psnr), "ssim": float("nan")}
        if min(x.shape[-2:]) > SSIM_REACH:
            row["ssim"] = float(torch.as_tensor(structural_similarity_index_measure(x, y, data_range=1.0)))
        rows.append(row)
    decibels = np.array([row["psnr"] for row in rows])
    exact = np.isinf(decibels)
    return {
        "n": len(rows),
        "psnr": defined_mean(np.where(exact, np.nan, decibels)),
        "ssim": defined_mean(np.array([row["ssim"] for row in rows])),
        "exact": int(exact.sum()),
        "per_image": rows,
    }


def _same_shape(prediction: ArrayLike, truth: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    p, t = np.asarray(prediction), np.asarray(truth)
    if p.shape != t.shape:
        raise VesaliusError(
            f"a prediction of shape {list(p.shape)} against a truth of {list(t.shape)}",
            remedy="compare at the image's own size",
        )
    return p, t


def ratio(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    """``part / whole`` of counts, NaN where the whole is 0."""
    a, b = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)


def defined_mean(values: NDArray[Any]) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")
