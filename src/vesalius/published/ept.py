"""The files of the EPT repository (Zu 2024): mmcls's vision transformer, plain or with the prompts of EPT or VPT.

Both methods keep one tensor, ``backbone.prompt``, and its shape tells which: ``[layers, tokens, length]`` are EPT's
logits, ``[layers, length, width]`` VPT's tokens. Which blocks it belongs to is in no file; unless the caller says so
they are the first ones, as by default in both methods.
"""

from __future__ import annotations

import re
from typing import Any

from vesalius.errors import WeightsError
from vesalius.published import vit
from vesalius.published.keys import Keys, Request, trunk_prefix

LICENCE = (
    "Apache-2.0 by the README of the authors' code, whose licence file is missing; Apache-2.0 for OpenMMLab's trunks"
)
CITATION = (
    "Zu et al., Embedded prompt tuning: Towards enhanced calibration of pretrained models for medical images, Medical "
    "Image Analysis 97:103258, 2024, doi:10.1016/j.media.2024.103258"
)
PARTS = ("backbone", "classification")
TO_TIMM = (
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"layers\.(\d+)\.attn\.", r"blocks.\1.attn."),
    (r"layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"ln1\.", "norm."),
)
"""mmcls's names and timm's, for the same layers."""
HEADS = ("head.fc.", "head.layers.head.")
"""Where EPT's heads and mmcls's own keep their linear layer."""


def network(keys: Keys, request: Request) -> dict[str, Any]:
    """Move the keys for one of `PARTS`, and return the architecture; pooled is the class token after the final norm."""
    prefix = trunk_prefix(keys.left)
    keys.shape(f"{prefix}patch_embed.projection.weight")
    keys.left = {_timm_name(name, prefix): tensor for name, tensor in keys.left.items()}
    if request.part == "classification":
        encoder = _encoder(keys, prefix, "encoder.", request)
        head = next((name for name in HEADS if f"{name}weight" in keys), HEADS[0])
        classes = keys.shape(f"{head}weight")[0]
        keys.move_all(head, "head.")
        return {"name": "classifier", "config": {"encoder": encoder, "classes": classes, "norm": False}}
    keys.drop(r"head\..*", "classification head: not part of the backbone")
    return _encoder(keys, prefix, "", request)


def _timm_name(name: str, prefix: str) -> str:
    """A part of the trunk by timm's name instead of mmcls's; other names as they are."""
    if not name.startswith(prefix):
        return name
    for pattern, replacement in TO_TIMM:
        found = re.match(pattern, name.removeprefix(prefix))
        if found:
            return prefix + found.expand(replacement) + name.removeprefix(prefix)[found.end() :]
    return name


def _encoder(keys: Keys, prefix: str, to: str, request: Request) -> dict[str, Any]:
    name = f"{prefix}prompt"
    rows, width = keys.shape(f"{prefix}pos_embed")[1:]
    cls = int(f"{prefix}cls_token" in keys)
    trunk = vit.trunk(keys, prefix, to, request, pool="cls" if cls else "mean", final_norm=True)
    if name not in keys:
        return trunk
    count, middle, last = keys.shape(name)
    layers = request.hints.prompt_layers or tuple(range(count))
    if len(layers) != count or max(layers) >= trunk["config"]["depth"]:
        raise WeightsError(f"{name} is for {count} layers, not for {layers} of {trunk['config']['depth']}")
    if middle == rows:  # a logit for every token: EPT
        tensor = keys.left.pop(name)
        for position, layer in enumerate(layers):
            ours = f"{to}blocks.{layer}.attn.prompt.prompt"
            keys.ours[ours] = tensor[position]
            keys.reshaped[ours] = f"the block's own slice of {name}"
        grid = (vit.square(rows - cls, "pos_embed"),) * 2
        what = {"embedded": {"length": last, "layers": list(layers), "mode": "concat", "grid": list(grid)}}
    elif last == width:  # tokens: VPT
        keys.move(name, f"{to}prompts.tokens")
        what = {"tokens": {"length": middle, "layers": list(layers)}}
    else:
        raise WeightsError(
            f"{name} is {count} x {middle} x {last}: neither EPT's logits of {rows} tokens nor VPT's tokens of {width}"
        )
    return {"name": "prompted", "config": {"encoder": trunk, "prompts": what}}
