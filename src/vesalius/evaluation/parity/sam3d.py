"""3DSAM-adapter: the whole network, its parts, what trains, the loss, and the crop around clicks.

The authors give clicks as (d, w, h), this library as (d, h, w). ``3dsam_adapter_full`` is the published size: 8 GB and
some minutes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vesalius.adapt.sam3d import freeze
from vesalius.evaluation.parity.common import Adapter, Outputs, image_of, tensor
from vesalius.nn.sam import SamBlock, SamConfig, SamViT, shift_mask
from vesalius.nn.sam3d import ConvAdapter, Sam3D, Sam3DShape
from vesalius.nn.sam3d_heads import MLADecoder, VisualSampler
from vesalius.published.checkpoint import read_state, safe_torch_load
from vesalius.published.fixture import Fixture
from vesalius.published.keys import Hints
from vesalius.published.load import load
from vesalius.published.sam3d import own_name
from vesalius.tasks.prompted_volumes import click_loss, crop_corner, foreground_dice

DWH = [0, 2, 1]
"""Where the authors' coordinates are among ours, and the other way round."""


def network(fixture: Fixture, file: Path) -> Outputs:
    """Maps of four depths, the last one with the click in it, what the click does to it, and the scores."""
    c = fixture.config
    nested: dict[str, Any] = {"feature_dict": [{} for _ in range(4)]}
    for name, values in safe_torch_load(file).items():
        part, rest = name.split(".", 1)
        if part == "feature_dict":
            number, rest = rest.split(".", 1)
            nested[part][int(number)][rest] = values
        else:
            nested.setdefault(part, {})[rest] = values
    published = file.with_name("best.pth.tar")  # as the authors' file has it
    torch.save({**nested, "epoch": 1, "best_val_loss": 0.5}, published)
    hints = Hints(heads=c["num_heads"], decoder_heads=c["prompt_heads"], window=c["cubic_window_size"])
    module = cast(Sam3D, load("sam3d", published, hints=hints))
    crop, points = tensor(fixture, "crop"), tensor(fixture, "points")[..., DWH]
    size = crop.shape[2:]
    maps = module.encoder(crop)

    def prompted(clicks: Tensor) -> Tensor:
        assert module.sampler is not None
        return module.sampler(maps[-1], clicks, torch.ones(clicks.shape[:2], dtype=torch.long), size=size)

    taken = prompted(points)
    every = c["depth"] // len(maps)
    return {
        **{f"feature{every * (number + 1)}": level for number, level in enumerate(maps)},
        "prompted": taken,
        "prompt_delta": taken - prompted(torch.tensor(size) - 1 - points),
        "mask_logits": module.decode(maps, crop, points),
    }


def block(fixture: Fixture, file: Path) -> Outputs:
    """A block with its adapter, shifted or not."""
    c = fixture.config
    module = SamBlock(
        c["dim"],
        c["num_heads"],
        window=c["window_size"],
        side=(c["rel_pos_rows"] + 1) // 2,
        shift=c["shift"],
        axes=3,
    )
    module.pre_attn = ConvAdapter(c["dim"])
    names = {name: re.sub(r"blocks\.\d+\.", "", name).replace("adapter.", "pre_attn.") for name in read_state(file)}
    return {"y": _filled(module, file, names)(tensor(fixture, "x"))}


def adapter(fixture: Fixture, file: Path) -> Outputs:
    """The convolutional adapter alone."""
    module = ConvAdapter(fixture.config["input_dim"], fixture.config["mid_dim"])
    return {
        "y": _filled(module, file, {name: name.removeprefix("adapter.") for name in read_state(file)})(
            tensor(fixture, "x")
        )
    }


def prompt(fixture: Fixture, file: Path) -> Outputs:
    """The sampler of clicks alone."""
    c = fixture.config
    module = VisualSampler(c["embedding_dim"], heads=c["num_heads"], hidden=c["mlp_dim"], layers=c["depth"], queries=10)
    names = {name: own_name(name).removeprefix("sampler.") for name in read_state(file)}
    _filled(module, file, {name: own for name, own in names.items() if own in module.state_dict()})
    features, points = tensor(fixture, "features"), fixture.inputs["points"]
    height, width, depth = c["img_size"]

    def taken(clicks: np.ndarray) -> Tensor:
        there = torch.ones(clicks.shape[:2], dtype=torch.long)
        return module(features, torch.from_numpy(clicks[..., DWH].copy()), there, size=(depth, height, width))

    y = taken(points)
    return {"y": y, "prompt_delta": y - taken(np.roll(points, 1, -1))}


def decoder(fixture: Fixture, file: Path) -> Outputs:
    """The decoder alone; its image has the size of the middle, to which ours reduces it."""
    c = fixture.config
    module = MLADecoder(c["mla_channels"], c["mlahead_channels"], classes=c["num_classes"])
    names = {name: own_name(name).removeprefix("decoder.") for name in read_state(file)}
    _filled(module, file, names)
    maps, image = [tensor(fixture, f"feature{number}") for number in range(4)], image_of(fixture)
    return {"y": module(maps, image, size=[2 * side for side in image.shape[2:]])}


