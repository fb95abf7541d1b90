"""Segment Anything's files (Kirillov 2023): the authors', transformers' and timm's layouts of the same weights.

The authors' file is a bare state dict, whose names are also this library's; files derived from it (MedSAM and others)
mostly keep them. transformers renames nearly everything, timm keeps the image encoder alone.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vesalius.data.contract import InputContract
from vesalius.errors import WeightsError
from vesalius.nn.sam import SAM_PRESETS, SamConfig, SamDecoderConfig, resize_positions
from vesalius.nn.sam_decoder import Sam
from vesalius.published.keys import Keys, Request

LICENCE = "Apache-2.0"
CITATION = "Kirillov et al., Segment anything, ICCV 2023, doi:10.1109/ICCV51070.2023.00371"
PARTS = ("promptable", "encoder")
PUBLISHED = ("sam_vit_b", "sam_vit_l", "sam_vit_h")
ENCODER = "image_encoder."
RELATIVE = r"blocks\.(\d+)\.attn\.rel_pos_[hw]"

TRANSFORMERS = (
    (r"vision_encoder\.", ENCODER),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"neck\.conv1\.", "neck.0."),
    (r"neck\.layer_norm1\.", "neck.1."),
    (r"neck\.conv2\.", "neck.2."),
    (r"neck\.layer_norm2\.", "neck.3."),
    (r"^shared_image_embedding\.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
)
"""transformers' names as patterns, with the authors'; applied in this order."""
HEADS = r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\."
"""What comes before the layers that transformers calls proj_in, layers.0, ... and proj_out."""


def contract(size: int, channels: int) -> InputContract:
    """RGB with ImageNet's statistics; the longer side is resized to `size` and the rest padded."""
    return InputContract(size=size, channels=channels, interpolation="bilinear")


