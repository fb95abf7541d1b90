"""The Universal Model's files (Liu 2024), and those of the systems that keep its layout (SuPreM, ContinualLearning).

``{"net": ...}`` with the prefix ``module.``. The trunk's keys stand at the top or under ``backbone.``; the head has one
controller for all classes or one a class.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from vesalius.data.abdomen import CLASSES
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import Window
from vesalius.errors import WeightsError
from vesalius.nn.language_head import parameter_count
from vesalius.published import swin
from vesalius.published.keys import Keys, Request

LICENCE = "Johns Hopkins University licence: research only"
CITATION = (
    "Liu et al., Universal and extensible language-vision models for organ segmentation and tumor detection from "
    "abdominal computed tomography, Medical Image Analysis 97:103226, 2024, doi:10.1016/j.media.2024.103226"
)
PARTS = ("backbone", "segmentation")
HEAD = r"(GAP|precls_conv|controllers?|text_to_vision|organ_embedding)(\..*)?"
TRACKED = r".*\.(running_mean|running_var|num_batches_tracked)"


def contract(part: str, channels: int) -> VolumeContract:
    """CT at 1.5 mm in a window of -175 to 250 HU, for every part."""
    names = ("CT",) if channels == 1 else tuple(f"channel_{n + 1}" for n in range(channels))
    return VolumeContract(names, spacing=(1.5, 1.5, 1.5), intensity=Window(-175, 250), roi=(96, 96, 96))


def network(keys: Keys, request: Request) -> dict[str, Any]:
    """Move the keys for one of `PARTS`, and return the architecture."""
    if request.part == "segmentation" and "conv_final.2.conv.weight" in keys:  # SuPreM's SegResNet has a plain head
        encoder = _trunk(keys, "encoder.", request)
        classes = keys.shape("conv_final.2.conv.weight")[0]
        keys.move_all("conv_final.2.conv.", "head.")
        return {"name": "volume_segmenter", "config": {"encoder": encoder, "classes": classes}}
    if request.part == "segmentation":
        encoder = _trunk(keys, "encoder.", request)
        return {"name": "language_driven", "config": {"encoder": encoder, **_head(keys)}}
    keys.drop(HEAD, "language-driven head: not part of the backbone")
    keys.drop(r"conv_final\.2\..*", "segmentation head: not part of the backbone")
    return _trunk(keys, "", request)


def _trunk(keys: Keys, to: str, request: Request) -> dict[str, Any]:
    """The trunk that the keys tell of: U-Net, Swin UNETR, SegResNet, UNet++ or DiNTS."""
    prefix = "backbone." if any(name.startswith("backbone.") for name in keys.left) else ""
    if f"{prefix}down_tr64.ops.0.conv1.weight" in keys:
        return _unet(keys, prefix, to)
    if f"{prefix}conv_0_0.conv_0.conv.weight" in keys:
        return _nested(keys, prefix, to)
    if f"{prefix}stem_down.0.mod.1.weight" in keys:
        return _dints(keys, prefix, to)
    if f"{prefix}convInit.conv.weight" in keys:
        return _segresnet(keys, prefix, to)
    return swin.unetr(keys, swin.swin_prefix(keys.left), to, request)


def _unet(keys: Keys, prefix: str, to: str) -> dict[str, Any]:
    width, in_channels = keys.shape(f"{prefix}down_tr64.ops.0.conv1.weight")[:2]
    keys.drop(TRACKED, "running statistics, which the published network stores and never uses")
    keys.drop(re.escape(prefix) + r"out_tr\..*", "output of Models Genesis: not part of the trunk")
    for level, size in enumerate((64, 128, 256, 512)):
        _pair(keys, f"{prefix}down_tr{size}.", f"{to}down.{level}.")
    for level, size in enumerate((256, 128, 64)):
        keys.move_all(f"{prefix}up_tr{size}.up_conv.", f"{to}up.{level}.")
        _pair(keys, f"{prefix}up_tr{size}.", f"{to}join.{level}.")
    return {"name": "unet3d", "config": {"in_channels": in_channels, "width": width}}


def _pair(keys: Keys, prefix: str, to: str) -> None:
    """Two convolutions with their norms."""
    for index in (0, 1):
        keys.move_all(f"{prefix}ops.{index}.conv1.", f"{to}{3 * index}.")
        keys.move_all(f"{prefix}ops.{index}.bn1.", f"{to}{3 * index + 1}.")


def _nested(keys: Keys, prefix: str, to: str) -> dict[str, Any]:
    in_channels = keys.shape(f"{prefix}conv_0_0.conv_0.conv.weight")[1]
    widths = [keys.shape(f"{prefix}conv_0_0.conv_1.conv.weight")[0]]
    widths += [keys.shape(f"{prefix}conv_{row}_0.convs.conv_1.conv.weight")[0] for row in (1, 2, 3, 4)]
    widths.append(keys.shape(f"{prefix}upcat_0_4.convs.conv_1.conv.weight")[0])
    keys.move_all(prefix, f"{to}nodes.", ("conv_", "upcat_"))
    return {"name": "nested_unet3d", "config": {"in_channels": in_channels, "widths": widths}}


def _segresnet(keys: Keys, prefix: str, to: str) -> dict[str, Any]:
    width, in_channels = keys.shape(f"{prefix}convInit.conv.weight")[:2]
    start = re.escape(prefix)
    levels = keys.count(start + r"down_layers\.(\d+)\.")
    # Each level counts its blocks from 1, after the convolution that halves the volume.
    down = [keys.count(start + rf"down_layers\.{level}\.(\d+)\.norm1") - 1 for level in range(levels)]
    up = [keys.count(start + rf"up_layers\.{level}\.(\d+)\.norm1") for level in range(levels - 1)]
    keys.move_all(prefix, f"{to}net.", ("convInit.", "down_layers.", "up_layers.", "up_samples.", "conv_final.0."))
    return {"name": "segresnet", "config": {"in_channels": in_channels, "width": width, "down": down, "up": up}}


def _dints(keys: Keys, prefix: str, to: str) -> dict[str, Any]:
    width, in_channels = keys.shape(f"{prefix}stem_down.0.mod.1.weight")[:2]
    for name in [name for name in keys.left if name.startswith(f"{prefix}dints_space.")]:
        # The published cells have a slot for each of five operations and fill one of them.
        ours = re.sub(r"\.op\.ops\.\d+\.", ".op.ops.0.", name.removeprefix(prefix))
        keys.move(name, f"{to}net.{ours}")
    keys.move_all(prefix, f"{to}net.", ("stem_down.", "stem_up."))
    return {"name": "dints", "config": {"in_channels": in_channels, "width": width}}


def _head(keys: Keys) -> dict[str, Any]:
    """Move the head's keys, and return what `LanguageDriven` takes."""
    learned = "organ_embedding.weight" in keys
    table = "organ_embedding.weight" if learned else "organ_embedding"
    count, embedding = keys.shape(table)
    width = keys.shape("GAP.3.weight")[0]
    hidden = keys.shape("precls_conv.2.weight")[0]
    keys.move(table, "head.embedding")
    keys.move_all("GAP.0.", "head.image.0.")
    keys.move_all("GAP.3.", "head.image.4.", ("bias",))
    keys.move("GAP.3.weight", "head.image.4.weight", _linear, "1x1x1 convolution of pooled features as a linear layer")
    keys.move_all("precls_conv.", "head.voxel.")
    keys.move_all("text_to_vision.", "head.text.0.")
    shared = "controller.weight" in keys
    for name in [name for name in keys.left if re.match(r"controllers?\.", name)]:
        ours = "head.controller." + name.partition(".")[2]
        change = _linear if name.endswith("weight") else None
        keys.move(name, ours, change, "1x1x1 convolution of pooled features as a linear layer")
    outputs = "head.controller.bias" if shared else "head.controller.0.2.bias"
    if outputs not in keys.ours or len(keys.ours[outputs]) != parameter_count(hidden):
        raise WeightsError("its controller does not write three layers", remedy="load it as the system that it is")
    return {
        "classes": names(count),
        "embedding": embedding,
        "encoding": "learned" if learned else "text",
        "controller": "shared" if shared else "per_class",
        "width": width,
        "hidden": hidden,
    }


def _linear(weight: Tensor) -> Tensor:
    return weight.flatten(1)


def names(count: int) -> list[str]:
    """The classes of a file with `count` outputs: the published 32 where there are as many, numbered ones beyond.

    >>> names(33)[-2:]
    ['kidney_cyst', 'class_33']
    """
    known = [organ.name for organ in CLASSES]
    return known[:count] + [f"class_{n + 1}" for n in range(len(known), count)]
