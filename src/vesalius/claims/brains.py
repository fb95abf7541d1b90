"""The volumes of BrainSegFounder's claim: many healthy brains, fewer with a glioma, and others to test on.

They are small enough to stay in memory, and are made once a seed: a phantom costs more than the step that learns from
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vesalius.data.phantoms.brain import brain_volume
from vesalius.data.volumes.intensity import Percentiles
from vesalius.files import atomic

CHANNELS = ("t1", "flair")
SIZE = (64, 32, 32)
"""Voxels of 2.75 x 6 x 5 mm: a whole brain in the smallest crop that the network can read."""
SCANNERS = {"healthy": (0.006, 0.12), "ill": (0.015, 0.2)}
"""Noise and field of `brain_volume`: volunteers share one good scanner, patients are scanned where they are."""
UNSEEN = 50
"""Added to a seed: brains of smaller seeds were looked at when the settings were chosen."""
TEST_FROM = 10_000
"""Number of the first patient to test on."""


@dataclass(frozen=True)
class Brains:
    """The volumes of one seed, each channel in [0, 1].

    Args:
        healthy: ``[N, 2, D, H, W]`` for the first stage.
        ill: of patients, for the second stage; those with labels are the first of them.
        test: of other patients.
        ill_mask, test_mask: ``[N, D, H, W]`` bool, the whole tumour.
    """

    healthy: Tensor
    ill: Tensor
    ill_mask: Tensor
    test: Tensor
    test_mask: Tensor


@lru_cache(maxsize=1)
def brains(seed: int, *, healthy: int, ill: int, test: int, folder: Path) -> Brains:
    """The volumes of a seed, from `folder` or made and kept there."""
    path = folder / f"brains_{healthy}_{ill}_{test}.npz"
    if not path.exists():
        well, _ = _volumes(seed, range(1, healthy + 1), "healthy")
        sick, sick_mask = _volumes(seed, range(healthy + 1, healthy + ill + 1), "ill")
        other, other_mask = _volumes(seed, range(TEST_FROM, TEST_FROM + test), "ill")
        with atomic(path) as temporary:
            np.savez_compressed(temporary, healthy=well, ill=sick, ill_mask=sick_mask, test=other, test_mask=other_mask)
    with np.load(path) as stored:
        return Brains(
            *(_tensor(stored[name]) for name in ("healthy", "ill", "ill_mask", "test", "test_mask")),
        )


def person(seed: int, number: int, group: str) -> tuple[np.ndarray, np.ndarray]:
    """One brain: image float16 ``[2, D, H, W]`` in [0, 1], and whole tumour bool ``[D, H, W]``; one glioma if ill."""
    noise, bias = SCANNERS[group]
    lesions = int(group == "ill")
    made = brain_volume(seed + UNSEEN, number, size=SIZE, channels=CHANNELS, lesions=lesions, noise=noise, bias=bias)
    intensity = Percentiles()
    images = torch.from_numpy(made["images"])
    limits = torch.tensor([intensity.fit(channel) for channel in made["images"]])
    return intensity(images, limits).numpy().astype(np.float16), made["labels"] > 0


def _volumes(seed: int, numbers: range, group: str) -> tuple[np.ndarray, np.ndarray]:
    images, masks = zip(*(person(seed, number, group) for number in numbers), strict=True)
    return np.stack(images), np.stack(masks)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.dtype == bool else array.astype(np.float32))
