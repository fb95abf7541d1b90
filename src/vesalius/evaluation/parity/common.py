"""What the adapters of all systems share: their type, and a fixture's inputs and settings as the library takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vesalius.published.fixture import Fixture
from vesalius.published.keys import Hints

Outputs = Mapping[str, Any]
Adapter = Callable[[Fixture, Path], Outputs]
"""A fixture and the rebuilt checkpoint file -> the fixture's outputs by name."""


def image_of(fixture: Fixture) -> Tensor:
    """The input named image."""
    return tensor(fixture, "image")


def tensor(fixture: Fixture, name: str) -> Tensor:
    """An input by name."""
    return torch.from_numpy(np.ascontiguousarray(fixture.inputs[name]))


def hints_of(config: Mapping[str, Any], *, decoder_heads: int | None = None) -> Hints:
    """What the keys do not tell, from a published constructor's arguments."""
    blocks, prompted = config.get("out_indices"), config.get("prompt_layers")
    arch = config.get("arch")
    heads = arch.get("num_heads") if isinstance(arch, dict) else None
    return Hints(
        heads=config.get("num_heads", heads),
        decoder_heads=decoder_heads,
        blocks=tuple(blocks) if blocks else None,
        eps=config.get("norm_eps"),
        prompt_layers=tuple(prompted) if prompted else None,
    )
