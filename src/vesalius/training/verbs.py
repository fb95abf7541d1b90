"""The verbs that train: `pretrain_system` and `adapt_backbone`, as functions and on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch

from vesalius.adapt.adaptation import FEW_LABELS, PRESETS, Adaptation, AdaptConfig, for_fine_tuning
from vesalius.adapt.labels import class_names, few_labels, is_multilabel, labelled
from vesalius.adapt.methods import CHANGES_TRUNK, head, install
from vesalius.adapt.methods import settings as method_settings
from vesalius.adapt.networks import Trunk, save_task, tensor_hash
from vesalius.data.contract import InputContract
from vesalius.data.datasets import generator
from vesalius.data.table import label_names, load_table, select
from vesalius.errors import ConfigError, VesaliusError, nearest
from vesalius.nn.encoder import Encoder
from vesalius.pretrain import stage_presets
from vesalius.pretrain import system as system_class
from vesalius.pretrain.volumes import VolumePretraining
from vesalius.published.card import Card
from vesalius.published.load import FAMILIES, save_weights
from vesalius.tasks import TASKS
from vesalius.tasks import task as task_class
from vesalius.training.backbones import open_backbone, override, seen_by
from vesalius.training.common import Data, cache_folder, fits_memory, open_training, read_splits, say, train_options
from vesalius.training.images import ImagePretraining
from vesalius.training.loop import TrainConfig, fit, load_best
from vesalius.training.provenance import write_seen
from vesalius.training.runs import is_first_process
from vesalius.training.volume_verbs import adapt_volumes, reads_volumes

ADAPTATION = {"classification": (200, 64), "segmentation": (400, 16), "enhancement": (400, 16)}
"""Epochs of USFM's downstream code; it does not tell its images a step, so those are ours."""
FEW_LABEL_ADAPTATION = (20, 4)
"""The same of EPT's configurations."""
TINY_ADAPTATION = (300, 16)
TINY_WIDTH = 256
"""Narrower trunks than this are adapted with the "tiny" preset."""


def pretrain_system(
    system: str,
    *,
    data: Data,
    out: str | Path,
    preset: str = "tiny",
    stage: int = 1,
    model: Mapping[str, Any] | None = None,
    init: str | None = None,
    classes: str | Path | None = None,
    text: str | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **training: Any,
) -> dict[str, Any]:
    """Pre-train a foundation model from the training images of a table; labels are used only where a system says so.

    Args:
        system: usfm, deblurring (images), brainsegfounder, universal (volumes).
        data: one or several tables (.parquet) made by `index`.
        out: the run folder.
        preset: tiny (a laptop's CPU), or paper.
        stage: 2 is brainsegfounder's second one, which goes on from `init` with the scans of the disease.
        model: settings of the system that differ from the preset's.
        init: continue from this backbone (a run folder, a weights file, SYSTEM:FILE) in place of random weights;
            channels of volumes are matched by name.
        classes: universal's class table (classes.yaml); by default the published 32 classes of abdominal CT.
        text: universal's embeddings of the classes: a .safetensors or .pt file, clip:FOLDER (a CLIP text tower as
            transformers stores it), or hashed, stand-ins without meaning; these by default.
        cache: folder of prepared volumes, which runs may share; by default "cache" beside the run's folder.
        resume: continue this run.
        progress: show a progress bar.
        training: fields of `TrainConfig`: steps, batch_size, seed, precision, devices, ...; steps and batch_size are
            the preset's by default.

    Returns:
        step, loss, val, history of the training curve, and the run folder's path.

    Raises:
        VesaliusError: wrong options, tables or images; a folder that holds another run.

    >>> import tempfile
    >>> from vesalius import index, phantom
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = phantom("ultrasound", folder / "us", n=12, size=32)
    >>> _ = index(folder / "us", folder / "us.parquet", val=0.2, test=0.4)
    >>> options = {"steps": 1, "batch_size": 2, "progress": False}
    >>> run = pretrain_system("usfm", data=folder / "us.parquet", out=folder / "usfm", **options)
    /...usfm: 1 steps, loss ...
    >>> (folder / "usfm" / "weights.safetensors").exists()
    True
    """
    module_type = system_class(system)
    presets = stage_presets(system, stage)
    if preset not in presets:
        raise ConfigError(f"{system} has no preset {preset!r}", remedy=nearest(preset, presets))
    config = override(presets[preset], model or {})
    table, train, val = read_splits(data, task=getattr(module_type, "LEARNS_FROM", None))
    torch.manual_seed(training.get("seed") or 0)
    module, face = _system(module_type, config, preset, classes=classes, text=text)
    options = train_options(training, train=len(train), **asdict(face.plan))
    source = face.initialise(init) if init else None
    asked = {"verb": "pretrain", "system": system, "preset": preset, "model": asdict(config), "init": init}
    record: dict[str, Any] = {**asked, **({"stage": stage} if stage != 1 else {}), **face.extra}
    run = open_training(out, record, table, options, data, resume=resume)
    if is_first_process():
        write_seen(run, train=train, val=val, backbone=seen_by(init))
    folder = cache_folder(cache, run)
    summary = fit(
        module,
        face.samples(train, folder, workers=options.workers),
        run,
        options,
        val=None if val.is_empty() else face.samples(val, folder, workers=options.workers),
        weights=face.sampling_weights(train),
        monitor=face.monitor,
        resume=resume,
        progress=progress,
    )
    if is_first_process():
        if face.keeps_best:
            load_best(module, run.path)
        origin = f", from {init}" if init else ""
        card = Card(
            system=system,
            part=face.PART,
            architecture=face.architecture,
            contract=module.contract,
            source=f"pre-trained on {len(train)} {face.unit}, {options.steps} steps{origin}",
            licence=source.licence if source else "",
            citation=FAMILIES[system].citation,
            classes=face.classes,
            notes=(*(source.notes if source else ()), *face.notes),
            extra=face.extra,
        )
        save_weights(face.network, run.path, card)
        say(run, summary)
    return {**summary, "run": str(run.path)}


