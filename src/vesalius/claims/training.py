"""The fast path of the claims: images stay in memory and whole batches are corrupted at once.

What is computed is the systems' own: `corrupt`, `loss` and `configure_optimizers` of the pre-training module. Only
the loader and the run folder of `training.fit` are left out, whose overhead per image would exceed the work at 32
pixels. Every step's images and corruption come from a generator seeded by (seed, step): arms of one seed see the same
images in the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import numpy as np
import torch
from torch import Tensor

from vesalius.data.datasets import generator

Tick = Callable[[int], None]
"""Told the number of steps done."""


def pretrain(
    module: L.LightningModule,
    corrupt: Callable[[Tensor, torch.Generator], dict[str, Tensor]],
    *,
    n: int,
    steps: int,
    batch: int,
    seed: int,
    tick: Tick,
    weights: np.ndarray | None = None,
) -> None:
    """Train `module` in place for `steps` steps.

    Args:
        corrupt: (indices ``[batch]``, generator) -> what `module.loss` takes.
        n: number of images.
        weights: probability of each image, or None for equal ones.
    """
    module.total_steps = steps
    plan = module.configure_optimizers()
    optimizer, scheduler = plan["optimizer"], plan["lr_scheduler"]["scheduler"]
    probability = torch.full((n,), 1 / n, dtype=torch.float64) if weights is None else torch.from_numpy(weights)
    module.train()
    for step in range(steps):
        chance = generator(seed, step)
        index = torch.multinomial(probability, batch, replacement=True, generator=chance)
        loss = module.loss(corrupt(index, chance))
        loss = loss[0] if isinstance(loss, tuple) else loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        tick(step + 1)
    module.eval()
