"""Deblurring MIM's files (Kang 2024): MAE and ConvMAE pre-training, classifiers, and the U-Net++ segmentation network.

Vanilla MAE and ConvMAE files have the same keys; they are the system ``mae``, whose contract does not blur.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

from vesalius.data.blur import Blur
from vesalius.data.contract import InputContract
from vesalius.errors import WeightsError
from vesalius.nn.convvit import ConvViTConfig
from vesalius.published import usfm, vit
from vesalius.published.keys import Keys, Request, trunk_prefix

LICENCE = "CC-BY-NC 4.0: not for commercial use"
CITATION = (
    "Kang et al., Deblurring masked image modeling for ultrasound image analysis, Medical Image Analysis 97:103256, "
    "2024, doi:10.1016/j.media.2024.103256"
)
MAE_CITATION = (
    "He et al., Masked autoencoders are scalable vision learners, CVPR 2022; Gao et al., ConvMAE, NeurIPS 2022"
)
PARTS = ("backbone", "encoder", "pretrain", "classification", "pyramid", "segmentation")
PYRAMID_BLOCKS = (3, 5, 7, 11)
DECODER = ("mask_token", "decoder_embed.", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.", "decoder_pred.")
FUSION = r"stage[12]_output_decode\..*"


def contract(size: int, channels: int) -> InputContract:
    """ImageNet statistics of the blurred image: these networks expect the blur of their pre-training everywhere."""
    return replace(mae_contract(size, channels), blur=Blur("gaussian", sigma=1.1))


def mae_contract(size: int, channels: int) -> InputContract:
    """ImageNet statistics, no blur."""
    return usfm.imagenet(size, channels)


def network(keys: Keys, request: Request) -> dict[str, Any]:
    """Move the keys for one of `PARTS`, and return the architecture."""
    prefix = trunk_prefix(keys.left)
    hierarchical = f"{prefix}patch_embed1.proj.weight" in keys
    match request.part:
        case "pretrain":
            return _pretrain(keys, prefix, request, hierarchical)
        case "classification":
            if not hierarchical:
                return usfm.classifier(keys, prefix, request, beit=False)
            encoder = conv_trunk(keys, prefix, "encoder.", request)
            classes = keys.shape("head.weight")[0]
            keys.move_all("fc_norm.", "norm.")
            keys.move_all("head.", "head.")
            return {"name": "classifier", "config": {"encoder": encoder, "classes": classes, "norm": True}}
        case "pyramid":
            keys.drop(r"(decoder|segmentation_head|decode_head|auxiliary_head)\..*", "head: not part of the pyramid")
            return _pyramid(keys, prefix, request, hierarchical)
        case "segmentation":
            classes = keys.shape("segmentation_head.0.weight")[0]
            levels = keys.count(r"decoder\.blocks\.x_0_(\d+)\.")
            widths = [keys.shape(f"decoder.blocks.x_0_{n}.conv2.0.weight")[0] for n in range(levels)]
            keys.move_all("decoder.", "head.decoder.")
            keys.move_all("segmentation_head.", "head.segmentation_head.")
            pyramid = _pyramid(keys, prefix, request, hierarchical)
            return {"name": "unetpp", "config": {**pyramid["config"], "classes": classes, "widths": widths}}
        case _:
            whole = request.part == "encoder"
            keys.drop(re.escape(prefix) + "mask_token", "mask token: belongs to the decoder")
            usfm.drop_heads(keys, prefix)
            if hierarchical:
                if not whole:
                    keys.drop(re.escape(prefix) + FUSION, "stage fusion: used in pre-training only")
                return conv_trunk(keys, prefix, "", request, fusion=whole)
            if whole:
                usfm.start_norm(keys, prefix, "")
            return vit.trunk(keys, prefix, "", request, pool="mean", final_norm=whole, fixed_positions=whole)


def _pretrain(keys: Keys, prefix: str, request: Request, hierarchical: bool) -> dict[str, Any]:
    if prefix:
        raise WeightsError(f"a masked autoencoder's keys have no prefix, these have {prefix!r}")
    cls = "cls_token" in keys
    width, _ = keys.shape("decoder_embed.weight")
    depth = keys.count(r"decoder_blocks\.(\d+)\.")
    hidden = keys.shape("decoder_blocks.0.mlp.fc1.weight")[0]
    rows = vit.square(keys.shape("decoder_pos_embed")[1] - int(cls), "decoder_pos_embed")
    outputs = keys.shape("decoder_pred.weight")[0]
    keys.move_all("", "decoder.", DECODER)
    if hierarchical:
        encoder = conv_trunk(keys, "", "encoder.", request, fusion=True)
        patch = 16
    else:
        encoder = vit.trunk(keys, "", "encoder.", request, pool="mean", final_norm=True, fixed_positions=True)
        patch = encoder["config"]["patch_size"]
    usfm.restores(request, outputs // patch**2)
    decoder = {
        "grid": [rows, rows],
        "channels": outputs // patch**2,
        "width": width,
        "depth": depth,
        "heads": request.hints.decoder_heads or max(width // 32, 1),
        "mlp_ratio": hidden / width,
        "eps": request.hints.eps or 1e-6,
        "cls": cls,
    }
    return {"name": "mae", "config": {"encoder": encoder, "decoder": decoder}}


def _pyramid(keys: Keys, prefix: str, request: Request, hierarchical: bool) -> dict[str, Any]:
    if not hierarchical:
        return usfm.plain_pyramid(keys, prefix, request, blocks=PYRAMID_BLOCKS, beit=False)
    keys.move_all(f"{prefix}fpn.", "neck.fpn.")
    encoder = conv_trunk(keys, prefix, "encoder.", request)
    return {"name": "pyramid", "config": {"encoder": encoder, "blocks": []}}


def conv_trunk(keys: Keys, prefix: str, to: str, request: Request, *, fusion: bool = False) -> dict[str, Any]:
    """Move the keys of the hierarchical encoder from `prefix` to `to`, and return its architecture.

    A relative table in its blocks marks the segmentation layout, whose LayerNorms all have eps 1e-5.

    Args:
        fusion: with the stage projections and the final norm (pre-training).
    """
    width1, channels = keys.shape(f"{prefix}patch_embed1.proj.weight")[:2]
    width2 = keys.shape(f"{prefix}patch_embed2.proj.weight")[0]
    width = keys.shape(f"{prefix}patch_embed3.proj.weight")[0]
    start = re.escape(prefix)
    depth1, depth2, depth = (keys.count(rf"{start}blocks{stage}\.(\d+)\.") for stage in (1, 2, 3))
    table = f"{prefix}blocks3.0.attn.{vit.TABLE}"
    relative = table in keys
    heads = keys.shape(table)[1] if relative else request.hints.heads or max(width // 64, 1)
    rows = vit.square(keys.shape(f"{prefix}pos_embed")[1], "pos_embed")
    size = request.image_size or rows * 16
    grids = ((rows, rows), (size // 16,) * 2)
    scale = f"{prefix}blocks3.0.gamma_1" in keys

    vit.embedding(keys, f"{prefix}patch_embed1.proj.weight", f"{to}patch_embed1.proj.weight", request.in_channels)
    keys.move_all(f"{prefix}patch_embed", f"{to}patch_embed")
    vit.absolute(keys, f"{prefix}pos_embed", f"{to}pos_embed", grids)
    for stage in ("blocks1.", "blocks2."):
        keys.move_all(prefix + stage, to + stage)
    for n in range(depth):
        vit.transformer_block(keys, f"{prefix}blocks3.{n}.", f"{to}blocks.{n}.")
        if relative:
            vit.table_to(keys, f"{prefix}blocks3.{n}.attn.{vit.TABLE}", f"{to}relative.{n}.table", grids, request)
    if fusion:
        for number in (1, 2):
            keys.move_all(f"{prefix}stage{number}_output_decode.", f"{to}stage{number}_output.")
        keys.move_all(f"{prefix}norm.", f"{to}norm.")
    keys.drop(start + r"norm\..*", "final norm: downstream networks normalise the pooled vector instead")
    keys.drop(vit.INDEX, "index buffers: computed, not stored, here")
    config = ConvViTConfig(
        image_size=size,
        in_channels=request.in_channels or channels,
        widths=(width1, width2, width),
        depths=(depth1, depth2, depth),
        heads=heads,
        mlp_ratio=keys.ours[f"{to}blocks.0.mlp.fc1.weight"].shape[0] / width,
        fusion=fusion,
        relative="per_block" if relative else "none",
        layer_scale=1.0 if scale else None,
        eps=request.hints.eps or (1e-5 if relative else 1e-6),
        final_norm=fusion,
    )
    return {"name": "convvit", "config": asdict(config)}
