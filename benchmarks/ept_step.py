"""One step of few-label training with EPT, VPT and LoRA, beside the published formulations and PEFT: same frozen trunk.

    python benchmarks/ept_step.py --size vit_s

A step is forward, loss, backward and SGD on what the method trains and a linear head. EPT stands beside its equations
as published (columns concatenated to the materialised attention), and beside the same extra key as one more channel and
as an additive mask; VPT beside a forward pass that puts the tokens in by hand. PEFT, on a trunk whose qkv is one layer,
adapts the keys too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from vesalius.adapt.peft import LoRAConfig, lora
from vesalius.nn.extra_key import channel_attention
from vesalius.nn.prompts import PromptedAttention, embed_prompts, literal_attention, prepend_prompts
from vesalius.nn.vit import ViT, ViTConfig

from measure import compare_steps

SIZES = {  # trunk, batch
    "small": (ViTConfig(image_size=96, patch_size=8, width=192, depth=6, heads=3), 16),
    "vit_s": (ViTConfig(width=384, heads=6), 8),
    "vit_b": (ViTConfig(), 4),
}
LENGTHS = {"ept": 100, "vpt": 10}  # as published
RANK, CLASSES = 8, 4


class ConcatAttention(PromptedAttention):
    """EPT's attention as published."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        y = literal_attention(*self._split(x), self.prompt.prompt)
        return self.proj(y.transpose(1, 2).flatten(2))


class ChannelAttention(PromptedAttention):
    """The extra key as one more channel: ours where the fused kernel cannot take it in."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        logits = self.prompt.logits(x.shape[1])
        y = channel_attention(*self._split(x), logits, mask=None, dropout=0.0, scale=self.scale)
        return self.proj(y.transpose(1, 2).flatten(2))


class MaskAttention(PromptedAttention):
    """The extra key's logits as an additive mask, which needs a gradient."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        q, k, v = self._split(x)
        logits = self.prompt.logits(x.shape[1])
        mask = F.pad(logits.unsqueeze(1), (x.shape[1], 0))
        y = F.scaled_dot_product_attention(q, F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), attn_mask=mask)
        return self.proj(y.transpose(1, 2).flatten(2))


class LiteralVPT(nn.Module):
    """VPT-deep, written out: the tokens come in before the first block and are replaced before every other one."""

    def __init__(self, trunk: ViT, length: int):
        super().__init__()
        self.trunk = trunk
        self.tokens = nn.Parameter(0.02 * torch.randn(trunk.depth, length, trunk.width))

    def forward(self, image: Tensor) -> Tensor:
        """Images -> class tokens."""
        t, length = self.trunk, self.tokens.shape[1]
        x = t.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.cat([t.cls_token.expand(len(x), -1, -1), x], dim=1) + t.pos_embed
        for number, block in enumerate(t.blocks):
            prompts = self.tokens[number].expand(len(x), -1, -1)
            x = block(torch.cat([x[:, :1], prompts, x[:, 1 + (length if number else 0) :]], dim=1))
        return t.norm(x)[:, 0]


def step(module: nn.Module, image: Tensor, features: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """A function that does one whole optimisation step of a head and of what is to be trained in `module`."""
    head = nn.Linear(features(image[:1]).shape[1], CLASSES)
    labels = torch.arange(len(image)) % CLASSES
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD([*trained, *head.parameters()], lr=6e-4, momentum=0.9, weight_decay=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(head(features(image)), labels).backward()
        optimizer.step()

    return run


def sides(config: ViTConfig, batch: int) -> dict[str, Callable[[], Callable[[], None]]]:
    """What builds each side."""
    shape = (batch, config.in_channels, config.image_size, config.image_size)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))

    def trunk() -> ViT:
        vit = ViT(config)
        vit.freeze()
        return vit

    def pooled(vit: ViT) -> Callable[[], None]:
        return step(vit, image, lambda x: vit(x).pooled)

    def ept(attention: type[PromptedAttention] | None = None) -> Callable[[], None]:
        vit = trunk()
        embed_prompts(vit, length=LENGTHS["ept"])
        if attention is not None:
            for block in vit.blocks:
                block.attn = attention(block.attn, block.attn.prompt)
        return pooled(vit)

    def vpt() -> Callable[[], None]:
        vit = trunk()
        prepend_prompts(vit, length=LENGTHS["vpt"])
        return pooled(vit)

    def literal_vpt() -> Callable[[], None]:
        module = LiteralVPT(trunk(), LENGTHS["vpt"])
        return step(module, image, module)

    def ours() -> Callable[[], None]:
        vit = trunk()
        lora(vit, LoRAConfig(rank=RANK), generator=torch.Generator().manual_seed(0))
        return pooled(vit)

    def peft() -> Callable[[], None]:
        vit = trunk()
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"]), vit)
        return pooled(vit)

    return {
        "EPT": ept,
        "concat": lambda: ept(ConcatAttention),
        "channel": lambda: ept(ChannelAttention),
        "mask": lambda: ept(MaskAttention),
        "VPT": vpt,
        "literal": literal_vpt,
        "LoRA": ours,
        "PEFT": peft,
    }


if __name__ == "__main__":
    compare_steps(
        __file__,
        __doc__.splitlines()[0],
        SIZES,
        sides,
        pairs=[
            ("EPT", "concat", "EPT as published"),
            ("EPT", "channel", "EPT, the key as a channel"),
            ("EPT", "mask", "EPT, the key as a mask"),
            ("VPT", "literal", "VPT-deep written out"),
            ("LoRA", "PEFT", "PEFT LoRA of the whole qkv"),
        ],
    )
