"""What each family of parity fixtures computes, through the library's ordinary parts.

One small function a family. Sizes, seeds, classes and inputs come from the fixture alone, so that a fixture never seen
before works too; weights go through `vesalius.published.load.load`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from vesalius.data.blur import Blur
from vesalius.nn.losses import soft_dice
from vesalius.nn.mae import patchify
from vesalius.nn.masking import Rings, band_stopped, block_mask, mean_padded, random_keep
from vesalius.nn.optim import parameter_groups, warmup_cosine
from vesalius.nn.positions import CLS_ROWS, resize_absolute, resize_relative, sincos_2d
from vesalius.nn.segvit import ATMLoss, atm_scores
from vesalius.pretrain.deblurring import reconstruction_loss
from vesalius.pretrain.usfm import spatial_loss
from vesalius.published.fixture import Fixture
from vesalius.published.keys import Hints
from vesalius.published.load import load
from vesalius.tasks.metrics import batch_overlap, deblurring_scores, foreground_scores

Outputs = Mapping[str, Any]
Adapter = Callable[[Fixture, Path], Outputs]
"""A fixture and the rebuilt checkpoint file -> the fixture's outputs by name."""


# --- networks


def usfm_vit(fixture: Fixture, file: Path) -> Outputs:
    """The pre-trained trunk, used downstream."""
    c = fixture.config
    encoder = load("usfm", file, image_size=c.get("img_size"), as_published=True, hints=_hints(c))
    wanted = {name: int(name.split("_")[1]) for name in fixture.outputs if name.startswith("tokens_")}
    last = c["depth"] - 1
    out = encoder(_image(fixture), layers=(*wanted.values(), last))
    bias = encoder.relative[0](out.grid)[0]
    tokens = {name: out.layers[block] for name, block in wanted.items()}
    return {"features": out.pooled, "tokens": out.layers[last], "attention_bias": bias, **tokens}


def usfm_classifier(fixture: Fixture, file: Path) -> Outputs:
    """The fine-tuned classifier."""
    c = fixture.config
    network = load("usfm", file, part="classification", image_size=c.get("img_size"), hints=_hints(c))
    image = _image(fixture)
    return {"features": network.features(image), "logits": network(image)}


def pyramid(fixture: Fixture, file: Path, *, system: str) -> Outputs:
    """The maps that a segmentation head receives."""
    c = fixture.config
    network = load(system, file, part="pyramid", image_size=c.get("img_size"), hints=_hints(c))
    return {f"level{n}": level for n, level in enumerate(network(_image(fixture)))}


def usfm_segvit(fixture: Fixture, file: Path) -> Outputs:
    """Backbone and attention-to-mask head."""
    backbone, head = fixture.config["backbone"], fixture.config["head"]
    hints = _hints(backbone, decoder_heads=head["num_heads"])
    network = load("usfm", file, part="segmentation", image_size=backbone.get("img_size"), hints=hints)
    *auxiliary, last = network(_image(fixture))
    outputs = {"pred_logits": last[0], "pred_masks": last[1], "pred": atm_scores(last)}
    for n, (logits, masks) in enumerate(auxiliary):
        outputs |= {f"aux{n}_logits": logits, f"aux{n}_masks": masks}
    return outputs


def usfm_simmim(fixture: Fixture, file: Path) -> Outputs:
    """Pre-training: mask token in place, and USFM's mean-padded pixels through the same network."""
    c = fixture.config
    network = load("usfm", file, part="pretrain", image_size=c.get("img_size"), hints=_hints(c))
    image, mask = _image(fixture), _tensor(fixture, "mask").bool()
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


def deblurring_mae(fixture: Fixture, file: Path) -> Outputs:
    """Pre-training (either encoder) with a given mask, every variant of the loss, and the fine-tuning features."""
    c = fixture.config
    sides = c["img_size"]
    size = sides[0] if isinstance(sides, list) else sides
    hints = _hints(c, decoder_heads=c["decoder_num_heads"])
    network = load("deblurring", file, part="pretrain", image_size=size, hints=hints)
    blurred, original = _tensor(fixture, "blurred"), _tensor(fixture, "original")
    keep, removed, restore = random_keep(_tensor(fixture, "noise"), c["mask_ratio"])
    encoded = network.encoder(blurred, keep=keep)
    prediction = network.decoder(encoded.patches, encoded.cls, restore, encoded.grid)
    latent = encoded.patches
    if encoded.cls is not None:
        latent = torch.cat([encoded.cls.unsqueeze(1), latent], dim=1)
    sharp, own = (patchify(image, network.encoder.patch_size) for image in (original, blurred))
    loss = partial(reconstruction_loss, prediction)
    backbone = load("deblurring", file, image_size=size, hints=hints)
    return {
        "mask": removed,
        "ids_restore": restore,
        "latent": latent,
        "prediction": prediction,
        "loss": loss(sharp, removed),
        "loss_vanilla": loss(own, removed, loss_on="removed"),
        "loss_all": loss(sharp, removed),
        "loss_masked": loss(sharp, removed, loss_on="removed"),
        "loss_all_normpix": loss(sharp, removed, norm_pix=True),
        "loss_masked_normpix": loss(sharp, removed, loss_on="removed", norm_pix=True),
        "features": backbone(blurred).pooled,
    }


