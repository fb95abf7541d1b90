"""The decoder of masked autoencoders, and how images become patches and back (He 2022)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vesalius.nn.encoder import gather_tokens
from vesalius.nn.positions import resize_absolute, sincos_2d


def patchify(image: Tensor, patch: int) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, N, patch * patch * C]``; within a patch the order is row, column, channel.

    >>> patchify(torch.zeros(2, 3, 32, 48), 16).shape
    torch.Size([2, 6, 768])
    """
    b, c, height, width = image.shape
    rows, columns = height // patch, width // patch
    x = image.reshape(b, c, rows, patch, columns, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, rows * columns, patch * patch * c)


def unpatchify(patches: Tensor, grid: tuple[int, int], channels: int) -> Tensor:
    """The inverse of `patchify`: ``[B, N, patch * patch * C]`` -> ``[B, C, H, W]``."""
    rows, columns = grid
    patch = round((patches.shape[-1] / channels) ** 0.5)
    x = patches.reshape(len(patches), rows, columns, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), channels, rows * patch, columns * patch)


def normalised_patches(patches: Tensor) -> Tensor:
    """Each patch ``[..., P]`` with mean 0 and (unbiased) variance 1: MAE's norm_pix targets."""
    mean = patches.mean(-1, keepdim=True)
    return (patches - mean) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


class MAEDecoder(nn.Module):
    """From the kept tokens to the pixels of all patches.

    Its parameters are named as in published MAE files (decoder_embed, mask_token, decoder_pos_embed, decoder_blocks,
    ...), so a checkpoint's decoder loads key by key.

    Args:
        encoder_width: channels of the encoder's tokens.
        grid: (rows, columns) that the positions are built for; other grids are interpolated.
        patch_size, channels: of the pixels to be predicted.
        width, depth, heads, mlp_ratio, eps: of the decoder.
        cls: the encoder hands in a class token in front; it takes part and is dropped at the end.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self,
        *,
        encoder_width: int,
        grid: tuple[int, int],
        patch_size: int,
        channels: int,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        cls: bool = True,
    ):
        super().__init__()
        self.grid, self.cls = grid, cls
        norm: Any = partial(nn.LayerNorm, eps=eps)
        self.decoder_embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", sincos_2d(width, *grid, cls=cls).float().unsqueeze(0))
        self.decoder_blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)
        )
        self.decoder_norm = norm(width)
        self.decoder_pred = nn.Linear(width, patch_size**2 * channels)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, patches: Tensor, cls: Tensor | None, restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predict pixels.

        Args:
            patches: kept tokens ``[B, K, encoder_width]`` after the encoder's final norm.
            cls: ``[B, encoder_width]``, or None for a decoder without a class token.
            restore: ``[B, N]`` as of `masking.random_keep`.
            grid: (rows, columns) of the whole image.

        Returns:
            ``[B, N, patch_size^2 * channels]``.
        """
        x = self.decoder_embed(patches)
        missing = self.mask_token.expand(len(x), restore.shape[1] - x.shape[1], -1)
        x = gather_tokens(torch.cat([x, missing.to(x.dtype)], dim=1), restore)
        if self.cls:
            if cls is None:
                raise ValueError("this decoder was built with a class token and got none")
            x = torch.cat([self.decoder_embed(cls).unsqueeze(1), x], dim=1)
        x = x + resize_absolute(self.decoder_pos_embed, self.grid, grid)
        for block in self.decoder_blocks:
            x = block(x)
        x = self.decoder_pred(self.decoder_norm(x))
        return x[:, 1:] if self.cls else x
