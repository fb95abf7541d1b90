"""Swin UNETR's names in published files, for every system that stands on it.

All of them were trained with MONAI <= 1.4, so the legacy order of patch merging goes into their cards; a system that
is loaded from its card, after new training, keeps the order that is written there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vesalius.errors import WeightsError
from vesalius.nn.swin_unetr import STAGES
from vesalius.published.keys import Keys, Request

DECODER = r"(encoder\d+|decoder\d)\..*"
_BLOCKS = {f"encoder{n}": f"skips.{n - 1}" for n in (1, 2, 3, 4)} | {f"decoder{n}": f"ups.{5 - n}" for n in range(1, 6)}


def swin_prefix(state: Mapping[str, Any]) -> str:
    """What stands before ``patch_embed`` of a Swin encoder.

    >>> keys = ("patch_embed.proj.weight", "layers1.0.downsample.reduction.weight")
    >>> swin_prefix({f"backbone.swinViT.{key}": 0 for key in keys})
    'backbone.swinViT.'

    Raises:
        WeightsError: there is no such encoder.
    """
    for name in state:
        found = re.fullmatch(r"(.*)patch_embed\.proj\.weight", name)
        if found and f"{found[1]}layers1.0.downsample.reduction.weight" in state:
            return found[1]
    raise WeightsError("there is no 3-D Swin encoder among its keys", remedy="load it as the system that it is")


def encoder(keys: Keys, prefix: str, to: str, request: Request) -> dict[str, Any]:
    """Move the transformer's keys under `to`, and return its architecture."""
    shape = keys.shape(f"{prefix}patch_embed.proj.weight")
    if len(shape) != 5:
        raise WeightsError("its patch embedding is not a 3-D one", remedy="load it as the system that it is")
    width, in_channels = shape[:2]
    if request.in_channels not in (None, in_channels):
        raise WeightsError(
            f"it reads {in_channels} channels, not {request.in_channels}",
            remedy="load it as it is; channels of another set are matched by name when training starts from it",
        )
    table = "{}layers{}.0.blocks.0.attn.relative_position_bias_table"
    tables = [keys.shape(table.format(prefix, stage + 1)) for stage in range(STAGES)]
    stages = range(1, STAGES + 1)
    depths = [keys.count(re.escape(f"{prefix}layers{stage}.0.blocks.") + r"(\d+)\.") for stage in stages]
    config = {
        "in_channels": in_channels,
        "width": width,
        "depths": depths,
        "heads": [heads for _, heads in tables],
        "window": (round(tables[0][0] ** (1 / 3)) + 1) // 2,
        "merging": "legacy",
    }
    keys.drop(re.escape(prefix) + r".*\.relative_position_index", "follows from the window")
    for name in [name for name in keys.left if name.startswith(f"{prefix}layers")]:
        ours = name.removeprefix(prefix).replace("mlp.fc", "mlp.linear")  # NVIDIA's name
        keys.move(name, f"{to}swin.{ours}")
    keys.move_all(f"{prefix}patch_embed.", f"{to}swin.patch_embed.")
    return {"name": "swin", "config": config}


def unetr(keys: Keys, prefix: str, to: str, request: Request) -> dict[str, Any]:
    """Move the keys of a Swin UNETR without its class convolution under `to`, and return its architecture."""
    outer = prefix.removesuffix("swinViT.")
    config = encoder(keys, prefix, f"{to}encoder.", request)["config"]
    for published, ours in _BLOCKS.items():
        keys.move_all(f"{outer}{published}.", f"{to}{ours}.")
    keys.move_all(f"{outer}encoder10.", f"{to}bottleneck.")
    return {"name": "swin_unetr", "config": config}
