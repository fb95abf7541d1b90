"""The image encoder of Segment Anything (Kirillov et al., ICCV 2023), as a trunk into which adapters go by name.

A plain vision transformer whose attention is confined to windows except in a few global blocks, with decomposed
relative positions (one table an axis). Two systems adapt it to volumes, so a block has named slots around attention and
MLP, its qkv can be replaced, and its windows, shift and relative positions work along two axes or three. The published
names of the tensors are kept: slots are empty by default and have none.

Differences from the published code: any image size, square or not (tables are resized at run time), and the relative
positions enter the fused attention as extra channels of queries and keys, or without a gradient as a mask for some
queries at a time, so that no table of all pairs of tokens is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from vesalius.errors import ConfigError, nearest

AXES = "hwd"
SLOTS = ("pre_attn", "post_attn", "post_mlp", "attn.qkv")
HELD = 2**25  # numbers of an attention mask that are held at a time where there is no gradient
BLOCKED = -100.0  # logit between tokens that a cyclic shift brought side by side (Swin)


@dataclass(frozen=True)
class SamDecoderConfig:
    """The prompt encoder's and mask decoder's shape, at the width of the image encoder's neck.

    Args:
        depth, heads, mlp: of the two-way transformer; `mlp` is the hidden width.
        mask_tokens: masks a prompt gets: one for a clear prompt and three for an ambiguous one, or one a class.
        stages: doublings of the resolution: 2 gives masks at a quarter of the image's, 4 at its own (patches of 16).
        iou_depth, iou_hidden: of the head that predicts each mask's IoU.
        mask_channels: hidden channels of the mask prompt's encoder.
    """

    depth: int = 2
    heads: int = 8
    mlp: int = 2048
    mask_tokens: int = 4
    stages: int = 2
    iou_depth: int = 3
    iou_hidden: int = 256
    mask_channels: int = 16


@dataclass(frozen=True)
class SamConfig:
    """A SAM's shape; the defaults are ViT-B's.

    Args:
        image_size: pixels of the side that the position tables are built for.  patch_size: of a token's side.
        width, depth, heads, mlp_ratio: of the image encoder.
        global_blocks: the blocks (from 0) that attend to the whole image.
        window: tokens of the side of the others' windows.
        neck: channels of the features, and the width of prompt encoder and mask decoder.
        decoder: the rest of those two.
    """

    image_size: int = 1024
    patch_size: int = 16
    in_channels: int = 3
    width: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    neck: int = 256
    mlp_ratio: float = 4.0
    decoder: SamDecoderConfig = field(default_factory=SamDecoderConfig)

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size = {self.image_size} is not a multiple of patch_size = {self.patch_size}",
                remedy="choose one that is",
            )
        if self.width % self.heads:
            raise ConfigError(f"width = {self.width} cannot be divided among {self.heads} heads")
        if any(not 0 <= block < self.depth for block in self.global_blocks):
            raise ConfigError(f"global_blocks = {self.global_blocks} of {self.depth} blocks", remedy="count from 0")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamConfig:
        """The inverse of `dataclasses.asdict`, also after JSON."""
        decoder, blocks = SamDecoderConfig(**values["decoder"]), tuple(values["global_blocks"])
        return cls(**{**values, "decoder": decoder, "global_blocks": blocks})

    @property
    def grid(self) -> int:
        """Tokens of the side at `image_size`."""
        return self.image_size // self.patch_size


SAM_PRESETS = {
    "sam_vit_b": SamConfig(),
    "sam_vit_l": SamConfig(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "sam_vit_h": SamConfig(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    "sam_tiny": SamConfig(
        image_size=128,
        width=96,
        depth=4,
        heads=3,
        global_blocks=(1, 3),
        window=4,
        neck=64,
        decoder=SamDecoderConfig(heads=2, mlp=128, iou_hidden=64),
    ),
}
"""The three published sizes, and one for a laptop's CPU (0.7 million parameters)."""


