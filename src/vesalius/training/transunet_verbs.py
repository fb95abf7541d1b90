"""TransUNet as a baseline on volumes: what ``vesalius adapt transunet`` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vesalius.adapt.labels import class_names, few_labels
from vesalius.adapt.networks import save_task
from vesalius.adapt.transunet import PRESETS, TransUNetAdaptation
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.dataset import VolumeDataset
from vesalius.data.volumes.intensity import Percentiles, Window
from vesalius.errors import ConfigError, nearest
from vesalius.nn.transunet import TransUNet
from vesalius.published import transunet as published
from vesalius.published.card import Card
from vesalius.published.networks import architecture
from vesalius.tasks.slices import SliceSegmentation
from vesalius.training.backbones import override
from vesalius.training.common import Data, open_training, read_splits, say, train_options
from vesalius.training.loop import fit, load_best
from vesalius.training.provenance import write_seen
from vesalius.training.runs import is_first_process


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
    table, train, val = read_splits(data, task="segmentation")
    names = class_names(table, "segmentation", classes)
    train = few_labels(train, fraction=fraction, shots=shots, seed=training.get("seed") or 0)
    config = override(PRESETS[preset], model or {})
    config = replace(config, network=replace(config.network, classes=len(names)), lr=lr or config.lr)
    slices = sum(size[0] for size in train["size"].to_list())
    options = train_options(training, images=config.images, epochs=config.epochs, steps=config.steps, train=slices)
    ct = set(train["modality"].to_list()) == {"CT"}
    known = {name for given in train["channels"].to_list() for name in given or ()}
    read = tuple(channels) or tuple(sorted(known)) or ("CT" if ct else "image",)
    if len(read) not in (1, config.network.in_channels):
        raise ConfigError(f"{len(read)} channels ({', '.join(read)})", remedy="name one, or three, with --channels")
    intensity = Window(*window) if window else Window(-125, 275) if ct else Percentiles(0, 99, nonzero=False)
    contract = VolumeContract(read, orientation="SPL", intensity=intensity, roi=(1, *config.frame))
    torch.manual_seed(options.seed)
    network = TransUNet(config.network)
    report = str(published.load_google(network, base)) if base else ""
    task = SliceSegmentation(network, names, frame=config.frame, dice=config.dice)
    module = TransUNetAdaptation(task, contract, config)
    record = {
        "verb": "adapt",
        "method": "transunet",
        "task": task.TASK,
        "base": base,
        "preset": preset,
        "fraction": fraction,
        "shots": shots,
        "config": asdict(config),
        "contract": contract.to_dict(),
    }
    run = open_training(out, record, table, options, data, resume=resume)
    if is_first_process():
        write_seen(run, train=train, val=val, backbone=set())
    folder = Path(cache) if cache is not None else run.path.parent / "cache"
    sets = [
        None
        if part.is_empty()
        else VolumeDataset(part, contract, task="segmentation", classes=names, cache=folder, crop=False)
        for part in (train, val)
    ]
    assert sets[0] is not None
    summary = fit(module, sets[0], run, options, val=sets[1], monitor=module.monitor, resume=resume, progress=progress)
    if is_first_process():
        load_best(module, run.path)
        card = Card("transunet", "backbone", architecture(network), contract, citation=published.CITATION)
        source = f"transunet on {len(train)} volumes, from {base or 'random weights'}"
        card = replace(card, licence=published.LICENCE if base else "")
        save_task(task, run.path, contract=contract, backbone=card, source=source, notes=(report,) if report else ())
        say(run, summary)
    return {**summary, "run": str(run.path)}
