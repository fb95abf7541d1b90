"""What EPT must beat: other ways to adapt a frozen transformer by training a few of its numbers, or a few new ones.

Every method is a small frozen dataclass of settings and a function of a few lines that changes an encoder in place:
new modules are put into its blocks by name and act through forward hooks, so the trunk's own tensors keep their names
and values. Where the descriptions leave a choice open, it is stated here. LoRA of whole layers is PEFT's; the methods
that PEFT does not have for images (its prompt methods need text embeddings), and LoRA of the query and value rows of a
fused qkv, are ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vesalius.errors import ConfigError, nearest
from vesalius.nn.encoder import Encoder
from vesalius.nn.prompts import Layers, block_numbers, prepend_prompts

# --- parts of the trunk itself


@dataclass(frozen=True)
class HeadOnlyConfig:
    """Nothing of the trunk moves (linear probing; with a head of three layers, MLP-3)."""


def head_only(encoder: Encoder, config: HeadOnlyConfig, *, generator: torch.Generator) -> None:
    """The trunk stays frozen."""


@dataclass(frozen=True)
class PartialConfig:
    """The last blocks train (Partial-1 of Jia 2022).

    Args:
        blocks: how many.
        norm: the norm after the last block trains, too; the descriptions leave that open.
    """

    blocks: int = 1
    norm: bool = True


def partial(encoder: Encoder, config: PartialConfig, *, generator: torch.Generator) -> None:
    """Unfreeze the last blocks.

    Raises:
        ConfigError: there are not so many.
    """
    blocks = _blocks(encoder)
    if not 1 <= config.blocks <= len(blocks):
        raise ConfigError(f"blocks = {config.blocks} of a trunk of {len(blocks)}", remedy=f"give 1 to {len(blocks)}")
    for block in blocks[len(blocks) - config.blocks :]:
        block.requires_grad_(True)
    if config.norm:
        encoder.get_submodule("norm").requires_grad_(True)


@dataclass(frozen=True)
class BitFitConfig:
    """Every bias vector of the trunk trains, those of the norms and of the patch embedding included (Zaken 2022)."""


def bitfit(encoder: Encoder, config: BitFitConfig, *, generator: torch.Generator) -> None:
    """Unfreeze the biases."""
    for name, parameter in encoder.named_parameters():
        if name.endswith(".bias"):
            parameter.requires_grad_(True)


# --- low-rank updates


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank updates of linear layers (Hu 2022).

    Args:
        rank: of the update; the paper chooses from 1, 4, 8, 32, 64.
        alpha: the update is scaled by alpha / rank; None = rank.
        targets: q, k, v (rows of the fused qkv, as the paper adapts q and v), or whole layers by their names in a block
            (qkv, proj, fc1, fc2), for which PEFT is used.
    """

    rank: int = 8
    alpha: int | None = None
    targets: tuple[str, ...] = ("q", "v")


SLICES = ("q", "k", "v")
WHOLE = ("qkv", "proj", "fc1", "fc2")


class SliceLoRA(nn.Module):
    """Low-rank updates of some of the three parts of a fused qkv: ``B A x`` each, B zero at first."""

    def __init__(self, width: int, parts: Sequence[str], rank: int, scale: float, generator: torch.Generator):
        super().__init__()
        self.parts, self.scale = tuple(SLICES.index(part) for part in parts), scale
        self.a = nn.Parameter(torch.empty(len(self.parts), rank, width))
        self.b = nn.Parameter(torch.zeros(len(self.parts), width, rank))
        bound = 1 / math.sqrt(width)  # Kaiming-uniform with a = sqrt(5), as nn.Linear and PEFT
        nn.init.uniform_(self.a, -bound, bound, generator=generator)

    def forward(self, x: Tensor, qkv: Tensor) -> Tensor:
        """Tokens ``[B, T, D]`` and what qkv made of them ``[B, T, 3 D]`` -> the latter, updated."""
        pieces = list(qkv.chunk(3, dim=-1))
        for place, part in enumerate(self.parts):
            pieces[part] = pieces[part] + self.scale * ((x @ self.a[place].T) @ self.b[place].T)
        return torch.cat(pieces, dim=-1)


def lora(encoder: Encoder, config: LoRAConfig, *, generator: torch.Generator) -> None:
    """Add low-rank updates to every block.

    Raises:
        ConfigError: an unknown target, rows and whole layers at once, or PEFT is needed and not installed.
    """
    for target in config.targets:
        if target not in SLICES + WHOLE:
            raise ConfigError(f"no layer is called {target!r}", remedy=nearest(target, SLICES + WHOLE))
    alpha = config.rank if config.alpha is None else config.alpha
    if set(config.targets) <= set(SLICES):
        for block in _blocks(encoder):
            qkv = block.attn.qkv
            qkv.lora = SliceLoRA(encoder.width, config.targets, config.rank, alpha / config.rank, generator)
            qkv.register_forward_hook(lambda module, args, output: module.lora(args[0], output))
        return
    if set(config.targets) & set(SLICES):
        raise ConfigError(
            f"targets = {config.targets}", remedy="give rows (q, k, v) or whole layers (qkv, proj, fc1, fc2)"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("LoRA of whole layers needs PEFT", remedy='pip install "vesalius[peft]"') from error
    names = "|".join(config.targets)
    peft = LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=rf"blocks\.\d+\.(attn|mlp)\.({names})")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        inject_adapter_in_model(peft, encoder)


