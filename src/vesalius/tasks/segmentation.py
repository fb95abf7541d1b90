"""Segmentation: a decoder on an encoder, for one foreground class or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.errors import ConfigError, nearest
from vesalius.images import Image, overlay, write_image, write_mask
from vesalius.nn import losses
from vesalius.nn.encoder import Encoder
from vesalius.nn.pyramid import token_map
from vesalius.nn.segvit import ATMHead, ATMLoss, atm_scores
from vesalius.nn.unetpp import UNetPlusPlus
from vesalius.nn.upernet import FCNHead, UPerHead
from vesalius.tasks import metrics as scores
from vesalius.tasks.trunk import build_neck, check_formats, feature_maps, freeze_unused

WIDTHS = {"upernet": 768, "segvit": 384, "unetpp": 256}
"""Decoder widths of the papers; U-Net++'s is that of its coarsest level."""
AUXILIARY = 0.4
"""Weight of UPerNet's auxiliary FCN head in the loss."""


class Segmenter(nn.Module):
    """A segmentation decoder on an encoder; logits at the input's size, channel 0 the background.

    - ``linear``: one linear layer on the final patch tokens; Dice + cross-entropy. The baseline.
    - ``upernet`` (USFM): UPerNet on 4 maps; cross-entropy + 0.4 of an auxiliary FCN head's on the third map.
    - ``segvit`` (USFM): attention-to-mask on 3 maps; its own loss at every stage. Logits are the scores' logarithm.
    - ``unetpp`` (Deblurring MIM): U-Net++ on 4 maps; soft Dice over the batch. With one class it has one output,
      as published, before which a background logit of 0 is put (their softmax is the sigmoid). The paper
      trains at half the input's size; here the loss is taken at the input's.

    Args:
        encoder: the trunk.
        classes: names of the foreground; mask value i + 1 is ``classes[i]``.
        decoder: one of the above.
        width: of the decoder, as in the papers if None.
        layers: blocks of a plain transformer that give the maps; 3, 5, 7, 11 of 12 (SegViT 5, 7, 11), scaled, if None.

    >>> from vesalius.nn.vit import ViT, ViTConfig
    >>> encoder = ViT(ViTConfig(image_size=32, patch_size=8, width=16, depth=2, heads=2))
    >>> segmenter = Segmenter(encoder, ("nodule",), decoder="linear").eval()
    >>> segmenter.predict(torch.zeros(1, 3, 32, 48)).shape
    torch.Size([1, 2, 32, 48])
    """

    TASK = "segmentation"
    FORMATS = ("png", "nifti", "dicom-seg", "overlay")

    def __init__(
        self,
        encoder: Encoder,
        classes: Sequence[str],
        *,
        decoder: Literal["linear", "upernet", "segvit", "unetpp"] = "linear",
        width: int | None = None,
        layers: Sequence[int] | None = None,
    ):
        super().__init__()
        if not classes:
            raise ConfigError("no class to segment", remedy="name the mask's classes in the table")
        self.encoder, self.classes, self.decoder = encoder, tuple(classes), decoder
        count = len(classes) + 1
        if decoder not in ("linear", *WIDTHS):
            raise ConfigError(f"unknown decoder {decoder!r}", remedy=nearest(decoder, ("linear", *WIDTHS)))
        self.neck: nn.Module | None = None
        self.auxiliary: nn.Module | None = None
        self.layers: tuple[int, ...] = ()
        if decoder == "linear":
            self.head: nn.Module = nn.Conv2d(encoder.width, count, 1)
        else:
            width = WIDTHS[decoder] if width is None else width
            maps = 3 if decoder == "segvit" else 4
            self.neck, self.layers, channels = build_neck(encoder, maps=maps, layers=layers)
            if decoder == "upernet":
                self.head = UPerHead(channels, count, width=width)
                self.auxiliary = FCNHead(channels[2], count, width=max(width // 3, 1))
            elif decoder == "segvit":
                self.head = ATMHead(channels, count, width=width, heads=max(width // 32, 1))
                self.atm_loss = ATMLoss()
            else:
                widths = [max(width // 2**level, 1) for level in range(4)]
                self.head = UNetPlusPlus(channels, count if len(classes) > 1 else 1, widths=widths)
        freeze_unused(encoder, final=decoder == "linear")
        self.config: dict[str, Any] = {
            "classes": list(classes),
            "decoder": decoder,
            "width": width if decoder != "linear" else None,
            "layers": list(self.layers) or None,
        }

    def forward(self, image: Tensor) -> dict[str, Any]:
        """Image ``[B, C, H, W]`` -> logits ``[B, K + 1, H, W]`` and what the decoder's loss needs.

        Keys: logits; auxiliary (UPerNet in training); stages (SegViT, see `ATMHead`).
        """
        size = (image.shape[-2], image.shape[-1])
        if self.decoder == "linear":
            encoded = self.encoder(image)
            return {"logits": _resize(self.head(token_map(encoded.patches, encoded.grid)), size)}
        maps = feature_maps(self.encoder, self.neck, self.layers, image)
        out = self.head(maps, size)
        if self.decoder == "segvit":
            # the softmax of these is the scores, normalised over classes
            return {"logits": atm_scores(out[-1]).clamp(min=1e-6).log(), "stages": out}
        if self.auxiliary is not None and self.training:  # at inference nobody reads it
            return {"logits": out, "auxiliary": _resize(self.auxiliary(maps[2]), size)}
        return {"logits": torch.cat([torch.zeros_like(out), out], dim=1) if out.shape[1] == 1 else out}

    def loss(self, output: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
        """The decoder's loss against ``batch["mask"] [B, H, W]``, 255 = ignored.

        Raises:
            VesaliusError: a mask of another shape than the image, or with values beyond the classes.
        """
        logits, mask = output["logits"], batch["mask"].long()
        losses.check_mask(mask, (len(logits), *logits.shape[-2:]), logits.shape[1])
        if self.decoder == "segvit":
            return self.atm_loss(output["stages"], mask)["loss"]
        if self.decoder == "unetpp":
            return losses.foreground_dice(logits, mask)
        if self.decoder == "linear":
            return losses.dice_ce(logits, mask)
        loss = losses.cross_entropy(logits, mask)
        if "auxiliary" in output:
            loss = loss + AUXILIARY * losses.cross_entropy(output["auxiliary"], mask)
        return loss

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Image ``[B, C, H, W]`` -> probabilities ``[B, K + 1, H, W]``."""
        return self(image)["logits"].float().softmax(1)

    @staticmethod
    def labels(probabilities: ArrayLike | Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Probabilities ``[K + 1, h, w]`` of one image -> its mask ``[H, W]`` at `size`.

        Probabilities are resized, not labels, so outlines stay smooth.
        """
        p = torch.as_tensor(probabilities, dtype=torch.float32)
        return _resize(p.unsqueeze(0), size)[0].argmax(0).cpu().numpy().astype(np.uint8)

    def metrics(
        self,
        masks: Sequence[ArrayLike],
        truths: Sequence[ArrayLike],
        spacings: Sequence[tuple[float, ...] | None] | None = None,
    ) -> dict[str, Any]:
        """See `vesalius.tasks.metrics.segmentation`; `masks` as `labels` gives them."""
        return scores.segmentation(masks, truths, classes=self.classes, spacings=spacings)

    def write(
        self,
        probabilities: ArrayLike | Tensor,
        image: Image,
        folder: str | Path,
        stem: str,
        formats: Sequence[str] | None = ("png", "overlay"),
    ) -> list[Path]:
        """Write the mask in the image's geometry, and drawn over it.

        Args:
            probabilities: ``[K + 1, h, w]`` of one image; resized to its size.
            image: as it was read.
            folder, stem: where and under which name.
            formats: png, nifti, dicom-seg, overlay; None for all.
        """
        formats = check_formats(formats, self.FORMATS)
        size = (image.size[-2], image.size[-1])
        mask = self.labels(probabilities, size)
        folder = Path(folder)
        paths = []
        for name, suffix in (("png", ".png"), ("nifti", ".nii.gz"), ("dicom-seg", ".dcm")):
            if name in formats:
                path = folder / f"{stem}{suffix}"
                write_mask(mask, image, path, classes=self.classes)
                paths.append(path)
        if "overlay" in formats:
            picture = overlay(image, mask, classes=self.classes)
            path = folder / f"{stem}_overlay.png"
            write_image(picture.transpose(2, 0, 1).astype(np.float32) / 255, image, path)
            paths.append(path)
        return paths


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