def mask(fixture: Fixture, file: Path) -> Outputs:
    """The constant mask of shifted windows."""
    c = fixture.config
    made = shift_mask(tuple(c["grid"]), c["window"], c["shift"])
    values, counts = made.unique(return_counts=True)
    return {
        "mask": made,
        "values": values,
        "counts": counts,
        "blocked_per_window": (made != 0).sum((1, 2)).float(),
    }


def init(fixture: Fixture, file: Path) -> Outputs:
    """What trains of a fresh network on a SAM, by number, and its third table."""
    c = fixture.config
    sam = SamViT(
        SamConfig(
            image_size=c["img_size"],
            patch_size=c["patch_size"],
            width=c["embed_dim"],
            depth=c["depth"],
            heads=c["num_heads"],
            global_blocks=tuple(c["global_attn_indexes"]),
            window=c["window_size"],
            neck=c["out_chans"],
            mlp_ratio=c["mlp_ratio"],
        )
    )
    prefix = "image_encoder."
    sam.load_state_dict(
        {n.removeprefix(prefix): t for n, t in read_state(file).items() if n.startswith(prefix)}, strict=False
    )
    shape = Sam3DShape(
        upsample=c["upsampled"] // c["crop"],
        slices=c["num_slice"],
        window=c["cubic_window_size"],
        layers=c["patch_depth"],
        neck=c["out_chans"],
        sampler_heads=c["prompt_heads"],
        sampler_hidden=c["prompt_mlp_dim"],
        hidden=c["mlahead_channels"],
        classes=c["num_classes"],
    )
    module = Sam3D.on(sam, shape)
    freeze(module)
    assert module.sampler is not None
    trains = {name.replace("pre_attn", "adapter") for name, p in module.encoder.named_parameters() if p.requires_grad}
    if trains != set(fixture.meta["trainable"]):
        return {name: np.array(np.nan) for name in fixture.outputs}
    # The authors count an attention of each layer of the sampler that they never call, and their constant gain.
    unused = sum(
        _count(cast(nn.Module, layer.cross_attn_image_to_token), trains=True) for layer in module.sampler.layers
    )
    tables = {
        f"block{number}.rel_pos_d": block.attn.get_parameter("rel_pos_d")
        for number, block in enumerate(cast("list[SamBlock]", module.encoder.blocks))
    }
    return {
        "trainable_count": np.array(_count(module.encoder, trains=True)),
        "frozen_count": np.array(_count(module.encoder, trains=False) + c["depth"]),
        "prompt_encoder_count": np.array(_count(module.sampler, trains=True) + unused),
        "decoder_count": np.array(_count(module.decoder, trains=True)),
        **tables,
    }


def loss(fixture: Fixture, file: Path) -> Outputs:
    """The loss, and the Dice of validation and test."""
    logits, label = tensor(fixture, "logits"), tensor(fixture, "label")[:, 0].long()
    hard = (logits.softmax(1)[:, 1] > 0.5).float()
    shape = (1,) * 5
    return {
        "loss": click_loss(logits, label),
        "val_dice_loss": foreground_dice(logits.softmax(1)[:, 1], label).reshape(shape),
        "test_dice": 1 - foreground_dice(hard, label).reshape(shape),
    }


def crop(fixture: Fixture, file: Path) -> Outputs:
    """The crop around some clicks: where it begins and ends, what is added to the volume, the clicks in it."""
    side, outputs = fixture.config["patch"], {}
    for name in fixture.inputs:
        if not name.startswith("shape"):
            continue
        case = name.removeprefix("shape")
        size, clicks = fixture.inputs[name], torch.from_numpy(fixture.inputs[f"clicks{case}"][:, DWH])
        corner = np.array(crop_corner(clicks, (side,) * 3))
        end = corner + side
        outputs[f"box{case}"] = np.stack([corner.clip(0), end], 1).reshape(-1)
        outputs[f"pad{case}"] = np.stack([(-corner).clip(0), (end - size).clip(0)], 1).reshape(-1)
        outputs[f"points{case}"] = (clicks.numpy() - corner)[:, DWH]
    return outputs


def _filled(module: nn.Module, file: Path, names: Mapping[str, str]) -> nn.Module:
    """A part with the tensors of a file, under its own names."""
    state = read_state(file)
    module.load_state_dict({own: state[name] for name, own in names.items()})
    return module.eval()


def _count(module: nn.Module, *, trains: bool) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad == trains)


FAMILIES: dict[str, Adapter] = {
    "3dsam_adapter_full": network,
    "3dsam_adapter_tiny": network,
    "3dsam_adapter_block_shift": block,
    "3dsam_adapter_block_plain": block,
    "3dsam_adapter_adapter": adapter,
    "3dsam_adapter_prompt": prompt,
    "3dsam_adapter_decoder": decoder,
    "3dsam_adapter_attn_mask": mask,
    "3dsam_adapter_init": init,
    "3dsam_adapter_loss": loss,
    "3dsam_adapter_crop": crop,
}
