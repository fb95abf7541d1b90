"""MA-SAM's network (Chen et al., MedIA 98:103310, 2024): SAM on stacks of neighbouring slices.

SAM's image encoder stays as it is and reads the slices one by one. What it learns of a volume comes through two
bottlenecks in every block, whose middle convolution runs along the slices only, and through low-rank increments of
query and value; a decoder with one mask token a class upsamples back to every pixel.

Differences from the published code: any number of slices, any batch, images that are not square; queries, keys and
values are not written to in place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.errors import ConfigError
from vesalius.nn.sam import SamConfig, SamViT, install
from vesalius.nn.sam_decoder import Sam, SamMaskDecoder
from vesalius.nn.sam_prompts import SamPromptEncoder

FRESH = ("mask_decoder.mask_tokens.", "mask_decoder.output_hypernetworks_mlps.", "mask_decoder.iou_prediction_head.")
"""What starts anew: SAM's tokens stand for ambiguity, these for classes."""
SLICES, INCREMENTS = (".pre_attn.", ".post_attn."), (".fact.", ".attn.qkv.q.", ".attn.qkv.v.")
PUT_IN = SLICES + INCREMENTS
"""How the names of what is put into the encoder are told from the encoder's own: slice adapters, FacT or LoRA."""
UNREACHED = ("mask_decoder.iou_prediction_head.", "prompt_encoder.")
"""What no gradient reaches: nothing says how good a mask is, and there are no prompts..."""
REACHED = ("prompt_encoder.no_mask_embed.",)
CORNERS = ("prompt_encoder.point_embeddings.2.", "prompt_encoder.point_embeddings.3.")
"""... but the code of no mask at all, and with boxes those of two corners."""


@dataclass(frozen=True)
class StackAdapters:
    """What is put into SAM's image encoder; the defaults are the published ones, whatever the encoder's width.

    Args:
        width: channels of the slice adapters' bottleneck, 0 for none: the slices then know nothing of each other.
        rank: of FacT's increments of query and value, 0 for none.
        lora: rank of LoRA's increments in their place, each block's its own; 0 for none.
        scale: gain of the increments.  dropout: of FacT's inner tokens, while training.
        identity: start the slice adapters at zero, so that the network starts as SAM. The published ones start at
            random.
    """

    width: int = 384
    rank: int = 32
    lora: int = 0
    scale: float = 1.0
    dropout: float = 0.1
    identity: bool = False

    def __post_init__(self) -> None:
        if self.rank and self.lora:
            raise ConfigError(f"FacT of rank {self.rank} and LoRA of rank {self.lora}", remedy="set one of them to 0")


class SliceAdapter(nn.Module):
    """``x + up(GELU(conv(down(LN(x)))))``, the convolution over each token's place in the neighbouring slices.

    Args:
        width: channels of the tokens.  hidden: of the bottleneck.

    >>> adapter = SliceAdapter(8, 4)
    >>> adapter.slices = 3
    >>> adapter(torch.zeros(6, 5, 7, 8)).shape
    torch.Size([6, 5, 7, 8])
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.slices = 1
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.down = nn.Linear(width, hidden, bias=False)
        self.conv = nn.Conv3d(hidden, hidden, (3, 1, 1), padding=(1, 0, 0))
        self.up = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B D, h, w, C]`` of stacks of D = `slices` slices -> the same."""
        stacks = self.down(self.norm(x)).unflatten(0, (-1, self.slices))
        # the convolution as three linear maps, without the copies that channels in front would cost
        before, here, after = self.conv.weight[..., 0, 0].unbind(-1)
        mixed = F.linear(stacks, here, self.conv.bias)
        mixed[:, 1:] += F.linear(stacks[:, :-1], before)
        mixed[:, :-1] += F.linear(stacks[:, 1:], after)
        return x + self.up(F.gelu(mixed.flatten(0, 1)))