class SamAttention(nn.Module):
    """Self-attention of a grid of tokens with decomposed relative positions, along two axes or three.

    The logit of query q at (i, j) and key k at (i', j') is ``q k / sqrt(d) + lr (q R_h[i - i'] + q R_w[j - j'])``, with
    q unscaled in the position terms.

    Args:
        side: tokens of the side that the tables are for; each has ``2 side - 1`` rows, resized to the grid's.
        axes: 2 or 3; with 3 there is a table `rel_pos_d` and the gain `lr` of 3DSAM-adapter (a constant, 1 as made).
    """

    lr: Tensor

    def __init__(self, width: int, heads: int, side: int, *, axes: int = 2):
        super().__init__()
        self.heads = heads
        self.qkv: nn.Module = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.axes = AXES[:axes]
        for axis in self.axes:
            self.register_parameter(f"rel_pos_{axis}", nn.Parameter(torch.zeros(2 * side - 1, width // heads)))
        if axes == 3:
            self.register_buffer("lr", torch.ones(()))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens ``[N, H, W(, D), C]`` -> the same; `mask` is added to the logits, ``[N, 1, T, T]`` (row-major T)."""
        count, *grid, width = x.shape
        q, k, v = self.qkv(x).reshape(count, -1, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        positions = self._positions(q.unflatten(2, grid))
        attend = _attend_with_gradient if torch.is_grad_enabled() else _attend_in_parts
        out = attend(q, k, v, positions, grid, mask)
        return self.proj(out.transpose(1, 2).reshape(count, *grid, width))

    def _positions(self, q: Tensor) -> Tensor:
        """What a query ``[N, heads, H, W(, D), d]`` adds for a key's row, column (and slice): ``[N, heads, T, S]``."""
        parts = []
        for axis, side in zip(self.axes, q.shape[2:], strict=False):
            table = relative_rows(self.get_parameter(f"rel_pos_{axis}"), side).to(q.dtype)
            parts.append(torch.einsum(f"bn{self.axes}c,{axis}kc->bn{self.axes}k", q, table))
        positions = torch.cat(parts, dim=-1).flatten(2, -2)
        return positions * self.lr if len(self.axes) == 3 else positions


def _attend_with_gradient(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, grid: list[int], mask: Tensor | None
) -> Tensor:
    """Attention with the positions as more channels: of the queries what they add, of the keys where they are.

    Nothing as large as the pairs of tokens is kept for the gradient.
    """
    width = q.shape[-1]
    marks = _marks(tuple(grid)).to(k).expand(*k.shape[:2], -1, -1)
    q = torch.cat([q * width**-0.5, positions], dim=-1)
    k = torch.cat([k, marks], dim=-1)
    v = F.pad(v, (0, positions.shape[-1]))  # the fused kernels want values as wide as the queries
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)[..., :width]


def _attend_in_parts(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, grid: list[int], mask: Tensor | None
) -> Tensor:
    """The same with the positions as a mask for some queries at a time, which is quicker where it need not be kept."""
    out = torch.empty_like(q)
    some = max(1, HELD // (q.shape[0] * q.shape[1] * q.shape[2]))
    for start in range(0, q.shape[2], some):
        rows = slice(start, start + some)
        bias = positions.new_zeros(()) if mask is None else mask[:, :, rows].unflatten(-1, grid)
        for axis, part in enumerate(positions[:, :, rows].split(grid, dim=-1)):
            # from a key's coordinate along one axis to every key
            bias = bias + part.unflatten(-1, [side if number == axis else 1 for number, side in enumerate(grid)])
        out[:, :, rows] = F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=bias.flatten(3))
    return out


def relative_rows(table: Tensor, side: int) -> Tensor:
    """The rows of a relative table ``[2 s - 1, d]`` for every query and key along an axis: ``[side, side, d]``.

    A table of another side is resized linearly (align_corners False). Entry (q, k) is the row of the offset q - k.

    >>> relative_rows(torch.arange(3.0)[:, None], 2)[..., 0]
    tensor([[1., 0.],
            [2., 1.]])
    """
    rows = 2 * side - 1
    if len(table) != rows:
        table = F.interpolate(table.float().T[None], size=rows, mode="linear")[0].T.to(table.dtype)
    at = torch.arange(side, device=table.device)
    return table[at[:, None] - at[None, :] + side - 1]


@lru_cache(maxsize=32)
def _marks(grid: tuple[int, ...]) -> Tensor:
    """One-hot row, column (and slice) of every token of a grid: ``[T, H + W (+ D)]``."""
    places = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    return torch.cat([F.one_hot(at.flatten(), side) for at, side in zip(places, grid, strict=True)], dim=1).float()


class SamMlp(nn.Module):
    """Two linear layers with an exact GELU between, under the published names."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C]`` -> the same."""
        return self.lin2(F.gelu(self.lin1(x)))


class SamBlock(nn.Module):
    """A transformer block with slots for adapters; an empty slot is an identity and has no tensors.

    ``x = pre_attn(x); x = x + attn(norm1(x)); x = post_attn(x); x = x + mlp(norm2(x)); x = post_mlp(x)``, each of the
    slots' modules taking and giving tokens ``[B, H, W(, D), C]``.

    Args:
        window: tokens of the windows' side, 0 for attention to the whole grid. A grid is padded with zeros behind
            `norm1`, and the padding takes part in attention, as SAM was trained.
        side: tokens of the side that the relative tables are for; `window` if left out.
        shift: tokens by which the grid is rolled before it is cut; what the roll brings together is kept apart.
        axes: 2 for images, 3 for volumes.
    """

    pre_attn: nn.Module
    post_attn: nn.Module
    post_mlp: nn.Module

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        window: int = 0,
        side: int | None = None,
        shift: int = 0,
        axes: int = 2,
    ):
        super().__init__()
        if side is None and not window:
            raise ConfigError("a global block without the side of its tables", remedy="give side")
        self.window, self.shift = window, shift
        norm = partial(nn.LayerNorm, width, eps=1e-6)
        self.pre_attn, self.post_attn, self.post_mlp = nn.Identity(), nn.Identity(), nn.Identity()
        self.norm1 = norm()
        self.attn = SamAttention(width, heads, side or window, axes=axes)
        self.norm2 = norm()
        self.mlp = SamMlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, H, W(, D), C]`` -> the same."""
        x = self.pre_attn(x)
        x = x + self._attend(self.norm1(x))
        x = self.post_attn(x)
        x = x + self.mlp(self.norm2(x))
        return self.post_mlp(x)

    def _attend(self, x: Tensor) -> Tensor:
        if not self.window:
            return self.attn(x)
        grid, axes = x.shape[1:-1], tuple(range(1, x.ndim - 1))
        gaps = [-side % self.window for side in grid]
        x = F.pad(x, [0, 0, *(edge for gap in reversed(gaps) for edge in (0, gap))])
        padded, mask = x.shape[1:-1], None
        if self.shift:
            x = x.roll([-self.shift] * len(axes), axes)
            mask = shift_mask(tuple(padded), self.window, self.shift).to(x)
            mask = mask.repeat(len(x), 1, 1)[:, None]
        x = merge_windows(self.attn(split_windows(x, self.window), mask), padded)
        if self.shift:
            x = x.roll([self.shift] * len(axes), axes)
        return x[(slice(None), *(slice(side) for side in grid))]


def split_windows(x: Tensor, window: int) -> Tensor:
    """``[B, H, W(, D), C]`` -> ``[B windows, window, window(, window), C]``, windows in row-major order."""
    counts = [side // window for side in x.shape[1:-1]]
    for axis, count in reversed(list(enumerate(counts, start=1))):
        x = x.unflatten(axis, (count, window))
    axes = range(1, 2 * len(counts) + 1)
    return x.permute(0, *axes[::2], *axes[1::2], x.ndim - 1).flatten(0, len(counts))


def merge_windows(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Undo `split_windows`; `grid` is the whole's.

    >>> x = torch.randn(2, 4, 6, 3)
    >>> torch.equal(merge_windows(split_windows(x, 2), (4, 6)), x)
    True
    """
    window, axes = x.shape[1], len(grid)
    x = x.unflatten(0, (-1, *(side // window for side in grid)))
    order = [place for axis in range(1, axes + 1) for place in (axis, axis + axes)]
    return x.permute(0, *order, x.ndim - 1).reshape(x.shape[0], *grid, x.shape[-1])


@lru_cache(maxsize=4)
def shift_mask(grid: tuple[int, ...], window: int, shift: int) -> Tensor:
    """Logits ``[windows, T, T]`` that keep tokens apart which only the cyclic shift made neighbours (Liu 2021, Swin).

    0 within a region and -100 between two; the regions along an axis are what the roll left whole, and the two parts of
    the last window.
    """
    regions = torch.zeros(1, *grid, 1)
    parts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, region in enumerate(product(parts, repeat=len(grid))):
        regions[0][region] = number
    of_token = split_windows(regions, window).flatten(1)
    return (of_token[:, :, None] != of_token[:, None, :]).float() * BLOCKED


class SamViT(nn.Module):
    """SAM's image encoder: patches, transformer blocks, and a convolutional neck.

    >>> encoder = SamViT(SAM_PRESETS["sam_tiny"]).eval()
    >>> (
    ...     encoder(torch.zeros(1, 3, 96, 128)).shape,
    ...     [x.shape for x in encoder.run(encoder.embed(torch.zeros(1, 3, 64, 64)))],
    ... )
    (torch.Size([1, 64, 6, 8]), [torch.Size([1, 4, 4, 96])])
    """

    def __init__(self, config: SamConfig):
        super().__init__()
        c = self.config = config
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(c.in_channels, c.width, c.patch_size, stride=c.patch_size)})
        self.pos_embed = nn.Parameter(torch.zeros(1, c.grid, c.grid, c.width))
        self.blocks = nn.ModuleList(
            SamBlock(c.width, c.heads, c.mlp_ratio, side=c.grid)
            if number in c.global_blocks
            else SamBlock(c.width, c.heads, c.mlp_ratio, window=c.window)
            for number in range(c.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(c.width, c.neck, 1, bias=False),
            LayerNorm2d(c.neck, eps=1e-6),
            nn.Conv2d(c.neck, c.neck, 3, padding=1, bias=False),
            LayerNorm2d(c.neck, eps=1e-6),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, image: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` -> patch tokens with positions ``[B, h, w, C]``; the positions are resized to (h, w).

        Raises:
            ConfigError: H or W is not a multiple of the patch's side, or the channels are not the network's.
        """
        c = self.config
        if any(side % c.patch_size for side in image.shape[-2:]):
            raise ConfigError(
                f"an image of {image.shape[-2]} x {image.shape[-1]} cannot be cut into patches of {c.patch_size}",
                remedy=f"pad it to multiples of {c.patch_size}",
            )
        if image.shape[1] != c.in_channels:
            raise ConfigError(
                f"{image.shape[1]} channels for a network of {c.in_channels}", remedy="repeat a grey image"
            )
        x = self.patch_embed["proj"](image).permute(0, 2, 3, 1)
        return x + resize_positions(self.pos_embed, (x.shape[1], x.shape[2])).to(x.dtype)

    def run(self, tokens: Tensor, take: Sequence[int] | None = None) -> list[Tensor]:
        """The blocks on tokens ``[B, h, w(, d), C]``: the states after the blocks in `take` (from 0), or the last."""
        states, wanted = {}, range(len(self.blocks) - 1, len(self.blocks)) if take is None else take
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if number in wanted:
                states[number] = tokens
        return [states[number] for number in wanted]

    def forward(self, image: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` -> features ``[B, neck, h, w]``."""
        return self.neck(self.run(self.embed(image))[0].permute(0, 3, 1, 2))


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions ``[1, H, W, C]`` on another grid, bilinear (align_corners False)."""
    if table.shape[1:3] == grid:
        return table
    resized = F.interpolate(table.float().permute(0, 3, 1, 2), size=grid, mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1).to(table.dtype)


def install(encoder: nn.Module, slot: str, make: Callable[[int, SamBlock], nn.Module | None]) -> None:
    """Put adapters into a slot of an encoder's blocks.

    Args:
        encoder: anything whose `blocks` are `SamBlock`.
        slot: pre_attn, post_attn, post_mlp (tokens to tokens), or attn.qkv (tokens ``[..., C]`` to ``[..., 3 C]``).
        make: number and block -> the adapter, None to leave the slot of that block as it is.

    Raises:
        ConfigError: there is no such slot.
    """
    if slot not in SLOTS:
        raise ConfigError(f"a block has no slot {slot!r}", remedy=nearest(slot, SLOTS))
    holder, _, name = slot.rpartition(".")
    blocks: nn.ModuleList = encoder.get_submodule("blocks")  # type: ignore[assignment]
    for number, block in enumerate(blocks):
        if (adapter := make(number, block)) is not None:  # type: ignore[arg-type]
            setattr(block.get_submodule(holder), name, adapter)


def adapter_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Exactly what trains: the tensors of a network whose gradient is asked for, by name."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
