"""The regions of BraTS, which overlap: what networks predict and challenges score, from the labels in files."""

from __future__ import annotations

import numpy as np

REGIONS = ("TC", "WT", "ET")
"""Tumour core, whole tumour, enhancing tumour, in the order of the published networks' channels."""
NECROSIS, OEDEMA, ENHANCING = 1, 2, 4  # until 2021; from 2023 on the enhancing part is 3


def regions(label: np.ndarray, *, enhancing: int = ENHANCING) -> np.ndarray:
    """Labels ``[D, H, W]`` -> ``[3, D, H, W]`` bool: TC = 1 or 4, WT = 1, 2 or 4, ET = 4.

    Args:
        label: values 0, 1, 2 and `enhancing`.
        enhancing: what the file has for the enhancing part: 4, or 3 in the sets from 2023 on.

    >>> regions(np.array([0, 1, 2, 4]))[:, :].astype(int).tolist()
    [[0, 1, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1]]
    """
    core = np.isin(label, (NECROSIS, enhancing))
    return np.stack([core, core | (label == OEDEMA), label == enhancing])


def labels(probability: np.ndarray, *, threshold: float = 0.5, enhancing: int = ENHANCING) -> np.ndarray:
    """Probabilities of the regions ``[3, D, H, W]`` -> labels ``[D, H, W]`` uint8: WT painted first, then TC, then ET.

    >>> labels(np.array([[0.0, 0.9, 0.5], [0.9, 0.9, 0.9], [0.0, 0.0, 0.6]])).tolist()
    [2, 1, 4]
    """
    core, whole, active = (np.asarray(channel) > threshold for channel in probability)
    label = np.zeros(whole.shape, dtype=np.uint8)
    for region, value in ((whole, OEDEMA), (core, NECROSIS), (active, enhancing)):
        label[region] = value
    return label
