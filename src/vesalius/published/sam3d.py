"""The files of 3DSAM-adapter (Gong et al. 2024): ``best.pth.tar`` and ``last.pth.tar`` of a data folder.

A file holds three state dicts (``encoder_dict``, ``decoder_dict``, and ``feature_dict``, a list of four prompt encoders
of which the last one is used), the optimisers, and the attention's masks, which are constants. The automatic variant
has no prompt encoders. `published_state` writes the same layout, with all that the authors' code asks for.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import ClipZScore
from vesalius.errors import ConfigError, WeightsError
from vesalius.nn.sam import SamConfig, shift_mask
from vesalius.nn.sam3d import Sam3D, Sam3DShape
from vesalius.published.keys import Keys, Request

LICENCE = "not stated by the authors; it contains weights of Segment Anything (Apache 2.0)"
CITATION = (
    "Gong et al., 3DSAM-adapter: Holistic adaptation of SAM from 2D to 3D for promptable tumor segmentation, Medical "
    "Image Analysis 98:103324, 2024, doi:10.1016/j.media.2024.103324"
)
PARTS = ("segmentation", "automatic")
ENCODER, SAMPLER, DECODER = "encoder_dict.", "feature_dict.3.", "decoder_dict."
INTENSITIES = {
    "kits": ClipZScore(-54, 247, 59.53867, 55.457336),
    "lits": ClipZScore(-48, 163, 60.057533, 40.198017),
    "pancreas": ClipZScore(-39, 204, 68.45214, 63.422806),
    "colon": ClipZScore(-57, 175, 65.175035, 32.651197),
}
"""Of the four sets that the authors trained on: where HU are cut, their mean and deviation."""
CROP = 128
AUTOMATIC_CROP = 256
"""Voxels of the sides, of 1 mm."""
BUILT_FOR = 512
"""Voxels to which either crop is enlarged."""


def contract(part: str, channels: int, *, name: str = "kits") -> VolumeContract:
    """The volumes that the authors' networks read: CT of 1 mm, slices first.

    The file does not say which set it was trained on; unless told otherwise it is taken to be KiTS.

    Args:
        part: one of `PARTS`.
        channels: of the network: one.
        name: of `INTENSITIES`.
    """
    side = AUTOMATIC_CROP if part == "automatic" else CROP
    return VolumeContract(
        ("CT",), spacing=(1.0, 1.0, 1.0), orientation="SPL", intensity=INTENSITIES[name], roi=(side, side, side)
    )


def network(keys: Keys, request: Request) -> dict[str, Any]:
    """Move the keys for one of `PARTS`, and return the architecture.

    Raises:
        WeightsError: another layout, or the variant of the other part.
    """
    keys.drop(r"(encoder|feature|decoder)_opt\..*", "optimiser's state")
    keys.drop(r".*\.attn_mask", "a constant, made from the grid")
    keys.drop(r"feature_dict\.[0-2]\..*", "a prompt encoder that the authors' code never calls")
    keys.drop(r".*\.cross_attn_token_to_image\..*", "an attention that the authors' code never calls")
    keys.drop(r".*\.positional_encoding_gaussian_matrix", "position codes, which the authors' code does not use")
    width, rows = keys.shape(f"{ENCODER}pos_embed")[-1], keys.shape(f"{ENCODER}pos_embed")[1]
    patch, depth = keys.shape(f"{ENCODER}patch_embed.proj.weight")[-1], keys.count(r"encoder_dict\.blocks\.(\d+)\.")
    tables = [keys.shape(f"{ENCODER}blocks.{number}.attn.rel_pos_h") for number in range(depth)]
    windows = [(length + 1) // 2 for length, _ in tables]
    neck, image = keys.shape(f"{ENCODER}neck_3d.0.0.weight")[0], keys.shape(f"{DECODER}cls.0.weight")
    hidden, prompted = image[0], f"{SAMPLER}transformer.layers.0.global_query" in keys
    if prompted == (request.part == "automatic"):
        raise WeightsError("has prompt encoders" if prompted else "has no prompt encoder, which the clicks go to")
    sam = SamConfig(
        image_size=rows * patch,
        patch_size=patch,
        width=width,
        depth=depth,
        heads=request.hints.heads or width // tables[0][1],
        global_blocks=tuple(number for number, side in enumerate(windows) if side == rows),
        window=next((side for side in windows if side != rows), rows),
        neck=neck,
        mlp_ratio=keys.shape(f"{ENCODER}blocks.0.mlp.lin1.weight")[0] / width,
    )
    shape = Sam3DShape(
        sam=sam,
        upsample=BUILT_FOR // (CROP if prompted else AUTOMATIC_CROP),
        slices=keys.shape(f"{ENCODER}slice_embed.weight")[-1],
        window=request.hints.window or Sam3DShape.window,
        layers=keys.shape(f"{ENCODER}depth_embed")[1],
        neck=neck,
        hidden=hidden,
        in_channels=image[1] - 4 * hidden,
        classes=keys.shape(f"{DECODER}cls.3.weight")[0],
        prompted=prompted,
        adapters=any(".adapter." in name for name in keys.left),
    )
    if prompted:
        queries = keys.shape(f"{SAMPLER}transformer.layers.0.global_query")[1]
        layers = keys.count(r"feature_dict\.3\.transformer\.layers\.(\d+)\.")
        inner = keys.shape(f"{SAMPLER}transformer.layers.0.mlp.lin1.weight")[0]
        heads = request.hints.decoder_heads or max(neck // 32, 1)
        sampler = {"queries": queries, "sampler_layers": layers, "sampler_heads": heads, "sampler_hidden": inner}
        shape = replace(shape, **sampler)  # type: ignore[arg-type]  # all of them are int
    for name in [name for name in keys.left if name.startswith((ENCODER, SAMPLER, DECODER))]:
        keys.move(name, own_name(name))
    return {"name": "sam3d", "config": asdict(shape)}


def own_name(name: str) -> str:
    """A tensor's name in `Sam3D`, from that in the file.

    >>> own_name("encoder_dict.blocks.0.adapter.conv.weight"), own_name("decoder_dict.mlahead.head2.0.weight")
    ('encoder.blocks.0.pre_attn.conv.weight', 'decoder.heads.0.0.weight')
    """
    name = name.replace(f"{SAMPLER}transformer.", "sampler.").replace(ENCODER, "encoder.").replace(DECODER, "decoder.")
    name = name.replace(".adapter.", ".pre_attn.")
    return re.sub(r"mlahead\.head(\d)", lambda found: f"heads.{int(found[1]) - 2}", name)


def file_name(name: str) -> str:
    """The inverse of `own_name`."""
    name = re.sub(r"^decoder\.heads\.(\d)", lambda found: f"decoder.mlahead.head{int(found[1]) + 2}", name)
    name = name.replace(".pre_attn.", ".adapter.")
    for own, published in (("encoder.", ENCODER), ("sampler.", f"{SAMPLER}transformer."), ("decoder.", DECODER)):
        if name.startswith(own):
            return published + name.removeprefix(own)
    raise ConfigError(f"{name} is no tensor of 3DSAM-adapter")


def published_state(module: Sam3D, *, crop: tuple[int, int, int] = (CROP,) * 3) -> dict[str, Any]:
    """What the authors' code loads: ``torch.save(published_state(network), "best.pth.tar")``.

    Their masks are made for one crop. What their code stores and never uses (three of the prompt encoders, an attention
    in each layer) is filled with copies of what is used; position codes with zeros.

    Args:
        module: as published: with neither labels nor positions of clicks.
        crop: voxels (d, h, w).

    Raises:
        ConfigError: the authors' code has no such network.
    """
    s = module.config
    if s.labels or s.positions:
        raise ConfigError("clicks with labels or positions", remedy="the authors' code has neither: keep our own file")
    parts: dict[str, dict[str, Tensor]] = {"encoder_dict": {}, "feature_dict.3": {}, "decoder_dict": {}}
    for name, tensor in module.state_dict().items():
        published = file_name(name)
        part = next(part for part in parts if published.startswith(f"{part}."))
        parts[part][published.removeprefix(f"{part}.")] = tensor.detach().cpu().clone()
    grid = tuple(side // step for side, step in zip(crop, s.multiple, strict=True))
    mask = shift_mask((grid[1], grid[2], grid[0]), s.window, s.window // 2)
    parts["encoder_dict"] |= {f"blocks.{number}.attn_mask": mask for number in range(0, s.sam.depth, 2)}
    saved: dict[str, Any] = {"epoch": 0, "best_val_loss": 0.0}
    saved |= {name: parts[name] for name in ("encoder_dict", "decoder_dict")}
    if module.sampler is not None:
        used = parts["feature_dict.3"]
        unused = {n.replace("image_to_token", "token_to_image"): t for n, t in used.items() if "image_to_token" in n}
        codes = {"positional_encoding_gaussian_matrix": torch.zeros(3, s.neck // 2)}
        saved["feature_dict"] = [{**used, **unused, **codes} for _ in range(4)]
    return saved