def network(keys: Keys, request: Request, *, preset: str | None = None) -> dict[str, Any]:
    """Move the keys for one of `PARTS`, and return the architecture.

    Args:
        preset: the published size that the file must have.

    Raises:
        WeightsError: another layout or another size, or a grey input is asked for.
    """
    if request.in_channels not in (None, 3):
        raise WeightsError(
            f"{request.in_channels} input channels for a network of RGB", remedy="a grey image is repeated"
        )
    _official(keys)
    if request.part == "encoder":
        keys.drop(r"(prompt_encoder|mask_decoder)\..*", "prompts and mask decoder: not part of the image encoder")
    config = _config(keys, request, whole=request.part == "promptable")
    if preset and (config.width, config.depth) != (SAM_PRESETS[preset].width, SAM_PRESETS[preset].depth):
        raise WeightsError(f"has {config.depth} blocks of {config.width} channels, which is not {preset}")
    to = ENCODER if request.part == "promptable" else ""
    size = request.image_size or config.image_size
    if size % config.patch_size:
        raise WeightsError(f"image_size = {size} is not a multiple of its patch size, {config.patch_size}")
    for name in [name for name in keys.left if name.startswith(ENCODER)]:
        own = name.removeprefix(ENCODER)
        if size == config.image_size or not _depends_on_size(own, config):
            keys.move(name, to + own)
        else:
            how = f"positions for {config.image_size} px, resized to {size} px"
            keys.move(name, to + own, lambda table: resize_table(table, size // config.patch_size), how)
    keys.move_all("", "", ("prompt_encoder.", "mask_decoder."))
    name = "sam" if request.part == "promptable" else "sam_encoder"
    return {"name": name, "config": asdict(replace(config, image_size=size))}


def at_size(sam: Sam, image_size: int) -> Sam:
    """The same network for images of another size: the tables of the whole grid are resized, nothing else.

    Raises:
        ConfigError: not a multiple of the patch size.
    """
    config = replace(sam.config, image_size=image_size)
    state = {
        name: resize_table(tensor, config.grid) if _depends_on_size(name.removeprefix(ENCODER), config) else tensor
        for name, tensor in sam.state_dict().items()
    }
    resized = Sam(config)
    resized.load_state_dict(state)
    return resized.to(sam.pixel_mean.device).eval()


def _official(keys: Keys) -> None:
    """Give the tensors that are left the authors' names."""
    if any(name.startswith("vision_encoder.") for name in keys.left):
        keys.drop(r"prompt_encoder\.shared_embedding\..*", "a second copy of the random projection")
        keys.left = {_from_transformers(name, keys): tensor for name, tensor in keys.left.items()}
    elif "patch_embed.proj.weight" in keys:  # timm's, or an image encoder alone
        keys.left = {ENCODER + name.replace(".mlp.fc", ".mlp.lin"): tensor for name, tensor in keys.left.items()}


def _from_transformers(name: str, keys: Keys) -> str:
    """The authors' name of one of transformers' tensors."""
    if head := re.match(HEADS, name):
        hidden = keys.count(re.escape(head[0]) + r"layers\.(\d+)\.")
        rest = name.removeprefix(head[0])
        if found := re.match(r"layers\.(\d+)\.", rest):
            return f"{head[0]}layers.{int(found[1]) + 1}.{rest.removeprefix(found[0])}"
        return head[0] + rest.replace("proj_in.", "layers.0.").replace("proj_out.", f"layers.{hidden + 1}.")
    for theirs, ours in TRANSFORMERS:
        name = re.sub(theirs, ours, name)
    return name


def _config(keys: Keys, request: Request, *, whole: bool) -> SamConfig:
    """The network's shape, from the shapes of its tensors.

    Which blocks are global cannot be read from tables that were resized to the window's size: of the published widths
    and depths it is known.
    """
    width, channels, patch, _ = keys.shape(f"{ENCODER}patch_embed.proj.weight")
    grid = keys.shape(f"{ENCODER}pos_embed")[1]
    depth = keys.count(re.escape(ENCODER) + r"blocks\.(\d+)\.")
    tables = [keys.shape(f"{ENCODER}blocks.{n}.attn.rel_pos_h") for n in range(depth)]
    published = [c for c in SAM_PRESETS.values() if (c.width, c.depth) == (width, depth)]
    if published:
        blocks, window = published[0].global_blocks, published[0].window
    else:
        blocks = tuple(n for n, (rows, _) in enumerate(tables) if rows == 2 * grid - 1)
        window = (min(rows for rows, _ in tables) + 1) // 2
    return SamConfig(
        image_size=grid * patch,
        patch_size=patch,
        in_channels=channels,
        width=width,
        depth=depth,
        heads=request.hints.heads or width // tables[0][1],
        global_blocks=blocks,
        window=window,
        neck=keys.shape(f"{ENCODER}neck.0.weight")[0],
        mlp_ratio=keys.shape(f"{ENCODER}blocks.0.mlp.lin1.weight")[0] / width,
        decoder=_decoder(keys, request) if whole else SamDecoderConfig(),
    )


def _decoder(keys: Keys, request: Request) -> SamDecoderConfig:
    start = "mask_decoder."
    iou = f"{start}iou_prediction_head.layers."
    # every stage but the last is a convolution, a norm and a GELU
    stages = 1 + keys.count(re.escape(start) + r"output_upscaling\.(\d+)\.") // 3
    return SamDecoderConfig(
        depth=keys.count(re.escape(start) + r"transformer\.layers\.(\d+)\."),
        heads=request.hints.decoder_heads or SamDecoderConfig().heads,
        mlp=keys.shape(f"{start}transformer.layers.0.mlp.lin1.weight")[0],
        mask_tokens=keys.shape(f"{start}mask_tokens.weight")[0],
        stages=stages,
        iou_depth=keys.count(re.escape(iou) + r"(\d+)\."),
        iou_hidden=keys.shape(f"{iou}0.weight")[0],
        mask_channels=keys.shape("prompt_encoder.mask_downscaling.3.weight")[0],
    )


def _depends_on_size(name: str, config: SamConfig) -> bool:
    """A table of the whole grid: the absolute positions, or a global block's relative ones."""
    found = re.fullmatch(RELATIVE, name)
    return name == "pos_embed" or (found is not None and int(found[1]) in config.global_blocks)


def resize_table(table: Tensor, grid: int) -> Tensor:
    """A table of the whole grid on another: bilinear, of relative positions along the offset (MA-SAM's rule)."""
    if table.ndim == 4:
        return resize_positions(table, (grid, grid))
    resized = F.interpolate(table.float().T[None], size=2 * grid - 1, mode="linear")
    return resized[0].T.contiguous().to(table.dtype)
