"""SegViT's attention-to-mask decoder (Zhang et al. 2022), as USFM uses it, and its loss.

One learned query a class looks at the feature maps, deepest block first. The scores of its cross-attention, before the
softmax, are the class's mask logits: a query attends where its class is. Sub-modules carry the published names.
Unlike the published head it takes the maps' true size, so images need not be square.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from vesalius.data.masks import IGNORE
from vesalius.errors import ConfigError
from vesalius.nn.losses import check_mask

Stage = tuple[Tensor, Tensor]
"""One stage's (class logits ``[B, Q, classes + 1]``, mask logits ``[B, Q, h, w]``)."""


class CrossAttention(nn.Module):
    """Multi-head attention that also hands out its scaled scores, averaged over heads."""

    def __init__(self, width: int, heads: int, *, dropout: float = 0.1):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)
        self.proj = nn.Linear(width, width)

    def forward(self, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, Q, D]`` looking at ``[B, N, D]`` -> ``[B, Q, D]`` and scores ``[B, Q, N]``."""
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, memory), (self.v, memory))
        )
        scores = q @ k.transpose(-2, -1) * self.scale
        out = self.drop(scores.softmax(-1)) @ v
        return self.proj(out.transpose(1, 2).flatten(2)), scores.mean(1)


class ATMLayer(nn.Module):
    """One decoder layer, post-norm: self-attention over the queries, cross-attention, ReLU MLP."""

    def __init__(self, width: int, heads: int, *, dropout: float = 0.1):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.multihead_attn = CrossAttention(width, heads, dropout=dropout)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, Q, D]``, ``[B, N, D]`` -> ``[B, Q, D]`` and the cross-attention's scores ``[B, Q, N]``."""
        query = self.norm1(query + self.drop(self.self_attn(query, query, query, need_weights=False)[0]))
        seen, scores = self.multihead_attn(query, memory)
        query = self.norm2(query + self.drop(seen))
        hidden = self.drop(F.relu(self.linear1(query)))
        return self.norm3(query + self.drop(self.linear2(hidden))), scores


