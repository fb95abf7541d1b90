"""One training step of 3DSAM-adapter beside the published order of work: the same network, weights and outputs.

    python benchmarks/sam3d_step.py --size small

A step is forward, loss, backward, clipping and AdamW on one crop with 30 clicks. The published order, written plainly,
enlarges the crop fourfold, embeds its slices one batch of them, merges them by a convolution, and attends with a table
of position logits and a stored mask. As published it takes one crop at a time: of two, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.adapt.sam3d import PRESETS, freeze
from vesalius.nn.sam import SAM_PRESETS, SamBlock, merge_windows, shift_mask, split_windows
from vesalius.nn.sam3d import Sam3D, Sam3DShape
from vesalius.tasks.prompted_volumes import click_loss

from measure import compare_steps

TINY = replace(PRESETS["tiny"].network, sam=SAM_PRESETS["sam_tiny"])
SIZES = {  # shape and sides of the crop, crops
    "small": ((TINY, (32, 32, 32)), 1),
    "pair": ((TINY, (32, 32, 32)), 2),
    "vit_b": ((Sam3DShape(), (32, 64, 64)), 1),  # the published network on a crop for a CPU
}


class Published(nn.Module):
    """The published order of work on the parts of a network."""

    def __init__(self, network: Sam3D, crop: tuple[int, int, int]):
        super().__init__()
        self.network = network
        shape = network.config
        d, h, w = (side // step for side, step in zip(crop, shape.multiple, strict=True))
        padded = tuple(side + -side % shape.window for side in (h, w, d))
        self.register_buffer("mask", shift_mask(padded, shape.window, shape.window // 2).clone())

    def forward(self, volume: Tensor, points: Tensor) -> Tensor:
        """One crop ``[1, 1, D, H, W]`` and its clicks -> logits."""
        network, encoder = self.network, self.network.encoder
        large = F.interpolate(volume.expand(-1, 3, -1, -1, -1), scale_factor=network.config.upsample, mode="trilinear")
        with torch.no_grad():
            x = encoder.patch_embed["proj"](large[0].transpose(0, 1))  # [slices, C, h, w]
        x = encoder.slice_embed(x.permute(1, 2, 3, 0)[None]).permute(0, 2, 3, 4, 1)
        x = x + encoder._places((x.shape[1], x.shape[2])) + encoder._depths(x.shape[3])
        maps: list[Tensor] = []
        for number, block in enumerate(encoder.blocks, start=1):
            x = block.pre_attn(x)
            x = x + self.attend(block, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
            if number % (len(encoder.blocks) // 4) == 0:
                maps.append(encoder.neck_3d[len(maps)](x.movedim(-1, 1)))
        return network.decode(maps, volume, points)

    def attend(self, block: SamBlock, x: Tensor) -> Tensor:
        """Attention in windows, with every logit of every pair of tokens in memory."""
        attention, side, shift = block.attn, block.window, block.shift
        grid = x.shape[1:4]
        x = F.pad(x, [0, 0, *(edge for length in reversed(grid) for edge in (0, -length % side))])
        padded = x.shape[1:4]
        x = x.roll((-shift,) * 3, (1, 2, 3)) if shift else x
        windows = split_windows(x, side)
        count, width, heads = len(windows), windows.shape[-1], attention.heads
        q, k, v = attention.qkv(windows).reshape(count, -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        cube, at = q.unflatten(2, (side,) * 3), torch.arange(side)
        rows = at[:, None] - at + side - 1
        logits = logits.unflatten(-1, (side,) * 3).unflatten(2, (side,) * 3)
        for axis, name in enumerate("hwd"):
            table = attention.get_parameter(f"rel_pos_{name}")
            table = F.interpolate(table.T[None], size=2 * side - 1, mode="linear")[0].T[rows]
            one = torch.einsum(f"bnhwdc,{name}kc->bnhwdk", cube, table)
            view = [side if other == axis else 1 for other in range(3)]
            logits = logits + attention.lr * one.view(*one.shape[:-1], *view)
        logits = logits.flatten(2, 4).flatten(3, 5)
        if shift:
            logits = logits + self.mask[:, None]
        mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(windows.shape)
        x = merge_windows(attention.proj(mixed), padded)
        x = x.roll((shift,) * 3, (1, 2, 3)) if shift else x
        return x[:, : grid[0], : grid[1], : grid[2]]


def step(network: Sam3D, backward: Callable[[], None]) -> Callable[[], None]:
    """A function that does one whole optimisation step."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=4e-4, weight_decay=0)

    def run() -> None:
        optimizer.zero_grad()
        backward()
        for part in (network.encoder, network.sampler, network.decoder):
            nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()

    return run


def sides(config: tuple[Sam3DShape, tuple[int, int, int]], batch: int) -> dict[str, Callable[[], Callable[[], None]]]:
    """What builds each side.

    Raises:
        AssertionError: they do not compute the same.
    """
    shape, crop = config
    chance = torch.Generator().manual_seed(0)
    volume = torch.randn(batch, 1, *crop, generator=chance)
    points = (torch.rand(batch, 30, 3, generator=chance) * torch.tensor(crop)).floor()
    mask = (volume[:, 0] > 1).long()

    def network() -> Sam3D:
        torch.manual_seed(0)
        made = Sam3D(shape)
        freeze(made)
        return made

    def ours() -> Callable[[], None]:
        made = network()
        return step(made, lambda: click_loss(made(volume, points), mask).backward())

    def published() -> Callable[[], None]:
        made = network()
        plain = Published(made, crop)
        with torch.no_grad():
            torch.testing.assert_close(
                plain(volume[:1], points[:1]), made(volume[:1], points[:1]), rtol=1e-3, atol=1e-4
            )

        def backward() -> None:
            for one in range(batch):
                part = slice(one, one + 1)
                (click_loss(plain(volume[part], points[part]), mask[part]) / batch).backward()

        return step(made, backward)

    return {"3DSAM-adapter": ours, "published": published}


if __name__ == "__main__":
    compare_steps(
        __file__,
        __doc__.splitlines()[0],
        SIZES,
        sides,
        pairs=[("3DSAM-adapter", "published", "the published order")],
    )
