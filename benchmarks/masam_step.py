"""One training step of MA-SAM beside the published order of its layers, written plainly.

    python benchmarks/masam_step.py --size vit_b

A step is stacks of five slices that lie ready, forward, loss, backward and AdamW, in evaluation mode (no dropout), with
the same weights on both sides. The published order makes every table of token pairs (scores, and the relative positions
added to them, a head each), copies around each slice convolution, works out FacT's first factor twice, and writes the
increments into the qkv output in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.adapt.masam import PRESETS
from vesalius.nn.masam import FacT, FacTLinear, MaSam, SliceAdapter, StackAdapters
from vesalius.nn.sam import SAM_PRESETS, SamAttention, SamBlock, SamConfig
from vesalius.tasks.stacks import stack_loss

from measure import compare_steps

SLICES, CLASSES = 5, 12
SIZES: dict[str, tuple[tuple[SamConfig, StackAdapters], int]] = {  # configuration, stacks
    "small": ((SAM_PRESETS["sam_tiny"], PRESETS["tiny"].adapters), 3),
    "vit_b": ((replace(SAM_PRESETS["sam_vit_b"], image_size=256), StackAdapters()), 1),
}


def windows_of(x: Tensor, side: int) -> Tensor:
    """Tokens ``[B, H, W, C]``, filled up with zeros, as windows ``[B n, side, side, C]``."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % side, 0, -x.shape[1] % side))
    batch, height, width, channels = x.shape
    x = x.view(batch, height // side, side, width // side, side, channels).permute(0, 1, 3, 2, 4, 5)
    return x.contiguous().view(-1, side, side, channels)


def without_windows(x: Tensor, batch: int, height: int, width: int) -> Tensor:
    """The inverse."""
    side = x.shape[1]
    rows, columns = -(-height // side), -(-width // side)
    x = x.view(batch, rows, columns, side, side, -1).permute(0, 1, 3, 2, 4, 5).contiguous()
    return x.view(batch, rows * side, columns * side, -1)[:, :height, :width].contiguous()


def offsets(table: Tensor, side: int) -> Tensor:
    """The rows of a relative table for all pairs along an axis, resized to its side."""
    if len(table) != 2 * side - 1:
        table = F.interpolate(table.T[None], size=2 * side - 1, mode="linear")[0].T
    places = torch.arange(side)
    return table[places[:, None] - places[None, :] + side - 1]


def attend(attention: SamAttention, fact: FacT, x: Tensor) -> Tensor:
    """Attention with every score in a matrix, and the increments written into qkv."""
    batch, height, width, channels = x.shape
    layer: FacTLinear = attention.qkv  # type: ignore[assignment]
    qkv = F.linear(x, layer.weight, layer.bias)
    query = fact.v(fact.dropout(layer.q(fact.u(x))))
    value = fact.v(fact.dropout(layer.v(fact.u(x))))
    qkv[..., :channels] += query * fact.scale
    qkv[..., -channels:] += value * fact.scale
    heads = attention.heads
    qkv = qkv.reshape(batch, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, batch * heads, height * width, -1).unbind(0)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    by_place = q.reshape(len(q), height, width, -1)
    rows = torch.einsum("bhwc,hkc->bhwk", by_place, offsets(attention.rel_pos_h, height))
    columns = torch.einsum("bhwc,wkc->bhwk", by_place, offsets(attention.rel_pos_w, width))
    scores = scores.view(len(q), height, width, height, width) + rows[..., None] + columns[..., None, :]
    out = scores.view(len(q), height * width, -1).softmax(-1) @ v
    out = out.view(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4).reshape(batch, height, width, -1)
    return attention.proj(out)


def adapt(adapter: SliceAdapter, x: Tensor) -> Tensor:
    """A slice adapter with a copy before and after its convolution."""
    count, height, width, _ = x.shape
    down = adapter.down(adapter.norm(x))
    down = down.contiguous().view(count // SLICES, SLICES, height, width, -1).permute(0, -1, 1, 2, 3)
    mixed = adapter.conv(down).permute(0, 2, 3, 4, 1).contiguous().view(count, height, width, -1)
    return x + adapter.up(F.gelu(mixed))


def published(network: MaSam, volume: Tensor) -> Tensor:
    """The network's logits ``[B D, K + 1, H, W]``, its layers in the published order."""
    encoder, size = network.image_encoder, (volume.shape[-2], volume.shape[-1])
    x = encoder.embed(volume.flatten(0, 1))
    block: SamBlock
    for block in encoder.blocks:  # type: ignore[assignment]
        x = adapt(block.pre_attn, x)  # type: ignore[arg-type]
        normed = block.norm1(x)
        if block.window:
            inside = attend(block.attn, network.fact, windows_of(normed, block.window))
            x = x + without_windows(inside, *x.shape[:3])
        else:
            x = x + attend(block.attn, network.fact, normed)
        x = adapt(block.post_attn, x)  # type: ignore[arg-type]
        x = x + block.mlp(block.norm2(x))
    return network.decode(encoder.neck(x.permute(0, 3, 1, 2)), size)[0]


def sides(config: tuple[SamConfig, StackAdapters], batch: int) -> dict[str, Callable[[], Callable[[], None]]]:
    """What builds each side."""
    sam, adapters = config
    chance = torch.Generator().manual_seed(0)
    volume = torch.rand((batch, SLICES, 3, sam.image_size, sam.image_size), generator=chance)
    mask = torch.randint(CLASSES + 1, (batch * SLICES, *volume.shape[-2:]), generator=chance)

    def step(scores: Callable[[MaSam], Tensor]) -> Callable[[], None]:
        torch.manual_seed(0)
        network = MaSam(sam, CLASSES, adapters).eval().freeze()
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1)

        def run() -> None:
            optimizer.zero_grad()
            stack_loss(scores(network), mask).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()

        return run

    return {
        "MA-SAM": lambda: step(lambda network: network(volume).flatten(0, 1)),
        "published": lambda: step(lambda network: published(network, volume)),
    }


if __name__ == "__main__":
    compare_steps(
        __file__, __doc__.splitlines()[0], SIZES, sides, pairs=[("MA-SAM", "published", "the published order")]
    )
