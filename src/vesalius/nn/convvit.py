"""The hierarchical encoder of ConvMAE and Deblurring MIM: two convolutional stages, then a transformer.

Masking reaches into the convolutions: hidden cells are zeroed before every 5 x 5 kernel, so that nothing of a removed
patch leaks into a kept one (Gao 2022, section 3.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from timm.layers import DropPath, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vesalius.errors import ConfigError
from vesalius.nn.encoder import Encoded, Encoder, gather_tokens
from vesalius.nn.positions import resize_absolute, sincos_2d
from vesalius.nn.vit import RelativeBias

STRIDES = (4, 2, 2)  # of the three patch embeddings
CONV_EPS = 1e-5  # of the LayerNorms of the convolutional stages, whatever the transformer's


@dataclass(frozen=True)
class ConvViTConfig:
    """Shape of the encoder; the defaults are ConvMAE-B at 224.

    Args:
        image_size: pixels of the side that the position tables are built for.  in_channels: 1 or 3.
        widths: channels of the three stages (strides 4, 8, 16).
        depths: blocks of the three stages.  heads: of the third.  mlp_ratio: of all.
        fusion: add strided projections of stages 1 and 2 to the tokens (pre-training; not in the classifier).
        relative: a relative position bias for each transformer block (segmentation layout).
        layer_scale: initial value of the transformer's residual gains, None for none.
        drop_path: stochastic depth, growing linearly over all blocks to this.
        eps: of the transformer's and the final LayerNorm.
        final_norm: a LayerNorm after the last block.
    """

    image_size: int = 224
    in_channels: int = 3
    widths: tuple[int, int, int] = (256, 384, 768)
    depths: tuple[int, int, int] = (2, 2, 11)
    heads: int = 12
    mlp_ratio: float = 4.0
    fusion: bool = True
    relative: Literal["none", "per_block"] = "none"
    layer_scale: float | None = None
    drop_path: float = 0.0
    eps: float = 1e-6
    final_norm: bool = True

    def __post_init__(self) -> None:
        # lists come from JSON and YAML
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "depths", tuple(self.depths))
        if self.image_size % math.prod(STRIDES):
            raise ConfigError(
                f"image_size = {self.image_size} is not a multiple of {math.prod(STRIDES)}", remedy="choose one that is"
            )
        if self.widths[-1] % self.heads:
            raise ConfigError(f"width = {self.widths[-1]} cannot be divided among {self.heads} heads")

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens along (rows, columns) at `image_size`."""
        return (self.image_size // math.prod(STRIDES),) * 2


class _Embed(nn.Module):
    """Non-overlapping convolution, LayerNorm over channels, GELU: ``[B, C, H, W] -> [B, D, H/s, W/s]``."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, stride, stride)
        self.norm = nn.LayerNorm(width, eps=CONV_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return nn.functional.gelu(x.permute(0, 3, 1, 2))


class MaskedConvBlock(nn.Module):
    """ConvMAE's block: a 5 x 5 depthwise convolution in attention's place, blind to hidden cells."""

    def __init__(self, width: int, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=CONV_EPS)
        self.conv1 = nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.norm2 = nn.LayerNorm(width, eps=CONV_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio), use_conv=True)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """``x [B, C, h, w]``, ``visible [B, 1, h, w]`` 1 where a cell may be seen -> ``[B, C, h, w]``."""
        y = self.conv1(_channel_norm(self.norm1, x))
        if visible is not None:
            y = y * visible.to(y.dtype)
        x = x + self.drop_path(self.conv2(self.attn(y)))
        return x + self.drop_path(self.mlp(_channel_norm(self.norm2, x)))


class ConvViT(Encoder):
    """The hierarchical trunk; `maps` are its three stages at strides 4, 8 and 16 (empty when tokens are dropped).

    There is no class token: `cls` is None, and `pooled` is the mean of the tokens under a parameter-free LayerNorm.

    >>> config = ConvViTConfig(image_size=32, in_channels=1, widths=(8, 8, 16), depths=(1, 1, 1), heads=2)
    >>> out = ConvViT(config)(torch.zeros(2, 1, 64, 32))
    >>> out.patches.shape, out.grid, [tuple(m.shape[1:]) for m in out.maps]
    (torch.Size([2, 8, 16]), (4, 2), [(8, 16, 8), (8, 8, 4), (16, 4, 2)])
    """

    pos_embed: Tensor

    def __init__(self, config: ConvViTConfig):
        super().__init__()
        c = self.config = config
        w1, w2, width = c.widths
        self.width, self.depth, self.patch_size = width, c.depths[2], math.prod(STRIDES)
        self.image_size, self.in_channels = c.image_size, c.in_channels
        self.patch_embed1 = _Embed(c.in_channels, w1, STRIDES[0])
        self.patch_embed2 = _Embed(w1, w2, STRIDES[1])
        self.patch_embed3 = _Embed(w2, width, STRIDES[2])
        self.patch_embed4 = nn.Linear(width, width)
        self.register_buffer("pos_embed", sincos_2d(width, *c.grid).float().unsqueeze(0))
        total = sum(c.depths)
        rates = [c.drop_path * i / max(total - 1, 1) for i in range(total)]
        d1, d2 = c.depths[0], c.depths[0] + c.depths[1]
        self.blocks1 = nn.ModuleList(MaskedConvBlock(w1, c.mlp_ratio, rate) for rate in rates[:d1])
        self.blocks2 = nn.ModuleList(MaskedConvBlock(w2, c.mlp_ratio, rate) for rate in rates[d1:d2])
        norm = partial(nn.LayerNorm, eps=c.eps)
        self.blocks = nn.ModuleList(
            Block(
                width,
                c.heads,
                c.mlp_ratio,
                qkv_bias=True,
                init_values=c.layer_scale,
                drop_path=rate,
                norm_layer=norm,  # type: ignore[arg-type]  # called, never used as a type
            )
            for rate in rates[d2:]
        )
        self.relative = (
            nn.ModuleList(RelativeBias(c.grid, c.heads, cls=False) for _ in self.blocks)
            if c.relative == "per_block"
            else None
        )
        self.stage1_output = nn.Conv2d(w1, width, 4, 4) if c.fusion else None
        self.stage2_output = nn.Conv2d(w2, width, 2, 2) if c.fusion else None
        self.norm = norm(width) if c.final_norm else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

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
        """See `Encoder.forward`; `layers` count the transformer's blocks.

        Raises:
            ConfigError: the image does not fit the strides, or `replace` is given (ConvMAE drops tokens).
        """
        self._check(image, replace)
        rows, columns = grid = (image.shape[-2] // self.patch_size, image.shape[-1] // self.patch_size)
        visible = None
        if keep is not None:
            visible = image.new_zeros(len(image), rows * columns).scatter(1, keep, 1.0).view(-1, 1, rows, columns)

        stage1 = self.patch_embed1(image)
        for block in self.blocks1:
            stage1 = block(stage1, _spread(visible, 4))
        stage2 = self.patch_embed2(stage1)
        for block in self.blocks2:
            stage2 = block(stage2, _spread(visible, 2))
        x = self.patch_embed4(self.patch_embed3(stage2).flatten(2).transpose(1, 2))
        x = x + resize_absolute(self.pos_embed, self.config.grid, grid)
        if keep is not None:
            x = gather_tokens(x, keep)
        prefix = 0
        if extra is not None:
            prefix, x = extra.shape[1], torch.cat([extra, x], dim=1)

        wanted: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            x = block(x, attn_mask=self._logits(number, grid, keep, prefix, bias))
            if number in layers:
                wanted[number] = x
        x = x[:, prefix:]
        maps = []
        if keep is None:
            maps = [stage1, stage2, x.transpose(1, 2).unflatten(2, grid)]
        if self.stage1_output is not None and self.stage2_output is not None:
            for projection, stage in ((self.stage1_output, stage1), (self.stage2_output, stage2)):
                fine = projection(stage).flatten(2).transpose(1, 2)
                x = x + (fine if keep is None else gather_tokens(fine, keep))
        pooled = nn.functional.layer_norm(x.mean(1), (self.width,), eps=self.config.eps)
        return Encoded(None, self.norm(x), pooled, wanted, maps, grid)

    def _check(self, image: Tensor, replace: Tensor | None) -> None:
        height, width = image.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                f"an image of {height} x {width} cannot be cut into patches of {self.patch_size}",
                remedy=f"resize it to multiples of {self.patch_size}",
            )
        if image.shape[1] != self.in_channels:
            raise ConfigError(
                f"{image.shape[1]} input channels for a network of {self.in_channels}",
                remedy="apply its input contract",
            )
        if replace is not None:
            raise ConfigError("the hierarchical encoder has no mask token", remedy="drop tokens with keep")

    def _logits(
        self, number: int, grid: tuple[int, int], keep: Tensor | None, prefix: int, bias: Tensor | None
    ) -> Tensor | None:
        """The block's relative bias plus the caller's, for the tokens that are there; zero for extra tokens."""
        if self.relative is None:
            return bias
        logits = self.relative[number](grid)
        if keep is not None:
            logits = logits[0][:, keep.unsqueeze(2), keep.unsqueeze(1)].transpose(0, 1)
        if prefix:
            logits = nn.functional.pad(logits, (prefix, 0, prefix, 0))
        return logits if bias is None else logits + bias


def _channel_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm over the channels of ``[B, C, h, w]``."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _spread(visible: Tensor | None, times: int) -> Tensor | None:
    """A map on the token grid, each token repeated over its `times` x `times` cells."""
    if visible is None:
        return None
    return visible.repeat_interleave(times, 2).repeat_interleave(times, 3)