def _system(
    kind: type[Any], config: Any, preset: str, *, classes: str | Path | None, text: str | None
) -> tuple[Any, Any]:
    """The module that trains, and what the verb asks of it."""
    if issubclass(kind, VolumePretraining):
        module = kind.create(config, classes=classes, text=text)
        return module, module
    if classes is not None or text is not None:
        raise ConfigError(f"{kind.SYSTEM} has no classes", remedy="leave out classes and text")
    module = kind(config)
    return module, ImagePretraining(module, preset)


def adapt_backbone(
    method: str,
    *,
    backbone: str,
    data: Data,
    out: str | Path,
    task: Literal["auto", "classification", "segmentation", "enhancement"] = "auto",
    preset: str = "auto",
    model: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    regions: Sequence[str] = (),
    channels: Sequence[str] = (),
    decoder: str | None = None,
    decoder_width: int | None = None,
    image_size: int | None = None,
    crop: Sequence[int] = (),
    flip: float | None = None,
    scale: float | None = None,
    shift: float | None = None,
    foreground: float | None = None,
    fraction: float = 1.0,
    shots: int | None = None,
    lr: float | None = None,
    inner_lr: float | None = None,
    layer_decay: float | None = None,
    cache: str | Path | None = None,
    download: bool = False,
    resume: bool = False,
    progress: bool = True,
    **training: Any,
) -> dict[str, Any]:
    """Adapt a backbone to a task with the labels of a table's training images.

    The weights with the best validation score are kept, or the last where the table has no validation split. Every
    method but full leaves the trunk frozen and stores only what it trained, beside the trunk's name and hash.

    Args:
        method: full, linear, mlp3, partial1, bitfit, lora, adapter, ssf, vp, vpt or ept.
        backbone: a run folder, a weights file, SYSTEM:FILE (an authors' file) or a timm name; "random:" and one of
            these, or a system's name, for the same network with fresh weights (training from scratch).
        data: one or several tables (.parquet) made by `index`.
        out: the run folder.
        task: what to learn; auto takes the first of these that the table has labels of.
        preset: tiny or paper; auto goes by the trunk's width.
        model: settings of the method that differ from its defaults (`vesalius.adapt.methods.settings`).
        classes: which ones, in this order; by default all of the table.
        regions: of volumes, overlapping regions to learn in place of the classes: brats (TC, WT, ET), or
            NAME=CLASS+CLASS for each.
        channels: of volumes, what the network shall read, matched by name with what the backbone reads.
        decoder: of a segmentation linear, upernet, segvit or unetpp, of volumes unetr or linear; of an enhancement
            pixel_shuffle or pyramid.
        decoder_width: of the segmentation decoder; by default the paper's, or 64 in the tiny preset.
        image_size: pixels of the side; by default the backbone's.
        crop: voxels of a patch of volumes, one or three numbers.
        flip: of volumes, probability of mirroring each axis of a patch; by default the preset's. 0 where classes are
            told apart by where they lie (left and right, front and back).
        scale: of volumes, intensities are multiplied by 1 - scale to 1 + scale; by default the preset's.
        shift: of volumes, -shift to shift is added to intensities, which the contract brings to about 0 to 1.
        foreground: of volumes, share of the patches around a labelled voxel; the others lie anywhere.
        fraction: of the training patients whose labels are used.
        shots: labelled patients per class, in place of a fraction.
        lr: peak learning rate of the head, as it is; by default the preset's, scaled with the images a step.
        inner_lr: peak learning rate of what a method trains inside the trunk; by default the head's.
        layer_decay: factor from one layer's learning rate to the one below; by default the preset's.
        cache: folder of prepared volumes, which runs may share; by default "cache" beside the run's folder.
        download: let timm fetch the pre-trained weights of its name.
        resume: continue this run.
        progress: show a progress bar.
        training: fields of `TrainConfig`: steps, batch_size, seed, precision, devices, ...; steps and batch_size are
            the preset's by default.

    Returns:
        step, loss, val, history of the training curve, and the run folder's path.

    Raises:
        VesaliusError: wrong options, tables or images; a backbone that does not load; a folder with another run.

    >>> import tempfile
    >>> from vesalius import index, phantom
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = phantom("ultrasound", folder / "us", n=12, size=32)
    >>> _ = index(folder / "us", folder / "us.parquet", val=0.2, test=0.4)
    >>> options = {"steps": 1, "batch_size": 2, "decoder": "linear", "progress": False}
    >>> run = adapt_backbone(
    ...     "full",
    ...     backbone="random:usfm",
    ...     task="segmentation",
    ...     data=folder / "us.parquet",
    ...     out=folder / "seg",
    ...     **options,
    ... )
    /...seg: 1 steps, loss ...
    >>> run["step"]
    1
    """
    patches = {"flip": flip, "scale": scale, "shift": shift, "foreground": foreground}
    if reads_volumes(backbone):
        others = {"image_size": image_size, "decoder_width": decoder_width, "inner_lr": inner_lr}
        _only_2d(backbone, **others, layer_decay=layer_decay, model=model or None)
        if task not in ("auto", "segmentation"):
            raise ConfigError(f"task {task} with {backbone}, which reads volumes", remedy="use segmentation")
        return adapt_volumes(
            method,
            backbone=backbone,
            data=data,
            out=out,
            preset=preset,
            classes=classes,
            regions=regions,
            channels=channels,
            decoder=decoder,
            crop=crop,
            **patches,
            fraction=fraction,
            shots=shots,
            lr=lr,
            cache=cache,
            resume=resume,
            progress=progress,
            **training,
        )
    for name, value in {"regions": regions, "channels": channels, "crop": crop, **patches}.items():
        if value or value == 0:
            raise ConfigError(f"{name} with {backbone}, which reads 2-D images", remedy="leave it out")
    settings = method_settings(method, model)
    chosen = _task(data) if task == "auto" else task
    if chosen not in TASKS:
        raise ConfigError(f"unknown task {task!r}", remedy=nearest(task, TASKS))
    table, train, val = read_splits(data, task=chosen)
    names = class_names(table, chosen, classes)
    multilabel = chosen == "classification" and is_multilabel(table, names)
    if chosen == "classification" and classes and not multilabel:
        train, val = (_with_labels(part, names) for part in (train, val))
    seed = training.get("seed") or 0
    drawn_by = names if chosen == "classification" else ()
    train = few_labels(train, fraction=fraction, shots=shots, seed=seed, classes=drawn_by)
    torch.manual_seed(seed)
    encoder, card = open_backbone(backbone, image_size=image_size, download=download)
    if preset == "auto":
        preset = "tiny" if encoder.width < TINY_WIDTH else "paper"
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}", remedy=nearest(preset, PRESETS))
    epochs, images = ADAPTATION[chosen] if method == "full" or chosen != "classification" else FEW_LABEL_ADAPTATION
    if preset == "tiny":
        epochs, images = 0, TINY_ADAPTATION[1]
    options = train_options(training, images=images, epochs=epochs, steps=TINY_ADAPTATION[0], train=len(train))
    config = _hyper_parameters(method, chosen, preset, options, lr=lr, inner_lr=inner_lr, layer_decay=layer_decay)
    trunk = None if method == "full" else Trunk.of(encoder, backbone, seed=seed, download=download)
    if method == "full":
        encoder = for_fine_tuning(encoder, config.drop_path)
    own = list(encoder.state_dict())
    before = tensor_hash(encoder)
    install(encoder, method, settings, generator=generator(seed, 0))
    torch.manual_seed(seed)  # the head is the same whatever the backbone drew
    width = decoder_width or (64 if preset == "tiny" else None)
    network = _network(chosen, encoder, names, card.image_contract, decoder, width, method, multilabel)
    module = Adaptation(network, card.image_contract, config, method=method)
    record = {
        "verb": "adapt",
        "method": method,
        "model": asdict(settings),
        "task": chosen,
        "backbone": backbone,
        "preset": preset,
        "config": asdict(config),
        "network": {name: value for name, value in network.config.items() if name != "contract"},  # type: ignore[union-attr, operator]
        "image_size": encoder.image_size,
        "fraction": fraction,
        "shots": shots,
        "download": download,
    }
    run = open_training(out, record, table, options, data, resume=resume)
    if is_first_process():
        write_seen(run, train=train, val=val, backbone=seen_by(backbone))
    sets = [
        None
        if part.is_empty()
        else labelled(
            part, card.image_contract, task=chosen, classes=names, multilabel=multilabel, cache=fits_memory(part)
        )
        for part in (train, val)
    ]
    assert sets[0] is not None
    summary = fit(module, sets[0], run, options, val=sets[1], monitor=module.monitor, resume=resume, progress=progress)
    if is_first_process():
        load_best(module, run.path)
        if method not in CHANGES_TRUNK and tensor_hash(encoder, own) != before:
            raise VesaliusError(f"{method} has changed its trunk", path=run.path, remedy="please report this as a bug")
        save_task(
            network,
            run.path,
            contract=card.image_contract,
            backbone=card,
            source=f"{method} on {len(train)} images, from {backbone}",
            method=method,
            config=settings,
            trunk=trunk,
        )
        say(run, summary)
    return {**summary, "run": str(run.path)}


