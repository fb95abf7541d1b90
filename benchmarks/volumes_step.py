"""One step of BrainSegFounder's pre-training beside the published order, and with and without checkpointing.

    python benchmarks/volumes_step.py --size 64m

A step is two corrupted views of crops that lie ready, forward, loss, backward and AdamW. The published order, written
plainly, draws and fills one box after another and takes the views through the network one by one; ours draws the boxes
of a pass at once and takes both views together. Checkpointing is ours with and without: less memory, more time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.nn.checkpointing import recompute
from vesalius.pretrain.brainsegfounder import PRESETS, BrainSegFounder, BrainSegFounderConfig, views

from measure import compare_steps

SIZES = {  # configuration, crops
    "small": (replace(PRESETS["tiny"], channels=("t1",)), 4),
    "64m": (replace(PRESETS["paper"], crop=(64, 64, 64)), 2),  # the published trunk, on the smaller crops of a CPU
}


def corrupt_in_turn(crops: Tensor, config: BrainSegFounderConfig) -> Tensor:
    """Box after box, each drawn, filled and counted before the next: first noise, then another crop of the batch."""
    corrupted = crops.clone()
    for i, crop in enumerate(corrupted):
        box_after_box(crop, None, config)
        other = int(torch.randint(len(crops), ()))
        if other != i:
            box_after_box(crop, corrupted[other], config)
    return corrupted


def box_after_box(crop: Tensor, source: Tensor | None, config: BrainSegFounderConfig) -> None:
    """One pass over a crop ``[C, D, S, S]``, in place; None is noise, scaled to [0, 1] within its box."""
    target = config.noise_share * float(torch.rand(())) * math.prod(crop.shape[1:])
    filled = 0
    while filled < target:
        box, volume = [slice(None)], 1
        for side in crop.shape[1:]:
            shortest, longest = int(config.box_low * side), int(config.box_high * side)
            start = int(torch.randint(side - shortest, ()))
            end = min(start + int(torch.randint(shortest, longest, ())), side)
            box.append(slice(start, end))
            volume *= end - start
        part = crop[tuple(box)]
        if source is not None:
            part.copy_(source[tuple(box)].clone())
        elif part.numel():
            noise = torch.randn(part.shape)
            part.copy_((noise - noise.min()) / (noise.max() - noise.min()).clamp(min=1e-12))
        filled += volume


def published_loss(module: BrainSegFounder, crops: Tensor) -> Tensor:
    """The three tasks with a pass through the network for each view."""
    c = module.config
    turns = [torch.randint(4, (len(crops),)) for _ in range(2)]
    targets = [
        torch.stack([torch.rot90(crop, int(k), (-2, -1)) for crop, k in zip(crops, some, strict=True)])
        for some in turns
    ]
    first, second = (module.network(corrupt_in_turn(target, c)) for target in targets)
    rotation = F.cross_entropy(torch.cat([first.rotation, second.rotation]), torch.cat(turns))
    embedded = F.normalize(torch.cat([first.contrastive, second.contrastive]))
    likeness = (embedded @ embedded.T / c.temperature).fill_diagonal_(-torch.inf)
    contrastive = F.cross_entropy(likeness, torch.arange(len(embedded)).roll(len(crops)))
    restored = torch.cat([first.reconstruction, second.reconstruction])
    reconstruction = F.l1_loss(restored, torch.cat(targets))
    return c.rotation_weight * rotation + c.contrastive_weight * contrastive + c.reconstruction_weight * reconstruction


def step(module: BrainSegFounder, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A function that does one whole optimisation step."""
    c = module.config
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=c.lr, weight_decay=c.weight_decay)

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, c.grad_clip)
        optimizer.step()

    return run


def sides(config: BrainSegFounderConfig, crops: int) -> dict[str, Callable[[], Callable[[], None]]]:
    """What builds each side."""
    image = torch.rand((crops, len(config.channels), *config.crop), generator=torch.Generator().manual_seed(0))

    def ours(*, checkpointing: bool) -> Callable[[], None]:
        module, generator = BrainSegFounder(config), torch.Generator().manual_seed(1)
        if checkpointing:
            recompute(module)
        return step(module, lambda: module.loss(views(image, config, generator=generator))["loss"])

    def plain() -> Callable[[], None]:
        module = BrainSegFounder(config)
        torch.manual_seed(1)
        return step(module, lambda: published_loss(module, image))

    return {
        "SSL": lambda: ours(checkpointing=False),
        "published": plain,
        "checkpointed": lambda: ours(checkpointing=True),
    }


if __name__ == "__main__":
    compare_steps(
        __file__,
        __doc__.splitlines()[0],
        SIZES,
        sides,
        pairs=[("SSL", "published", "the published order"), ("checkpointed", "SSL", "the same without checkpointing")],
    )
