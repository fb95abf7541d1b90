"""How good a backbone's features are without training it: a linear probe, and nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vesalius.data.datasets import ImageDataset
from vesalius.data.progress import track
from vesalius.nn.encoder import Encoder

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the probe's L2 penalty that are tried on the validation images."""


@torch.inference_mode()
def features(encoder: Encoder, images: ImageDataset, *, batch_size: int = 16) -> Features:
    """The encoder's `pooled` output of every image, ``[N, width]``; pixels as the dataset's contract says."""
    device = next(encoder.parameters()).device
    contract = images.contract
    rows: list[NDArray[np.float32]] = []
    starts = range(0, len(images), batch_size)
    encoder.eval()
    for start in track(starts, len(starts), "computing features"):
        batch = [images[index]["image"] for index in range(start, min(start + batch_size, len(images)))]
        pixels = torch.stack([contract.normalise(contract.resize(image)) for image in batch]).to(device)
        rows.append(encoder(pixels).pooled.float().cpu().numpy())
    return np.concatenate(rows)


def linear_probe(
    train: Features,
    labels: Labels,
    test: Features,
    *,
    classes: int,
    val: tuple[Features, Labels] | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Class probabilities ``[N, classes]`` of a logistic regression on standardised features.

    Args:
        train, test: ``[N, width]``.
        labels: ``[N]`` class indices; a class that has no example gets probability 0.
        classes: how many there are.
        val: features and labels on which the penalty is chosen by balanced accuracy; without them it is 1.
        seed: of the solver.
    """
    best, best_score = None, -np.inf
    for penalty in PENALTIES if val is not None else (1.0,):
        regression = LogisticRegression(C=penalty, max_iter=2000, class_weight="balanced", random_state=seed)
        model = make_pipeline(StandardScaler(), regression).fit(train, labels)
        score = 0.0
        if val is not None:  # balanced accuracy over the classes that occur
            present = np.unique(val[1])
            score = recall_score(val[1], model.predict(val[0]), labels=present, average="macro", zero_division=0)
        if score > best_score:
            best, best_score = model, score
    assert best is not None
    probabilities = np.zeros((len(test), classes))
    probabilities[:, best.classes_] = best.predict_proba(test)
    return probabilities


def knn(
    train: Features, labels: Labels, test: Features, *, classes: int, k: int = 20, temperature: float = 0.07
) -> NDArray[np.float64]:
    """Class probabilities ``[N, classes]`` by a vote of the k nearest training images.

    Neighbours by cosine similarity s, each voting with weight exp(s / temperature) (Wu 2018; Caron 2021).

    >>> train = np.eye(2, dtype=np.float32)
    >>> knn(train, np.array([0, 1]), train, classes=2, k=1).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (test, train))
    similarity = a @ b.T
    k = min(k, len(train))
    nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    rows = np.arange(len(test))[:, None]
    weights = np.exp((similarity[rows, nearest] - similarity.max(1, keepdims=True)) / temperature)
    votes = np.zeros((len(test), classes))
    np.add.at(votes, (rows, labels[nearest]), weights)
    return votes / votes.sum(1, keepdims=True)


def each_class(
    protocol: Callable[..., NDArray[np.float64]],
    train: Features,
    labels: NDArray[np.bool_],
    annotated: NDArray[np.bool_],
    test: Features,
    *,
    val: tuple[Features, NDArray[np.bool_], NDArray[np.bool_]] | None = None,
) -> NDArray[np.float64]:
    """Probabilities ``[N, K]`` of any number of labels an image: a protocol of two classes for every label by itself.

    Args:
        protocol: `linear_probe` or `knn`, with its other arguments bound.
        train, test: features ``[N, width]``.
        labels, annotated: ``[N, K]``; a label is learned from the images in which it was looked for, and one that none
            of them has (or that all have) gets probability 0 (or 1).
        val: features, labels and annotated, where the protocol takes validation images.

    >>> train, labels = np.eye(2, dtype=np.float32), np.array([[True, False], [False, False]])
    >>> each_class(lambda *a, **k: knn(*a, **k, k=1), train, labels, np.ones((2, 2), bool), train).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    columns = []
    for c in range(labels.shape[1]):
        rows = annotated[:, c]
        found = labels[rows, c].astype(np.int64)
        if len(np.unique(found)) < 2:
            columns.append(np.full(len(test), float(found.any())))
            continue
        options = {}
        if val is not None and val[2][:, c].any():
            options["val"] = val[0][val[2][:, c]], val[1][val[2][:, c], c].astype(np.int64)
        columns.append(protocol(train[rows], found, test, classes=2, **options)[:, 1])
    return np.stack(columns, axis=1)
