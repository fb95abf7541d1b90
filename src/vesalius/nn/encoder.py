"""What every 2-D trunk gives: named outputs, never a tuple to guess from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Encoded:
    """The outputs of an encoder; those that it does not have are None.

    Args:
        cls: ``[B, width]`` class token after the final norm (if there is one).
        patches: ``[B, N, width]`` patch tokens after the final norm (if there is one); N = kept tokens when masked.
        pooled: ``[B, width]`` one vector an image: what a classifier or a probe reads.
        layers: block index -> ``[B, prefix + N, width]`` raw tokens after that block, for the blocks asked for.
        maps: feature maps ``[B, C, h, w]``, finest first, of hierarchical trunks or of the blocks asked for.
        grid: (rows, columns) of the patch grid.
    """

    cls: Tensor | None
    patches: Tensor
    pooled: Tensor
    layers: dict[int, Tensor]
    maps: list[Tensor]
    grid: tuple[int, int]


class Encoder(nn.Module, ABC):
    """Base class of 2-D trunks.

    Attributes:
        width: channels of a token.  depth: transformer blocks.  patch_size: pixels of a token's side.
        image_size: pixels of the side it was built for; other sizes work, position tables are interpolated.
        in_channels: 1 or 3.
        config: the frozen dataclass it was built from; `type(encoder)(encoder.config)` is the same network.
    """

    width: int
    depth: int
    patch_size: int
    image_size: int
    in_channels: int
    config: Any

    @abstractmethod
    def forward(
        self,
        image: Tensor,
        *,
        keep: Tensor | None = None,
        replace: Tensor | None = None,
        extra: Tensor | None = None,
        bias: Tensor | None = None,
        layers: tuple[int, ...] = (),
    ) -> Encoded:
        """Encode ``image [B, C, H, W]``.

        Args:
            keep: ``[B, K]`` indices of the patch tokens that stay, in the order in which they stay (MAE).
            replace: ``[B, N]`` bool, patches whose embedding becomes the learned mask token (SimMIM).
            extra: ``[B, P, width]`` tokens put between the class token and the patches (prompts).
            bias: additive attention logits, broadcastable to ``[B, heads, tokens, tokens]``.
            layers: block indices whose raw tokens are wanted.
        """

    def freeze(self) -> Encoder:
        """Itself in eval mode, without gradients."""
        self.requires_grad_(False)
        return self.eval()


def gather_tokens(tokens: Tensor, keep: Tensor) -> Tensor:
    """``tokens [B, N, D]`` at ``keep [B, K]`` -> ``[B, K, D]``."""
    return torch.gather(tokens, 1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