def deblurring_unetpp(fixture: Fixture, file: Path) -> Outputs:
    """The published segmentation network."""
    c = fixture.config["encoder"]
    size = c["img_size"][0] if isinstance(c["img_size"], list) else c["img_size"]
    network = load("deblurring", file, part="segmentation", image_size=size, hints=_hints(c))
    maps = network.maps(_image(fixture))
    logits = network.head(maps)
    levels = {f"level{n}": level for n, level in enumerate(maps)}
    many = "softmax" in fixture.config["activation"]
    return {**levels, "logits": logits, "probability": logits.softmax(1) if many else logits.sigmoid()}


def plain_vit(fixture: Fixture, file: Path) -> Outputs:
    """Timm's classifier on the class token."""
    c = fixture.config
    network = load("vit", file, part="classification", image_size=c.get("img_size"), hints=_hints(c))
    wanted = {name: int(name.split("_")[1]) for name in fixture.outputs if name.startswith("patches_")}
    out = network.encoder(_image(fixture), layers=tuple(wanted.values()))
    return {
        "tokens": torch.cat([out.cls.unsqueeze(1), out.patches], dim=1),
        "logits": network.head(out.pooled),
        **{name: out.layers[block][:, 1:] for name, block in wanted.items()},
    }


# --- parts without weights


def usfm_loss(fixture: Fixture, file: Path) -> Outputs:
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
    stages = [(_tensor(fixture, f"{name}_logits"), _tensor(fixture, f"{name}_masks")) for name in names]
    terms = dict(loss(stages, _tensor(fixture, "labels")))
    return {**terms, "total": terms["loss"].double() * c["loss_weight"]}


def usfm_spatial_mask(fixture: Fixture, file: Path) -> Outputs:
    """Mean padding of a given mask, and how many blocks a draw of ours masks."""
    c = fixture.config
    block = c["mask_patch_size"] // c["model_patch_size"]
    tokens = c["input_size"] // c["model_patch_size"]
    drawn = block_mask(
        1, (tokens, tokens), block=block, ratio=c["mask_ratio"], generator=torch.Generator().manual_seed(0)
    )
    image = _image(fixture).unsqueeze(0)
    masked = image  # the published code accepts other colours and does nothing with them
    if c["mask_color"] == "mean":
        masked = mean_padded(image, _tensor(fixture, "mask").bool().unsqueeze(0))
    return {
        "masked": masked[0],
        "count_blocks": drawn.sum() // block**2,
        "mask_fraction": drawn.double().mean(),
    }


def usfm_frequency_mask(fixture: Fixture, file: Path) -> Outputs:
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
        "filtered": band_stopped(_image(fixture).unsqueeze(0), factor, magnitude=True)[0],
    }


def usfm_relative_resize(fixture: Fixture, file: Path) -> Outputs:
    """The relative table at another grid, upright and as published."""
    source, target = fixture.config["src_grid"], fixture.config["dst_grid"]
    table = _tensor(fixture, "table")
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


def usfm_layer_decay(fixture: Fixture, file: Path) -> Outputs:
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


def usfm_scores(fixture: Fixture, file: Path) -> Outputs:
    """Foreground scores image by image."""
    pairs = zip(fixture.inputs["prediction"], fixture.inputs["truth"], strict=True)
    scores = [foreground_scores(p, t, smooth=fixture.config["smooth"]) for p, t in pairs]
    names = ("iou", "accuracy", "sensitivity", "specificity")
    return {
        "dice": np.array([s["dice"] for s in scores]),
        "iou_acc_se_sp": np.array([[s[name] for name in names] for s in scores]),
    }


