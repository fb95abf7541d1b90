"""Training in less memory: what happens within a block is computed anew in the backward pass instead of kept.

    T. Chen et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174, 2016.

Weights, their names and, on the same machine, gradients stay as they are; a step takes about a third longer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from monai.networks.nets import BasicUNetPlusPlus
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vesalius.errors import ConfigError
from vesalius.nn.encoder import Encoder
from vesalius.nn.sam3d import Sam3DEncoder
from vesalius.nn.volumes import VolumeTrunk

LISTS = (nn.ModuleList, nn.ModuleDict, BasicUNetPlusPlus)
"""What trunks keep their blocks in."""


def blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a network's trunks: stages of a Swin transformer, levels of a U-Net, layers of a transformer.

    Blocks whose batch norm keeps running statistics are left out: a second pass would count a batch twice.

    >>> from vesalius.nn.unet3d import UNet3D, UNet3DConfig
    >>> len(blocks(UNet3D(UNet3DConfig(width=4))))  # four levels down; three times up and joined
    10
    """
    if isinstance(network, Encoder | VolumeTrunk | Sam3DEncoder):
        return _entries(network)
    return [block for child in network.children() for block in blocks(child)]


def recompute(network: nn.Module) -> None:
    """Let a network's blocks compute their activations anew in the backward pass.

    Args:
        network: changed in place; its state dict keeps its names.

    Raises:
        ConfigError: it has no blocks.
    """
    found = blocks(network)
    if not found:
        raise ConfigError("checkpointing finds no blocks in this network", remedy="leave it out")
    for block in found:
        block.forward = partial(_forward, block.forward)  # on the instance, so that no name gets a prefix


def _forward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _entries(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, LISTS):
            found += [block for block in child.children() if not _tracks(block)]
        else:
            found += _entries(child)
    return found


def _tracks(block: nn.Module) -> bool:
    return any(isinstance(part, _BatchNorm) and part.track_running_stats for part in block.modules())
