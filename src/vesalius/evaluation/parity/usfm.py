"""USFM: the trunk, its classifier and SegViT, SimMIM pre-training, and the parts without weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from vesalius.evaluation.parity.common import Adapter, Outputs, hints_of, image_of, tensor
from vesalius.nn.masking import Rings, band_stopped, block_mask, mean_padded
from vesalius.nn.optim import parameter_groups
from vesalius.nn.positions import CLS_ROWS, resize_relative
from vesalius.nn.segvit import ATMLoss, atm_scores
from vesalius.pretrain.usfm import spatial_loss
from vesalius.published.fixture import Fixture
from vesalius.published.load import load
from vesalius.tasks.metrics import foreground_scores


def vit(fixture: Fixture, file: Path) -> Outputs:
    """The pre-trained trunk, used downstream."""
    c = fixture.config
    encoder = load("usfm", file, image_size=c.get("img_size"), as_published=True, hints=hints_of(c))
    wanted = {name: int(name.split("_")[1]) for name in fixture.outputs if name.startswith("tokens_")}
    last = c["depth"] - 1
    out = encoder(image_of(fixture), layers=(*wanted.values(), last))
    bias = encoder.relative[0](out.grid)[0]
    tokens = {name: out.layers[block] for name, block in wanted.items()}
    return {"features": out.pooled, "tokens": out.layers[last], "attention_bias": bias, **tokens}


def classifier(fixture: Fixture, file: Path) -> Outputs:
    """The fine-tuned classifier."""
    c = fixture.config
    network = load("usfm", file, part="classification", image_size=c.get("img_size"), hints=hints_of(c))
    image = image_of(fixture)
    return {"features": network.features(image), "logits": network(image)}


def pyramid(fixture: Fixture, file: Path, *, system: str) -> Outputs:
    """The maps that a segmentation head receives."""
    c = fixture.config
    network = load(system, file, part="pyramid", image_size=c.get("img_size"), hints=hints_of(c))
    return {f"level{n}": level for n, level in enumerate(network(image_of(fixture)))}


def segvit(fixture: Fixture, file: Path) -> Outputs:
    """Backbone and attention-to-mask head."""
    backbone, head = fixture.config["backbone"], fixture.config["head"]
    hints = hints_of(backbone, decoder_heads=head["num_heads"])
    network = load("usfm", file, part="segmentation", image_size=backbone.get("img_size"), hints=hints)
    *auxiliary, last = network(image_of(fixture))
    outputs = {"pred_logits": last[0], "pred_masks": last[1], "pred": atm_scores(last)}
    for n, (logits, masks) in enumerate(auxiliary):
        outputs |= {f"aux{n}_logits": logits, f"aux{n}_masks": masks}
    return outputs


def simmim(fixture: Fixture, file: Path) -> Outputs:
    """Pre-training: mask token in place, and USFM's mean-padded pixels through the same network."""
    c = fixture.config
    network = load("usfm", file, part="pretrain", image_size=c.get("img_size"), hints=hints_of(c))
    image, mask = image_of(fixture), tensor(fixture, "mask").bool()
    latent = network.encoder(image, replace=mask.flatten(1))
    restored = network(image, replace=mask.flatten(1))
    padded = network(mean_padded(image, mask))
    return {
        "latent": latent.patches.transpose(1, 2).unflatten(2, latent.grid),
        "reconstruction": restored,
        "loss": spatial_loss(restored, image, mask),
        "mean_padded_reconstruction": padded,
        "mean_padded_loss": spatial_loss(padded, image, mask),
    }


def atm_loss(fixture: Fixture, file: Path) -> Outputs:
    """The attention-to-mask loss, ignored pixels as background."""
    c = fixture.config
    loss = ATMLoss(
        ce=c["cls_weight"],
        focal=c["mask_weight"],
        dice=c["dice_weight"],
        no_object=c["eos_coef"],
        as_published=True,
    )
    count = sum(name.startswith("aux") and name.endswith("_logits") for name in fixture.inputs)
    names = [*(f"aux{n}" for n in range(count)), "pred"]
    stages = [(tensor(fixture, f"{name}_logits"), tensor(fixture, f"{name}_masks")) for name in names]
    terms = dict(loss(stages, tensor(fixture, "labels")))
    return {**terms, "total": terms["loss"].double() * c["loss_weight"]}


