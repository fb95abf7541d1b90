"""3-D networks on the way from one training to the next: their trunk, and their modalities matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from vesalius.data.volumes.contract import VolumeContract, channel_key
from vesalius.errors import WeightsError
from vesalius.nn.volumes import VolumeTrunk, match_channels
from vesalius.published.card import Card
from vesalius.published.checkpoint import fill
from vesalius.published.load import FAMILIES, load, load_weights
from vesalius.published.networks import VOLUME_TRUNKS, Hollow, build

Network = TypeVar("Network", bound=nn.Module)


def load_volume_trunk(spec: str | Path, *, channels: Sequence[str] | None = None) -> VolumeTrunk:
    """A 3-D trunk from wherever it is, in eval mode, with its `Card` as ``card``.

    Args:
        spec: a run folder or a ``.safetensors`` file with its card, or ``system:file`` for an authors' file.
        channels: modalities that it shall read, see `with_channels`; None for its own.

    Raises:
        WeightsError: there is none.
    """
    system, _, file = str(spec).partition(":")
    network = load(system, file) if file and system in FAMILIES else load_weights(spec)
    card = cast(Card, network.card)
    trunk = network if isinstance(network, VolumeTrunk) else getattr(network, "encoder", None)
    if not isinstance(trunk, VolumeTrunk):
        raise WeightsError(f"{card.system}, part {card.part}, has no 3-D trunk", path=spec, remedy="give 3-D weights")
    if trunk is not network:
        what = card.architecture["config"]["encoder"]
        card = replace(card, part="backbone", architecture=what, classes=())
        trunk.card, trunk.report = card, network.report  # type: ignore[assignment]  # what `load` attaches
    return trunk if channels is None else with_channels(trunk, channels)


def with_channels(network: Network, channels: Sequence[str]) -> Network:
    """A loaded 3-D network for other modalities: what it knows of a modality goes where its name is.

    See `match_channels` for those that it does not know. Nothing else changes, and the card says what was done.

    Args:
        network: with its card, as `load`, `load_weights` or `load_volume_trunk` give it.
        channels: names in the order in which the new network reads them.

    Raises:
        WeightsError: it is not a 3-D network.
    """
    card = cast(Card, network.card)
    contract = card.contract
    if not isinstance(contract, VolumeContract):
        raise WeightsError(f"{card.system}, part {card.part}, reads 2-D images", remedy="give 3-D weights")
    have, want = contract.channels, tuple(channels)
    if [channel_key(name) for name in have] == [channel_key(name) for name in want]:
        return network
    what = _reading(card.architecture, len(want))
    with Hollow():
        changed, probe = build(what), build(_reading(card.architecture, len(have) + 1))
    shapes = {name: tensor.shape for name, tensor in probe.state_dict().items()}
    state, reshaped = network.state_dict(), {}
    new = [name for name in want if channel_key(name) not in {channel_key(known) for known in have}]
    reason = f"channels {', '.join(have)} -> {', '.join(want)}; new: {', '.join(new) or 'none'}"
    for name, tensor in state.items():
        # The modalities lie along the axis that one more of them makes longer: 1 of a convolution that reads the input,
        # 0 of one that restores it.
        axis = next((n for n, size in enumerate(tensor.shape) if size != shapes[name][n]), None)
        if axis is not None:
            state[name], reshaped[name] = match_channels(tensor, have, want, dim=axis), reason
    report = fill(changed, state, reshaped=reshaped).check()
    card = replace(
        card, architecture=what, contract=replace(contract, channels=want), notes=(*card.notes, f"Matched {reason}")
    )
    changed.card, changed.report = card, report  # type: ignore[assignment]  # what `load` attaches
    return cast(Network, changed.train(network.training))


def _reading(what: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """An architecture whose trunk reads that many channels."""
    config = dict(what["config"])
    if what["name"] in VOLUME_TRUNKS:
        return {"name": what["name"], "config": {**config, "in_channels": channels}}
    return {"name": what["name"], "config": {**config, "encoder": _reading(config["encoder"], channels)}}
