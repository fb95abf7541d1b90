"""Prompts that are put into a transformer which stays as it is: logits in its attention (EPT), tokens in front (VPT).

Embedded prompts (Zu 2024) join every query's softmax and are then dropped. Published, that is a concatenation of
`length` columns to the materialised attention; here it is one extra key of zero value, the same numbers at the price of
plain attention (`vesalius.nn.extra_key`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vesalius.errors import ConfigError, nearest
from vesalius.nn.encoder import Encoder
from vesalius.nn.extra_key import extra_key_attention
from vesalius.nn.positions import resize_absolute

Mode = Literal["concat", "scaled_concat"]
Init = Literal["normal", "uniform", "zeros", "kaiming"]
Layers = Literal["deep", "shallow"] | Sequence[int]
"""Every block, the first one, or these (counted from 0)."""

UNIFORM = 0.08  # half the width of EPT's uniform start


# --- embedded prompts: logits in the attention


class EmbeddedPrompt(nn.Module):
    """The prompts of one block (Zu 2024, section 3): ``prompt [tokens, length]``, logits that every query has to beat.

    Args:
        grid: patches along (rows, columns) that the prompts stand for.
        prefix: tokens in front of the patches (the class token).
        length: prompts a token.
        mode: concat, or scaled_concat: the prompts times the spread of the query's scores (Fig. 5, the paper's best).
    """

    def __init__(self, grid: tuple[int, int], *, prefix: int, length: int, mode: Mode = "concat"):
        super().__init__()
        if mode not in get_args(Mode):
            raise ConfigError(f"unknown mode {mode!r} of embedded prompts", remedy=nearest(mode, get_args(Mode)))
        self.grid, self.prefix, self.mode = grid, prefix, mode
        self.prompt = nn.Parameter(torch.empty(prefix + math.prod(grid), length))

    def logits(self, tokens: int, spread: Tensor | None = None) -> Tensor:
        """All of a token's prompts as the one logit that they amount to: the logarithm of their summed exponentials.

        Args:
            tokens: of the network; at another square grid than the prompts' own they are interpolated (bicubic), the
                prefix is kept.
            spread: ``[B, heads, tokens]``, largest minus smallest score of every query, for scaled_concat.

        Returns:
            ``[tokens]``, with `spread` ``[B, heads, tokens]``.

        Raises:
            ConfigError: `tokens` are no square grid.
        """
        if spread is None:  # resized after the sum, so that a collapsed prompt stays the same at every size
            return self._resized(self.prompt.logsumexp(1, keepdim=True), tokens).squeeze(1)
        return (spread.unsqueeze(-1) * self._resized(self.prompt, tokens)).logsumexp(-1)

    def collapse(self) -> None:
        """Keep one prompt a token, in place, with the same output.

        Raises:
            ConfigError: scaled_concat, whose prompts are not one number.
        """
        if self.mode != "concat":
            raise ConfigError("scaled_concat prompts depend on the image: no one logit", remedy="use mode concat")
        one = self.prompt.detach().logsumexp(1, keepdim=True)
        self.prompt = nn.Parameter(one, requires_grad=self.prompt.requires_grad)

    def _resized(self, table: Tensor, tokens: int) -> Tensor:
        if tokens == len(table):
            return table
        side = math.isqrt(max(tokens - self.prefix, 0))
        if not side or side * side != tokens - self.prefix:
            rows, columns = self.grid
            raise ConfigError(
                f"embedded prompts of a {rows} x {columns} grid cannot serve {tokens} tokens: not a square grid",
                remedy="give whole square images, without masking and without further tokens",
            )
        return resize_absolute(table.unsqueeze(0), self.grid, (side, side)).squeeze(0)


class PromptedAttention(nn.Module):
    """timm's `Attention` with an `EmbeddedPrompt`; the parts and their state-dict names are the attention's own."""

    def __init__(self, attention: nn.Module, prompt: EmbeddedPrompt):
        super().__init__()
        a: Any = attention
        self.num_heads, self.head_dim, self.attn_dim, self.scale = a.num_heads, a.head_dim, a.attn_dim, a.scale
        self.qkv, self.q_norm, self.k_norm, self.norm = a.qkv, a.q_norm, a.k_norm, a.norm
        self.gate, self.proj, self.attn_drop, self.proj_drop = a.gate, a.proj, a.attn_drop, a.proj_drop
        self.prompt = prompt
        self.train(attention.training)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """``x [B, T, D]``, additive or boolean `attn_mask` broadcastable to ``[B, heads, T, T]`` -> ``[B, T, D]``."""
        q, k, v = self._split(x)
        if is_causal:
            attn_mask = x.new_ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        dropout = self.attn_drop.p if self.training else 0.0
        y = extra_key_attention(q, k, v, self._logits(q, k), mask=attn_mask, dropout=dropout, scale=self.scale)
        y = self.norm(y.transpose(1, 2).reshape(*x.shape[:2], self.attn_dim))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(y))

    def kept_mass(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """What the prompts leave of every query's attention, Z / (Z + E): ``[B, heads, T]`` in (0, 1)."""
        q, k, _ = self._split(x)
        scores = q @ k.transpose(-2, -1) * self.scale
        if attn_mask is not None:
            scores = scores + attn_mask
        return (scores.logsumexp(-1) - self._logits(q, k)).sigmoid()

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def _logits(self, q: Tensor, k: Tensor) -> Tensor:
        if self.prompt.mode == "concat":
            return self.prompt.logits(q.shape[-2])
        return self.prompt.logits(q.shape[-2], _spread(q @ k.transpose(-2, -1) * self.scale))


