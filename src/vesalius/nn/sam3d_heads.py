"""What stands on 3DSAM-adapter's encoder: the visual sampler, which takes clicks, and the decoder of many layers.

Feature maps are ``[B, C, H, W, D]``, with the slices last, as in the authors' weights; clicks are voxels (d, h, w) of
the crop. (Gong et al. 2024, sections 3.3 and 3.4.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.nn.sam_decoder import TwoWayAttention, TwoWayMlp

ABSENT = -1
"""Label of a click that only fills up a batch."""
NEAR = 1 / (4 * math.pi)
"""Standard deviation of what SAM's codes of two places have in common, in sides of the crop."""


class ClickAttention(TwoWayAttention):
    """SAM's attention between two sets of tokens, with keys that may be absent."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, present: Tensor | None = None) -> Tensor:
        """``q [B, N, C]``, ``k`` and ``v [B, M, C]``, ``present [B, M]`` bool -> ``[B, N, C]``."""
        heads = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in heads)
        mask = None if present is None else present[:, None, None]
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class SamplerLayer(nn.Module):
    """Learned queries read the clicks' features; every voxel of the map reads the queries.

    Args:
        width: channels of the map.  heads: of the attentions.  hidden: of the queries' MLP.  queries: how many.
    """

    def __init__(self, width: int, heads: int, hidden: int, queries: int):
        super().__init__()
        self.global_query = nn.Parameter(0.1 * torch.randn(1, queries, width))
        self.self_attn = ClickAttention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp, self.norm3 = TwoWayMlp(width, hidden), nn.LayerNorm(width)
        self.cross_attn_image_to_token = ClickAttention(width, heads, inner=width // 2)
        self.norm4 = nn.LayerNorm(width)

    def forward(self, image: Tensor, points: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Take clicks into a map.

        Args:
            image: ``[B, T, C]``.
            points: ``[B, N, C]``, the clicks' tokens.
            present: ``[B, N]`` bool, False for clicks that are not there.

        Returns:
            The map and the clicks' tokens, same shapes.
        """
        count = self.global_query.shape[1]
        q = torch.cat([self.global_query.expand(len(points), -1, -1), points], dim=1)
        there = F.pad(present, (count, 0), value=True)
        read = self.norm1(self.self_attn(q, q, q, there))
        q = self.norm2(q + read)
        queries, points = q[:, :count], q[:, count:]
        queries = self.norm3(queries + self.mlp(queries))
        return self.norm4(image + self.cross_attn_image_to_token(image, queries, queries)), points


