"""The regions of BraTS, which overlap: what networks predict and challenges score, from the labels in files."""

from __future__ import annotations

import numpy as np

REGIONS = ("TC", "WT", "ET")
"""Tumour core, whole tumour, enhancing tumour, in the order of the published networks' channels."""
NECROSIS, OEDEMA, ENHANCING = 1, 2, 4


def regions(label: np.ndarray) -> np.ndarray:
    """Labels {0, 1, 2, 4} ``[D, H, W]`` -> ``[3, D, H, W]`` bool: TC = 1 or 4, WT = 1, 2 or 4, ET = 4.

    >>> regions(np.array([0, 1, 2, 4]))[:, :].astype(int).tolist()
    [[0, 1, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1]]
    """
    core = np.isin(label, (NECROSIS, ENHANCING))
    return np.stack([core, core | (label == OEDEMA), label == ENHANCING])


def labels(probability: np.ndarray, *, threshold: float = 0.5) -> np.ndarray:
    """Probabilities of the regions ``[3, D, H, W]`` -> labels ``[D, H, W]`` uint8: WT painted first, then TC, then ET.

    >>> labels(np.array([[0.0, 0.9, 0.5], [0.9, 0.9, 0.9], [0.0, 0.0, 0.6]])).tolist()
    [2, 1, 4]
    """
    core, whole, enhancing = (np.asarray(channel) > threshold for channel in probability)
    label = np.zeros(whole.shape, dtype=np.uint8)
    for region, value in ((whole, OEDEMA), (core, NECROSIS), (enhancing, ENHANCING)):
        label[region] = value
    return label
