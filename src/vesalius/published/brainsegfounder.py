"""BrainSegFounder's files (Cox 2024): self-supervised pre-training, and the fine-tuned Swin UNETR.

Pre-training files nest under ``state_dict`` with the prefix ``module.``; fine-tuned ones have no prefix. ATLAS weights
are published as pickled modules, which are refused; their state dict is read here.
"""

from __future__ import annotations

from typing import Any

from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import Window, ZScore
from vesalius.published import swin
from vesalius.published.keys import Keys, Request

LICENCE = "UK Biobank Material Transfer Agreement: not free"
CITATION = (
    "Cox et al., BrainSegFounder: Towards 3D foundation models for neuroimage segmentation, Medical Image Analysis "
    "97:103301, 2024, doi:10.1016/j.media.2024.103301"
)
PARTS = ("backbone", "pretrain", "segmentation")
CHANNELS = {1: ("t1",), 2: ("t1", "flair"), 4: ("flair", "t1ce", "t1", "t2")}
"""Modalities by their number: ATLAS, UK Biobank (T1 and T2-FLAIR) and BraTS."""


def contract(part: str, channels: int) -> VolumeContract:
    """As the authors' transforms: a window made for CT in pre-training, z-scores of the brain in fine-tuning."""
    names = CHANNELS.get(channels, tuple(f"channel_{n + 1}" for n in range(channels)))
    if part == "segmentation":
        return VolumeContract(names, intensity=ZScore(nonzero=True), roi=(128, 128, 128))
    return VolumeContract(names, intensity=Window(-1000, 1000), roi=(96, 96, 96))


def network(keys: Keys, request: Request) -> dict[str, Any]:
    """Move the keys for one of `PARTS`, and return the architecture."""
    prefix = swin.swin_prefix(keys.left)
    match request.part:
        case "pretrain":
            return _pretrain(keys, prefix, request)
        case "segmentation":
            encoder = swin.unetr(keys, prefix, "encoder.", request)
            classes = keys.shape("out.conv.conv.weight")[0]
            keys.move_all("out.conv.conv.", "head.")
            return {"name": "volume_segmenter", "config": {"encoder": encoder, "classes": classes}}
        case _:
            keys.drop(r"(rotation|contrastive)_(pre|head)\..*", "self-supervised head: not part of the backbone")
            keys.drop(r"conv\.\d+\..*", "reconstruction decoder: not part of the backbone")
            keys.drop(swin.DECODER, "segmentation decoder: not part of the backbone")
            keys.drop(r"out\..*", "segmentation head: not part of the backbone")
            return swin.encoder(keys, prefix, "", request)


def _pretrain(keys: Keys, prefix: str, request: Request) -> dict[str, Any]:
    encoder = swin.encoder(keys, prefix, "encoder.", request)
    embedding = keys.shape("contrastive_head.weight")[0]
    hidden = keys.shape("rotation_pre.weight")[0] if "rotation_pre.weight" in keys else None
    for head in ("rotation", "contrastive"):
        keys.move_all(f"{head}_pre.", f"{head}.0.")
        keys.move_all(f"{head}_head.", f"{head}.{0 if hidden is None else 1}.")
    keys.move_all("conv.", "reconstruction.")
    return {"name": "swin_ssl", "config": {"encoder": encoder, "embedding": embedding, "hidden": hidden}}
