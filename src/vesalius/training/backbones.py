"""Where a training starts from: a preset with changes; a backbone, trained or the same with fresh weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from vesalius.errors import ConfigError, WeightsError, nearest
from vesalius.nn.encoder import Encoder
from vesalius.pretrain import SYSTEMS
from vesalius.pretrain import system as system_class
from vesalius.published.card import Card
from vesalius.published.load import load_backbone
from vesalius.published.networks import architecture
from vesalius.training.provenance import read_seen
from vesalius.training.runs import RunFolder


def open_backbone(spec: str, *, image_size: int | None = None, download: bool = False) -> tuple[Encoder, Card]:
    """A backbone and its card; after "random:" the same network with fresh weights, or a system's tiny preset.

    Args:
        spec, image_size, download: as of `load_backbone`.

    Raises:
        WeightsError: nothing is there, or it has no encoder.
    """
    kind, _, rest = spec.partition(":")
    if kind == "random" and rest.partition("/")[0] in SYSTEMS:
        name, _, preset = rest.partition("/")
        presets = import_module(system_class(name).__module__).PRESETS
        if (preset or "tiny") not in presets:
            raise ConfigError(f"{name} has no preset {preset!r}", remedy=nearest(preset, presets))
        config = presets[preset or "tiny"]
        module = system_class(name)(replace(config, image_size=image_size or config.image_size))
        return module.encoder, Card(name, "backbone", architecture(module.encoder), module.contract)
    encoder = load_backbone(rest if kind == "random" else spec, image_size=image_size, download=download)
    card = encoder.card
    assert isinstance(card, Card)
    if kind == "random":
        encoder = type(encoder)(encoder.config)  # type: ignore[call-arg]
        card = replace(card, licence="", source="random weights", sha256="")
    return encoder, card


def override(preset: Any, changes: Mapping[str, Any]) -> Any:
    """A preset with other values, of nested dataclasses too.

    Raises:
        ConfigError: a key that it does not have; the nearest is named.

    >>> from vesalius.adapt.adaptation import AdaptConfig
    >>> override(AdaptConfig(), {"betas": [0.9, 0.95]}).betas
    (0.9, 0.95)
    """
    known = [item.name for item in fields(preset)]
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(f"no setting is called {name!r}", remedy=nearest(name, known))
        current = getattr(preset, name)
        if is_dataclass(current) and isinstance(value, Mapping):
            value = override(current, value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return replace(preset, **values)


def initialise(encoder: Encoder, spec: str) -> Card:
    """Fill `encoder` from another backbone of the same shape."""
    source = load_backbone(spec, part="encoder", image_size=encoder.image_size, in_channels=encoder.in_channels)
    state, own = source.state_dict(), encoder.state_dict()
    if ("mask_token" in state) != ("mask_token" in own):  # only one of the two was built to need it
        state.pop("mask_token", None)
        state |= {name: value for name, value in own.items() if name == "mask_token"}
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            f"is another network than the preset's ({str(error).splitlines()[1].strip()})",
            path=spec,
            remedy="choose the preset that it was trained with",
        ) from error
    assert isinstance(source.card, Card)
    return source.card


def seen_by(spec: str | None) -> set[str]:
    """Whom a backbone has seen, where it is a run of ours."""
    if spec is None or spec.startswith("random:"):
        return set()
    return set().union(*read_seen(RunFolder(Path(spec))).values())