def literal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prompt: Tensor,
    *,
    mode: Mode = "concat",
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The equations as they stand (Zu 2024, section 3): concatenate, softmax, drop; what tests and benchmarks compare.

    Args:
        q, k, v: ``[B, heads, T, d]``.  prompt: ``[T, length]``.
        mode: as of `EmbeddedPrompt`.
        bias: additive, broadcastable to ``[B, heads, T, T]``.
        scale: of the scores, None for 1 / sqrt(d).
    """
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    columns = prompt.expand(*scores.shape[:2], -1, -1)
    if mode == "scaled_concat":
        columns = columns * _spread(scores).unsqueeze(-1)
    if bias is not None:
        scores = scores + bias
    weights = torch.cat([columns, scores], dim=-1).softmax(-1)
    return weights[..., prompt.shape[1] :] @ v


def embed_prompts(
    encoder: Encoder,
    *,
    length: int = 100,
    layers: Layers = "deep",
    mode: Mode = "concat",
    init: Init = "normal",
    std: float = 0.02,
    init_logit: float | None = None,
    grid: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Put embedded prompts into an encoder's attention, in place; its own tensors keep their names and values.

    Args:
        encoder: with `blocks` of timm's `Block`.
        length: prompts a token and block.
        layers: deep, shallow, or block numbers in any selection.
        mode: as of `EmbeddedPrompt`.
        init: of the prompts: normal (`std`), uniform (+- 0.08), zeros, or kaiming (uniform).
        init_logit: where a token's total logit starts, in place of ln length; -10 starts with the pre-trained network.
        grid: patches along (rows, columns) that the prompts stand for, None for the encoder's at its image size.

    Raises:
        ConfigError: unknown layers, or an encoder that holds prompts already.

    >>> from vesalius.nn.vit import ViT, ViTConfig
    >>> vit = ViT(ViTConfig(image_size=32, patch_size=8, width=16, depth=3, heads=2))
    >>> embed_prompts(vit, length=5, layers=(0, 2))
    >>> [(name, tuple(p.shape)) for name, p in vit.named_parameters() if "prompt" in name]
    [('blocks.0.attn.prompt.prompt', (17, 5)), ('blocks.2.attn.prompt.prompt', (17, 5))]
    """
    _check(encoder, length)
    numbers = block_numbers(encoder, layers)
    rows, columns = grid or encoder.config.grid
    for number in numbers:
        block: Any = _blocks(encoder)[number]
        prompt = EmbeddedPrompt((rows, columns), prefix=_prefix(encoder), length=length, mode=mode)
        like = next(block.attn.parameters())
        prompt.to_empty(device=like.device).to(like.dtype)
        _start(prompt.prompt, init, std, generator)
        if init_logit is not None:
            with torch.no_grad():
                prompt.prompt.add_(init_logit - math.log(length))
        block.attn = PromptedAttention(block.attn, prompt)
    encoder.register_forward_pre_hook(_whole_square_images, with_kwargs=True)


