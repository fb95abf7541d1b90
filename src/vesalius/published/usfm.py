"""USFM's files (Jiao 2024): the pre-trained trunk, SimMIM's full network, and the downstream networks.

The released file (USFM_latest.pth) is a bare state dict with one shared relative table; fine-tuned ones have a table in
every block. Both are read, under any of the usual wrappers and prefixes.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from vesalius.data.contract import InputContract
from vesalius.errors import WeightsError
from vesalius.published import vit
from vesalius.published.keys import Keys, Request, trunk_prefix

LICENCE = "CC-BY-NC 4.0: not for commercial use"
CITATION = (
    "Jiao et al., USFM: a universal ultrasound foundation model generalized to tasks and organs towards label "
    "efficient image analysis, Medical Image Analysis 96:103202, 2024, doi:10.1016/j.media.2024.103202"
)
PARTS = ("backbone", "encoder", "pretrain", "classification", "pyramid", "segmentation")
RELEASED_SHA256 = "d5fdab3edd140e4ca61471bb4087f91cd7ff2ce270db71b9cab30feda881bd17"  # of USFM_latest.pth
UPERNET_BLOCKS = (3, 5, 7, 11)
SEGVIT_BLOCKS = (5, 7, 11)


def contract(size: int, channels: int) -> InputContract:
    """ImageNet statistics; the network never sees a blurred image."""
    return imagenet(size, channels)


def imagenet(size: int, channels: int) -> InputContract:
    """ImageNet mean and std; for one channel their averages over RGB."""
    usual = InputContract()
    if channels == 3:
        return InputContract(size=size)
    mean, std = sum(usual.mean) / 3, sum(usual.std) / 3
    return InputContract(size=size, channels=1, mean=(mean,), std=(std,))


def network(keys: Keys, request: Request) -> dict[str, Any]:
    """Move the keys for one of `PARTS`, and return the architecture."""
    prefix = trunk_prefix(keys.left)
    match request.part:
        case "encoder":
            drop_heads(keys, prefix)
            start_norm(keys, prefix, "")
            token = f"{prefix}mask_token" in keys
            return vit.trunk(keys, prefix, "", request, pool="mean", final_norm=True, mask_token=token, beit=True)
        case "pretrain":
            return _simmim(keys, prefix, request)
        case "classification":
            return classifier(keys, prefix, request, beit=True)
        case "pyramid":
            keys.drop(r"(decode_head|auxiliary_head)\..*", "segmentation head: not part of the pyramid")
            return plain_pyramid(keys, prefix, request, blocks=UPERNET_BLOCKS, beit=True)
        case "segmentation":
            return _segvit(keys, prefix, request)
        case _:
            drop_heads(keys, prefix)
            return _trunk(keys, prefix, "", request)


def _trunk(keys: Keys, prefix: str, to: str, request: Request) -> dict[str, Any]:
    """The downstream trunk: a table in every block, no final norm, no mask token."""
    keys.drop(re.escape(prefix) + "mask_token", "mask token: used in pre-training only")
    return vit.trunk(keys, prefix, to, request, pool="mean", final_norm=False, beit=True, copy_shared=True)


def _simmim(keys: Keys, prefix: str, request: Request) -> dict[str, Any]:
    encoder = vit.trunk(keys, prefix, "encoder.", request, pool="mean", final_norm=True, mask_token=True, beit=True)
    channels = keys.shape("decoder.0.weight")[0] // encoder["config"]["patch_size"] ** 2
    restores(request, channels)
    keys.move_all("decoder.0.", "decoder.0.")
    return {"name": "simmim", "config": {"encoder": encoder, "channels": channels}}


def _segvit(keys: Keys, prefix: str, request: Request) -> dict[str, Any]:
    keys.move_all(f"{prefix}fpn", "neck.fpn")
    encoder = _trunk(keys, prefix, "encoder.", request)
    classes, width = keys.shape("decode_head.q.weight")
    layers = keys.count(r"decode_head\.decoder_1\.layers\.(\d+)\.")
    keys.move_all("decode_head.", "head.")
    blocks = request.hints.blocks or scaled(SEGVIT_BLOCKS, encoder["config"]["depth"])
    return {
        "name": "segvit",
        "config": {
            "encoder": encoder,
            "blocks": list(blocks),
            "classes": classes,
            "width": width,
            "heads": request.hints.decoder_heads or max(width // 32, 1),
            "layers": layers,
        },
    }


def classifier(keys: Keys, prefix: str, request: Request, *, beit: bool) -> dict[str, Any]:
    """A fine-tuned classifier: LayerNorm of the mean patch token, then a linear head."""
    encoder = vit.trunk(keys, prefix, "encoder.", request, pool="mean", final_norm=False, beit=beit, copy_shared=True)
    classes = keys.shape("head.weight")[0]
    keys.move_all("fc_norm.", "norm.")
    keys.move_all("head.", "head.")
    return {"name": "classifier", "config": {"encoder": encoder, "classes": classes, "norm": True}}


def plain_pyramid(keys: Keys, prefix: str, request: Request, *, blocks: tuple[int, ...], beit: bool) -> dict[str, Any]:
    """Four maps of a plain transformer."""
    keys.move_all(f"{prefix}fpn", "neck.fpn")
    encoder = vit.trunk(keys, prefix, "encoder.", request, pool="mean", final_norm=False, beit=beit, copy_shared=True)
    blocks = request.hints.blocks or scaled(blocks, encoder["config"]["depth"])
    return {"name": "pyramid", "config": {"encoder": encoder, "blocks": list(blocks)}}


def restores(request: Request, channels: int) -> None:
    """Check that a pre-training decoder is asked for the channels that it restores.

    Raises:
        WeightsError: it is not.
    """
    if request.in_channels not in (None, channels):
        raise WeightsError(
            f"its decoder restores {channels} channels, not {request.in_channels}", remedy="load the part backbone"
        )


def start_norm(keys: Keys, prefix: str, to: str) -> None:
    """A final norm as it starts, where a file was published without."""
    if f"{prefix}norm.weight" not in keys:
        width = keys.shape(f"{prefix}blocks.0.norm1.weight")[0]
        keys.start |= {f"{to}norm.weight": torch.ones(width), f"{to}norm.bias": torch.zeros(width)}


def drop_heads(keys: Keys, prefix: str) -> None:
    """Leave out everything that stands on a trunk."""
    keys.drop(r"(decoder\.|decoder_).*", "pre-training decoder: not part of the backbone")
    keys.drop(r"(decode_head|auxiliary_head|segmentation_head)\..*", "segmentation head: not part of the backbone")
    keys.drop(r"(head|fc_norm)\..*", "classification head: not part of the backbone")
    keys.drop(re.escape(prefix) + r"(head|fc_norm)\..*", "classification head: not part of the backbone")
    keys.drop(re.escape(prefix) + r"fpn\d?\..*", "segmentation neck: not part of the backbone")


def scaled(blocks: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Block indices of a 12-block transformer, at another depth.

    >>> scaled((3, 5, 7, 11), 24)
    (7, 11, 15, 23)
    """
    return tuple(max((block + 1) * depth // 12 - 1, 0) for block in blocks)
