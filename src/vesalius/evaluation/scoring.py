"""Predictions of a table's images by an adapted network, their scores, and the scores' intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vesalius.data.datasets import ImageDataset
from vesalius.data.progress import track
from vesalius.evaluation.metrics import bootstrap, defined_mean, enhancement
from vesalius.tasks.multilabel import SEPARATOR, Ranking, named

Score = Callable[[NDArray[np.int64]], float]


@torch.inference_mode()
def score_task(task: Any, images: ImageDataset, *, batch_size: int = 16) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores at the images' own sizes.

    Args:
        task: in evaluation mode.
        images: labelled, with the network's contract, and multi-label if the task is.
        batch_size: images at a time.

    Returns:
        The task's metrics, and one column a score with one value an image.
    """
    device = next(task.parameters()).device
    contract = images.contract
    outputs: list[Any] = []
    truths: list[Any] = []
    annotated: list[Any] = []
    inputs: list[NDArray[np.float32]] = []
    starts = range(0, len(images), batch_size)
    for start in track(starts, len(starts), "predicting"):
        samples = [images[index] for index in range(start, min(start + batch_size, len(images)))]
        pixels = torch.stack([contract.normalise(contract.resize(sample["image"])) for sample in samples])
        predicted = task.predict(pixels.to(device)).cpu()
        for output, sample in zip(predicted, samples, strict=True):
            size = list(sample["image"].shape[-2:])
            if task.TASK == "classification":
                outputs.append(output.numpy())
                truths.append(sample["label"].numpy())
                annotated.append(sample.get("annotated"))
            elif task.TASK == "segmentation":
                outputs.append(task.labels(output, tuple(size)))
                truths.append(sample["mask"].numpy())
            else:
                restored = F.resize(output, size, InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
                outputs.append(restored.numpy())
                truths.append(sample["target"].numpy())
                inputs.append(sample["image"].numpy())
    if task.TASK == "classification":
        if task.multilabel:
            return score_labels(task.metrics, np.stack(outputs), np.stack(truths), np.stack(annotated), images.classes)
        return score_classes(task.metrics, np.stack(outputs), np.array(truths), images.classes)
    if task.TASK == "segmentation":
        spacings = [None if row is None else tuple(row) for row in images.table["spacing"].to_list()]
        metrics = task.metrics(outputs, truths, spacings=spacings)
        rows = metrics.pop("per_image")
        cases = {f"{key} {name}": [row[key] for row in rows[name]] for name in rows for key in ("dice", "iou", "hd95")}
        return metrics, cases
    metrics = task.metrics(outputs, truths)
    rows = metrics.pop("per_image")
    before = enhancement(inputs, truths)  # what doing nothing scores
    metrics |= {"psnr_of_input": before["psnr"], "ssim_of_input": before["ssim"]}
    return metrics, {key: [row[key] for row in rows] for key in ("psnr", "ssim")}


def score_classes(
    metrics: Callable[..., dict[str, Any]],
    probabilities: NDArray[np.floating],
    labels: NDArray[np.int64],
    classes: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A classifier's metrics, and its columns of labels, predictions and probabilities."""
    cases: dict[str, Any] = {
        "label": [classes[label] for label in labels],
        "predicted": [classes[guess] for guess in probabilities.argmax(1)],
    }
    cases |= {f"p_{name}": probabilities[:, column].tolist() for column, name in enumerate(classes)}
    return metrics(probabilities, labels), cases


def score_labels(
    metrics: Callable[..., dict[str, Any]],
    probabilities: NDArray[np.floating],
    labels: NDArray[Any],
    annotated: NDArray[np.bool_],
    classes: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`score_classes` for any number of labels an image, whose names are joined by ``;``.

    Args:
        metrics: from probabilities, labels and annotated.
        probabilities, labels, annotated: ``[N, K]``.
        classes: K names.
    """
    cases: dict[str, Any] = {
        "label": [named(row, classes) for row in labels],
        "annotated": [named(row, classes) for row in annotated],
        "predicted": [named(row, classes) for row in probabilities],
    }
    cases |= {f"p_{name}": probabilities[:, column].tolist() for column, name in enumerate(classes)}
    return metrics(probabilities, labels, annotated), cases


def intervals(
    task: str, cases: dict[str, Any], classes: Sequence[str], *, groups: Sequence[str], draws: int, seed: int
) -> dict[str, dict[str, float]]:
    """95 % bootstrap intervals over patients of a task's main scores.

    Args:
        task: classification, segmentation or enhancement.
        cases: columns as `score_task` returns them.
        classes: names.
        groups: a patient an image.
        draws, seed: of the bootstrap.
    """
    scores: dict[str, Score] = {}
    if task == "classification" and "annotated" in cases:
        scores = _rank_scores(cases, classes)
    elif task == "classification":
        right = np.array(cases["label"]) == np.array(cases["predicted"])
        truth = np.array(cases["label"])
        members = [truth == name for name in classes if (truth == name).any()]

        def balanced(rows: NDArray[np.int64]) -> float:
            found = [right[rows][member[rows]] for member in members]
            return float(np.mean([values.mean() for values in found if len(values)]))

        scores = {"accuracy": lambda rows: float(right[rows].mean()), "balanced_accuracy": balanced}
    else:
        keys = ("dice", "iou", "hd95") if task == "segmentation" else ("psnr", "ssim")
        for key in keys:
            names = [f"{key} {name}" for name in classes] if task == "segmentation" else [key]
            values = np.array([cases[name] for name in names], np.float64)
            scores[key] = _mean_of(np.where(np.isfinite(values), values, np.nan))
    n = len(next(iter(cases.values())))
    return {name: bootstrap(score, n, groups=groups, draws=draws, seed=seed) for name, score in scores.items()}


def _rank_scores(cases: dict[str, Any], classes: Sequence[str]) -> dict[str, Score]:
    """Mean average precision and AUROC over the classes that have both labels in the rows drawn."""
    n = len(cases["label"])
    labels, annotated = (
        np.array([[name in row.split(SEPARATOR) for name in classes] for row in cases[column]])
        for column in ("label", "annotated")
    )
    ranking = Ranking(np.array([cases[f"p_{name}"] for name in classes]).T, labels, annotated)

    def weights(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.bincount(rows, minlength=n).astype(float)

    return {
        "mAP": lambda rows: defined_mean(ranking.average_precision(weights(rows))),
        "auroc": lambda rows: defined_mean(ranking.auroc(weights(rows))),
    }


def _mean_of(values: NDArray[np.float64]) -> Score:
    """Rows -> the mean over classes of the mean over images of ``values [classes, N]``, leaving out what is NaN."""

    def score(rows: NDArray[np.int64]) -> float:
        chosen = values[:, rows]
        defined = np.isfinite(chosen)
        some = defined.any(1)
        if not some.any():
            return float("nan")
        sums = np.where(defined, chosen, 0).sum(1)[some]
        return float((sums / defined.sum(1)[some]).mean())

    return score
