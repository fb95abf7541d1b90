"""Adapting a 3-D backbone to a segmentation: what `adapt_backbone` does where the backbone reads volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch

from vesalius.adapt.labels import class_names
from vesalius.adapt.networks import save_task
from vesalius.adapt.volumes import DECODERS, METHODS, PRESETS, VolumeAdaptation, freeze, patches_of, with_decoder
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import Window, ZScore
from vesalius.errors import ConfigError, nearest
from vesalius.nn.dynunet import DYNUNET_PRESETS, DynUNet
from vesalius.nn.volumes import VolumeTrunk
from vesalius.pretrain import SYSTEMS, stage_presets
from vesalius.pretrain import system as system_class
from vesalius.pretrain.volumes import VolumePretraining
from vesalius.published.card import Card
from vesalius.published.load import CARD
from vesalius.published.networks import architecture
from vesalius.published.volumes import load_volume_trunk
from vesalius.tasks.volume_segmentation import VolumeSegmentation, parse_regions
from vesalius.training.backbones import seen_by
from vesalius.training.common import Data, train_options
from vesalius.training.volume_runs import VolumeRun

TINY_WIDTH = 768
"""Trunks of fewer channels at the bottleneck are adapted with the "tiny" preset."""
SCRATCH = "dynunet"
"""After "random:", a network that is of no system: nnU-Net's, which nothing pre-trains."""


def reads_volumes(backbone: str) -> bool:
    """Whether a backbone, named as of `adapt_backbone`, is a 3-D one; its weights are not read.

    >>> reads_volumes("random:brainsegfounder/tiny"), reads_volumes("usfm:USFM_latest.pth")
    (True, False)
    """
    kind, _, rest = backbone.partition(":")
    name = rest.partition("/")[0] if kind == "random" else kind
    if kind == "random" and name == SCRATCH:
        return True
    if rest and name in SYSTEMS:
        return issubclass(system_class(name), VolumePretraining)
    path = Path(rest if kind == "random" else backbone)
    card = path / CARD if path.suffix != ".safetensors" else path.with_suffix(".json")
    if path.name == "weights.safetensors":
        card = path.with_name(CARD)
    return card.is_file() and isinstance(Card.load(card).contract, VolumeContract)


def open_trunk(spec: str, *, channels: Sequence[str] = ()) -> tuple[VolumeTrunk, Card]:
    """A 3-D trunk and its card; after "random:" the same network with fresh weights, or a system's tiny preset.

    Args:
        spec: as of `load_volume_trunk`, or ``random:SYSTEM/PRESET``, or ``random:dynunet/PRESET``.
        channels: that it shall read, matched by name; by default its own.

    Raises:
        WeightsError: nothing is there, or it has no 3-D trunk.
        ConfigError: no such preset.
    """
    kind, _, rest = spec.partition(":")
    name, _, preset = rest.partition("/")
    if kind == "random" and name in SYSTEMS:
        presets = stage_presets(name)
        if (preset or "tiny") not in presets:
            raise ConfigError(f"{name} has no preset {preset!r}", remedy=nearest(preset, presets))
        config = presets[preset or "tiny"]
        module = system_class(name)(replace(config, channels=tuple(channels)) if channels else config)
        trunk = cast(VolumeTrunk, module.network.encoder)
        return trunk, Card(name, "backbone", architecture(trunk), module.contract, source="random weights")
    if kind == "random" and name == SCRATCH:
        return _scratch(preset or "tiny", tuple(channels) or ("CT",))
    trunk = load_volume_trunk(rest if kind == "random" else spec, channels=tuple(channels) or None)
    card = cast(Card, trunk.card)
    if kind == "random":
        trunk = type(trunk)(trunk.config)  # type: ignore[call-arg]
        card = replace(card, licence="", source="random weights", sha256="", notes=())
    return trunk, card


