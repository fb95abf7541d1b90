"""SAM's mask decoder, and the three parts together (Kirillov et al., ICCV 2023, section 3 and appendix A).

A few tokens (one for the predicted IoU, one a mask, and the prompt's) and the image's features attend to one another;
each mask token then becomes a small filter on the upscaled features. Images and prompts meet through an explicit
index: P prompts on B images are P masks, where the published decoder would compute every pair.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from vesalius.errors import ConfigError
from vesalius.nn.sam import SamConfig, SamDecoderConfig, SamViT
from vesalius.nn.sam_prompts import SamPromptEncoder

PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of red, green and blue from 0 to 255."""


class TwoWayAttention(nn.Module):
    """Multi-head attention between two sets of tokens, with an inner width of its own."""

    def __init__(self, dim: int, heads: int, *, inner: int | None = None):
        super().__init__()
        inner = inner or dim
        if inner % heads:
            raise ConfigError(f"{inner} channels cannot be divided among {heads} heads")
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[P, N, C]`` queries, ``[P, M, C]`` keys and values -> ``[P, N, C]``."""
        heads = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in heads)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TwoWayMlp(nn.Module):
    """Two linear layers with a ReLU between, under the published names."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C]`` -> the same."""
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens to image, an MLP of the tokens, image to tokens; a LayerNorm after each.

    Args:
        first: of the transformer: self-attention replaces the tokens and gets no positions.
    """

    def __init__(self, dim: int, heads: int, mlp: int, *, first: bool):
        super().__init__()
        self.first = first
        self.self_attn = TwoWayAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TwoWayAttention(dim, heads, inner=dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = TwoWayMlp(dim, mlp)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = TwoWayAttention(dim, heads, inner=dim // 2)

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``[P, N, C]`` and image ``[P, hw, C]`` -> both; the positions are added at every attention."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_pe
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, image + image_pe, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image + image_pe, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Blocks in which tokens and image attend to each other, and a last attention of the tokens to the image."""

    def __init__(self, dim: int, *, depth: int, heads: int, mlp: int):
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, heads, mlp, first=number == 0) for number in range(depth))
        self.final_attn_token_to_image = TwoWayAttention(dim, heads, inner=dim // 2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image and its positions ``[P, C, h, w]``, tokens ``[P, N, C]`` -> tokens ``[P, N, C]``, image ``[P, hw, C]``.

        The initial tokens are the tokens' positions.
        """
        keys, keys_pe = (x.flatten(2).transpose(1, 2) for x in (image, image_pe))
        queries = tokens
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, keys_pe)
        attended = self.final_attn_token_to_image(queries + tokens, keys + keys_pe, keys)
        return self.norm_final_attn(queries + attended), keys


class SmallMlp(nn.Module):
    """Linear layers with ReLUs between, under the published names."""

    def __init__(self, width: int, hidden: int, out: int, depth: int):
        super().__init__()
        widths = [width, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` -> ``[..., out]``."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class SamMaskDecoder(nn.Module):
    """Masks and their predicted IoU from features and prompts; every mask token's are given.

    Args:
        dim: channels of features and prompts.
        config: the other sizes; `mask_tokens` and `stages` say how many masks and at which resolution.

    >>> decoder = SamMaskDecoder(32, SamDecoderConfig(mlp=64, iou_hidden=32))
    >>> features, positions = torch.randn(2, 32, 4, 4), torch.randn(1, 32, 4, 4)
    >>> sparse, dense = torch.randn(3, 2, 32), torch.zeros(1, 32, 4, 4)
    >>> masks, iou = decoder(features, positions, sparse, dense, torch.tensor([0, 1, 1]))
    >>> masks.shape, iou.shape
    (torch.Size([3, 4, 16, 16]), torch.Size([3, 4]))
    """

    def __init__(self, dim: int = 256, config: SamDecoderConfig | None = None):
        super().__init__()
        c = self.config = config or SamDecoderConfig()
        self.transformer = TwoWayTransformer(dim, depth=c.depth, heads=c.heads, mlp=c.mlp)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(c.mask_tokens, dim)
        channels = [dim, *(dim // 2 ** (stage + 2) for stage in range(c.stages))]
        upscaling: list[nn.Module] = []
        for stage, (before, after) in enumerate(pairwise(channels), start=1):
            norm = [LayerNorm2d(after, eps=1e-6)] if stage < c.stages else []
            upscaling += [nn.ConvTranspose2d(before, after, 2, stride=2), *norm, nn.GELU()]
        self.output_upscaling = nn.Sequential(*upscaling)
        self.output_hypernetworks_mlps = nn.ModuleList(
            SmallMlp(dim, dim, channels[-1], 3) for _ in range(c.mask_tokens)
        )
        self.iou_prediction_head = SmallMlp(dim, c.iou_hidden, c.mask_tokens, c.iou_depth)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        image_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits of every mask token.

        Args:
            image_embeddings: ``[B, C, h, w]``.  image_pe: ``[1, C, h, w]``.
            sparse: ``[P, N, C]``, N = 0 without points and boxes.  dense: ``[P or 1, C, h, w]``.
            image_index: ``[P]``, the image of each prompt. Without it image i has prompt i; one image, or one prompt,
                serves all.

        Returns:
            masks ``[P, mask_tokens, 2^stages h, 2^stages w]`` and the predicted IoU of each, ``[P, mask_tokens]``.
        """
        if image_index is not None:
            image_embeddings = image_embeddings[image_index]
        count = max(len(image_embeddings), len(sparse), len(dense))  # a mask alone has no sparse tokens
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(count, -1, -1)
        tokens = torch.cat([own, sparse.expand(count, -1, -1)], dim=1)
        image = (image_embeddings + dense).expand(count, -1, -1, -1)
        tokens, keys = self.transformer(image, image_pe, tokens)
        upscaled = self.output_upscaling(keys.transpose(1, 2).reshape(image.shape))
        filters = [mlp(tokens[:, 1 + number]) for number, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = torch.einsum("pmc,pchw->pmhw", torch.stack(filters, dim=1), upscaled)
        return masks, self.iou_prediction_head(tokens[:, 0])


class Sam(nn.Module):
    """Segment Anything: `image_encoder`, `prompt_encoder` and `mask_decoder`.

    Images are ``[B, 3, H, W]`` from 0 to 255 with the longer side `image_size`; nothing runs without gradients unless
    the caller says so, and masks are logits.

    >>> from vesalius.nn.sam import SAM_PRESETS
    >>> sam = Sam(SAM_PRESETS["sam_tiny"]).eval()
    >>> features = sam.encode(torch.zeros(1, 3, 96, 128))
    >>> masks, iou = sam.decode(features, points=torch.tensor([[[40.0, 30.0]]]), labels=torch.tensor([[1]]))
    >>> sam.restore(masks, (96, 128), (150, 200)).shape, iou.shape
    (torch.Size([1, 4, 150, 200]), torch.Size([1, 4]))
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: SamConfig):
        super().__init__()
        c = self.config = config
        self.image_encoder = SamViT(c)
        self.prompt_encoder = SamPromptEncoder(
            c.neck, image_size=c.image_size, patch_size=c.patch_size, mask_channels=c.decoder.mask_channels
        )
        self.mask_decoder = SamMaskDecoder(c.neck, c.decoder)
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, torch.tensor(values).reshape(-1, 1, 1), persistent=False)

    def preprocess(self, image: Tensor) -> Tensor:
        """Values from 0 to 255, normalised, then padded with zeros right and below to a square: ``[B, 3, S, S]``."""
        height, width = image.shape[-2:]
        side = self.config.image_size
        if max(height, width) > side:
            raise ConfigError(
                f"an image of {height} x {width} for a network of {side}", remedy=f"resize its longer side to {side}"
            )
        return F.pad((image - self.pixel_mean) / self.pixel_std, (0, side - width, 0, side - height))

    def encode(self, image: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` from 0 to 255 -> features ``[B, C, h, w]``."""
        return self.image_encoder(self.preprocess(image))

    def decode(
        self,
        features: Tensor,
        *,
        image_index: Tensor | None = None,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits ``[P, mask_tokens, 4 h, 4 w]`` and predicted IoU ``[P, mask_tokens]`` of P prompts.

        The first mask is meant for prompts that leave no doubt, the others for those that do. See
        `SamPromptEncoder.forward` for the prompts and `SamMaskDecoder.forward` for `image_index`.
        """
        sparse, dense = self.prompt_encoder(points=points, labels=labels, boxes=boxes, masks=masks)
        positions = self.prompt_encoder.dense_pe((features.shape[-2], features.shape[-1]))
        return self.mask_decoder(features, positions, sparse, dense, image_index)

    def restore(self, masks: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
        """Logits ``[P, M, ., .]`` of the padded square on the image's own pixels ``[P, M, *original]``, bilinear.

        Args:
            size: rows and columns of the resized image within the square.
        """
        side = self.config.image_size
        masks = F.interpolate(masks, (side, side), mode="bilinear", align_corners=False)
        return F.interpolate(masks[..., : size[0], : size[1]], original, mode="bilinear", align_corners=False)
