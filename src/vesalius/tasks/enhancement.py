"""Enhancement: a better image from a poor one, learned from pairs.

Neither paper publishes its enhancement network; both heads are reconstructions: SimMIM's (a 1x1 convolution and pixel
shuffle) and one on the segmentation networks' feature pyramid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.data.contract import InputContract
from vesalius.errors import ConfigError, VesaliusError
from vesalius.images import Image, write_image
from vesalius.nn.encoder import Encoder
from vesalius.nn.pyramid import token_map
from vesalius.tasks import metrics as scores
from vesalius.tasks.trunk import build_neck, check_formats, feature_maps, freeze_unused


class Enhancer(nn.Module):
    """An image-to-image head on an encoder, trained with L1 against the paired image [rec].

    Args:
        encoder: the trunk.
        contract: of the encoder's input (or its `to_dict`); it tells how the input's intensities map to [0, 1], in
            which the output is.
        head: pixel_shuffle, or the feature pyramid joined with the input at full resolution.
        residual: the head predicts the difference to the input, and starts at zero.
        width: of the pyramid head's convolutions.
        layers: blocks of a plain transformer that give the pyramid's maps, evenly spaced if None.

    >>> from vesalius.nn.vit import ViT, ViTConfig
    >>> encoder = ViT(ViTConfig(image_size=32, patch_size=8, width=16, depth=2, heads=2))
    >>> enhancer = Enhancer(encoder, contract=InputContract(size=32)).eval()
    >>> image = torch.rand(1, 3, 32, 48)
    >>> restored = enhancer.predict(enhancer.contract.normalise(image))
    >>> torch.allclose(restored, image, atol=1e-6)  # a residual head starts as the identity
    True
    """

    TASK = "enhancement"
    FORMATS = ("png", "nifti")

    def __init__(
        self,
        encoder: Encoder,
        *,
        contract: InputContract | Mapping[str, Any],
        head: Literal["pixel_shuffle", "pyramid"] = "pixel_shuffle",
        residual: bool = True,
        width: int = 64,
        layers: Sequence[int] | None = None,
    ):
        super().__init__()
        if not isinstance(contract, InputContract):
            contract = InputContract.from_dict(dict(contract))
        if contract.channels != encoder.in_channels:
            raise ConfigError(f"a contract of {contract.channels} channels for an encoder of {encoder.in_channels}")
        self.encoder, self.contract, self.residual = encoder, contract, residual
        channels = encoder.in_channels
        self.neck: nn.Module | None = None
        self.layers: tuple[int, ...] = ()
        if head == "pixel_shuffle":
            last = nn.Conv2d(encoder.width, channels * encoder.patch_size**2, 1)
            self.head: nn.Module = nn.Sequential(last, nn.PixelShuffle(encoder.patch_size))
        elif head == "pyramid":
            self.neck, self.layers, widths = build_neck(encoder, maps=4, layers=layers)
            self.head = PyramidHead(widths, channels, width=width)
            last = self.head.last
        else:
            raise ConfigError(f"unknown enhancement head {head!r}", remedy="use pixel_shuffle or pyramid")
        if residual:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        freeze_unused(encoder, final=head == "pixel_shuffle")
        self.config: dict[str, Any] = {
            "contract": contract.to_dict(),
            "head": head,
            "residual": residual,
            "width": width,
            "layers": list(self.layers) or None,
        }

    def forward(self, image: Tensor) -> Tensor:
        """Image ``[B, C, H, W]`` in the network's intensities -> ``[B, C, H, W]`` in [0, 1] (not clipped)."""
        unit = self.contract.denormalise(image)
        if isinstance(self.head, PyramidHead):
            out = self.head(feature_maps(self.encoder, self.neck, self.layers, image), unit)
        else:
            encoded = self.encoder(image)
            out = self.head(token_map(encoded.patches, encoded.grid))
        return unit + out if self.residual else out

    def loss(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Mean absolute error against ``batch["target"] [B, C, H, W]`` in [0, 1].

        Raises:
            VesaliusError: the target has another shape.
        """
        target = batch["target"]
        if target.shape != output.shape:
            raise VesaliusError(
                f"the target has shape {list(target.shape)}, the restored image {list(output.shape)}",
                remedy="pair images of the same size and channels",
            )
        return F.l1_loss(output, target)

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Image ``[B, C, H, W]`` in the network's intensities -> restored ``[B, C, H, W]``, clipped to [0, 1]."""
        return self(image).float().clamp(0, 1)

    def metrics(self, restored: Sequence[ArrayLike], targets: Sequence[ArrayLike]) -> dict[str, Any]:
        """See `vesalius.tasks.metrics.enhancement`."""
        return scores.enhancement(restored, targets)

    def write(
        self,
        restored: ArrayLike | Tensor,
        image: Image,
        folder: str | Path,
        stem: str,
        formats: Sequence[str] | None = ("png",),
    ) -> list[Path]:
        """Write the restored image at the size, and with as many channels, as the image had.

        Args:
            restored: ``[C, h, w]`` in [0, 1] of one image.
            image: as it was read.
            folder, stem: where and under which name.
            formats: png, nifti (grey images); None for all.
        """
        formats = check_formats(formats, self.FORMATS)
        pixels = torch.as_tensor(restored, dtype=torch.float32).cpu().unsqueeze(0)
        size = (image.size[-2], image.size[-1])
        pixels = F.interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=True)[0]
        if len(image.channels) == 1:
            pixels = pixels.mean(0, keepdim=True)
        array = pixels.clamp(0, 1).numpy().astype(np.float32)
        paths = []
        for name, suffix in (("png", ".png"), ("nifti", ".nii.gz")):
            if name in formats:
                path = Path(folder) / f"{stem}_restored{suffix}"
                write_image(array, image, path)
                paths.append(path)
        return paths


class PyramidHead(nn.Module):
    """Maps projected to one width, added up at the finest map's size, joined with the input at full resolution [rec].

    Args:
        channels: of the maps, finest first.  out: channels of the image.  width: of its convolutions.
    """

    def __init__(self, channels: Sequence[int], out: int, *, width: int = 64):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channel, width, 1) for channel in channels)
        self.mix = nn.Sequential(nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU())
        self.full = nn.Sequential(nn.Conv2d(width + out, width, 3, padding=1), nn.GELU())
        self.last = nn.Conv2d(width, out, 3, padding=1)

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Maps ``[B, C_i, h_i, w_i]``, finest first, and the image ``[B, C, H, W]`` -> ``[B, C, H, W]``."""
        finest = maps[0].shape[-2:]
        sized = [
            F.interpolate(layer(features), size=finest, mode="bilinear", align_corners=False)
            for layer, features in zip(self.lateral, maps, strict=True)
        ]
        mixed = self.mix(torch.stack(sized).sum(0))
        mixed = F.interpolate(mixed, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return self.last(self.full(torch.cat([mixed, image], dim=1)))