def _only_2d(backbone: str, **options: Any) -> None:
    """Refuse options that say nothing about volumes."""
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{name} with {backbone}, which reads volumes", remedy="leave it out")


def _task(data: Data) -> str:
    """The first task that the table's training images have labels of."""
    train = select(load_table(data), split="train")
    if len(label_names(train)) > 1:
        return "classification"
    return "segmentation" if train["mask"].is_not_null().any() else "enhancement"


def _with_labels(table: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    return table.filter(pl.col("labels").list.set_intersection(list(names)).list.len() > 0)


def _hyper_parameters(
    method: str,
    task: str,
    preset: str,
    options: TrainConfig,
    *,
    lr: float | None,
    inner_lr: float | None,
    layer_decay: float | None,
) -> AdaptConfig:
    """The preset's, and what was given."""
    few = method != "full" and task == "classification"
    config = (FEW_LABELS[preset] if few else PRESETS[preset][task]).scaled(options.images_per_step)
    if lr is not None:
        config = replace(config, lr=lr, warmup_lr=min(config.warmup_lr, lr), min_lr=min(config.min_lr, lr))
    if inner_lr is not None:
        if method == "full":
            raise ConfigError("inner_lr with full", remedy="full has layer_decay")
        config = replace(config, inner_lr=inner_lr)
    if layer_decay is not None:
        if method != "full":
            raise ConfigError(f"layer_decay with {method}", remedy=f"{method} has inner_lr")
        config = replace(config, layer_decay=layer_decay)
    return config


def _network(
    task: str,
    encoder: Encoder,
    classes: Sequence[str],
    contract: InputContract,
    decoder: str | None,
    width: int | None,
    method: str,
    multilabel: bool,
) -> torch.nn.Module:
    build: Any = task_class(task)
    if task == "classification" and method == "full":
        return build(encoder, classes, multilabel=multilabel)
    if task == "classification":
        few = {"pool": "encoder", "fc_norm": False, "label_smoothing": 0.0, "head_std": 0.01}
        return build(encoder, classes, head=head(method), multilabel=multilabel, **few)
    if head(method) != "linear":
        raise ConfigError(f"{method} is a head of classification", remedy="use linear")
    if task == "segmentation":
        decoder = decoder or "upernet"
        return build(encoder, classes, decoder=decoder, width=None if decoder == "linear" else width)
    return build(encoder, contract=contract, head=decoder or "pixel_shuffle")