# --- modules beside the trunk's own


@dataclass(frozen=True)
class AdapterConfig:
    """A bottleneck beside each block's MLP (AdaptFormer, Chen 2022).

    Args:
        reduction: width of the trunk by that of the bottleneck; the paper chooses from 1, 4, 8, 32, 64.
        scale: of what the bottleneck adds.
    """

    reduction: int = 8
    scale: float = 0.1


class Adapter(nn.Module):
    """Down, ReLU, up; it starts by adding nothing."""

    def __init__(self, width: int, hidden: int, scale: float, generator: torch.Generator):
        super().__init__()
        self.scale = scale
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, T, D]`` -> what is added ``[B, T, D]``."""
        return self.scale * self.up(self.down(x).relu())


def adapter(encoder: Encoder, config: AdapterConfig, *, generator: torch.Generator) -> None:
    """Put an adapter beside every MLP: it reads the normalised tokens that the MLP reads."""
    hidden = max(1, encoder.width // config.reduction)
    for block in _blocks(encoder):
        block.mlp.adapter = Adapter(encoder.width, hidden, config.scale, generator)
        block.mlp.register_forward_hook(lambda module, args, output: output + module.adapter(args[0]))


@dataclass(frozen=True)
class SSFConfig:
    """A scale and a shift after every linear layer and norm (Lian 2022), near 1 and 0 at first.

    Args:
        std: of both at the start.
    """

    std: float = 0.02


class ScaleShift(nn.Module):
    """``x * scale + shift`` per channel."""

    def __init__(self, channels: int, std: float, generator: torch.Generator, *, channel_dim: int = -1):
        super().__init__()
        self.channel_dim = channel_dim
        self.scale = nn.Parameter(1 + std * torch.randn(channels, generator=generator))
        self.shift = nn.Parameter(std * torch.randn(channels, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, channels at `channel_dim`."""
        shape = [1] * x.ndim
        shape[self.channel_dim] = -1
        return x * self.scale.view(shape) + self.shift.view(shape)


def ssf(encoder: Encoder, config: SSFConfig, *, generator: torch.Generator) -> None:
    """Put them behind the patch embedding, every linear layer and norm of the blocks, and the last norm."""
    wanted = re.compile(r"patch_embed\.proj|blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)|norm")
    for name, module in list(encoder.named_modules()):
        if not wanted.fullmatch(name) or not isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d):
            continue
        channels = module.normalized_shape[0] if isinstance(module, nn.LayerNorm) else len(module.weight)
        dim = 1 if isinstance(module, nn.Conv2d) else -1
        module.ssf = ScaleShift(channels, config.std, generator, channel_dim=dim)
        module.register_forward_hook(lambda module, args, output: module.ssf(output))


# --- prompts


@dataclass(frozen=True)
class VPTConfig:
    """Learned tokens between class token and patches (Jia 2022).

    Args:
        length: tokens; the paper chooses from 1, 5, 10, 50, 100, 150. (The configurations published with EPT have one
            token in the first block only: length 1, shallow.)
        layers: deep (each block's own, replacing those of the block before), shallow (carried on), or block numbers.
        frozen: leave the tokens as they were drawn and train the head alone: the control.
    """

    length: int = 10
    layers: Layers = "deep"
    frozen: bool = False


def vpt(encoder: Encoder, config: VPTConfig, *, generator: torch.Generator) -> None:
    """Prepend prompt tokens."""
    prepend_prompts(encoder, length=config.length, layers=config.layers, generator=generator)
    if config.frozen:
        encoder.requires_grad_(False)


@dataclass(frozen=True)
class VPConfig:
    """Learned values added to the patch tokens before each block, zero at first.

    The paper says no more than that; here `length` vectors are spread evenly over the patches in reading order (patch i
    of N gets vector ``i * length // N``), which fits any image size.

    Args:
        length: vectors; the paper chooses from 1, 5, 10, 50, 100, 150.
        layers: deep, shallow, or block numbers.
    """

    length: int = 50
    layers: Layers = "deep"


class AddedPrompt(nn.Module):
    """Vectors that are added to runs of patches."""

    def __init__(self, length: int, width: int, prefix: int):
        super().__init__()
        self.prefix = prefix
        self.values = nn.Parameter(torch.zeros(length, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, prefix + N, D]`` -> the same with the values added to the patches."""
        patches = x.shape[1] - self.prefix
        which = torch.arange(patches, device=x.device) * len(self.values) // patches
        return torch.cat([x[:, : self.prefix], x[:, self.prefix :] + self.values[which]], dim=1)


def vp(encoder: Encoder, config: VPConfig, *, generator: torch.Generator) -> None:
    """Add prompt values before the chosen blocks."""
    blocks = _blocks(encoder)
    for number in block_numbers(encoder, config.layers):
        blocks[number].added_prompt = AddedPrompt(config.length, encoder.width, getattr(encoder, "prefix", 0))
        blocks[number].register_forward_pre_hook(lambda module, args: (module.added_prompt(args[0]), *args[1:]))


def _blocks(encoder: Encoder) -> Any:
    """The transformer's blocks."""
    return encoder.get_submodule("blocks")
