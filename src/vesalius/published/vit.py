"""The key map of plain transformers (timm's ViT, MAE, BEiT, SimMIM, USFM) -> `vesalius.nn.vit.ViT`.

Depth, width, heads, patch size, bias mode, layer scale and position tables are read from the keys and shapes: a file
cannot be loaded into a network that silently lacks one of them.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from vesalius.data.contract import InputContract
from vesalius.errors import WeightsError
from vesalius.nn.positions import CLS_ROWS, resize_absolute, resize_relative
from vesalius.nn.vit import ViTConfig
from vesalius.published.keys import Keys, Request, trunk_prefix

LICENCE = "Apache-2.0 (timm)"
CITATION = "Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021"
PARTS = ("backbone", "encoder", "classification")
INDEX = r".*relative_position_index"
TABLE = "relative_position_bias_table"
BLOCK_PARTS = ("norm1.", "norm2.", "attn.proj.", "mlp.fc1.", "mlp.fc2.")


def contract(size: int, channels: int) -> InputContract:
    """ImageNet's ViT: intensities from -1 to 1."""
    return InputContract(size=size, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)


def network(keys: Keys, request: Request) -> dict[str, Any]:
    """Move a plain ViT's keys, and return the architecture: pooled is the class token after the final norm."""
    prefix = trunk_prefix(keys.left)
    if request.part == "classification":
        encoder = trunk(keys, prefix, "encoder.", request, pool="cls", final_norm=True)
        classes = keys.shape("head.weight")[0]
        keys.move_all("head.", "head.")
        return {"name": "classifier", "config": {"encoder": encoder, "classes": classes, "norm": False}}
    keys.drop(r"head\..*", "classification head: not part of the backbone")
    return trunk(keys, prefix, "", request, pool="cls", final_norm=True)


