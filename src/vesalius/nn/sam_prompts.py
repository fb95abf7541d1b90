"""SAM's prompt encoder: points, boxes and coarse masks as tokens and maps (Kirillov et al. 2023, section 3 and A)."""

from __future__ import annotations

import math

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from vesalius.errors import ConfigError

POSITIVE, NEGATIVE, PADDING = 1, 0, -1
"""Labels of a point: in the object, outside it, and none at all."""


class RandomPositions(nn.Module):
    """Sines and cosines of random projections of a place (Tancik 2020, Fourier features).

    The projection is drawn once and stored with the weights: it is part of the trained network.
    """

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, dim // 2))

    def forward(self, places: Tensor) -> Tensor:
        """Places ``[..., 2]``, x and y from 0 to 1 -> codes ``[..., dim]``."""
        angles = 2 * math.pi * ((2 * places - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class SamPromptEncoder(nn.Module):
    """Prompts as what the mask decoder reads: sparse tokens for points and boxes, a dense map for a mask.

    Args:
        dim: of a token.
        image_size: pixels of the side of the padded image whose coordinates prompts have.
        patch_size: pixels of a token's side.
        mask_channels: hidden channels of the mask's encoder.

    >>> encoder = SamPromptEncoder(32, image_size=64)
    >>> sparse, dense = encoder(points=torch.tensor([[[20.0, 30.0]]]), labels=torch.tensor([[1]]))
    >>> sparse.shape, dense.shape  # a point alone is followed by a padding point
    (torch.Size([1, 2, 32]), torch.Size([1, 32, 4, 4]))
    """

    def __init__(self, dim: int = 256, *, image_size: int = 1024, patch_size: int = 16, mask_channels: int = 16):
        super().__init__()
        self.dim, self.image_size, self.patch_size = dim, image_size, patch_size
        self.pe_layer = RandomPositions(dim)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))  # out, in, two corners
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.no_mask_embed = nn.Embedding(1, dim)
        quarter = mask_channels // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, quarter, 2, stride=2),
            LayerNorm2d(quarter, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(quarter, mask_channels, 2, stride=2),
            LayerNorm2d(mask_channels, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(mask_channels, dim, 1),
        )

    def forward(
        self,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The codes of P prompts, each of any of the kinds.

        Args:
            points: ``[P, N, 2]``, (x, y) in pixels of the padded image.
            labels: ``[P, N]``, 1 in the object, 0 outside, -1 for a place holder.
            boxes: ``[P, 4]``, (x0, y0, x1, y1) in the same pixels.
            masks: ``[P, 1, 4 h, 4 w]`` logits, at four times the feature grid's resolution.
            size: rows and columns of the padded image, if it is not the square of `image_size`.

        Returns:
            sparse ``[P, tokens, dim]`` (``[1, 0, dim]`` without points and boxes) and dense ``[P or 1, dim, h, w]``.

        Raises:
            ConfigError: points without labels, or a mask of another resolution.
        """
        size = size or (self.image_size, self.image_size)
        grid = size[0] // self.patch_size, size[1] // self.patch_size
        tokens = []
        if points is not None:
            if labels is None or labels.shape != points.shape[:2]:
                raise ConfigError("each point needs a label", remedy="1 for in the object, 0 for outside it")
            tokens.append(self._points(points, labels, size, pad=boxes is None))
        if boxes is not None:
            corners = self._place(boxes.reshape(-1, 2, 2), size)
            tokens.append(corners + self._kinds()[2:])
        empty = self.no_mask_embed.weight.new_zeros(1, 0, self.dim)
        sparse = torch.cat(tokens, dim=1) if tokens else empty
        if masks is None:
            return sparse, self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(len(sparse), -1, *grid)
        if masks.shape[-2:] != (4 * grid[0], 4 * grid[1]):
            raise ConfigError(
                f"a mask prompt of {masks.shape[-2]} x {masks.shape[-1]}",
                remedy=f"give logits of {4 * grid[0]} x {4 * grid[1]}, as the decoder does",
            )
        return sparse, self.mask_downscaling(masks)

    def dense_pe(self, grid: tuple[int, int] | None = None) -> Tensor:
        """Codes of the centres of a grid's cells (rows, columns): ``[1, dim, h, w]``."""
        rows, columns = grid or (self.image_size // self.patch_size,) * 2
        device = self.no_mask_embed.weight.device
        y = (torch.arange(rows, device=device) + 0.5) / rows
        x = (torch.arange(columns, device=device) + 0.5) / columns
        places = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=-1)
        return self.pe_layer(places).permute(2, 0, 1)[None]

    def _points(self, points: Tensor, labels: Tensor, size: tuple[int, int], *, pad: bool) -> Tensor:
        if pad:  # as the network was trained: points without a box are followed by one that is none
            points = torch.cat([points, points.new_zeros(len(points), 1, 2)], dim=1)
            labels = torch.cat([labels, labels.new_full((len(labels), 1), PADDING)], dim=1)
        kinds = labels.unsqueeze(-1)
        codes = torch.where(kinds == PADDING, self.not_a_point_embed.weight, self._place(points, size))
        for kind in (NEGATIVE, POSITIVE):
            codes = codes + self._kinds()[kind] * (kinds == kind)
        return codes

    def _kinds(self) -> Tensor:
        """What points outside and in the object and a box's corners are marked with, ``[4, dim]``."""
        return torch.cat([kind.get_parameter("weight") for kind in self.point_embeddings])

    def _place(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """The codes of pixels' centres."""
        return self.pe_layer((points + 0.5) / points.new_tensor([size[1], size[0]]))
