"""USFM: restore an ultrasound image that was corrupted both in space and in frequency.

Blocks of pixels are replaced by the image's mean and rings of its spectrum are stopped; a vision transformer restores
the image, with a loss in each domain. What ultrasound says lies in its texture (bands of the spectrum), not in shape
alone. Organs are drawn equally often, however unequal their numbers are.

    J. Jiao et al., "USFM: A universal ultrasound foundation model generalized to tasks and organs towards label
    efficient image analysis", Medical Image Analysis 96, 103202, 2024. doi:10.1016/j.media.2024.103202

The authors published the two mask generators and the downstream code, and neither the pre-training loop nor the
decoder, the loss or the sampler. What is **[rec]** below is our reconstruction from the paper's figure and from
SimMIM (Xie 2022, doi:10.1109/CVPR52688.2022.00943), and is an option. Two things differ from the published
generators: the real part of the filtered image is taken instead of its magnitude, which would make negative pixels
positive, and a schedule of rings that amplifies or never ends is refused (`Rings.as_published` gives the former
back).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vesalius.data.augment import CropFlip
from vesalius.data.contract import IMAGENET_MEAN, IMAGENET_STD, InputContract
from vesalius.data.sampling import organ_weights
from vesalius.errors import ConfigError
from vesalius.nn.masking import Rings, band_stopped, block_mask, mean_padded, pixel_mask
from vesalius.nn.optim import Clipped, adamw, warmup_cosine, warmup_step
from vesalius.nn.vit import ViT, ViTConfig

SYSTEM = "usfm"


@dataclass(frozen=True)
class USFMConfig:
    """USFM's hyper-parameters; the defaults are the paper's ViT-B/16 where they are known, SimMIM's elsewhere.

    Args:
        image_size: pixels of the side.
        patch_size: pixels of a token's side.
        in_channels: 1, or 3 (grey repeated).
        width, depth, heads: of the transformer.
        positions: "relative", one bias table for all blocks (the paper), or "learned" absolute ones.
        layer_scale: initial gain of the residual branches, None for none.
        drop_path: stochastic depth at the last block.
        corruption: **[rec]** "dual": both in one image; "separate": each image in one domain, drawn evenly; "spatial"
            or "frequency": that domain alone.
        fill: what stands in masked blocks: the image's "mean" (the paper's figure), or a learned "mask_token" in
            place of the patch embedding; corruption="spatial", fill="mask_token" is plain SimMIM.
        mask_ratio: share of the blocks that is masked.
        mask_block: pixels of a block's side.
        rings: the band-stop rings; their values are **[rec]**.
        frequency_weight: lambda of ``L = L_spatial + lambda L_frequency``. **[rec]**
        organ_alpha: an organ is drawn in proportion to (its number of images)^alpha: 0 = balanced (the paper names it),
            1 = natural. The temper is **[rec]**.
        crop_scale, crop_ratio: area and aspect of the random crop. **[rec]**, SimMIM's.
        mean, std: per channel, of intensities in [0, 1].
        lr: peak learning rate; SimMIM's 1e-4 x batch / 512 at its batch of 2048. **[rec]**, as is the rest:
        weight_decay, betas, grad_clip: of AdamW; clip is the gradient's greatest norm.
        schedule: "step" (x 0.1 at 7/8 of the steps) or "cosine" (to 0).
        warmup, warmup_lr: share of the steps, and where the learning rate starts.
    """

    image_size: int = 224
    patch_size: int = 16
    in_channels: int = 3
    width: int = 768
    depth: int = 12
    heads: int = 12
    positions: Literal["relative", "learned"] = "relative"
    layer_scale: float | None = 0.1
    drop_path: float = 0.1
    corruption: Literal["dual", "spatial", "frequency", "separate"] = "dual"
    fill: Literal["mean", "mask_token"] = "mean"
    mask_ratio: float = 0.6
    mask_block: int = 32
    rings: Rings = field(default_factory=Rings)
    frequency_weight: float = 1.0
    organ_alpha: float = 0.0
    crop_scale: tuple[float, float] = (0.67, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    lr: float = 4e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 5.0
    schedule: Literal["step", "cosine"] = "step"
    warmup: float = 10 / 800
    warmup_lr: float = 5e-7

    def __post_init__(self) -> None:
        if self.mask_block % self.patch_size:
            raise ConfigError(
                f"mask_block = {self.mask_block} is not a multiple of patch_size = {self.patch_size}",
                remedy="choose one that is",
            )

    @property
    def encoder(self) -> ViTConfig:
        """The trunk that is pre-trained."""
        relative = self.positions == "relative"
        return ViTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            in_channels=self.in_channels,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            positions="none" if relative else "learned",
            relative="shared" if relative else "none",
            mask_token=self.fill == "mask_token",
            layer_scale=self.layer_scale,
            drop_path=self.drop_path,
            pool="mean",
            init="beit",
        )

    @property
    def contract(self) -> InputContract:
        """The pixels that the trunk expects."""
        return InputContract(self.image_size, self.in_channels, self.mean, self.std)


PRESETS = {
    "paper": USFMConfig(),
    "tiny": USFMConfig(
        image_size=64,
        patch_size=8,
        in_channels=1,
        width=96,
        depth=4,
        heads=4,
        positions="learned",  # in short runs the loss falls twice as fast as with a relative bias that starts at zero
        layer_scale=None,
        drop_path=0.0,
        mask_block=16,
        mean=(0.5,),
        std=(0.25,),
        lr=1e-3,
        betas=(0.9, 0.95),
        schedule="cosine",
        warmup=0.1,
        warmup_lr=0.0,
    ),
}


def spatial_loss(restored: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """SimMIM's L1: the mean error of masked pixels.

    Args:
        restored, target: ``[B, C, H, W]``.
        mask: ``[B, rows, columns]`` bool, True = masked token.
    """
    masked = pixel_mask(mask, (target.shape[-2], target.shape[-1])).to(target.dtype)
    error = (restored - target).abs() * masked
    return error.sum() / (masked.sum() + 1e-5) / target.shape[1]


def spectral_loss(restored: Tensor, target: Tensor, stopped: Tensor) -> Tensor:
    """The mean magnitude of the spectrum's error over stopped bins (**[rec]**).

    Args:
        restored, target: ``[B, C, S, S]``.
        stopped: ``[B, S, S]`` bool in the fft-shifted layout.
    """
    stopped = torch.fft.ifftshift(stopped, dim=(-2, -1)).unsqueeze(1).to(torch.float32)
    error = torch.fft.fft2((restored - target).float(), norm="ortho").abs() * stopped
    return error.sum() / (stopped.sum() * target.shape[1]).clamp(min=1)


def dual_loss(
    restored: Tensor, target: Tensor, mask: Tensor, stopped: Tensor, *, frequency_weight: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """``L_spatial + lambda L_frequency`` and its two terms; a domain in which nothing was corrupted contributes 0."""
    spatial = spatial_loss(restored, target, mask)
    spectral = spectral_loss(restored, target, stopped)
    return spatial + frequency_weight * spectral, spatial, spectral


class USFM(Clipped):
    """Pre-training: the encoder, a 1x1 convolution with pixel shuffle, and how one batch becomes a loss.

    The decoder's keys are those of SimMIM's files (``decoder.0.weight``).
    """

    SYSTEM = SYSTEM

    def __init__(self, config: USFMConfig = PRESETS["paper"]):
        super().__init__()
        self.config, self.contract = config, config.contract
        self.total_steps = 1  # the loop sets it before it asks for the optimiser
        self.encoder = ViT(config.encoder)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.width, config.patch_size**2 * config.in_channels, 1), nn.PixelShuffle(config.patch_size)
        )
        self.crop = CropFlip(config.image_size, config.crop_scale, config.crop_ratio)

    def view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """One image ``[C, H, W]`` in [0, 1], cropped, flipped, normalised and corrupted; see `corrupt` for the keys."""
        (image,) = self.crop([sample["image"]], generator=generator)
        batch = self.corrupt(self.contract.normalise(image).unsqueeze(0), generator=generator)
        return {name: value[0] for name, value in batch.items()}

    def corrupt(self, image: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Corrupt ``image [B, C, S, S]`` as ``meanpad(bandstop(image))``.

        Returns:
            image; corrupted ``[B, C, S, S]``; mask ``[B, rows, columns]`` bool, True = masked token;
            stopped ``[B, S, S]`` bool, True = stopped bin in the fft-shifted layout.
        """
        c, batch = self.config, len(image)
        mask = torch.zeros(batch, *c.encoder.grid, dtype=torch.bool)
        factor = torch.ones(batch, c.image_size, c.image_size)
        if c.corruption != "frequency":
            block = c.mask_block // c.patch_size
            mask = block_mask(batch, c.encoder.grid, block=block, ratio=c.mask_ratio, generator=generator)
        if c.corruption != "spatial":
            factor = c.rings.draw(batch, c.image_size, generator=generator)
        if c.corruption == "separate":
            spatial = torch.rand(batch, 1, 1, generator=generator) < 0.5
            mask, factor = mask & spatial, torch.where(spatial, 1.0, factor)
        corrupted = image
        if c.corruption != "spatial":
            corrupted = band_stopped(corrupted, factor, magnitude=c.rings.as_published)
        if c.fill == "mean":
            corrupted = mean_padded(corrupted, mask)
        return {"image": image, "corrupted": corrupted, "mask": mask, "stopped": factor == 0}

    def sampling_weights(self, organs: Sequence[str]) -> np.ndarray:
        """The probability of each image, given its organ: balanced unless `organ_alpha` says otherwise."""
        return organ_weights(organs, alpha=self.config.organ_alpha)

    def forward(self, corrupted: Tensor, mask: Tensor) -> Tensor:
        """Restored images ``[B, C, H, W]``; `mask` matters only where a mask token fills it."""
        replace = mask.flatten(1) if self.config.fill == "mask_token" else None
        encoded = self.encoder(corrupted, replace=replace)
        return self.decoder(encoded.patches.transpose(1, 2).unflatten(2, encoded.grid))

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of a batch of `corrupt`, and its spatial and spectral terms."""
        restored = self(batch["corrupted"], batch["mask"])
        return dual_loss(
            restored,
            batch["image"],
            batch["mask"],
            batch["stopped"],
            frequency_weight=self.config.frequency_weight,
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        return self._log("train", batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch; views of validation images are drawn from a fixed seed."""
        return self._log("val", batch)

    def _log(self, stage: str, batch: dict[str, Tensor]) -> Tensor:
        loss, spatial, spectral = self.loss(batch)
        values = {f"{stage}/loss": loss, f"{stage}/spatial": spatial, f"{stage}/spectral": spectral}
        self.log_dict(values, batch_size=len(batch["image"]), sync_dist=stage == "val")
        return loss

    @torch.no_grad()
    def panels(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pictures of a batch, name -> ``[B, C, H, W]`` in [0, 1], for a page to show."""
        shown = {
            "original": batch["image"],
            "corrupted": mean_padded(batch["corrupted"], batch["mask"]),
            "restored": self(batch["corrupted"], batch["mask"]),
        }
        return {name: self.contract.denormalise(value).clamp(0, 1) for name, value in shown.items()}

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up, for `total_steps` steps."""
        c = self.config
        shape = warmup_step if c.schedule == "step" else warmup_cosine

        def schedule(step: int) -> float:
            warmup = c.warmup * self.total_steps
            return shape(step, total=self.total_steps, warmup=warmup, lr=c.lr, warmup_lr=c.warmup_lr)

        return adamw(self, lr=c.lr, schedule=schedule, weight_decay=c.weight_decay, betas=c.betas)