def deblurring_blur(fixture: Fixture, file: Path) -> Outputs:
    """Every operator that the fixture asks for, by its name ``method_parameter``."""
    outputs = {}
    for name in fixture.outputs:
        method, value = name.split("_")
        blur = Blur(method, sigma=float(value)) if method == "gaussian" else Blur(method, size=int(value))
        outputs[name] = blur.blur_uint8(fixture.inputs["image"]).astype(np.int16)
    return outputs


def deblurring_dice(fixture: Fixture, file: Path) -> Outputs:
    """Soft Dice loss over the batch, and the scores watched in training."""
    c = fixture.config
    probability, truth = _tensor(fixture, "probability"), _tensor(fixture, "truth")
    scores = batch_overlap(probability.numpy(), truth.numpy(), threshold=c["threshold"])
    return {"loss": soft_dice(probability.double(), truth.double(), eps=c["eps_loss"]), **scores}


def deblurring_metrics(fixture: Fixture, file: Path) -> Outputs:
    """IoU, Dice and HD95 image by image."""
    pairs = zip(fixture.inputs["probability"], fixture.inputs["truth"], strict=True)
    scores = [deblurring_scores(p, t, threshold=fixture.config["threshold"]) for p, t in pairs]
    return {"iou_dice_hd95": np.array([[s[name] for name in ("iou", "dice", "hd95")] for s in scores])}


def mae_positions(fixture: Fixture, file: Path) -> Outputs:
    """Sine-cosine tables, by their names ``dim<D>_grid<G>[_cls]``."""
    outputs = {}
    for name in fixture.outputs:
        parts = name.split("_")
        dim, side = (int(part.lstrip("dimgr")) for part in parts[:2])
        outputs[name] = sincos_2d(dim, side, side, cls="cls" in parts)
    return outputs


def mae_resize(fixture: Fixture, file: Path) -> Outputs:
    """Absolute positions at another grid."""
    source, target = fixture.config["src_grid"], fixture.config["dst_grid"]
    return {"resized": resize_absolute(_tensor(fixture, "pos_embed"), (source, source), (target, target))}


def mae_schedule(fixture: Fixture, file: Path) -> Outputs:
    """Learning rates of groups with their own scale."""
    c = fixture.config
    rate = partial(warmup_cosine, total=c["epochs"], warmup=c["warmup_epochs"], lr=c["lr"], min_lr=c["min_lr"])
    return {"lr": np.array([[rate(epoch) * scale for scale in c["lr_scales"]] for epoch in fixture.inputs["epoch"]])}


FAMILIES: dict[str, Adapter] = {
    "usfm_vit_b": usfm_vit,
    "usfm_cls": usfm_classifier,
    "usfm_pyramid": partial(pyramid, system="usfm"),
    "usfm_segvit": usfm_segvit,
    "usfm_simmim": usfm_simmim,
    "usfm_atm_loss": usfm_loss,
    "usfm_spatial_mask": usfm_spatial_mask,
    "usfm_frequency_mask": usfm_frequency_mask,
    "usfm_relpos_interp": usfm_relative_resize,
    "usfm_layer_decay": usfm_layer_decay,
    "usfm_seg_metrics": usfm_scores,
    "deblur_mae_pyramid": partial(pyramid, system="deblurring"),
    "deblur_mae": deblurring_mae,
    "deblur_convmae": deblurring_mae,
    "deblur_unetpp": deblurring_unetpp,
    "deblur_blur": deblurring_blur,
    "deblur_dice_loss": deblurring_dice,
    "deblur_seg_metrics": deblurring_metrics,
    "mae_sincos_posembed": mae_positions,
    "mae_posembed_interp": mae_resize,
    "mae_lr_schedule": mae_schedule,
    "vit_b16": plain_vit,
}
"""Fixture names without their last ``_a`` or ``_b`` -> adapter."""


class _Named(nn.Module):
    """Parameters under given (dotted) names, for what looks at names alone."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        super().__init__()
        self._named = dict(parameters)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return iter(self._named.items())


def _image(fixture: Fixture) -> Tensor:
    return _tensor(fixture, "image")


def _tensor(fixture: Fixture, name: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(fixture.inputs[name]))


def _hints(config: Mapping[str, Any], *, decoder_heads: int | None = None) -> Hints:
    """What the keys do not tell, from a published constructor's arguments."""
    blocks = config.get("out_indices")
    return Hints(
        heads=config.get("num_heads"),
        decoder_heads=decoder_heads,
        blocks=tuple(blocks) if blocks else None,
        eps=config.get("norm_eps"),
    )