class ATMDecoder(nn.Module):
    """The layers of one stage."""

    def __init__(self, width: int, heads: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(ATMLayer(width, heads) for _ in range(layers))

    def forward(self, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, Q, D]``, ``[B, N, D]`` -> ``[B, Q, D]`` and the last layer's scores ``[B, Q, N]``."""
        for layer in self.layers:
            query, scores = layer(query, memory)
        return query, scores


class ATMHead(nn.Module):
    """Attention-to-mask head, one stage a map.

    Args:
        channels: of the maps, finest first; as many stages.
        classes: number of classes with the background, and of queries.
        width: of queries and keys.  heads: of attention.  layers: of a stage.

    >>> head = ATMHead((8, 8, 8), 2, width=12, heads=3, layers=1).eval()
    >>> maps = [torch.zeros(1, 8, 8, 12), torch.zeros(1, 8, 4, 6), torch.zeros(1, 8, 2, 3)]
    >>> [tuple(masks.shape) for _, masks in head(maps, (32, 48))]
    [(1, 2, 8, 12), (1, 2, 8, 12), (1, 2, 32, 48)]
    """

    def __init__(self, channels: Sequence[int], classes: int, *, width: int = 384, heads: int = 12, layers: int = 3):
        super().__init__()
        if width % heads:
            raise ConfigError(f"a SegViT width of {width} cannot be divided among {heads} heads")
        self.stages = len(channels)
        for stage, channel in enumerate(reversed(channels), start=1):
            self.add_module(f"input_proj_{stage}", nn.Linear(channel, width))
            self.add_module(f"proj_norm_{stage}", nn.LayerNorm(width))
            self.add_module(f"decoder_{stage}", ATMDecoder(width, heads, layers))
        self.q = nn.Embedding(classes, width)
        self.class_embed = nn.Linear(width, classes + 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> list[Stage]:
        """Maps ``[B, C, h, w]``, finest first -> one `Stage` each, deepest block first.

        Masks add up from stage to stage. They are at the finest map's size, those of the last stage at `size`.
        """
        query = self.q.weight.expand(len(maps[0]), -1, -1)
        finest = maps[0].shape[-2:]
        total = query.new_zeros(())
        stages: list[Stage] = []
        for stage, features in enumerate(reversed(maps), start=1):
            memory = self.get_submodule(f"input_proj_{stage}")(features.flatten(2).transpose(1, 2))
            memory = self.get_submodule(f"proj_norm_{stage}")(memory)
            query, scores = self.get_submodule(f"decoder_{stage}")(query, memory)
            total = total + _resize(scores.unflatten(2, features.shape[-2:]), finest)
            stages.append((self.class_embed(query), total))
        return [*stages[:-1], (stages[-1][0], _resize(stages[-1][1], size))]


def atm_scores(stage: Stage) -> Tensor:
    """A stage's scores per class and pixel, ``[B, classes, h, w]`` in [0, classes]: P(class | query) * mask, summed."""
    logits, masks = stage
    return torch.einsum("bqc,bqhw->bchw", logits.softmax(-1)[..., :-1], masks.sigmoid())


class ATMLoss(nn.Module):
    """Cross-entropy over queries, focal and Dice loss over the masks of the classes that are present, at every stage.

    Query c belongs to class c if it occurs in the image, otherwise to "no object" (there is no matching).

    Args:
        ce, focal, dice: weights of the three terms.
        no_object: weight of the "no object" class in the cross-entropy.
        as_published: ignored pixels count as background of every mask, as in the authors' code; by default
            they are left out.
    """

    def __init__(
        self,
        *,
        ce: float = 1.0,
        focal: float = 20.0,
        dice: float = 1.0,
        no_object: float = 0.1,
        as_published: bool = False,
    ):
        super().__init__()
        self.ce, self.focal, self.dice = ce, focal, dice
        self.no_object, self.as_published = no_object, as_published

    def forward(self, stages: Sequence[Stage], mask: Tensor) -> dict[str, Tensor]:
        """Stages as `ATMHead` gives them and a mask ``[B, H, W]`` (255 = ignored) -> weighted terms and their sum.

        Keys: loss_ce, loss_mask, loss_dice of the last stage; the same with _0, _1, ... of the earlier ones; loss.
        """
        logits = stages[-1][0]
        check_mask(mask, (len(logits), *mask.shape[1:]), logits.shape[-1] - 1)
        terms: dict[str, Tensor] = {}
        for number, stage in enumerate(stages):
            suffix = "" if number == len(stages) - 1 else f"_{number}"
            ce, focal, dice = self._stage(stage, mask)
            terms |= {f"loss_ce{suffix}": ce, f"loss_mask{suffix}": focal, f"loss_dice{suffix}": dice}
        return terms | {"loss": torch.stack(list(terms.values())).sum()}

    def _stage(self, stage: Stage, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, masks = (part.float() for part in stage)  # sums over pixels need more than half precision
        classes = logits.shape[-1] - 1
        index = torch.arange(classes, device=mask.device)
        truth = (mask.unsqueeze(1) == index.view(1, -1, 1, 1)).flatten(2)
        present = truth.any(-1)
        weight = logits.new_ones(classes + 1)
        weight[-1] = self.no_object
        ce = F.cross_entropy(logits.transpose(1, 2), torch.where(present, index, classes), weight)

        guess = _resize(masks, mask.shape[-2:]).flatten(2)
        truth = truth.to(guess.dtype)
        valid = torch.ones_like(mask) if self.as_published else mask != IGNORE
        valid = valid.flatten(1).unsqueeze(1).to(guess.dtype)
        count = present.sum().clamp(min=1)
        focal = (sigmoid_focal_loss(guess, truth) * valid).sum(-1) / valid.sum(-1).clamp(min=1)
        probability = guess.sigmoid() * valid
        dice = 1 - (2 * (probability * truth).sum(-1) + 1) / (probability.sum(-1) + truth.sum(-1) + 1)
        return (
            self.ce * ce,
            self.focal * (focal * present).sum() / count,
            self.dice * (dice * present).sum() / count,
        )


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