class VisualSampler(nn.Module):
    """The prompt encoder: a click is the feature at its place.

    As published a click has neither a label nor a place: any click says "like this". Both are options here. A place
    tells the map how near every voxel is to a click, by a Gaussian of `NEAR` sides of the crop: the inner product, in
    expectation, of SAM's random Fourier codes of the two, which the published code computes and does not use.

    Args:
        width: channels of the map.  heads, hidden, queries: of `SamplerLayer`.  layers: of them.
        labels: learn a vector for background clicks and one for foreground clicks, zero at the start.
        positions: add to the map how near the clicks are, those of either label apart if there are labels.

    >>> sampler = VisualSampler(16, heads=2, hidden=32)
    >>> points, labels = torch.tensor([[[1.0, 2, 3], [0, 0, 0]]]), torch.tensor([[1, ABSENT]])
    >>> sampler(torch.zeros(1, 16, 4, 4, 4), points, labels, size=(16, 16, 16)).shape
    torch.Size([1, 16, 4, 4, 4])
    """

    def __init__(
        self,
        width: int = 256,
        *,
        heads: int = 8,
        hidden: int = 2048,
        queries: int = 10,
        layers: int = 2,
        labels: bool = False,
        positions: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(SamplerLayer(width, heads, hidden, queries) for _ in range(layers))
        self.labels = nn.Embedding.from_pretrained(torch.zeros(2, width), freeze=False) if labels else None
        self.places = nn.Linear(2 if labels else 1, width) if positions else None

    def forward(self, feature: Tensor, points: Tensor, labels: Tensor, *, size: Sequence[int]) -> Tensor:
        """Take clicks into a feature map.

        Args:
            feature: ``[B, C, H, W, D]``.
            points: ``[B, N, 3]`` float, voxels (d, h, w) of the crop; one outside of it reads zeros.
            labels: ``[B, N]``, 1 foreground, 0 background, -1 no click.
            size: voxels (d, h, w) of the crop.

        Returns:
            ``[B, C, H, W, D]``.
        """
        grid, present = feature.shape[2:], labels != ABSENT
        unit = (points.to(feature) + 0.5) / torch.tensor(size, device=feature.device, dtype=feature.dtype)
        tokens, image = sample(feature, unit), feature.flatten(2).transpose(1, 2)
        if self.labels is not None:
            tokens = tokens + self.labels(labels.clamp(min=0))
        if self.places is not None:
            kinds = [labels == 1, labels == 0] if self.labels is not None else [present]
            near = torch.stack([nearness(unit, kind, grid) for kind in kinds], dim=-1)
            image = image + self.places(near.to(image))
        for layer in self.layers:
            image, tokens = layer(image, tokens, present)
        return image.transpose(1, 2).unflatten(2, grid)


def nearness(unit: Tensor, present: Tensor, grid: Sequence[int]) -> Tensor:
    """How near the nearest click is to every place of a map, 1 at the click, 0 far from it or without clicks.

    Args:
        unit: ``[B, N, 3]``, clicks as shares (d, h, w) of the sides.
        present: ``[B, N]`` bool, which of them count.
        grid: of the map, (H, W, D).

    Returns:
        ``[B, T]``, places in the map's order.

    >>> nearness(torch.tensor([[[0.25, 0.5, 0.5]]]), torch.tensor([[True]]), (1, 1, 2)).round().tolist()
    [[1.0, 0.0]]
    """
    sides = (torch.arange(n, device=unit.device, dtype=unit.dtype).add(0.5).div(n) for n in grid)
    h, w, d = torch.meshgrid(*sides, indexing="ij")
    places = torch.stack([d, h, w], dim=-1).flatten(0, 2)
    squared = (unit.unsqueeze(2) - places).square().sum(-1)  # [B, N, T]
    near = (-squared / (2 * NEAR**2)).exp() * present.unsqueeze(2)
    return F.pad(near, (0, 0, 0, 1)).amax(1)


def sample(feature: Tensor, unit: Tensor) -> Tensor:
    """Features at places, trilinear, zeros outside.

    Args:
        feature: ``[B, C, H, W, D]``.
        unit: ``[B, N, 3]``, shares (d, h, w) of its sides.

    Returns:
        ``[B, N, C]``.
    """
    # grid_sample counts axes from the last: (d, w, h).
    places = (2 * unit - 1)[:, :, None, None, (0, 2, 1)]
    found = F.grid_sample(feature, places.to(feature), align_corners=False)
    return found.flatten(2).transpose(1, 2)


class MLADecoder(nn.Module):
    """Multi-layer aggregation: four maps of the encoder and the image itself become scores.

    Args:
        width: channels of the maps.  hidden: of the decoder.  in_channels: of the image.  classes: of the scores.
    """

    def __init__(self, width: int = 256, hidden: int = 128, *, in_channels: int = 1, classes: int = 2):
        super().__init__()

        def conv(inputs: int, outputs: int = hidden) -> nn.Conv3d:
            return nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)

        def normed(inputs: int) -> list[nn.Module]:
            return [conv(inputs), nn.InstanceNorm3d(hidden), nn.ReLU()]

        self.heads = nn.ModuleList(nn.Sequential(*normed(width), *normed(hidden)) for _ in range(4))
        self.cls = nn.Sequential(*normed(4 * hidden + in_channels), conv(hidden, classes))

    def forward(self, maps: Sequence[Tensor], image: Tensor, *, size: Sequence[int]) -> Tensor:
        """Scores of every voxel.

        Args:
            maps: four of ``[B, C, h, w, d]``, the last one with the clicks in it.
            image: the crop ``[B, c, H, W, D]``, which is read at twice the maps' size.
            size: voxels of the scores.

        Returns:
            ``[B, classes, *size]``.
        """
        middle = [2 * side for side in maps[0].shape[2:]]
        up = [_resize(head(level), middle) for head, level in zip(self.heads, maps, strict=True)]
        small = F.interpolate(image, size=middle, mode="trilinear", align_corners=False)
        return _resize(self.cls(torch.cat([*up, small], dim=1)), size)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=True)
