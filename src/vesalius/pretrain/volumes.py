"""What systems that pre-train on volumes have in common: how the verb `pretrain` gets their data, plan and weights.

A 2-D system reads single images without labels and stores its encoder. A 3-D one may read masks too, sees several
patches of a volume at a time, and stores all that it trained, so that a second stage goes on with the heads as well.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import polars as pl
from torch import nn
from torch.utils.data import Dataset

from vesalius.data.volumes.contract import VolumeContract
from vesalius.errors import ConfigError, WeightsError
from vesalius.nn.swin_unetr import SwinEncoder, SwinUNETR
from vesalius.nn.volumes import VolumeTrunk
from vesalius.published.card import Card
from vesalius.published.load import FAMILIES, load, load_weights
from vesalius.published.networks import VOLUME_TRUNKS
from vesalius.published.volumes import with_channels

FREE = ("dropout", "drop_path", "checkpointing")
"""Options of a trunk with which it computes the same from the same weights."""


@dataclass(frozen=True)
class Plan:
    """How long a system trains where nobody says.

    Args:
        images: or volumes, that a step sees.
        steps: of the optimiser; 0 where `epochs` count.
        epochs: over the training images.
    """

    images: int
    steps: int = 0
    epochs: int = 0


class VolumePretraining(L.LightningModule):
    """Base class of 3-D pre-training systems.

    Beside Lightning's steps and optimiser, a system has ``view(sample, generator)``, which makes an item of a batch of
    a sample, and may have ``collate(items)``, which makes the batch of its items. Both run in the loader's workers.

    Attributes:
        SYSTEM: its name.  PART: what its card calls the network.
        LEARNS_FROM: "segmentation" where it needs masks, None where images do.
        network: all that it trains.
        contract: the volumes that it expects.
        plan: how long it trains by default.
        unit: what it learns from.
        monitor: the validation metric whose best weights are kept, if `keeps_best`.
        notes: of its card.
        total_steps: set by the loop before it asks for the optimiser.
    """

    SYSTEM: str
    PART: str = "pretrain"
    LEARNS_FROM: str | None = None
    network: nn.Module
    contract: VolumeContract
    plan: Plan
    unit = "volumes"
    monitor: str = "val/loss"
    keeps_best = True
    notes: tuple[str, ...] = ()
    total_steps: int = 1

    @property
    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """The network, as a card describes it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the network's outputs, where there are any."""
        return ()

    @classmethod
    def create(cls, config: Any, *, classes: str | Path | None = None, text: str | None = None) -> VolumePretraining:
        """The system of a configuration.

        Args:
            config: of its presets.
            classes, text: a class table and its embeddings, of systems that have them.

        Raises:
            ConfigError: it has no use for a class table.
        """
        if classes is not None or text is not None:
            raise ConfigError(f"{cls.SYSTEM} has no classes", remedy="leave out classes and text")
        return cls(config)  # type: ignore[call-arg]  # every system takes its configuration

    @property
    def extra(self) -> dict[str, Any]:
        """What else its run and its card hold."""
        return {}

    @abstractmethod
    def samples(self, table: pl.DataFrame, cache: Path, *, workers: int = 0) -> Dataset[dict[str, Any]]:
        """The samples of a part of a table, prepared in the folder `cache` by so many processes."""

    def sampling_weights(self, table: pl.DataFrame) -> np.ndarray | None:
        """None: every volume is drawn once an epoch."""
        return None

    def initialise(self, spec: str) -> Card:
        """Fill the network, or only its trunk, from other weights, whose channels are matched by name.

        Args:
            spec: a run folder or a ``.safetensors`` file with its card, or ``system:file`` for an authors' file.

        Returns:
            The source's card, with a note on what became of the weights.

        Raises:
            WeightsError: they are of another network.
        """
        system, _, file = spec.partition(":")
        authors = bool(file) and system in FAMILIES
        source = with_channels(
            load(system, file, part=self.PART) if authors else load_weights(spec), self.contract.channels
        )
        card, own, target = cast(Card, source.card), self.architecture, self.network
        theirs, what = card.architecture, source
        if theirs["name"] != own["name"] and isinstance(getattr(source, "encoder", None), VolumeTrunk):
            theirs, what = theirs["config"]["encoder"], cast(nn.Module, source.encoder)
        if isinstance(what, VolumeTrunk) and own["name"] not in VOLUME_TRUNKS:
            own, target = own["config"]["encoder"], cast(nn.Module, self.network.encoder)
            card = replace(card, notes=(*card.notes, "The trunk alone was taken over; the heads began anew"))
        if isinstance(what, SwinEncoder) and isinstance(target, SwinUNETR):
            own, target = {**own, "name": theirs["name"]}, target.encoder
            card = replace(card, notes=(*card.notes, "The encoder alone was taken over; the decoder began anew"))
        found, wanted = (json.dumps(_shape(one), sort_keys=True) for one in (theirs, own))
        if found != wanted:
            raise WeightsError(
                f"is another network ({_first_difference(_shape(theirs), _shape(own))})",
                path=spec,
                remedy="choose the preset, or the --model settings, that it was trained with",
            )
        target.load_state_dict(what.state_dict())
        return card


def _shape(what: Mapping[str, Any]) -> dict[str, Any]:
    """An architecture without what weights do not depend on, in plain values."""
    config = {name: value for name, value in what["config"].items() if name not in FREE and value is not None}
    if "encoder" in config:
        config["encoder"] = _shape(config["encoder"])
    return dict(json.loads(json.dumps({"name": what["name"], **config})))


def _first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    for name in {**found, **wanted}:
        one, other = found.get(name), wanted.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            if one != other:
                return _first_difference(one, other)
        elif one != other:
            return f"its {name} is {one}, the system's {other}"
    return ""