def trunk(
    keys: Keys,
    prefix: str,
    to: str,
    request: Request,
    *,
    pool: Literal["cls", "mean"],
    final_norm: bool,
    mask_token: bool = False,
    beit: bool = False,
    copy_shared: bool = False,
    fixed_positions: bool = False,
) -> dict[str, Any]:
    """Move the keys of a plain transformer from `prefix` to `to`, and return its architecture.

    Args:
        pool, final_norm, mask_token: as of `ViTConfig`; without `final_norm` the file's norm is dropped.
        beit: BEiT's initialiser and layer scale.
        copy_shared: give every block its own copy of a shared relative table, as downstream networks do.
        fixed_positions: absolute positions are not trained (MAE's pre-training).
    """
    width, channels, patch, _ = keys.shape(f"{prefix}patch_embed.proj.weight")
    depth = keys.count(re.escape(prefix) + r"blocks\.(\d+)\.")
    cls = f"{prefix}cls_token" in keys
    shared, own = f"{prefix}rel_pos_bias.{TABLE}", f"{prefix}blocks.0.attn.{TABLE}"
    relative: Literal["none", "shared", "per_block"] = "none"
    if shared in keys or own in keys:
        relative = "shared" if shared in keys else "per_block"
    table = {"shared": shared, "per_block": own}.get(relative)
    heads = keys.shape(table)[1] if table else request.hints.heads or max(width // 64, 1)

    positions: Literal["none", "learned", "sincos"] = "none"
    rows = None
    if f"{prefix}pos_embed" in keys:
        positions = "sincos" if fixed_positions else "learned"
        rows = square(keys.shape(f"{prefix}pos_embed")[1] - int(cls), "pos_embed")
    if table:
        rows = (square(keys.shape(table)[0] - (CLS_ROWS if cls else 0), table) + 1) // 2
    size = request.image_size or (rows or 224 // patch) * patch
    if size % patch:
        raise WeightsError(f"image_size = {size} is not a multiple of its patch size, {patch}")
    grids = ((rows, rows), (size // patch,) * 2) if rows is not None else None

    embedding(keys, f"{prefix}patch_embed.proj.weight", f"{to}patch_embed.proj.weight", request.in_channels)
    keys.move(f"{prefix}patch_embed.proj.bias", f"{to}patch_embed.proj.bias")
    if cls:
        keys.move(f"{prefix}cls_token", f"{to}cls_token")
    if positions != "none":
        absolute(keys, f"{prefix}pos_embed", f"{to}pos_embed", grids)
    scale = f"{prefix}blocks.0.gamma_1" in keys or f"{prefix}blocks.0.ls1.gamma" in keys
    for n in range(depth):
        transformer_block(keys, f"{prefix}blocks.{n}.", f"{to}blocks.{n}.")
        if relative == "per_block":
            table_to(keys, f"{prefix}blocks.{n}.attn.{TABLE}", f"{to}relative.{n}.table", grids, request)
    if relative == "shared":
        table_to(keys, shared, f"{to}relative.table", grids, request)
        if copy_shared:
            relative = "per_block"
            tensor = keys.ours.pop(f"{to}relative.table")
            keys.reshaped.pop(f"{to}relative.table", None)
            for n in range(depth):
                keys.ours[f"{to}relative.{n}.table"] = tensor.clone()
                keys.reshaped[f"{to}relative.{n}.table"] = "the shared relative table, copied to each block"
    if final_norm:
        keys.move_all(f"{prefix}norm.", f"{to}norm.")
    else:
        keys.drop(
            re.escape(prefix) + r"norm\..*", "final norm: downstream networks normalise the pooled vector instead"
        )
    mask_key = f"{prefix}mask_token"
    if mask_token and mask_key in keys:
        keys.move(mask_key, f"{to}mask_token")
    elif mask_token:
        keys.start[f"{to}mask_token"] = torch.zeros(1, 1, width)
    keys.drop(INDEX, "index buffers: computed, not stored, here")
    config = ViTConfig(
        image_size=size,
        patch_size=patch,
        in_channels=request.in_channels or channels,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=keys.ours[f"{to}blocks.0.mlp.fc1.weight"].shape[0] / width,
        positions=positions,
        relative=relative,
        qkv_bias=f"{to}blocks.0.attn.qkv.bias" in keys.ours,
        layer_scale=(0.1 if beit else 1.0) if scale else None,
        eps=request.hints.eps or 1e-6,
        cls=cls,
        final_norm=final_norm,
        pool=pool,
        mask_token=mask_token,
        init="beit" if beit else "mae",
    )
    return {"name": "vit", "config": asdict(config)}


def transformer_block(keys: Keys, source: str, to: str) -> None:
    """Move one block; BEiT's ``q_bias`` and ``v_bias`` become one qkv bias whose key part is zero."""
    keys.move_all(source, to, BLOCK_PARTS)
    keys.move(f"{source}attn.qkv.weight", f"{to}attn.qkv.weight")
    if f"{source}attn.q_bias" in keys and f"{source}attn.v_bias" in keys:
        value = keys.left.pop(f"{source}attn.v_bias")
        keys.move(
            f"{source}attn.q_bias",
            f"{to}attn.qkv.bias",
            lambda query: torch.cat([query, torch.zeros_like(query), value]),
            "q_bias and v_bias, joined with a zero key bias",
        )
    elif f"{source}attn.qkv.bias" in keys:
        keys.move(f"{source}attn.qkv.bias", f"{to}attn.qkv.bias")
    for number in (1, 2):
        for name in (f"{source}gamma_{number}", f"{source}ls{number}.gamma"):
            if name in keys:
                keys.move(name, f"{to}ls{number}.gamma")


def embedding(keys: Keys, name: str, to: str, channels: int | None) -> None:
    """Move the first convolution, for 1 or 3 input channels.

    RGB filters are summed for one channel: on a grey image that is what they compute when it is repeated three times.
    One-channel filters are repeated, a third each.
    """
    have = keys.shape(name)[1]
    if channels in (None, have):
        keys.move(name, to)
    elif (have, channels) == (3, 1):
        keys.move(name, to, lambda w: w.sum(1, keepdim=True), "RGB filters summed for one channel")
    elif (have, channels) == (1, 3):
        keys.move(name, to, lambda w: w.repeat(1, 3, 1, 1) / 3, "one-channel filters spread over RGB")
    else:
        raise WeightsError(f"{channels} input channels asked of filters for {have}", remedy="use 1 or 3")


def absolute(keys: Keys, name: str, to: str, grids: tuple[tuple[int, int], tuple[int, int]] | None) -> None:
    """Move absolute positions ``[1, extra + N, D]``, interpolated to another grid."""
    if grids is None or grids[0] == grids[1]:
        keys.move(name, to)
    else:
        source, target = grids
        reason = f"positions resized from {source[0]} x {source[1]} to {target[0]} x {target[1]} (bicubic)"
        keys.move(name, to, lambda table: resize_absolute(table, source, target), reason)


def table_to(
    keys: Keys, name: str, to: str, grids: tuple[tuple[int, int], tuple[int, int]] | None, request: Request
) -> None:
    """Move a relative table, interpolated to another grid."""
    if grids is None or grids[0] == grids[1]:
        keys.move(name, to)
        return
    source, target = grids

    def resize(table: Tensor) -> Tensor:
        return resize_relative(table, source, target, as_published=request.as_published)

    how = "transposed, as published" if request.as_published else "geometric cubic spline"
    keys.move(name, to, resize, f"relative table resized from {source[0]} to {target[0]} a side ({how})")


def square(count: int, name: str) -> int:
    """The side of a square grid of `count`.

    Raises:
        WeightsError: it is not a square.
    """
    side = math.isqrt(count) if count > 0 else 0
    if side * side != count or not side:
        raise WeightsError(f"{name} has {count} rows, not a square grid's")
    return side
