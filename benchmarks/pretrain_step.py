"""One step of masked autoencoder pre-training beside lightly's modules: same ViT, decoder, batch, mask, optimiser.

    python benchmarks/pretrain_step.py --size vit_s

A step is forward, loss, backward and AdamW on a batch that lies ready. Both sides use timm's blocks with fused
attention and as many threads. The plain masked autoencoder is the same work on both sides. The deblurring one, whose
loss is on all patches, stands beside lightly's plain one to show what it costs; its blur is done while loading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vesalius.pretrain.deblurring import PRESETS, Deblurring, DeblurringConfig

from measure import compare_steps

PAPER = PRESETS["paper"]
SIZES = {  # configuration, batch
    "small": (PRESETS["tiny"], 64),
    "vit_s": (replace(PAPER, width=384, heads=6), 8),
    "vit_b": (PAPER, 4),
}


class LightlyMAE(nn.Module):
    """A masked autoencoder of lightly's modules, of the same shape as ours."""

    def __init__(self, config: DeblurringConfig):
        super().__init__()
        self.mask_ratio, self.patch_size = config.mask_ratio, config.patch_size
        vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            in_chans=config.in_channels,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
        )
        self.backbone = MaskedVisionTransformerTIMM(vit)
        self.embed = nn.Linear(config.width, config.decoder_width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            embed_dim=config.decoder_width,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
        )
        self.predict = nn.Linear(config.decoder_width, config.patch_size**2 * config.in_channels)

    def loss(self, image: Tensor) -> Tensor:
        """Mean squared error on the removed patches."""
        shape = (len(image), self.backbone.sequence_length)
        keep, removed = utils.random_token_mask(shape, self.mask_ratio)
        encoded = self.embed(self.backbone.encode(image, idx_keep=keep))
        tokens = utils.set_at_index(utils.repeat_token(self.decoder.mask_token, shape), keep, encoded)
        predicted = self.predict(utils.get_at_index(self.decoder(tokens), removed))
        target = utils.get_at_index(utils.patchify(image, self.patch_size), removed - 1)
        return nn.functional.mse_loss(predicted, target)


def step(module: nn.Module, loss: Callable[[], Tensor], config: DeblurringConfig) -> Callable[[], None]:
    """A function that does one whole optimisation step."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def sides(config: DeblurringConfig, batch: int) -> dict[str, Callable[[], Callable[[], None]]]:
    """What builds each side: "mae", "deblurring" and "lightly"."""
    shape = (batch, config.in_channels, config.image_size, config.image_size)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)

    def ours(c: DeblurringConfig) -> Callable[[], None]:
        module = Deblurring(c)
        return step(module, lambda: module.loss(module.corrupt(image, image, generator=generator)), c)

    def theirs() -> Callable[[], None]:
        module = LightlyMAE(config)
        return step(module, lambda: module.loss(image), config)

    return {
        "mae": lambda: ours(replace(config, blur=None, loss_on="removed")),
        "deblurring": lambda: ours(config),
        "lightly": theirs,
    }


if __name__ == "__main__":
    compare_steps(
        __file__,
        __doc__.splitlines()[0],
        SIZES,
        sides,
        pairs=[("mae", "lightly", "lightly MAE"), ("deblurring", "lightly", "lightly MAE (plain)")],
    )
