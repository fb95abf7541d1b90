"""The fast path of many short trainings: images stay in memory and whole batches are made at once.

What is computed is the systems' and the tasks' own. Only the loader and the run folder of `training.fit` are left out,
whose overhead per image would exceed the work at 32 pixels. Every step's chance comes from a generator seeded by
(seed, step): arms of one seed see the same images in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vesalius.data.datasets import generator
from vesalius.nn.optim import adamw, warmup_cosine

Batch = Mapping[str, Tensor]
Tick = Callable[[int], None]
"""Told the number of steps done."""
WARMUP = 0.1
"""Share of a short training's steps in which the learning rate rises."""


def pretrain(
    module: Any,
    corrupt: Callable[[Tensor, torch.Generator], dict[str, Tensor]],
    *,
    n: int,
    steps: int,
    batch: int,
    seed: int,
    tick: Tick,
    weights: np.ndarray | None = None,
) -> None:
    """Pre-train `module` in place for `steps` steps, with the optimiser that it configures.

    Args:
        corrupt: (indices ``[batch]``, generator) -> what `module.loss` takes.
        n: number of images.
        weights: probability of each image, or None for equal ones.
    """
    module.total_steps = steps
    probability = torch.full((n,), 1 / n, dtype=torch.float64) if weights is None else torch.from_numpy(weights)

    def loss(chance: torch.Generator) -> Tensor:
        index = torch.multinomial(probability, batch, replacement=True, generator=chance)
        value = module.loss(corrupt(index, chance))
        if isinstance(value, Mapping):
            return value["loss"]
        return value[0] if isinstance(value, tuple) else value

    module.train()
    _optimise(module.configure_optimizers(), loss, steps=steps, seed=seed, tick=tick)
    module.eval()


def train_short(
    task: Any,
    batches: Callable[[torch.Generator], Batch],
    *,
    lr: float,
    steps: int,
    seed: int,
    weight_decay: float = 1e-4,
    output: Callable[[Batch], Any] | None = None,
    tick: Tick | None = None,
) -> float:
    """Train in place what requires a gradient: AdamW, a tenth of the steps of warm-up, then half a cosine to 0.

    The network stays in evaluation mode, so that no method gains or loses by a trunk's dropout or stochastic depth.

    Args:
        task: a head on an encoder (`vesalius.tasks`), with its `loss`.
        batches: a step's chance -> what `task.loss` takes, with ``image``.
        lr: peak learning rate of everything.
        steps: optimiser steps.
        seed: of the batches.
        weight_decay: of matrices (not of biases and other vectors).
        output: a batch -> the task's output; by default ``task(batch["image"])``.
        tick: told of every step.

    Returns:
        The last loss; a training whose loss is no longer finite stops there, and returns that.

    >>> from vesalius.nn.vit import ViT, ViTConfig
    >>> from vesalius.tasks.classification import Classifier
    >>> task = Classifier(ViT(ViTConfig(image_size=16, patch_size=8, width=8, depth=1, heads=1)), ("a", "b"))
    >>> batch = {"image": torch.rand(2, 3, 16, 16), "label": torch.tensor([0, 1])}
    >>> first, last = (train_short(task, lambda chance: batch, lr=0.01, steps=steps, seed=0) for steps in (1, 30))
    >>> last < first
    True
    """
    read = output or (lambda batch: task(batch["image"]))

    def loss(chance: torch.Generator) -> Tensor:
        batch = batches(chance)
        return task.loss(read(batch), batch)

    def schedule(step: int) -> float:  # neither the first step nor the last is one of length 0
        return warmup_cosine(step + 1, total=steps + 1, warmup=max(1, WARMUP * steps), lr=lr)

    task.eval()
    return _optimise(
        adamw(task, lr=lr, schedule=schedule, weight_decay=weight_decay), loss, steps=steps, seed=seed, tick=tick
    )


def step_memory(task: Any, batch: Batch, *, output: Callable[[Batch], Any] | None = None) -> int:
    """Bytes that a training step needs beside the weights and the batch.

    On a GPU the most that was allocated in a step, and AdamW's two moments; on a CPU, where nobody counts, the tensors
    kept for the backward pass (a storage once, weights aside), the gradients, and the moments.

    Args:
        task, output: as of `train_short`; gradients are left cleared.
        batch: of one step, on the task's device.
    """
    read = output or (lambda batch: task(batch["image"]))
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    moments = 2 * sum(parameter.nbytes for parameter in trained)
    device = trained[0].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        task.loss(read(batch), batch).backward()
        used = torch.cuda.max_memory_allocated(device) - before
    else:
        known = {tensor.untyped_storage().data_ptr() for tensor in (*task.parameters(), *task.buffers())}
        known |= {tensor.untyped_storage().data_ptr() for tensor in batch.values()}
        kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given twice

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage
            return tensor.detach()  # an output kept with its graph would keep the graph for ever

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = task.loss(read(batch), batch)
        used = sum(storage.nbytes() for storage in kept.values()) + sum(parameter.nbytes for parameter in trained)
        del loss
    task.zero_grad(set_to_none=True)
    return used + moments


def _optimise(
    plan: Mapping[str, Any],
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    seed: int,
    tick: Tick | None,
) -> float:
    """Follow an optimiser and its schedule (as `configure_optimizers` returns them); the last loss."""
    optimizer, scheduler = plan["optimizer"], plan["lr_scheduler"]["scheduler"]
    value = torch.zeros(())
    for step in range(steps):
        value = loss(generator(seed, step))
        if not torch.isfinite(value):
            break
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        scheduler.step()
        if tick is not None:
            tick(step + 1)
    return float(value.detach())