class FacT(nn.Module):
    """The outer factors of all blocks' increments (Jie and Deng, AAAI 2023, tensor-train form): ``u``, ``v``.

    Args:
        width: of the tokens.  adapters: rank, scale and dropout.
    """

    def __init__(self, width: int, adapters: StackAdapters):
        super().__init__()
        self.rank, self.scale = adapters.rank, adapters.scale
        self.u = nn.Linear(width, adapters.rank, bias=False)
        self.v = nn.Linear(adapters.rank, width, bias=False)
        self.dropout = nn.Dropout(adapters.dropout)
        nn.init.zeros_(self.v.weight)


class FacTLinear(nn.Module):
    """A block's qkv with the increments ``scale * v(drop(q(u(x))))`` of query and value.

    Args:
        base: the linear layer, whose tensors keep their names.
        shared: the outer factors, a part of the whole network and not of this layer.
    """

    def __init__(self, base: nn.Linear, shared: FacT):
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.q = nn.Linear(shared.rank, shared.rank, bias=False)
        self.v = nn.Linear(shared.rank, shared.rank, bias=False)
        self._shared = [shared]  # in a list: it has its tensors elsewhere

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[..., C]`` -> ``[..., 3 C]``."""
        (shared,) = self._shared
        inner = shared.u(x)
        query, key, value = F.linear(x, self.weight, self.bias).chunk(3, dim=-1)
        query = query + shared.scale * shared.v(shared.dropout(self.q(inner)))
        value = value + shared.scale * shared.v(shared.dropout(self.v(inner)))
        return torch.cat([query, key, value], dim=-1)


class LoRALinear(nn.Module):
    """A block's qkv with increments ``scale * B A x`` of query and value, B zero at first (Hu 2022): FacT's rival.

    Args:
        base: the linear layer, whose tensors keep their names.
        rank, scale: of the increments.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        super().__init__()
        self.weight, self.bias, self.scale = base.weight, base.bias, scale
        width = base.in_features
        self.q, self.v = (
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)) for _ in range(2)
        )
        for increment in (self.q, self.v):
            nn.init.zeros_(increment.get_parameter("1.weight"))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[..., C]`` -> ``[..., 3 C]``."""
        query, key, value = F.linear(x, self.weight, self.bias).chunk(3, dim=-1)
        return torch.cat([query + self.scale * self.q(x), key, value + self.scale * self.v(x)], dim=-1)


class MaSam(nn.Module):
    """Logits of every class for every pixel of a stack of slices, without prompts or with a box a slice.

    Args:
        sam: the base's shape; its mask tokens and upscaling are replaced.
        classes: of the foreground; the background has the first token.
        adapters: what is put into the encoder.

    >>> from vesalius.nn.sam import SAM_PRESETS
    >>> net = MaSam(SAM_PRESETS["sam_tiny"], 2, StackAdapters(width=48, rank=8)).eval()
    >>> net(torch.zeros(2, 4, 3, 64, 96)).shape
    torch.Size([2, 4, 3, 64, 96])
    """

    def __init__(self, sam: SamConfig, classes: int, adapters: StackAdapters | None = None):
        super().__init__()
        stages = sam.patch_size.bit_length() - 1
        if sam.patch_size != 2**stages:
            raise ConfigError(f"patches of {sam.patch_size}", remedy="use a SAM whose patch size is a power of two")
        c = self.config = replace(sam, decoder=replace(sam.decoder, mask_tokens=classes + 1, stages=stages))
        self.classes, self.adapters = classes, adapters or StackAdapters()
        self.image_encoder = SamViT(c)
        self.prompt_encoder = SamPromptEncoder(
            c.neck, image_size=c.image_size, patch_size=c.patch_size, mask_channels=c.decoder.mask_channels
        )
        self.mask_decoder = SamMaskDecoder(c.neck, c.decoder)
        if hidden := self.adapters.width:
            for slot in ("pre_attn", "post_attn"):
                install(self.image_encoder, slot, lambda number, block: SliceAdapter(c.width, hidden))
        if self.adapters.rank:
            fact = self.fact = FacT(c.width, self.adapters)
            install(
                self.image_encoder, "attn.qkv", lambda number, block: FacTLinear(cast(nn.Linear, block.attn.qkv), fact)
            )
        if rank := self.adapters.lora:
            scale = self.adapters.scale
            install(
                self.image_encoder,
                "attn.qkv",
                lambda number, block: LoRALinear(cast(nn.Linear, block.attn.qkv), rank, scale),
            )
        if self.adapters.identity:
            for adapter in self.slice_adapters():
                nn.init.zeros_(adapter.up.weight)

    @classmethod
    def on(cls, sam: Sam, classes: int, adapters: StackAdapters | None = None) -> MaSam:
        """The network on a SAM's weights: all but `FRESH` and the last two upscalings, which start anew."""
        network = cls(sam.config, classes, adapters)
        own = network.state_dict()
        network.load_state_dict(
            {name: tensor for name, tensor in sam.state_dict().items() if not name.startswith(FRESH) and name in own},
            strict=False,
        )
        return network

    def slice_adapters(self) -> Iterable[SliceAdapter]:
        """All of them."""
        return (module for module in self.image_encoder.modules() if isinstance(module, SliceAdapter))

    def freeze(self, *, boxes: bool = False) -> MaSam:
        """Let train what MA-SAM trains, and nothing else: what was put into the encoder, and the decoder.

        The published code also asks for the gradient of what none reaches (`UNREACHED`), which more than one process
        then waits for in vain.

        Args:
            boxes: the network is trained with a box a slice.
        """
        reached = REACHED + CORNERS if boxes else REACHED
        for name, parameter in self.named_parameters():
            put_in = any(mark in f".{name}" for mark in PUT_IN)
            decides = not name.startswith(("image_encoder.", *UNREACHED))
            parameter.requires_grad_(put_in or decides or name.startswith(reached))
        return self

    def adapted_state(self) -> dict[str, Tensor]:
        """What the authors' files hold and a run stores: all tensors but those of SAM's image encoder."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith("image_encoder.") or any(mark in name for mark in PUT_IN)
        }

    def forward(self, volume: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Logits, background first.

        Args:
            volume: ``[B, D, C, H, W]`` in [0, 1]; one channel is repeated.
            boxes: ``[B, D, 4]``, (x0, y0, x1, y1) in pixels, of the first and the last column and row.

        Returns:
            ``[B, D, classes + 1, H, W]``.

        Raises:
            ConfigError: H or W is not a multiple of the patch's side, or the channels are not the network's.
        """
        size = volume.shape[-2], volume.shape[-1]
        masks, _ = self.decode(self.encode(volume), size, boxes=None if boxes is None else boxes.flatten(0, 1))
        return masks.unflatten(0, volume.shape[:2])

    def encode(self, volume: Tensor) -> Tensor:
        """``[B, D, C, H, W]`` -> features of the slices ``[B D, neck, h, w]``."""
        for adapter in self.slice_adapters():
            adapter.slices = volume.shape[1]
        if volume.shape[2] == 1:
            volume = volume.expand(-1, -1, self.config.in_channels, -1, -1)
        return self.image_encoder(volume.flatten(0, 1))

    def decode(self, features: Tensor, size: tuple[int, int], *, boxes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits ``[N, classes + 1, H, W]`` and the untrained IoU ``[N, classes + 1]`` of N slices.

        Args:
            features: of `encode`.
            size: rows and columns of the slices.
            boxes: ``[N, 4]``.
        """
        sparse, dense = self.prompt_encoder(boxes=boxes, size=size)
        positions = self.prompt_encoder.dense_pe((features.shape[-2], features.shape[-1]))
        return self.mask_decoder(features, positions, sparse, dense)