def adapt_volumes(
    method: str,
    *,
    backbone: str,
    data: Data,
    out: str | Path,
    preset: str = "auto",
    classes: Sequence[str] = (),
    regions: Sequence[str] = (),
    channels: Sequence[str] = (),
    decoder: str | None = None,
    crop: Sequence[int] = (),
    flip: float | None = None,
    scale: float | None = None,
    shift: float | None = None,
    foreground: float | None = None,
    fraction: float = 1.0,
    shots: int | None = None,
    lr: float | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **training: Any,
) -> dict[str, Any]:
    """Segment volumes with a pre-trained trunk; the arguments and the result are those of `adapt_backbone`.

    Raises:
        VesaliusError: as of `adapt_backbone`.
    """
    if method not in METHODS:
        raise ConfigError(f"{method} with a backbone of volumes", remedy=f"use one of {', '.join(METHODS)}")
    decoder = decoder or "unetr"
    if decoder not in DECODERS:
        raise ConfigError(f"no decoder of volumes is called {decoder!r}", remedy=nearest(decoder, DECODERS))
    seed = training.get("seed") or 0
    volumes = VolumeRun.of(
        data, out, fraction=fraction, shots=shots, seed=seed, cache=cache, resume=resume, progress=progress
    )
    names = class_names(volumes.table, "segmentation", classes)
    parts = parse_regions(regions, names) if regions else None
    torch.manual_seed(seed)
    trunk, card = open_trunk(backbone, channels=channels)
    if preset == "auto":
        preset = "tiny" if trunk.bottleneck_channels < TINY_WIDTH else "paper"
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}", remedy=nearest(preset, PRESETS))
    given: dict[str, Any] = {"lr": lr, "flip": flip, "scale": scale, "shift": shift, "foreground": foreground}
    config = replace(PRESETS[preset], **{name: value for name, value in given.items() if value is not None})
    config = replace(config, crop=_sides(crop, trunk) or config.crop)
    count = len(volumes.train)
    options = train_options(training, images=config.images, epochs=config.epochs, steps=config.steps, train=count)
    torch.manual_seed(seed)  # the head is the same whatever the backbone drew
    task = VolumeSegmentation(
        with_decoder(trunk, decoder), names, regions=parts, entropy=config.entropy, linear=decoder == "linear"
    )
    frozen = freeze(task, trunk) if method == "linear" else None
    contract = patches_of(cast(VolumeContract, card.contract), config.crop)
    module = VolumeAdaptation(task, contract, config, frozen=frozen)
    asked = {
        "backbone": backbone,
        "preset": preset,
        "config": asdict(config),
        "network": task.config,
        "channels": list(contract.channels),
    }
    source = f"{method} on {count} volumes, from {backbone}"

    def save(path: Path) -> None:
        save_task(task, path, contract=contract, backbone=card, source=source, notes=card.notes)

    return volumes.fit(module, options, method, asked, save, crop=True, seen=seen_by(backbone))


def _scratch(preset: str, channels: tuple[str, ...]) -> tuple[VolumeTrunk, Card]:
    """nnU-Net's network with fresh weights: CT from -200 to 250 HU, others by a volume's own mean and deviation."""
    if preset not in DYNUNET_PRESETS:
        raise ConfigError(f"{SCRATCH} has no preset {preset!r}", remedy=nearest(preset, DYNUNET_PRESETS))
    trunk = DynUNet(replace(DYNUNET_PRESETS[preset], in_channels=len(channels)))
    intensity = Window(-200, 250) if channels == ("CT",) else ZScore()
    contract = VolumeContract(channels, intensity=intensity, roi=(64, 64, 64) if preset == "tiny" else (128, 128, 128))
    citation = "Isensee et al., nnU-Net, Nature Methods 18:203-211, 2021, doi:10.1038/s41592-020-01008-z"
    return trunk, Card(SCRATCH, "backbone", architecture(trunk), contract, source="random weights", citation=citation)


def _sides(crop: Sequence[int], trunk: VolumeTrunk) -> tuple[int, int, int] | None:
    """A patch's sides from one or three numbers, None for none."""
    if not crop:
        return None
    sides = tuple(crop) * 3 if len(crop) == 1 else tuple(crop)
    if len(sides) != 3 or any(side < 1 or side % trunk.multiple for side in sides):
        raise ConfigError(f"crop = {list(crop)}", remedy=f"give one or three multiples of {trunk.multiple}")
    if math.prod(sides) == trunk.multiple**3:
        raise ConfigError(
            f"crop = {list(crop)} leaves the bottleneck one position, which has no variance to normalise by",
            remedy=f"double a side, such as {2 * trunk.multiple} {trunk.multiple} {trunk.multiple}",
        )
    return sides[0], sides[1], sides[2]
