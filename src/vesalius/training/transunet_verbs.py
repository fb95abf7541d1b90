"""TransUNet as a baseline on volumes: what ``vesalius adapt transunet`` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vesalius.adapt.labels import class_names
from vesalius.adapt.networks import save_task
from vesalius.adapt.transunet import PRESETS, TransUNetAdaptation
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import Percentiles, Window
from vesalius.errors import ConfigError, nearest
from vesalius.nn.transunet import TransUNet
from vesalius.published import transunet as published
from vesalius.published.card import Card
from vesalius.published.networks import architecture
from vesalius.tasks.slices import SliceSegmentation
from vesalius.training.backbones import override
from vesalius.training.common import Data, train_options
from vesalius.training.volume_runs import VolumeRun


def adapt_transunet(
    *,
    data: Data,
    out: str | Path,
    base: str = "",
    preset: str = "tiny",
    model: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    window: Sequence[float] = (),
    channels: Sequence[str] = (),
    fraction: float = 1.0,
    shots: int | None = None,
    lr: float | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **training: Any,
) -> dict[str, Any]:
    """Train a TransUNet on the slices of volumes, from scratch or from ImageNet's weights.

    The weights of the best validation are kept.

    Args:
        data: one or several tables (.parquet) of volumes made by `index`.
        out: the run folder.
        base: Google's R50+ViT-B_16.npz, for the preset paper; by default weights are fresh.
        preset: tiny, which trains on a CPU, or paper.
        model: settings that differ from the preset's.
        classes: which ones, in this order; by default all of the table.
        window: two intensities, of 0 and 1; by default -125 and 275 HU of CT, and MR up to its 99th percentile.
        channels: what the network shall read of volumes that have several, by name: one, or three.
        fraction: of the training patients whose labels are used.
        shots: labelled patients, in place of a fraction.
        lr: learning rate at the start; by default the preset's.
        cache: folder of prepared volumes, which runs may share; by default "cache" beside the run's folder.
        resume: continue this run.
        progress: show a progress bar.
        training: fields of `TrainConfig`: steps, batch_size, seed, precision, devices, ...; steps and batch_size are
            the preset's by default.

    Returns:
        step, loss, val, history of the training curve, and the run folder's path.

    Raises:
        VesaliusError: wrong options or tables; an archive that does not load; a folder that holds another run.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}", remedy=nearest(preset, PRESETS))
    if len(window) not in (0, 2):
        raise ConfigError(f"window = {list(window)}", remedy="give two intensities")
    seed = training.get("seed") or 0
    volumes = VolumeRun.of(
        data, out, fraction=fraction, shots=shots, seed=seed, cache=cache, resume=resume, progress=progress
    )
    names = class_names(volumes.table, "segmentation", classes)
    config = override(PRESETS[preset], model or {})
    config = replace(config, network=replace(config.network, classes=len(names)), lr=lr or config.lr)
    options = train_options(
        training, images=config.images, epochs=config.epochs, steps=config.steps, train=volumes.slices
    )
    read = tuple(channels) or volumes.channels
    if len(read) not in (1, config.network.in_channels):
        raise ConfigError(f"{len(read)} channels ({', '.join(read)})", remedy="name one, or three, with --channels")
    usual = Window(-125, 275) if volumes.is_ct else Percentiles(0, 99, nonzero=False)
    intensity = Window(*window) if window else usual
    contract = VolumeContract(read, orientation="SPL", intensity=intensity, roi=(1, *config.frame))
    torch.manual_seed(options.seed)
    network = TransUNet(config.network)
    report = str(published.load_google(network, base)) if base else ""
    task = SliceSegmentation(network, names, frame=config.frame, dice=config.dice)
    module = TransUNetAdaptation(task, contract, config)
    asked = {"base": base, "preset": preset, "config": asdict(config), "contract": contract.to_dict()}
    card = Card("transunet", "backbone", architecture(network), contract, citation=published.CITATION)
    card = replace(card, licence=published.LICENCE if base else "")
    source = f"transunet on {len(volumes.train)} volumes, from {base or 'random weights'}"

    def save(path: Path) -> None:
        save_task(task, path, contract=contract, backbone=card, source=source, notes=(report,) if report else ())

    return volumes.fit(module, options, "transunet", asked, save, crop=False)
