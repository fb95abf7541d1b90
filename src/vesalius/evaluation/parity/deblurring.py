"""Deblurring MIM and plain MAE: pre-training, U-Net++, blur, losses and scores, positions and schedule."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from vesalius.data.blur import Blur
from vesalius.evaluation.parity.common import Adapter, Outputs, hints_of, image_of, tensor
from vesalius.evaluation.parity.usfm import pyramid
from vesalius.nn.losses import soft_dice
from vesalius.nn.mae import patchify
from vesalius.nn.masking import random_keep
from vesalius.nn.optim import warmup_cosine
from vesalius.nn.positions import resize_absolute, sincos_2d
from vesalius.pretrain.deblurring import reconstruction_loss
from vesalius.published.fixture import Fixture
from vesalius.published.load import load
from vesalius.tasks.metrics import batch_overlap, deblurring_scores


def mae(fixture: Fixture, file: Path) -> Outputs:
    """Pre-training (either encoder) with a given mask, every variant of the loss, and the fine-tuning features."""
    c = fixture.config
    sides = c["img_size"]
    size = sides[0] if isinstance(sides, list) else sides
    hints = hints_of(c, decoder_heads=c["decoder_num_heads"])
    network = load("deblurring", file, part="pretrain", image_size=size, hints=hints)
    blurred, original = tensor(fixture, "blurred"), tensor(fixture, "original")
    keep, removed, restore = random_keep(tensor(fixture, "noise"), c["mask_ratio"])
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


def unetpp(fixture: Fixture, file: Path) -> Outputs:
    """The published segmentation network."""
    c = fixture.config["encoder"]
    size = c["img_size"][0] if isinstance(c["img_size"], list) else c["img_size"]
    network = load("deblurring", file, part="segmentation", image_size=size, hints=hints_of(c))
    maps = network.maps(image_of(fixture))
    logits = network.head(maps)
    levels = {f"level{n}": level for n, level in enumerate(maps)}
    many = "softmax" in fixture.config["activation"]
    return {**levels, "logits": logits, "probability": logits.softmax(1) if many else logits.sigmoid()}


def blur(fixture: Fixture, file: Path) -> Outputs:
    """Every operator that the fixture asks for, by its name ``method_parameter``."""
    outputs = {}
    for name in fixture.outputs:
        method, value = name.split("_")
        blur = Blur(method, sigma=float(value)) if method == "gaussian" else Blur(method, size=int(value))
        outputs[name] = blur.blur_uint8(fixture.inputs["image"]).astype(np.int16)
    return outputs


def dice_loss(fixture: Fixture, file: Path) -> Outputs:
    """Soft Dice loss over the batch, and the scores watched in training."""
    c = fixture.config
    probability, truth = tensor(fixture, "probability"), tensor(fixture, "truth")
    scores = batch_overlap(probability.numpy(), truth.numpy(), threshold=c["threshold"])
    return {"loss": soft_dice(probability.double(), truth.double(), eps=c["eps_loss"]), **scores}


def scores(fixture: Fixture, file: Path) -> Outputs:
    """IoU, Dice and HD95 image by image."""
    pairs = zip(fixture.inputs["probability"], fixture.inputs["truth"], strict=True)
    scores = [deblurring_scores(p, t, threshold=fixture.config["threshold"]) for p, t in pairs]
    return {"iou_dice_hd95": np.array([[s[name] for name in ("iou", "dice", "hd95")] for s in scores])}


def positions(fixture: Fixture, file: Path) -> Outputs:
    """Sine-cosine tables, by their names ``dim<D>_grid<G>[_cls]``."""
    outputs = {}
    for name in fixture.outputs:
        parts = name.split("_")
        dim, side = (int(part.lstrip("dimgr")) for part in parts[:2])
        outputs[name] = sincos_2d(dim, side, side, cls="cls" in parts)
    return outputs


def position_resize(fixture: Fixture, file: Path) -> Outputs:
    """Absolute positions at another grid."""
    source, target = fixture.config["src_grid"], fixture.config["dst_grid"]
    return {"resized": resize_absolute(tensor(fixture, "pos_embed"), (source, source), (target, target))}


def schedule(fixture: Fixture, file: Path) -> Outputs:
    """Learning rates of groups with their own scale."""
    c = fixture.config
    rate = partial(warmup_cosine, total=c["epochs"], warmup=c["warmup_epochs"], lr=c["lr"], min_lr=c["min_lr"])
    return {"lr": np.array([[rate(epoch) * scale for scale in c["lr_scales"]] for epoch in fixture.inputs["epoch"]])}


FAMILIES: dict[str, Adapter] = {
    "deblur_mae_pyramid": partial(pyramid, system="deblurring"),
    "deblur_mae": mae,
    "deblur_convmae": mae,
    "deblur_unetpp": unetpp,
    "deblur_blur": blur,
    "deblur_dice_loss": dice_loss,
    "deblur_seg_metrics": scores,
    "mae_sincos_posembed": positions,
    "mae_posembed_interp": position_resize,
    "mae_lr_schedule": schedule,
}
