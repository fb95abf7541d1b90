"""One plain vision transformer for ViT, MAE, Deblurring MIM, SimMIM and USFM.

They differ in where positions come from, in layer scale and in pooling, not in their blocks: those are timm's. BEiT's
pair of query and value biases is one qkv bias here, because a key bias adds the same number to every logit
of a query and cancels in the softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vesalius.errors import ConfigError
from vesalius.nn.encoder import Encoded, Encoder, gather_tokens
from vesalius.nn.positions import CLS_ROWS, relative_index, resize_absolute, resize_relative, sincos_2d


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer's shape; the defaults are ViT-B/16 at 224 (Dosovitskiy 2021).

    Args:
        image_size: pixels of the side that the position tables are built for.
        patch_size: pixels of a token's side.  in_channels: 1 or 3.
        width, depth, heads, mlp_ratio: as in the papers.
        positions: absolute positions, added to the tokens.
        relative: relative position bias, one table for all blocks (pre-training) or one a block (fine-tuning).
        qkv_bias: a bias on query, key and value.
        layer_scale: initial value of the residual branches' gains, None for none.
        drop_path: stochastic depth, growing linearly from 0 at the first block to this at the last.
        eps: of the LayerNorms.  cls: a class token in front.  final_norm: a LayerNorm after the last block.
        pool: what `pooled` is: the class token, or the mean of the patch tokens under a parameter-free LayerNorm.
        mask_token: a learned token that can stand in for a patch (SimMIM).
        init: MAE's Xavier-uniform linears, or BEiT's truncated normals with the residual branches scaled by depth.
    """

    image_size: int = 224
    patch_size: int = 16
    in_channels: int = 3
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    positions: Literal["none", "learned", "sincos"] = "learned"
    relative: Literal["none", "shared", "per_block"] = "none"
    qkv_bias: bool = True
    layer_scale: float | None = None
    drop_path: float = 0.0
    eps: float = 1e-6
    cls: bool = True
    final_norm: bool = True
    pool: Literal["cls", "mean"] = "cls"
    mask_token: bool = False
    init: Literal["mae", "beit"] = "mae"

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size = {self.image_size} is not a multiple of patch_size = {self.patch_size}",
                remedy="choose one that is",
            )
        if self.width % self.heads:
            raise ConfigError(f"width = {self.width} cannot be divided among {self.heads} heads")
        if self.pool == "cls" and not self.cls:
            raise ConfigError("pool = 'cls' without a class token", remedy="use pool = 'mean'")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (rows, columns) at `image_size`."""
        return (self.image_size // self.patch_size,) * 2


class RelativeBias(nn.Module):
    """Additive attention logits that depend on the offset between two patches (BEiT).

    Args:
        table: ``[(2 rows - 1)(2 columns - 1) + 3, heads]``; without a class token the last 3 rows are absent.
    """

    def __init__(self, grid: tuple[int, int], heads: int, *, cls: bool = True):
        super().__init__()
        self.grid, self.cls = grid, cls
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + (CLS_ROWS if cls else 0)
        self.table = nn.Parameter(torch.zeros(rows, heads))
        self._cache: tuple[tuple[int, int], Tensor] = (grid, relative_index(*grid, cls=cls))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """The bias ``[1, heads, T, T]`` of a grid; another grid than its own resizes the table (no gradient)."""
        table = self.table if grid == self.grid else resize_relative(self.table, self.grid, grid)
        if self._cache[0] != grid or self._cache[1].device != table.device:
            self._cache = (grid, relative_index(*grid, cls=self.cls).to(table.device))
        index = self._cache[1]
        return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).unsqueeze(0)


class ViT(Encoder):
    """The trunk. See `Encoder.forward` for what goes in and `Encoded` for what comes out.

    >>> vit = ViT(ViTConfig(image_size=32, patch_size=8, in_channels=1, width=16, depth=2, heads=2, pool="mean"))
    >>> out = vit(torch.zeros(2, 1, 32, 48), layers=(0,))
    >>> out.patches.shape, out.grid, out.pooled.shape, out.layers[0].shape
    (torch.Size([2, 24, 16]), (4, 6), torch.Size([2, 16]), torch.Size([2, 25, 16]))
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        c = self.config = config
        self.width, self.depth, self.patch_size = c.width, c.depth, c.patch_size
        self.image_size, self.in_channels = c.image_size, c.in_channels
        self.patch_embed = PatchEmbed(None, c.patch_size, c.in_channels, c.width, flatten=False, strict_img_size=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.width)) if c.cls else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.width)) if c.mask_token else None
        tokens = math.prod(c.grid) + int(c.cls)
        if c.positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens, c.width))
        elif c.positions == "sincos":
            self.register_buffer("pos_embed", sincos_2d(c.width, *c.grid, cls=c.cls).float().unsqueeze(0))
        norm: Any = partial(nn.LayerNorm, eps=c.eps)
        rates = torch.linspace(0, c.drop_path, c.depth).tolist()
        self.blocks = nn.ModuleList(
            Block(
                c.width,
                c.heads,
                c.mlp_ratio,
                qkv_bias=c.qkv_bias,
                init_values=c.layer_scale,
                drop_path=rate,
                norm_layer=norm,
            )
            for rate in rates
        )
        self.relative: RelativeBias | nn.ModuleList | None = None
        if c.relative == "shared":
            self.relative = RelativeBias(c.grid, c.heads, cls=c.cls)
        elif c.relative == "per_block":
            self.relative = nn.ModuleList(RelativeBias(c.grid, c.heads, cls=c.cls) for _ in range(c.depth))
        self.norm = norm(c.width) if c.final_norm else nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        beit = self.config.init == "beit"
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if beit:
                    nn.init.trunc_normal_(module.weight, std=0.02)
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        projection = self.patch_embed.get_parameter("proj.weight")
        if beit:
            nn.init.trunc_normal_(projection, std=0.02)
        else:
            nn.init.xavier_uniform_(projection.view(self.width, -1))
        nn.init.zeros_(self.patch_embed.get_parameter("proj.bias"))
        for name in ("cls_token", "mask_token"):
            if getattr(self, name) is not None:
                nn.init.normal_(getattr(self, name), std=0.02)
        if self.config.positions == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if beit:
            with torch.no_grad():
                for number, block in enumerate(self.blocks, start=1):
                    for name in ("attn.proj.weight", "mlp.fc2.weight"):
                        block.get_parameter(name).div_(math.sqrt(2 * number))

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches when no extra ones are given."""
        return int(self.config.cls)

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
        """See `Encoder.forward`."""
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
        x = self.patch_embed(image)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)
        if replace is not None:
            if self.mask_token is None:
                raise ConfigError("this network has no mask token", remedy="build it with mask_token=True")
            x = torch.where(replace.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        position = self._positions(grid)
        if position is not None:
            x = x + position[:, self.prefix :]
        if keep is not None:
            x = gather_tokens(x, keep)
        front = []
        if self.cls_token is not None:
            cls = self.cls_token if position is None else self.cls_token + position[:, :1]
            front.append(cls.expand(len(x), -1, -1))
        if extra is not None:
            front.append(extra)
        x = torch.cat([*front, x], dim=1)
        count = sum(part.shape[1] for part in front)

        wanted: dict[int, Tensor] = {}
        tables = self.relative if isinstance(self.relative, nn.ModuleList) else None
        logits = self._logits(self.relative, grid, keep, extra, bias) if tables is None else None
        for number, block in enumerate(self.blocks):
            if tables is not None:
                logits = self._logits(tables[number], grid, keep, extra, bias)
            x = block(x, attn_mask=logits)
            if number in layers:
                wanted[number] = x
        raw, x = x, self.norm(x)
        cls_out = x[:, 0] if self.cls_token is not None else None
        if self.config.pool == "cls":
            pooled = x[:, 0]
        else:  # under a LayerNorm without parameters, as fine-tuning's fc_norm starts
            pooled = nn.functional.layer_norm(raw[:, count:].mean(1), (self.width,), eps=self.config.eps)
        return Encoded(cls_out, x[:, count:], pooled, wanted, [], grid)

    def _positions(self, grid: tuple[int, int]) -> Tensor | None:
        if self.config.positions == "none":
            return None
        return resize_absolute(self.pos_embed, self.config.grid, grid)

    def _logits(
        self,
        relative: nn.Module | None,
        grid: tuple[int, int],
        keep: Tensor | None,
        extra: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor | None:
        """Relative bias and the caller's, for the tokens that are there; extra tokens have no offset, so zero."""
        if relative is None:
            return bias
        logits = relative(grid)
        if keep is not None:
            rows = keep + self.prefix
            if self.prefix:
                rows = torch.cat([rows.new_zeros(len(rows), 1), rows], dim=1)
            logits = logits[0][:, rows.unsqueeze(2), rows.unsqueeze(1)].transpose(0, 1)
        if extra is not None:
            first, added = self.prefix, extra.shape[1]
            size = logits.shape[-1] + added
            place = [i for i in range(size) if not first <= i < first + added]
            wide = logits.new_zeros(*logits.shape[:2], size, size)
            where = torch.tensor(place, device=logits.device)
            wide[:, :, where.unsqueeze(1), where] = logits
            logits = wide
        return logits if bias is None else logits + bias
