"""Three self-supervised heads on the Swin encoder (Tang 2022), as BrainSegFounder trains them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from vesalius.errors import ConfigError
from vesalius.nn.swin_unetr import SwinEncoder

ROTATIONS, UPS = 4, 5


@dataclass
class SSLOutputs:
    """What the three tasks are scored on.

    Args:
        rotation: ``[B, 4]`` logits of the number of quarter turns.
        contrastive: ``[B, embedding]``, not normalised.
        reconstruction: ``[B, C, D, H, W]``.
    """

    rotation: Tensor
    contrastive: Tensor
    reconstruction: Tensor


class SwinSSL(nn.Module):
    """Rotation from the first bottleneck token, a contrastive vector from the second, the volume from all of them.

    The two tokens are corners of the volume, not an average of it: that is how the published weights were trained.

    Args:
        encoder: with a bottleneck of at least two positions: 64 x 32 x 32 voxels or more.
        embedding: of the contrastive vector.
        hidden: width of a linear layer before the two token heads and of the first decoder step, None for neither (the
            published network for UK Biobank and BraTS; the one for ATLAS has 768).

    >>> import torch
    >>> from vesalius.nn.swin_unetr import SwinConfig
    >>> out = SwinSSL(SwinEncoder(SwinConfig(width=12))).eval()(torch.zeros(2, 1, 64, 32, 32))
    >>> out.rotation.shape, out.contrastive.shape, out.reconstruction.shape
    (torch.Size([2, 4]), torch.Size([2, 512]), torch.Size([2, 1, 64, 32, 32]))
    """

    def __init__(self, encoder: SwinEncoder, *, embedding: int = 512, hidden: int | None = None):
        super().__init__()
        width = encoder.bottleneck_channels
        self.encoder, self.embedding = encoder, embedding
        self.rotation = _token_head(width, hidden, ROTATIONS)
        self.contrastive = _token_head(width, hidden, embedding)
        first = hidden or width
        widths = [width, first // 2, first // 4, first // 8, first // 16, first // 16]
        layers: list[nn.Module] = []
        for coarse, fine in pairwise(widths):
            layers += [
                nn.Conv3d(coarse, fine, 3, padding=1),
                nn.InstanceNorm3d(fine),
                nn.LeakyReLU(0.01),
                nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
            ]
        self.reconstruction = nn.Sequential(*layers, nn.Conv3d(widths[UPS], encoder.in_channels, 1))

    def forward(self, volume: Tensor) -> SSLOutputs:
        """``[B, C, D, H, W]`` -> the outputs of the three heads.

        Raises:
            ConfigError: the volume is so small that the bottleneck has a single position.
        """
        bottleneck = self.encoder(volume).bottleneck
        tokens = bottleneck.flatten(2).transpose(1, 2)
        if tokens.shape[1] < 2:
            raise ConfigError(
                f"crops of {list(volume.shape[2:])} voxels leave one position for two heads",
                remedy="use crops of 64 x 32 x 32 voxels or more",
            )
        return SSLOutputs(
            rotation=self.rotation(tokens[:, 0]),
            contrastive=self.contrastive(tokens[:, 1]),
            reconstruction=self.reconstruction(bottleneck),
        )


def _token_head(width: int, hidden: int | None, outputs: int) -> nn.Sequential:
    """Linear, with another linear layer (and nothing between) before it if `hidden`."""
    before = [] if hidden is None else [nn.Linear(width, hidden)]
    return nn.Sequential(*before, nn.Linear(hidden or width, outputs))
