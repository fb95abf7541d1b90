"""One step of USFM pre-training beside SimMIM on timm's own BEiT trunk: same trunk, decoder, batch, optimiser.

    python benchmarks/usfm_step.py --size vit_s

A step is forward, loss, backward and AdamW on a batch that lies ready and masked (masks are drawn while loading). The
spatial arm is the same work as SimMIM; the dual arm shows what the spectral loss adds. timm's BEiT has no masking, so
the peer reads images whose masked pixels are already filled, as ours does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from timm.models.beit import Beit
from torch import Tensor, nn

from vesalius.pretrain.usfm import PRESETS, USFM, USFMConfig, spatial_loss

from measure import compare_steps

PAPER = PRESETS["paper"]
SIZES = {  # configuration, batch; the paper's kind of trunk at all sizes
    "small": (replace(PRESETS["tiny"], layer_scale=0.1), 64),
    "vit_s": (replace(PAPER, width=384, heads=6), 8),
    "vit_b": (PAPER, 4),
}


class TimmSimMIM(nn.Module):
    """timm's BEiT with SimMIM's decoder."""

    def __init__(self, config: USFMConfig):
        super().__init__()
        self.trunk = Beit(
            img_size=config.image_size,
            patch_size=config.patch_size,
            in_chans=config.in_channels,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
            init_values=config.layer_scale,
            drop_path_rate=config.drop_path,
            use_abs_pos_emb=False,
            use_shared_rel_pos_bias=True,
            global_pool="",
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        pixels = config.patch_size**2 * config.in_channels
        self.decoder = nn.Sequential(nn.Conv2d(config.width, pixels, 1), nn.PixelShuffle(config.patch_size))
        self.grid = config.encoder.grid

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """SimMIM's L1 on the masked pixels."""
        tokens = self.trunk.forward_features(batch["corrupted"])[:, 1:]
        restored = self.decoder(tokens.transpose(1, 2).unflatten(2, self.grid))
        return spatial_loss(restored, batch["image"], batch["mask"])


def step(module: nn.Module, loss: Callable[[], Tensor], config: USFMConfig) -> Callable[[], None]:
    """A function that does one whole optimisation step, with the paper's clipping."""
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        optimizer.step()

    return run


def sides(config: USFMConfig, batch: int) -> dict[str, Callable[[], Callable[[], None]]]:
    """What builds each side: "spatial", "dual" and "timm"."""
    shape = (batch, config.in_channels, config.image_size, config.image_size)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))

    def ours(c: USFMConfig) -> Callable[[], None]:
        module = USFM(c)
        ready = module.corrupt(image, generator=torch.Generator().manual_seed(1))
        return step(module, lambda: module.loss(ready)[0], c)

    def theirs() -> Callable[[], None]:
        module = TimmSimMIM(config)
        ready = USFM(replace(config, corruption="spatial")).corrupt(image, generator=torch.Generator().manual_seed(1))
        return step(module, lambda: module.loss(ready), config)

    return {
        "spatial": lambda: ours(replace(config, corruption="spatial")),
        "dual": lambda: ours(config),
        "timm": theirs,
    }


if __name__ == "__main__":
    compare_steps(
        __file__,
        __doc__.splitlines()[0],
        SIZES,
        sides,
        pairs=[("spatial", "timm", "timm BEiT + SimMIM"), ("dual", "timm", "timm BEiT + SimMIM (spatial)")],
    )
