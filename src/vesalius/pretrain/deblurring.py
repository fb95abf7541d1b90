"""Deblurring MIM: a masked autoencoder whose input is blurred and whose target is sharp.

Ultrasound is noisy, so an image is low-pass filtered first, most of its patches are dropped, and the network restores
the *sharp* image everywhere, in the patches it saw too. Whatever is done with the network later, its images are
blurred the same way: the blur is part of the input contract. A hierarchical encoder (masked convolutions, then a
transformer) keeps features of several scales.

    Q. Kang et al., "Deblurring masked image modeling for ultrasound image analysis", Medical Image Analysis 97, 103256,
    2024. doi:10.1016/j.media.2024.103256 (first at MICCAI 2023, arXiv:2306.08249)

Built on MAE (He 2022, doi:10.1109/CVPR52688.2022.01553) and ConvMAE (Gao 2022). With ``blur=None, loss_on="removed"``
this is the plain masked autoencoder. What differs from the authors' code: the blur is computed while loading, not in
a second copy of the data, and a crop is drawn once from the sample's own generator (theirs seeds torch by the clock's
whole seconds, so that a worker crops all images of a second alike).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from vesalius.data.augment import CropFlip
from vesalius.data.blur import Blur
from vesalius.data.contract import IMAGENET_MEAN, IMAGENET_STD, InputContract
from vesalius.errors import ConfigError
from vesalius.nn.convvit import ConvViT, ConvViTConfig
from vesalius.nn.encoder import Encoder
from vesalius.nn.mae import MAEDecoder, normalised_patches, patchify, unpatchify
from vesalius.nn.masking import random_keep
from vesalius.nn.optim import adamw, warmup_cosine
from vesalius.nn.vit import ViT, ViTConfig

SYSTEM = "deblurring"


@dataclass(frozen=True)
class DeblurringConfig:
    """Hyper-parameters; the defaults are the published ViT-B/16's.

    Args:
        encoder: "vit" (MAE), or "convvit" (ConvMAE: patches of 4, 8 and 16 pixels; `stem_widths`, `stem_depths` and
            `width`, `depth` are its stages' channels and blocks).
        image_size: pixels of the side.
        patch_size: pixels of a token's side.
        in_channels: 1, or 3 (grey repeated).
        width, depth, heads: of the transformer; published: depth 12, and 11 behind the convolutional stages.
        stem_widths, stem_depths: of the two convolutional stages.
        positions: "sincos" (fixed; published) or "learned" (vit alone).
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        blur: the low-pass step at the image's own size, or None. Six methods; "srad" is **[rec]**.
        target: what is restored: the "sharp" image, or the "input" (an autoencoder of blurred images, the control arm).
        loss_on: "all" patches (deblurring) or the "removed" ones (MAE).
        norm_pix: targets are normalised patch by patch; published default off.
        mask_ratio: share of the patches that is dropped.
        crop_scale, crop_ratio: area and aspect of the random crop.
        mean, std: per channel, of intensities in [0, 1].
        lr: peak learning rate; 1.5e-4 x batch / 256 at the published batch of 256.
        weight_decay, betas, warmup: of AdamW; warmup is the share of the steps (40 of 800 epochs), then half a cosine
            to 0.
    """

    encoder: Literal["vit", "convvit"] = "vit"
    image_size: int = 224
    patch_size: int = 16
    in_channels: int = 3
    width: int = 768
    depth: int = 12
    heads: int = 12
    stem_widths: tuple[int, int] = (256, 384)
    stem_depths: tuple[int, int] = (2, 2)
    positions: Literal["sincos", "learned"] = "sincos"
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    blur: Blur | None = field(default_factory=Blur)
    target: Literal["sharp", "input"] = "sharp"
    loss_on: Literal["all", "removed"] = "all"
    norm_pix: bool = False
    mask_ratio: float = 0.75
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    lr: float = 1.5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 40 / 800

    @property
    def contract(self) -> InputContract:
        """The pixels that the encoder expects, blur included."""
        return InputContract(self.image_size, self.in_channels, self.mean, self.std, blur=self.blur)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (rows, columns)."""
        return (self.image_size // self.patch_size,) * 2

    def build_encoder(self) -> Encoder:
        """The encoder that is pre-trained.

        Raises:
            ConfigError: the hierarchical one with other patches than 16 pixels or learned positions.
        """
        if self.encoder == "vit":
            vit = ViTConfig(
                image_size=self.image_size,
                patch_size=self.patch_size,
                in_channels=self.in_channels,
                width=self.width,
                depth=self.depth,
                heads=self.heads,
                positions=self.positions,
                pool="mean",  # as its classifiers read it
            )
            return ViT(vit)
        if self.patch_size != 16 or self.positions != "sincos":
            raise ConfigError(
                f"encoder = 'convvit' with patch_size = {self.patch_size} and positions = {self.positions!r}",
                remedy="it has patches of 16 pixels and positions = 'sincos'",
            )
        stages = ConvViTConfig(
            image_size=self.image_size,
            in_channels=self.in_channels,
            widths=(*self.stem_widths, self.width),
            depths=(*self.stem_depths, self.depth),
            heads=self.heads,
        )
        return ConvViT(stages)


PRESETS = {
    "paper": DeblurringConfig(),
    "paper_convvit": DeblurringConfig(encoder="convvit", depth=11),
    "tiny": DeblurringConfig(
        image_size=64,
        patch_size=8,
        in_channels=1,
        width=96,
        depth=4,
        heads=4,
        decoder_width=64,
        decoder_depth=2,
        decoder_heads=4,
        mean=(0.5,),
        std=(0.25,),
        lr=1e-3,
        warmup=0.1,
    ),
}


def reconstruction_loss(
    prediction: Tensor, target: Tensor, removed: Tensor, *, loss_on: str = "all", norm_pix: bool = False
) -> Tensor:
    """Mean squared error over patches.

    Args:
        prediction: ``[B, N, P]``.
        target: the image as patches ``[B, N, P]``.
        removed: ``[B, N]`` float, 1 = the encoder did not see it.
        loss_on: "all" patches (deblurring), or the "removed" ones (MAE).
        norm_pix: compare with targets normalised patch by patch.
    """
    if norm_pix:
        target = normalised_patches(target)
    error = (prediction - target).square().mean(-1)
    return error.mean() if loss_on == "all" else (error * removed).sum() / removed.sum()


class Deblurring(L.LightningModule):
    """Pre-training: an encoder of the kept patches, MAE's decoder, and how one batch becomes a loss."""

    SYSTEM = SYSTEM

    def __init__(self, config: DeblurringConfig = PRESETS["paper"]):
        super().__init__()
        self.config, self.contract = config, config.contract
        self.total_steps = 1  # the loop sets it before it asks for the optimiser
        self.encoder = config.build_encoder()
        self.decoder = MAEDecoder(
            encoder_width=config.width,
            grid=config.grid,
            patch_size=config.patch_size,
            channels=config.in_channels,
            width=config.decoder_width,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
            cls=config.encoder == "vit",
        )
        self.crop = CropFlip(config.image_size, config.crop_scale, config.crop_ratio)

    def view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """A sharp image and its blurred copy, cropped and flipped alike; see `corrupt` for the keys.

        Args:
            sample: ``image [C, H, W]`` in [0, 1], blurred as the contract says, and, where it blurs, ``sharp``, the
                same without: what ``ImageDataset(..., sharp=True)`` yields.
        """
        blurred = sample["image"]
        sharp = blurred if self.config.blur is None else sample["sharp"]
        sharp, blurred = (self.contract.normalise(x) for x in self.crop([sharp, blurred], generator=generator))
        batch = self.corrupt(sharp.unsqueeze(0), blurred.unsqueeze(0), generator=generator)
        return {name: value[0] for name, value in batch.items()}

    def corrupt(self, sharp: Tensor, blurred: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        """The target, the input and what decides which patches are dropped.

        Args:
            sharp, blurred: ``[B, C, H, W]`` in the network's intensities.

        Returns:
            image: the target ``[B, C, H, W]``; corrupted: the input, same shape; noise ``[B, N]``: the patches of
                lowest noise are kept.
        """
        rows, columns = self.config.grid
        noise = torch.rand(len(sharp), rows * columns, generator=generator)
        target = sharp if self.config.target == "sharp" else blurred
        return {"image": target, "corrupted": blurred, "noise": noise}

    def sampling_weights(self, organs: Sequence[str]) -> None:
        """None: every image is drawn equally often."""

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The predicted patches ``[B, N, P]``, and which patches the encoder did not see ``[B, N]``."""
        keep, removed, restore = random_keep(noise, self.config.mask_ratio)
        encoded = self.encoder(image, keep=keep)
        return self.decoder(encoded.patches, encoded.cls, restore, encoded.grid), removed

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a batch of `corrupt`."""
        c = self.config
        prediction, removed = self(batch["corrupted"], batch["noise"])
        target = patchify(batch["image"], c.patch_size)
        return reconstruction_loss(prediction, target, removed, loss_on=c.loss_on, norm_pix=c.norm_pix)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        return self._log("train", batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch; views of validation images are drawn from a fixed seed."""
        return self._log("val", batch)

    def _log(self, stage: str, batch: dict[str, Tensor]) -> Tensor:
        loss = self.loss(batch)
        self.log(f"{stage}/loss", loss, batch_size=len(batch["image"]), sync_dist=stage == "val")
        return loss

    @torch.no_grad()
    def panels(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pictures of a batch, name -> ``[B, C, H, W]`` in [0, 1], for a page to show; removed patches are grey."""
        c = self.config
        prediction, removed = self(batch["corrupted"], batch["noise"])
        if c.norm_pix:  # the prediction knows each patch up to its mean and scale, which are the target's
            target = patchify(batch["image"], c.patch_size)
            prediction = prediction * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)
        seen = patchify(batch["corrupted"], c.patch_size) * (1 - removed.unsqueeze(-1))
        shown = {
            "original": batch["image"],
            "corrupted": unpatchify(seen, c.grid, c.in_channels),
            "restored": unpatchify(prediction, c.grid, c.in_channels),
        }
        return {name: self.contract.denormalise(value).clamp(0, 1) for name, value in shown.items()}

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and half a cosine to 0, for `total_steps` steps."""
        c = self.config

        def schedule(step: int) -> float:
            return warmup_cosine(step, total=self.total_steps, warmup=c.warmup * self.total_steps, lr=c.lr)

        return adamw(self, lr=c.lr, schedule=schedule, weight_decay=c.weight_decay, betas=c.betas)
