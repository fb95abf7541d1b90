"""AdamW as both papers use it: what decays, how the learning rate falls with depth, and how it moves over steps.

Schedules are plain functions of the (possibly fractional) step, so that they can be tested and plotted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from lightning import LightningModule
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from vesalius.nn.encoder import Encoder

_UNDECAYED = ("pos_embed", "cls_token", "mask_token")
# The convolutional stages of the hierarchical encoder (blocks1, blocks2) count as its patch embedding.
_FIRST = re.compile(r"(^|\.)(pos_embed|cls_token|mask_token|patch_embed\d*|blocks[12])(\.|$)")
_BLOCK = re.compile(r"(?:^|\.)(?:blocks3?|relative)\.(\d+)\.")  # relative: the tables of the blocks


def layer_id(name: str, depth: int) -> int:
    """The layer of a trunk's parameter: 0 = tokens and embeddings, i + 1 = block i, depth + 1 = everything else.

    Args:
        name: the parameter's name within the trunk.
        depth: transformer blocks of the trunk.

    >>> [layer_id(name, 12) for name in ("cls_token", "patch_embed.proj.bias", "blocks.3.norm1.bias", "fc_norm.bias")]
    [0, 0, 4, 13]
    """
    if _FIRST.search(name):
        return 0
    block = _BLOCK.search(name)
    return int(block.group(1)) + 1 if block else depth + 1


def parameter_groups(
    module: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0, depth: int | None = None
) -> list[dict[str, Any]]:
    """Optimiser groups of the trainable parameters, one for each pair of learning rate and weight decay.

    The learning rate is ``lr * layer_decay ** (depth + 1 - layer)``; biases, 1-d parameters, position embeddings and
    class and mask tokens do not decay (USFM's downstream code; relative-position tables do decay).

    Args:
        module: a trunk, or a network that holds one `Encoder`: what lies outside the encoder has scale 1.
        lr: the learning rate of the last layer.
        weight_decay: of the parameters that decay.
        layer_decay: the factor from one layer to the one below.
        depth: the trunk's blocks; by default the encoder's `depth`. Needed only where layer_decay is not 1.
    """
    encoders = [(name, part) for name, part in module.named_modules() if isinstance(part, Encoder)]
    prefix, found = encoders[0] if encoders else ("", None)
    if depth is None:
        if found is None and layer_decay != 1.0:
            raise ValueError("layer_decay needs the depth of a module that holds no Encoder")
        depth = found.depth if found is not None else 0
    inside = f"{prefix}." if prefix else ""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_id(name.removeprefix(inside), depth) if name.startswith(inside) else depth + 1
        scale = layer_decay ** (depth + 1 - layer)
        undecayed = parameter.ndim <= 1 or name.endswith(".bias") or name.rpartition(".")[2] in _UNDECAYED
        decay = 0.0 if undecayed else weight_decay
        empty = {"params": [], "names": [], "lr": lr * scale, "lr_scale": scale, "weight_decay": decay}
        group = groups.setdefault((scale, decay), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def warmup_cosine(
    step: float, *, total: float, warmup: float, lr: float, min_lr: float = 0.0, warmup_lr: float = 0.0
) -> float:
    """Linear from `warmup_lr` to `lr` over `warmup` steps, then half a cosine to `min_lr` at `total` (MAE).

    >>> [round(warmup_cosine(step, total=10, warmup=2, lr=1.0), 3) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return warmup_lr + (lr - warmup_lr) * step / warmup
    done = min((step - warmup) / max(total - warmup, 1e-12), 1.0)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def linear_warmup_cosine(epoch: float, *, total: float, warmup: float, lr: float) -> float:
    """Linear from 0 to `lr` at the last of `warmup` epochs, then half a cosine to 0 at `total` (lightning-bolts).

    Swin UNETR's fine-tuning and the Universal Model use it. Unlike `warmup_cosine` it reaches `lr` one epoch early.

    >>> [round(linear_warmup_cosine(epoch, total=10, warmup=3, lr=1.0), 3) for epoch in (0, 1, 2, 3, 10)]
    [0.0, 0.5, 1.0, 1.0, 0.0]
    """
    if epoch < warmup:
        return lr * epoch / max(warmup - 1, 1)
    done = min((epoch - warmup) / max(total - warmup, 1e-12), 1.0)
    return lr * 0.5 * (1 + math.cos(math.pi * done))


def warmup_step(
    step: float,
    *,
    total: float,
    warmup: float,
    lr: float,
    milestone: float = 700 / 800,
    factor: float = 0.1,
    warmup_lr: float = 0.0,
) -> float:
    """Linear warm-up, then `lr` until the fraction `milestone` of `total`, then `lr * factor` (SimMIM ViT-B).

    >>> [warmup_step(step, total=800, warmup=10, lr=1.0) for step in (5, 10, 699, 700)]
    [0.5, 1.0, 1.0, 0.1]
    """
    if step < warmup:
        return warmup_lr + (lr - warmup_lr) * step / warmup
    return lr if step < milestone * total else lr * factor


def adamw(
    module: nn.Module,
    *,
    lr: float,
    schedule: Callable[[int], float],
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    layer_decay: float = 1.0,
    depth: int | None = None,
) -> dict[str, Any]:
    """AdamW and its schedule, see `per_step`.

    Args:
        lr: the peak learning rate.
        schedule: step -> learning rate of the last layer; other groups follow it by their scale.
        module, weight_decay, layer_decay, depth: as in `parameter_groups`.
    """
    groups = parameter_groups(module, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay, depth=depth)
    for group in groups:  # names would be written into every checkpoint
        del group["names"]
    optimizer = AdamW(groups, lr=lr, betas=betas, eps=eps)
    return per_step(LambdaLR(optimizer, lambda step: schedule(step) / lr))


def per_step(scheduler: LRScheduler) -> dict[str, Any]:
    """A schedule over steps, and its optimiser, in the form that `LightningModule.configure_optimizers` returns."""
    return {"optimizer": scheduler.optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Clipped(LightningModule):
    """A module whose gradients are clipped at the norm ``config.grad_clip``, where that is not 0."""

    config: Any

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip at the configuration's norm unless the loop was given another."""
        if not (norm := gradient_clip_val or self.config.grad_clip):
            return
        sharded = self.trainer.strategy.model
        if isinstance(sharded, FullyShardedDataParallel):  # no process has a whole gradient
            sharded.clip_grad_norm_(norm)
        else:
            self.clip_gradients(optimizer, norm, gradient_clip_algorithm or "norm")
