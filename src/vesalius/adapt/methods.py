"""Every way to adapt a backbone under one face: what its settings are, what it puts where, what then trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

from vesalius.adapt import METHODS, ept, peft
from vesalius.errors import ConfigError, nearest
from vesalius.nn.encoder import Encoder

Install = Callable[..., None]


@dataclass(frozen=True)
class FullConfig:
    """Everything trains."""


def everything(encoder: Encoder, config: FullConfig, *, generator: torch.Generator) -> None:
    """Unfreeze all; what a head does not read is frozen by the head."""
    encoder.requires_grad_(True)


PARTS: dict[str, tuple[type, Install]] = {
    "full": (FullConfig, everything),
    "linear": (peft.HeadOnlyConfig, peft.head_only),
    "mlp3": (peft.HeadOnlyConfig, peft.head_only),
    "partial1": (peft.PartialConfig, peft.partial),
    "bitfit": (peft.BitFitConfig, peft.bitfit),
    "lora": (peft.LoRAConfig, peft.lora),
    "adapter": (peft.AdapterConfig, peft.adapter),
    "ssf": (peft.SSFConfig, peft.ssf),
    "vp": (peft.VPConfig, peft.vp),
    "vpt": (peft.VPTConfig, peft.vpt),
    "ept": (ept.EPTConfig, ept.install),
}
"""Method -> its settings, and what puts it into an encoder."""
CHANGES_TRUNK = ("full", "partial1", "bitfit")
"""Methods that train tensors of the trunk itself; the others leave every one of them as it was."""


def settings(method: str, changes: Mapping[str, Any] | None = None) -> Any:
    """A method's settings, with changes.

    Raises:
        ConfigError: there is no such method or setting; the nearest is named.

    >>> settings("vpt", {"length": 5})
    VPTConfig(length=5, layers='deep', frozen=False)
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}", remedy=nearest(method, METHODS))
    config: Any = PARTS[method][0]()
    known = [item.name for item in fields(config)]
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in (changes or {}).items()}
    for name in values:
        if name not in known:
            has = nearest(name, known) if known else "leave it out"
            raise ConfigError(f"{method} has no setting {name!r}", remedy=has)
    return replace(config, **values)


def install(encoder: Encoder, method: str, config: Any, *, generator: torch.Generator) -> Encoder:
    """Freeze an encoder and put a method into it, in place; what trains then has ``requires_grad``.

    Args:
        encoder: the trunk, without another method in it.
        method: a name of `METHODS`.
        config: the method's `settings`.
        generator: of the values that new modules start with.

    Returns:
        The encoder.
    """
    encoder.requires_grad_(False)
    PARTS[method][1](encoder, config, generator=generator)
    return encoder


def head(method: str) -> Literal["linear", "mlp3"]:
    """The classification head that a method trains."""
    return "mlp3" if method == "mlp3" else "linear"


def reads_frozen_features(method: str, config: Any) -> bool:
    """Whether the encoder's outputs never change in training, so that they may be computed once.

    >>> reads_frozen_features("linear", settings("linear")), reads_frozen_features("ept", settings("ept"))
    (True, False)
    """
    return PARTS[method][1] is peft.head_only or getattr(config, "frozen", False)