def spatial_mask(fixture: Fixture, file: Path) -> Outputs:
    """Mean padding of a given mask, and how many blocks a draw of ours masks."""
    c = fixture.config
    block = c["mask_patch_size"] // c["model_patch_size"]
    tokens = c["input_size"] // c["model_patch_size"]
    drawn = block_mask(
        1, (tokens, tokens), block=block, ratio=c["mask_ratio"], generator=torch.Generator().manual_seed(0)
    )
    image = image_of(fixture).unsqueeze(0)
    masked = image  # the published code accepts other colours and does nothing with them
    if c["mask_color"] == "mean":
        masked = mean_padded(image, tensor(fixture, "mask").bool().unsqueeze(0))
    return {
        "masked": masked[0],
        "count_blocks": drawn.sum() // block**2,
        "mask_fraction": drawn.double().mean(),
    }


def frequency_mask(fixture: Fixture, file: Path) -> Outputs:
    """The rings of the published parameters, and an image without the given ones."""
    c = fixture.config
    size = c["image_size"]
    rings = Rings(
        ratio=c["Ratio"],
        base=c["BaseBW"],
        increase=c["IncreaseFactor"],
        max_increase=c["MaxIncrease"],
        protect=c["CenterProtect"],
        reference=size,
        as_published=True,
    ).masks(size)
    factor = rings[c["chosen_rings"]].prod(0, keepdim=True)
    return {
        "rings": rings,
        "ring_zero_count": (rings == 0).sum((1, 2)),
        "combined": factor,
        "filtered": band_stopped(image_of(fixture).unsqueeze(0), factor, magnitude=True)[0],
    }


def relative_resize(fixture: Fixture, file: Path) -> Outputs:
    """The relative table at another grid, upright and as published."""
    source, target = fixture.config["src_grid"], fixture.config["dst_grid"]
    table = tensor(fixture, "table")
    upright = resize_relative(table, (source, source), (target, target))
    published = resize_relative(table, (source, source), (target, target), as_published=True)
    body = upright[:-CLS_ROWS].unflatten(0, (2 * target - 1, 2 * target - 1))
    return {
        "upright": upright,
        "upright_inner": body[1:-1, 1:-1],
        "extra": upright[-CLS_ROWS:],
        "as_published": published,
        "nan_count": published.isnan().sum(),
    }


def layer_decay(fixture: Fixture, file: Path) -> Outputs:
    """Learning rate and weight decay of every parameter, by its published name."""
    c = fixture.config
    layout = timm.models.beit.Beit(
        img_size=32, embed_dim=12, depth=c["depth"], num_heads=1, num_classes=2, init_values=0.1, use_rel_pos_bias=True
    )
    groups = parameter_groups(
        _Named(dict(layout.named_parameters())),
        lr=c["base_lr"],
        weight_decay=c["weight_decay"],
        layer_decay=c["layer_decay"],
        depth=c["depth"],
    )
    rows = {name: group for group in groups for name in group["names"]}
    columns = ("lr", "weight_decay", "lr_scale")
    return {column: np.array([rows[name][column] for name in c["names"]]) for column in columns}


def scores(fixture: Fixture, file: Path) -> Outputs:
    """Foreground scores image by image."""
    pairs = zip(fixture.inputs["prediction"], fixture.inputs["truth"], strict=True)
    scores = [foreground_scores(p, t, smooth=fixture.config["smooth"]) for p, t in pairs]
    names = ("iou", "accuracy", "sensitivity", "specificity")
    return {
        "dice": np.array([s["dice"] for s in scores]),
        "iou_acc_se_sp": np.array([[s[name] for name in names] for s in scores]),
    }


class _Named(nn.Module):
    """Parameters under given (dotted) names, for what looks at names alone."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        super().__init__()
        self._named = dict(parameters)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return iter(self._named.items())


FAMILIES: dict[str, Adapter] = {
    "usfm_vit_b": vit,
    "usfm_cls": classifier,
    "usfm_pyramid": partial(pyramid, system="usfm"),
    "usfm_segvit": segvit,
    "usfm_simmim": simmim,
    "usfm_atm_loss": atm_loss,
    "usfm_spatial_mask": spatial_mask,
    "usfm_frequency_mask": frequency_mask,
    "usfm_relpos_interp": relative_resize,
    "usfm_layer_decay": layer_decay,
    "usfm_seg_metrics": scores,
}
