"""Probes of frozen features on features whose answer is known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from vesalius.evaluation.protocols import each_class, knn, linear_probe


@pytest.fixture
def clouds() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 2], 30)  # class 1 has no example
    features = generator.normal(size=(60, 8)).astype(np.float32)
    features[:, 0] += 6 * (labels == 2)
    features[:, 1] += 6 * (labels == 0)
    return features, labels


@pytest.mark.parametrize("probe", [linear_probe, knn])
def test_separable_classes_are_separated_and_absent_ones_get_nothing(probe, clouds):
    features, labels = clouds
    probabilities = probe(features[::2], labels[::2], features[1::2], classes=3)
    assert (probabilities.argmax(1) == labels[1::2]).mean() > 0.95
    assert not probabilities[:, 1].any()
    np.testing.assert_allclose(probabilities.sum(1), 1)


def test_the_penalty_is_chosen_on_validation_images(clouds):
    features, labels = clouds
    noisy = np.concatenate([features, np.random.default_rng(1).normal(size=(60, 200)).astype(np.float32)], 1)
    parts = [slice(start, None, 3) for start in range(3)]
    train, val, test = ((noisy[part], labels[part]) for part in parts)
    chosen = linear_probe(*train, test[0], classes=3, val=val)
    assert not np.allclose(chosen, linear_probe(*train, test[0], classes=3))


def test_neighbours_vote_by_angle_and_not_by_length():
    train = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    probabilities = knn(train, np.array([0, 1, 1]), np.array([[100, 1]], np.float32), classes=2, k=3)
    assert probabilities[0, 0] > 0.99


@pytest.mark.parametrize("probe", [linear_probe, partial(knn, k=3)])
def test_every_label_is_learned_by_itself_where_it_was_looked_for(probe):
    generator = np.random.default_rng(0)
    labels = generator.random((80, 3)) < 0.5
    labels[:, 2] = False
    features = (4 * (2.0 * labels - 1) + generator.normal(size=(80, 3))).astype(np.float32)
    annotated = np.ones((40, 3), bool)
    wrong = labels[:40].copy()
    annotated[:20, 1], wrong[:20, 1] = False, ~labels[:20, 1]  # what was not looked for may say anything
    probabilities = each_class(probe, features[:40], wrong, annotated, features[40:])
    np.testing.assert_array_equal(probabilities[:, :2] > 0.5, labels[40:, :2])
    assert not probabilities[:, 2].any()
