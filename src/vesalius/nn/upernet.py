"""UPerNet (Xiao et al. 2018): pyramid pooling on the coarsest map, a feature pyramid, and an auxiliary FCN head."""

from __future__ import annotations

from collections.abc import Sequence

from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.errors import ConfigError


class UPerHead(nn.Module):
    """Logits from 4 maps: pool scales 1, 2, 3, 6, convolution - batch norm - ReLU throughout, dropout.

    Args:
        channels: of the maps, finest first.
        classes: number of classes with the background.
        width: of the decoder; USFM uses 768.
        dropout: of whole channels before the last convolution.

    >>> import torch
    >>> head = UPerHead((8, 8, 8, 8), 3, width=8).eval()
    >>> maps = [torch.zeros(1, 8, 16 // 2**i, 24 // 2**i) for i in range(4)]
    >>> head(maps, (64, 96)).shape
    torch.Size([1, 3, 64, 96])
    """

    def __init__(self, channels: Sequence[int], classes: int, *, width: int = 768, dropout: float = 0.1):
        super().__init__()
        # the library's decoder expects, and skips, two maps finer than these
        self.decoder = UPerNetDecoder((0, 0, *channels), len(channels) + 1, width)
        # and normalises its input maps, which UPerNet and both papers do not
        self.decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps ``[B, C, h, w]``, finest first -> logits ``[B, classes, *size]``.

        Raises:
            ConfigError: one image in training: batch norm of maps pooled to 1 x 1 has nothing to average.
        """
        if self.training and len(maps[0]) == 1:
            raise ConfigError(
                "UPerNet's batch norm cannot train on batches of one image",
                remedy="use a batch size of 2 or more, or another decoder",
            )
        # None in the places of the two finer maps; the decoder replaces entries, so it gets its own list
        fused = self.decoder([None, None, *maps])
        logits = self.classify(self.dropout(fused))
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class FCNHead(nn.Sequential):
    """The auxiliary head on one map: 3x3 convolution, batch norm, ReLU, dropout, 1x1 convolution.

    Args:
        channels: of the map.  classes: with the background.  width: of its one hidden layer.
    """

    def __init__(self, channels: int, classes: int, *, width: int = 256, dropout: float = 0.1):
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(width, classes, 1),
        )
