"""Embedded Prompt Tuning: learned logits take part in every token's softmax and are then dropped.

A frozen transformer's block l gets prompts ``P_l [tokens, length]``. A query token i attends over its scores S_i and
its prompts, and what the prompts win is thrown away::

    W_i = softmax([P_i, S_i]) without its first `length` columns = softmax(S_i) * Z_i / (Z_i + E_i)
    Z_i = sum_j exp(S_ij),  E_i = sum_m exp(P_im)

so that a token's attention no longer sums to one. Only ``ln E_i`` enters: the prompts of a token are one number,
whatever their count, which sets where that number starts (ln length) and how slowly it moves. `collapse` folds a
trained network into that number without changing an output. At the published start the network is not the pre-trained
one (every row has lost a part of its sum already), so the untrained prompts are a control that belongs beside every
result.

Zu et al., Embedded prompt tuning: Towards enhanced calibration of pretrained models for medical images. Medical Image
Analysis 97 (2024) 103258, doi:10.1016/j.media.2024.103258. Differences from the authors' code: the prompts enter
attention as one extra key of zero value (the same numbers through a fused kernel, `vesalius.nn.prompts`); layers are
any list, not a contiguous one; another image size than the trunk's interpolates the prompts, where the published
configuration crashes; "scaled_concat" is the paper's best variant, for which there is no published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from vesalius.nn.encoder import Encoder
from vesalius.nn.prompts import Layers, collapse, embed_prompts

__all__ = ["EPTConfig", "collapse", "install"]


@dataclass(frozen=True)
class EPTConfig:
    """What is put into the trunk; the defaults are the published configurations'.

    Args:
        length: prompts a token and block (100 as published; the paper chooses it on validation from 5 to 600).
        layers: deep, shallow, or block numbers. More is better, and later blocks matter more (Fig. 6).
        mode: concat (the code), or scaled_concat: prompts times the spread (max - min) of the query's scores (Fig. 5).
        init: distribution of the prompts at the start: normal, uniform, zeros or kaiming.
        std: of the normal one.
        init_logit: where ln E starts, in place of ln length; -10 starts with the pre-trained network.
        frozen: leave the prompts as they were drawn and train the head alone: the control.
    """

    length: int = 100
    layers: Layers = "deep"
    mode: Literal["concat", "scaled_concat"] = "concat"
    init: Literal["normal", "uniform", "zeros", "kaiming"] = "normal"
    std: float = 0.02
    init_logit: float | None = None
    frozen: bool = False


def install(encoder: Encoder, config: EPTConfig, *, generator: torch.Generator) -> None:
    """Put prompts into the attention of a frozen encoder, in place; its own tensors keep their names and values.

    >>> from vesalius.nn.vit import ViT, ViTConfig
    >>> vit = ViT(ViTConfig(image_size=32, patch_size=8, width=16, depth=2, heads=2))
    >>> _ = vit.freeze()
    >>> install(vit, EPTConfig(length=5, layers="shallow"), generator=torch.Generator())
    >>> [(name, tuple(p.shape)) for name, p in vit.named_parameters() if p.requires_grad]
    [('blocks.0.attn.prompt.prompt', (17, 5))]
    """
    embed_prompts(
        encoder,
        length=config.length,
        layers=config.layers,
        mode=config.mode,
        init=config.init,
        std=config.std,
        init_logit=config.init_logit,
        generator=generator,
    )
    if config.frozen:
        encoder.requires_grad_(False)
