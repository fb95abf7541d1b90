"""Which image is drawn when: organ-balanced weights, and batches that do not depend on how the work is divided.

Every draw has a global number; what it is depends on (seed, number) alone. A run that is continued at draw k, or spread
over several processes, therefore sees the images of an unbroken run on one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from vesalius.errors import ConfigError


def organ_weights(organs: Sequence[str | None], alpha: float = 0.0) -> np.ndarray:
    """Probability of each image under organ-balanced sampling (USFM, section 2.5; the exponent is ours).

    An organ is drawn with p(organ) ~ n_organ^alpha, then an image uniformly within it.

    Args:
        organs: each image's organ; images without one (None) count as one organ more.
        alpha: 0 draws organs equally often, 1 images as they occur.

    Returns:
        ``[N]`` float64, adding up to 1.

    >>> organ_weights(["liver", "liver", "liver", "thyroid"]).round(3).tolist()
    [0.167, 0.167, 0.167, 0.5]
    """
    if not len(organs):
        raise ConfigError("no images to draw from", remedy="give a table with rows in the training split")
    _, kind, counts = np.unique([organ or "" for organ in organs], return_inverse=True, return_counts=True)
    organ = counts.astype(np.float64) ** alpha
    return (organ / organ.sum() / counts)[kind]


class DrawSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (draw, index), endless or for `total` draws; for a DataLoader's ``batch_sampler``.

    Draws are numbered over the whole run; an epoch is `n` of them. Without weights an epoch is a permutation of the
    images, with weights it is drawn with replacement; both from (seed, epoch). A global batch is
    ``batch_size * world`` consecutive draws, of which rank r takes the r-th contiguous part: two processes with batches
    of B see what one process with batches of 2B sees. There is no ``__len__``, because the run has no last epoch.

    Args:
        n: number of images.
        seed: of the order.
        batch_size: images per process and step.
        weights: ``[n]`` probabilities (any scale), or None to see every image once an epoch.
        start: number of the first draw, for continuing a run.
        rank, world: this process, of how many.
        total: draws in the run, from draw 0; the whole global batches within it are given. None for no end.

    >>> batches = list(DrawSampler(4, seed=0, batch_size=2, total=4))
    >>> [draw for batch in batches for draw, _ in batch], sorted(index for batch in batches for _, index in batch)
    ([0, 1, 2, 3], [0, 1, 2, 3])
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int,
        batch_size: int,
        weights: np.ndarray | None = None,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        total: int | None = None,
    ) -> None:
        if n < 1 or batch_size < 1:
            raise ConfigError(f"{n} images in batches of {batch_size}", remedy="both must be at least 1")
        if weights is not None:
            weights = np.asarray(weights, np.float64)
            if weights.shape != (n,) or not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
                raise ConfigError(f"sampling weights of shape {weights.shape} for {n} images", remedy="one >= 0 each")
            weights = weights / weights.sum()
        self.n, self.seed, self.batch_size, self.weights = n, seed, batch_size, weights
        self.start, self.rank, self.world, self.total = start, rank, world, total

    def epoch(self, number: int) -> np.ndarray:
        """``[n]`` image indices of one epoch."""
        generator = np.random.default_rng([self.seed, number])
        if self.weights is None:
            return generator.permutation(self.n)
        return generator.choice(self.n, self.n, p=self.weights)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        together = self.batch_size * self.world
        number, order = -1, np.empty(0, np.int64)
        first = self.start
        while self.total is None or first + together <= self.total:
            batch = []
            for draw in range(first + self.rank * self.batch_size, first + (self.rank + 1) * self.batch_size):
                if draw // self.n != number:
                    number = draw // self.n
                    order = self.epoch(number)
                batch.append((draw, int(order[draw % self.n])))
            yield batch
            first += together