def collapse(encoder: nn.Module) -> None:
    """Fold all embedded prompts of a network into one logit a token, in place: the same output, `length` times fewer.

    Raises:
        ConfigError: the network holds none, or they are scaled_concat ones.
    """
    found = [module for module in encoder.modules() if isinstance(module, EmbeddedPrompt)]
    if not found:
        raise ConfigError("there are no embedded prompts to collapse", remedy="give a network adapted with ept")
    for prompt in found:
        prompt.collapse()


def kept_mass(encoder: Encoder, image: Tensor) -> Tensor:
    """What the embedded prompts leave of the attention for ``image [B, C, H, W]``.

    Returns:
        ``[layers, B, heads, tokens]`` in (0, 1), of the prompted blocks in their order.
    """
    masses: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(module, PromptedAttention)
        masses.append(module.kept_mass(args[0], kwargs.get("attn_mask")))

    prompted = [module for module in encoder.modules() if isinstance(module, PromptedAttention)]
    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in prompted]
    try:
        encoder(image)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(masses)


def _whole_square_images(encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what would leave the prompts without a place, even where the number of tokens happens to be square."""
    if kwargs.get("keep") is not None or kwargs.get("extra") is not None:
        raise ConfigError(
            "embedded prompts stand for whole images: no masking, no further tokens", remedy="leave it out"
        )
    height, width = args[0].shape[-2:]
    if height != width:
        raise ConfigError(
            f"embedded prompts cannot be carried to an image of {height} x {width}", remedy="resize it to a square"
        )


def _spread(scores: Tensor) -> Tensor:
    """Largest minus smallest score of every query."""
    return scores.amax(-1) - scores.amin(-1)


# --- prompt tokens


class TokenPrompts(nn.Module):
    """Visual prompt tuning (Jia 2022): learned tokens between class token and patches, without positions.

    They enter before the first listed block, are replaced by new ones before each further listed block, and are taken
    out after the last block, so that nothing behind the blocks needs to know of them. It all happens in hooks on the
    blocks; an attention bias gets zeros for them.

    Args:
        layers: block numbers, ascending.  length: tokens.  width: channels.
        prefix: tokens in front of the prompts (the class token).
    """

    def __init__(self, layers: tuple[int, ...], *, length: int, width: int, prefix: int):
        super().__init__()
        self.layers, self.prefix = layers, prefix
        self.tokens = nn.Parameter(torch.empty(len(layers), length, width))

    def before(
        self, number: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pre-hook of block `number`."""
        x, *rest = args
        first, length = self.prefix, self.tokens.shape[1]
        if number in self.layers:
            position = self.layers.index(number)
            prompts = self.tokens[position].to(x.dtype).expand(len(x), -1, -1)
            x = torch.cat([x[:, :first], prompts, x[:, first + (length if position else 0) :]], dim=1)
        if kwargs.get("attn_mask") is not None:
            kwargs = {**kwargs, "attn_mask": _widened(kwargs["attn_mask"], first, length)}
        return (x, *rest), kwargs

    def after(self, block: nn.Module, args: tuple[Any, ...], x: Tensor) -> Tensor:
        """Hook of the last block."""
        return torch.cat([x[:, : self.prefix], x[:, self.prefix + self.tokens.shape[1] :]], dim=1)


def prepend_prompts(
    encoder: Encoder,
    *,
    length: int = 10,
    layers: Layers = "deep",
    init: Init = "normal",
    std: float = 0.02,
    generator: torch.Generator | None = None,
) -> None:
    """Give an encoder prompt tokens, in place, as ``encoder.prompts``; its own tensors keep their names and values.

    Args:
        encoder: with `blocks` of timm's `Block`.
        length: tokens.
        layers: deep, shallow (before the first block, then carried), or block numbers in any selection.
        init, std: as of `embed_prompts`.

    Raises:
        ConfigError: unknown layers, or an encoder that holds prompts already.

    >>> from vesalius.nn.vit import ViT, ViTConfig
    >>> vit = ViT(ViTConfig(image_size=32, patch_size=8, width=16, depth=3, heads=2))
    >>> prepend_prompts(vit, length=5)
    >>> vit.prompts.tokens.shape, vit(torch.zeros(1, 3, 32, 32)).patches.shape
    (torch.Size([3, 5, 16]), torch.Size([1, 16, 16]))
    """
    _check(encoder, length)
    numbers = block_numbers(encoder, layers)
    prompts = TokenPrompts(numbers, length=length, width=encoder.width, prefix=_prefix(encoder))
    like = next(encoder.parameters())
    prompts.to_empty(device=like.device).to(like.dtype)
    _start(prompts.tokens, init, std, generator)
    encoder.prompts = prompts
    # bound methods, because a copy of the encoder then copies them bound to its own prompts
    blocks = _blocks(encoder)
    for number in range(numbers[0], len(blocks)):
        blocks[number].register_forward_pre_hook(partial(prompts.before, number), with_kwargs=True)
    blocks[-1].register_forward_hook(prompts.after)


def _widened(mask: Tensor, first: int, count: int) -> Tensor:
    """A mask ``[..., T, T]`` with rows and columns, that change nothing, for `count` more tokens from `first` on."""
    for dim in (-1, -2):
        if mask.shape[dim] > 1:
            shape = list(mask.shape)
            shape[dim] = count
            head, tail = mask.split([first, mask.shape[dim] - first], dim)
            mask = torch.cat([head, mask.new_full(shape, mask.dtype == torch.bool), tail], dim)
    return mask


# --- both


def describe_prompts(encoder: Encoder) -> dict[str, Any]:
    """What was put into an encoder, as plain values for `restore_prompts` on another; {} for nothing."""
    prompts = encoder._modules.get("prompts")
    if isinstance(prompts, TokenPrompts):
        return {"tokens": {"length": prompts.tokens.shape[1], "layers": list(prompts.layers)}}
    attentions = [block.get_submodule("attn") for block in _blocks(encoder)]
    found = {n: a.prompt for n, a in enumerate(attentions) if isinstance(a, PromptedAttention)}
    if not found:
        return {}
    one = next(iter(found.values()))
    how = {"length": one.prompt.shape[1], "layers": list(found), "mode": one.mode, "grid": list(one.grid)}
    return {"embedded": how}


def restore_prompts(encoder: Encoder, what: dict[str, Any]) -> None:
    """Put in what `describe_prompts` found elsewhere, with fresh values."""
    if "embedded" in what:
        embed_prompts(encoder, **what["embedded"])
    if "tokens" in what:
        prepend_prompts(encoder, **what["tokens"])


def _blocks(encoder: Encoder) -> nn.ModuleList:
    blocks = getattr(encoder, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ConfigError(f"{type(encoder).__name__} has no transformer blocks", remedy="choose another backbone")
    return blocks


def _prefix(encoder: Encoder) -> int:
    """Tokens in front of the patches; the hierarchical encoder has none."""
    return int(getattr(encoder, "prefix", 0))


def block_numbers(encoder: Encoder, layers: Layers) -> tuple[int, ...]:
    """The numbers of the blocks that `layers` means, ascending.

    Raises:
        ConfigError: unknown layers.
    """
    depth = len(_blocks(encoder))
    named = {"deep": range(depth), "shallow": range(1)}
    numbers = sorted(set(named.get(layers, ()) if isinstance(layers, str) else layers))
    if not numbers or numbers[0] < 0 or numbers[-1] >= depth:
        raise ConfigError(
            f"prompts in the layers {layers!r} of {depth} blocks",
            remedy=f"deep, shallow, or numbers from 0 to {depth - 1}",
        )
    return tuple(numbers)


def _check(encoder: Encoder, length: int) -> None:
    if describe_prompts(encoder):
        raise ConfigError("this encoder holds prompts already", remedy="put them into a fresh one")
    if length < 1:
        raise ConfigError(f"length = {length}: there must be at least one prompt", remedy="1 or more")


def _start(parameter: nn.Parameter, init: Init, std: float, generator: torch.Generator | None) -> None:
    """The values that training starts from."""
    match init:
        case "normal":
            nn.init.normal_(parameter, std=std, generator=generator)
        case "uniform":
            nn.init.uniform_(parameter, -UNIFORM, UNIFORM, generator=generator)
        case "zeros":
            nn.init.zeros_(parameter)
        case "kaiming":
            for table in parameter if parameter.dim() == 3 else (parameter,):
                nn.init.kaiming_uniform_(table, a=math.sqrt(5), generator=generator)
        case _:
            raise ConfigError(f"unknown init {init!r}", remedy=nearest(init, get_args(Init)))
