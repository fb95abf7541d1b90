"""U-Net++ (Zhou et al. 2018) on 4 maps, the decoder of Deblurring MIM's published segmentation model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.errors import ConfigError


class UNetPlusPlus(nn.Module):
    """Logits from maps of which each is half the size of the one before.

    The sub-modules have the published names: ``decoder.blocks.x_0_0...`` and ``segmentation_head.0``.

    Args:
        channels: of the maps, finest first.
        classes: output channels.
        widths: of the decoder's levels, coarsest first.

    >>> import torch
    >>> head = UNetPlusPlus((4, 6, 8, 8), 1, widths=(8, 4, 4, 4)).eval()
    >>> maps = [torch.zeros(1, c, 16 // 2**i, 24 // 2**i) for i, c in enumerate((4, 6, 8, 8))]
    >>> head(maps).shape, head(maps, (64, 96)).shape
    (torch.Size([1, 1, 32, 48]), torch.Size([1, 1, 64, 96]))
    """

    def __init__(self, channels: Sequence[int], classes: int, *, widths: Sequence[int] = (256, 128, 64, 32)):
        super().__init__()
        if len(widths) != len(channels):
            raise ConfigError(f"{len(widths)} decoder widths for {len(channels)} maps", remedy="give one per map")
        # the library's decoder expects, and skips, the input image as first map
        self.decoder = UnetPlusPlusDecoder((0, *channels), tuple(widths), n_blocks=len(widths))
        self.segmentation_head = nn.Sequential(nn.Conv2d(widths[-1], classes, 3, padding=1))

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Maps ``[B, C, h, w]``, finest first -> logits ``[B, classes, *size]``.

        Without a `size` they are as published: twice the finest map's, which is half the image's at stride 4.
        """
        for fine, coarse in pairwise(maps):
            if any(f != 2 * c for f, c in zip(fine.shape[-2:], coarse.shape[-2:], strict=True)):
                raise ConfigError(
                    f"U-Net++ needs maps that halve exactly, not {list(fine.shape[-2:])} and {list(coarse.shape[-2:])}",
                    remedy="use an image size whose patch grid is even",
                )
        logits = self.segmentation_head(self.decoder([None, *maps]))
        return logits if size is None else F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
