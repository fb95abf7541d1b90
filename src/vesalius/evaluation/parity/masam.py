"""MA-SAM: the whole network from its two files, its parts, loss, schedule, data and stacked inference."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from vesalius.adapt import masam_augment
from vesalius.adapt.masam import CT, warmup_poly
from vesalius.data.masks import IGNORE
from vesalius.evaluation.parity.common import Adapter, Outputs, tensor
from vesalius.nn.losses import cross_entropy
from vesalius.nn.masam import INCREMENTS, SLICES, FacT, FacTLinear, MaSam, SliceAdapter, StackAdapters
from vesalius.nn.sam import SAM_PRESETS, SamBlock, SamDecoderConfig
from vesalius.nn.sam_decoder import SamMaskDecoder
from vesalius.published.checkpoint import safe_torch_load
from vesalius.published.fixture import Fixture
from vesalius.published.masam import load_masam, our_name
from vesalius.published.sam import resize_table
from vesalius.tasks.stacks import average_stacks, squared_dice, stack_loss, stretch

OPERATIONS = {operation.__name__: operation for operation in masam_augment.OPERATIONS}


def _files(file: Path) -> tuple[Path, Path]:
    """The fixture's one file as the two that are published: what was trained, and SAM."""
    state = safe_torch_load(file)
    paths = file.with_name("adapt.pth"), file.with_name("sam.pth")
    for path in paths:
        torch.save(_part(state, path.stem), path)
    return paths


def _part(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}/"): value for name, value in state.items() if name.startswith(f"{part}/")}


def network(fixture: Fixture, file: Path) -> Outputs:
    """The masks of a batch of stacks, from the two files at the published shapes."""
    net, volume = _loaded(fixture, file), tensor(fixture, "volume")
    features = net.encode(volume)
    masks, iou = net.decode(features, (volume.shape[-2], volume.shape[-1]))
    return {"image_embeddings": features, "masks": masks, "iou_predictions": iou}


def prompted(fixture: Fixture, file: Path) -> Outputs:
    """The same with a box a slice, and with x and y of the boxes exchanged."""
    net, volume = _loaded(fixture, file), tensor(fixture, "volume")
    features, boxes = net.encode(volume), tensor(fixture, "boxes").flatten(0, 1)
    size = volume.shape[-2], volume.shape[-1]
    masks, iou = net.decode(features, size, boxes=boxes)
    swapped, _ = net.decode(features, size, boxes=boxes[:, [1, 0, 3, 2]])
    return {"masks": masks, "iou_predictions": iou, "masks_xy_swapped": swapped}


def _loaded(fixture: Fixture, file: Path) -> MaSam:
    c = fixture.config
    return load_masam(*_files(file), image_size=c["img_size"], scale=c["scale"])


