"""Bookkeeping for key maps: every tensor of a file is renamed, dropped with a reason, or left over: an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vesalius.errors import WeightsError

TRUNK_PREFIXES = ("", "encoder.", "backbone.", "model.encoder.", "model.backbone.")


@dataclass(frozen=True)
class Hints:
    """What the keys and shapes of a file do not tell; None for the rule in brackets.

    Args:
        heads: of the encoder [the relative table's columns, else width / 64].
        decoder_heads: of a pre-training or segmentation decoder [width / 32].
        blocks: whose tokens a pyramid reads [as published: 3, 5, 7, 11, or 5, 7, 11 for SegViT].
        eps: of the LayerNorms [1e-6; 1e-5 for Deblurring MIM's segmentation encoder].
        prompt_layers: blocks that hold the prompts of an EPT or VPT file [the first ones].
        window: tokens of the side of 3DSAM-adapter's windows [8].
    """

    heads: int | None = None
    decoder_heads: int | None = None
    blocks: tuple[int, ...] | None = None
    eps: float | None = None
    prompt_layers: tuple[int, ...] | None = None
    window: int | None = None


@dataclass(frozen=True)
class Request:
    """What a caller of `load` wants: see there."""

    part: str
    image_size: int | None = None
    in_channels: int | None = None
    as_published: bool = False
    hints: Hints = field(default_factory=Hints)


class Keys:
    """The tensors of a file on their way to the network's names.

    Attributes:
        left: what is not accounted for yet.  ours: the network's names -> tensors.
        dropped, reshaped: names -> reasons.  start: values for tensors that this layout lacks.
    """

    def __init__(self, state: Mapping[str, Tensor]):
        self.left = dict(state)
        self.ours: dict[str, Tensor] = {}
        self.dropped: dict[str, str] = {}
        self.reshaped: dict[str, str] = {}
        self.start: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that this layout must have.

        Raises:
            WeightsError: it has not.
        """
        if name not in self.left:
            raise WeightsError(f"the key {name} is missing", remedy="load it as the system and the part that it is")
        return tuple(self.left[name].shape)

    def count(self, pattern: str) -> int:
        """One more than the highest number that `pattern`'s first group matches, 0 if there is none."""
        found = (re.match(pattern, name) for name in self.left)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    def move(
        self, name: str, to: str, change: Callable[[Tensor], Tensor] | None = None, reason: str = "reshaped"
    ) -> None:
        """Give `name` the network's name `to`; a `change` of its values is reported with its `reason`."""
        self.shape(name)
        tensor = self.left.pop(name)
        if change is not None:
            tensor = change(tensor)
            self.reshaped[to] = reason
        self.ours[to] = tensor

    def move_all(self, prefix: str, to: str, only: Iterable[str] | None = None) -> None:
        """`move` all that starts with `prefix` (and goes on with one of `only`), keeping the rest of the name."""
        heads = tuple(prefix + name for name in only) if only is not None else (prefix,)
        for name in [name for name in self.left if name.startswith(heads)]:
            self.move(name, to + name.removeprefix(prefix))

    def drop(self, pattern: str, reason: str) -> None:
        """Leave out what fully matches `pattern`."""
        for name in [name for name in self.left if re.fullmatch(pattern, name)]:
            del self.left[name]
            self.dropped[name] = reason


def trunk_prefix(state: Mapping[str, Any]) -> str:
    """What stands before ``patch_embed`` in a file's names.

    >>> trunk_prefix({"backbone.patch_embed.proj.weight": 0})
    'backbone.'

    Raises:
        WeightsError: there is no patch embedding.
    """
    for prefix in TRUNK_PREFIXES:
        if any(name.startswith((f"{prefix}patch_embed.", f"{prefix}patch_embed1.")) for name in state):
            return prefix
    first = ", ".join(list(state)[:3])
    raise WeightsError(
        f"not a vision transformer's weights: no patch embedding among its {len(state)} tensors ({first}, ...)",
        remedy="see `vesalius list` for the layouts that are known",
    )