def block(fixture: Fixture, file: Path) -> Outputs:
    """A window block and a global block with their adapters, and the increments of one qkv."""
    c, state, x = fixture.config, safe_torch_load(file), tensor(fixture, "x")
    adapters = StackAdapters(width=c["adapter_channels"], rank=c["rank"], scale=c["scale"])
    shared = FacT(c["dim"], adapters).eval()
    values = {our_name(name): value for name, value in _part(state, "adapt").items()}
    shared.load_state_dict({name: values[f"fact.{name}"] for name in ("u.weight", "v.weight")})
    values |= {
        name: resize_table(value, c["img_size"] // 16) if name.startswith("image_encoder.blocks.2.attn.rel") else value
        for name, value in _part(state, "sam").items()
    }
    blocks = []
    for number, window in ((0, 14), (2, 0)):
        part = SamBlock(c["dim"], c["num_heads"], window=window, side=window or c["img_size"] // 16)
        part.pre_attn, part.post_attn = (SliceAdapter(c["dim"], adapters.width) for _ in range(2))
        part.attn.qkv = FacTLinear(cast(nn.Linear, part.attn.qkv), shared)
        start = f"image_encoder.blocks.{number}."
        part.load_state_dict({n.removeprefix(start): v for n, v in values.items() if n and n.startswith(start)})
        for adapter in (part.pre_attn, part.post_attn):
            adapter.slices = c["slices"]
        blocks.append(part.eval())
    qkv = cast(FacTLinear, blocks[0].attn.qkv)
    return {
        "block0_window14": blocks[0](x),
        "block2_global": blocks[1](x),
        "fact_qkv0": qkv(x),
        "plain_qkv0": nn.functional.linear(x, qkv.weight, qkv.bias),
    }


def mask_decoder(fixture: Fixture, file: Path) -> Outputs:
    """The decoder of one token a class, at full resolution, without prompts."""
    state = _part(safe_torch_load(file), "adapt")
    shape = SamDecoderConfig(mask_tokens=fixture.config["num_classes"] + 1, stages=4)
    decoder = SamMaskDecoder(fixture.config["transformer_dim"], shape).eval()
    start = "mask_decoder."
    decoder.load_state_dict({n.removeprefix(start): v for n, v in state.items() if n.startswith(start)})
    dense = state["prompt_encoder.no_mask_embed.weight"].reshape(1, -1, 1, 1)
    features = tensor(fixture, "image_embeddings")
    masks, iou = decoder(features, tensor(fixture, "image_pe"), dense.new_zeros(1, 0, dense.shape[1]), dense)
    return {"masks": masks, "iou": iou}


def resize(fixture: Fixture, file: Path) -> Outputs:
    """SAM's tables at another size."""
    state, grid = _part(safe_torch_load(file), "sam"), fixture.config["img_size"] // 16
    return {
        "pos_embed": resize_table(state["image_encoder.pos_embed"], grid),
        "rel_pos_h_global2": resize_table(state["image_encoder.blocks.2.attn.rel_pos_h"], grid),
        "rel_pos_h_window0": state["image_encoder.blocks.0.attn.rel_pos_h"],
    }


def sizes(fixture: Fixture, file: Path) -> Outputs:
    """How many numbers the published network has, and of which kind; those that train are those of the file's keys."""
    c = fixture.config
    shape = SAM_PRESETS[f"sam_{c['vit_name']}"]
    with torch.device("meta"):
        net = MaSam(
            replace(shape, image_size=c["img_size"]),
            c["num_classes"],
            StackAdapters(width=c["adapter_channels"], rank=c["rank"], scale=c["scale"]),
        )
    every = {name: value.numel() for name, value in net.named_parameters()}
    state, published = net.adapted_state(), {our_name(key): shape for key, (shape, _) in fixture.keys.items()}
    known = [name for name, value in state.items() if published.get(name) == list(value.shape)]

    def marked(marks: tuple[str, ...]) -> int:
        return sum(size for name, size in every.items() if any(mark in f".{name}" for mark in marks))

    return {
        "total": sum(every.values()),
        "adapter": marked(SLICES),
        "fact": marked(INCREMENTS),
        "mask_decoder": sum(size for name, size in every.items() if name.startswith("mask_decoder.")),
        "trainable": sum(every.get(name, 0) for name in known),
    }


def loss(fixture: Fixture, file: Path) -> Outputs:
    """The weighted sum and its terms."""
    c, logits, label = fixture.config, tensor(fixture, "logits"), tensor(fixture, "label")
    mask = torch.where(label == c["ignore"], IGNORE, label)
    return {
        "loss": stack_loss(logits, mask, dice=c["dice_weight"]),
        "ce": cross_entropy(logits, mask),
        "dice": squared_dice(logits, mask),
    }


def schedule(fixture: Fixture, file: Path) -> Outputs:
    """The learning rate of some steps."""
    c = fixture.config
    total = c["max_epochs"] * c["iterations_per_epoch"]
    options = {"total": total, "warmup": c["warmup"], "lr": c["base_lr"], "horizon": 1.0, "exponent": c["exponent"]}
    return {"lr": np.array([warmup_poly(int(step), **options) for step in fixture.inputs["iteration"]])}


def data(fixture: Fixture, file: Path) -> Outputs:
    """A stack's intensities and classes, and every augmentation at one strength."""
    raw, label = (np.moveaxis(fixture.inputs[name], -1, 0) for name in ("raw_hu", "raw_label"))
    volume = torch.from_numpy(np.ascontiguousarray(raw))[None]
    unit = stretch(CT(volume, torch.tensor([CT.fit(raw)])))[0]
    outputs = {"image": _last(unit.numpy()), "label": _last(np.where(label == 13, 12, label))}
    image, mask = (np.moveaxis(fixture.inputs[name], -1, 0) for name in ("image01", "label"))
    image, mask = np.ascontiguousarray(image), np.ascontiguousarray(mask, np.uint8)
    text = fixture.meta["call"]
    for name, strength in re.findall(r"(\w+) (-?[\d.]*\d)", text.split(" with v = ")[1]):
        if name in OPERATIONS:
            moved, marks = OPERATIONS[name](image, mask, float(strength))
            outputs[f"aug_{name}"], outputs[f"auglabel_{name}"] = _last(moved), _last(marks)
    light, noise = (int(seed) for seed in re.findall(r"(?:random\.seed|default_rng)\((\d+)\)", text))
    outputs["aug_adjust_light"] = _last(masam_augment.gamma(image, 3 * random.Random(light).random() + 0.5))
    erased, marks = masam_augment.erase(image, mask, np.random.default_rng(noise))
    return {**outputs, "aug_erase": _last(erased), "auglabel_erase": _last(marks)}


def _last(array: np.ndarray) -> np.ndarray:
    """Slices last, as the authors' files hold them."""
    return np.moveaxis(array, 0, -1).astype(np.float32)


def slices(fixture: Fixture, file: Path) -> Outputs:
    """Averages over overlapping stacks with the fixture's stand-in for a network, and Dice of every class."""
    c, stacks = fixture.config, tensor(fixture, "stacks")[0]
    middle = c["slices"] // 2

    def scores(places: Tensor) -> Tensor:
        centre = next(n for n in range(len(stacks)) if torch.equal(places, _stack(n, len(stacks))))
        z = stacks[centre].movedim(-1, 0)
        k = torch.arange(c["slices"]).reshape(-1, 1, 1)
        classes = (0.9 + 0 * z, 2 * z - 0.1 * k, 2 * (1 - z) - 0.2 * (k - 2).abs(), 1.5 * torch.sin(17 * z))
        return torch.stack(classes, dim=1).softmax(1)

    def _stack(centre: int, depth: int) -> Tensor:
        return torch.arange(centre - middle, centre + middle + 1).clamp(0, depth - 1)

    found = dict(average_stacks(scores, len(stacks), slices=c["slices"]))
    labels = torch.stack([found[n].argmax(0) for n in range(len(stacks))])
    truth = tensor(fixture, "labels")[0, ..., middle]
    return {"prediction": labels, "dice": [_dice(labels == k, truth == k) for k in range(1, c["classes"] + 1)]}


def _dice(guess: Tensor, truth: Tensor) -> float:
    """1 where both are empty, as the published evaluation counts it."""
    areas = int(guess.sum() + truth.sum())
    return 2 * int((guess & truth).sum()) / areas if areas else 1.0


FAMILIES: dict[str, Adapter] = {
    "ma_sam_vit_b": network,
    "ma_sam_bbox": prompted,
    "ma_sam_block": block,
    "ma_sam_mask_decoder": mask_decoder,
    "ma_sam_resize": resize,
    "ma_sam_vit_h_keys": sizes,
    "ma_sam_loss": loss,
    "ma_sam_lr": schedule,
    "ma_sam_data": data,
    "ma_sam_slices": slices,
}
