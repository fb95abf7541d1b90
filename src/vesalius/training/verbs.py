"""The verbs that train: `pretrain_system` and `adapt_backbone`, as functions and on the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from rich.console import Console

from vesalius.adapt.full import MONITOR, PRESETS, Adaptation, for_fine_tuning
from vesalius.adapt.labels import class_names, few_labels, labelled
from vesalius.adapt.networks import save_task
from vesalius.data.contract import InputContract
from vesalius.data.datasets import ImageDataset
from vesalius.data.table import load_table, select
from vesalius.errors import ConfigError, VesaliusError, nearest
from vesalius.nn.encoder import Encoder
from vesalius.pretrain import system as system_class
from vesalius.published.card import Card
from vesalius.published.load import FAMILIES, save_weights
from vesalius.published.networks import architecture
from vesalius.tasks import TASKS
from vesalius.tasks import task as task_class
from vesalius.training.backbones import initialise, open_backbone, override, seen_by
from vesalius.training.loop import TrainConfig, fit, load_best
from vesalius.training.provenance import data_hash, split_hash, write_seen
from vesalius.training.runs import RunFolder, is_first_process, open_run

Data = str | Path | Sequence[str | Path]
CACHED_BYTES = 1_000_000_000
"""Images are kept in memory where all of them need less than this."""
PRETRAINING = {"usfm": (800, 2048), "deblurring": (800, 256)}
"""Epochs and images a step of the published schedules ("paper" presets)."""
TINY_PRETRAINING = (1000, 32)
"""Steps and images a step of the "tiny" presets."""
ADAPTATION = {"classification": (200, 64), "segmentation": (400, 16), "enhancement": (400, 16)}
"""Epochs of USFM's downstream code; it does not tell its images a step, so those are ours."""
TINY_ADAPTATION = (300, 16)
TINY_WIDTH = 256
"""Narrower trunks than this are adapted with the "tiny" preset."""


def pretrain_system(
    system: str,
    *,
    data: Data,
    out: str | Path,
    preset: str = "tiny",
    model: Mapping[str, Any] | None = None,
    init: str | None = None,
    resume: bool = False,
    progress: bool = True,
    **training: Any,
) -> dict[str, Any]:
    """Pre-train a foundation model from the training images of a table; labels are not used.

    Args:
        system: usfm or deblurring.
        data: one or several tables (.parquet) made by `index`.
        out: the run folder.
        preset: tiny (a laptop's CPU), or paper.
        model: settings of the system that differ from the preset's.
        init: continue from this backbone (a run folder, a weights file, SYSTEM:FILE) in place of random weights.
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
    presets = import_module(module_type.__module__).PRESETS
    if preset not in presets:
        raise ConfigError(f"{system} has no preset {preset!r}", remedy=nearest(preset, presets))
    config = override(presets[preset], model or {})
    table, train, val = _splits(data, task=None)
    epochs, images = PRETRAINING[system] if preset.startswith("paper") else (0, TINY_PRETRAINING[1])
    options = _options(training, images=images, epochs=epochs, steps=TINY_PRETRAINING[0], train=len(train))
    torch.manual_seed(options.seed)
    module = module_type(config)
    source = initialise(module.encoder, init) if init else None
    record = {"verb": "pretrain", "system": system, "preset": preset, "model": asdict(config), "init": init}
    run = _open(out, record, table, options, data, resume=resume)
    if is_first_process():
        write_seen(run, train=train, val=val, backbone=seen_by(init))
    blurs = module.contract.blur is not None  # the sharp image is then what is to be restored
    sets = [
        None if part.is_empty() else ImageDataset(part, module.contract, cache=_fits_memory(part), sharp=blurs)
        for part in (train, val)
    ]
    assert sets[0] is not None
    summary = fit(
        module,
        sets[0],
        run,
        options,
        val=sets[1],
        weights=module.sampling_weights(train["organ"].to_list()),
        resume=resume,
        progress=progress,
    )
    if is_first_process():
        card = Card(
            system=system,
            part="backbone",
            architecture=architecture(module.encoder),
            contract=module.contract,
            source=f"pre-trained on {len(train)} images, {options.steps} steps" + (f", from {init}" if init else ""),
            licence=source.licence if source else "",
            citation=FAMILIES[system].citation,
        )
        save_weights(module.encoder, run.path, card)
        _say(run, summary)
    return {**summary, "run": str(run.path)}


def adapt_backbone(
    method: str,
    *,
    backbone: str,
    task: Literal["classification", "segmentation", "enhancement"],
    data: Data,
    out: str | Path,
    preset: str = "auto",
    classes: Sequence[str] = (),
    decoder: str | None = None,
    decoder_width: int | None = None,
    image_size: int | None = None,
    fraction: float = 1.0,
    shots: int | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    resume: bool = False,
    progress: bool = True,
    **training: Any,
) -> dict[str, Any]:
    """Adapt a backbone to a task with the labels of a table's training images.

    The weights with the best validation score are kept, or the last where the table has no validation split.

    Args:
        method: full (all weights) or linear (the head on a frozen trunk).
        backbone: a run folder, a weights file, SYSTEM:FILE (an authors' file) or a timm name; "random:" and one of
            these, or a system's name, for the same network with fresh weights (training from scratch).
        task: what to learn.
        data: one or several tables (.parquet) made by `index`.
        out: the run folder.
        preset: tiny or paper; auto goes by the trunk's width.
        classes: which ones, in this order; by default all of the table.
        decoder: of a segmentation linear, upernet, segvit or unetpp; of an enhancement pixel_shuffle or pyramid.
        decoder_width: of the segmentation decoder; by default the paper's, or 64 in the tiny preset.
        image_size: pixels of the side; by default the backbone's.
        fraction: of the training patients whose labels are used.
        shots: labelled images per class, in place of a fraction.
        lr: peak learning rate of the head, as it is; by default the preset's, scaled with the images a step.
        layer_decay: factor from one layer's learning rate to the one below; by default the preset's.
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
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}", remedy=nearest(task, TASKS))
    table, train, val = _splits(data, task=task)
    names = class_names(table, task, classes)
    if task == "classification" and classes:
        train, val = (_with_labels(part, names) for part in (train, val))
    seed = training.get("seed") or 0
    train = few_labels(train, fraction=fraction, shots=shots, seed=seed)
    torch.manual_seed(seed)
    encoder, card = open_backbone(backbone, image_size=image_size)
    if preset == "auto":
        preset = "tiny" if encoder.width < TINY_WIDTH else "paper"
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}", remedy=nearest(preset, PRESETS))
    epochs, images = (0, TINY_ADAPTATION[1]) if preset == "tiny" else ADAPTATION[task]
    options = _options(training, images=images, epochs=epochs, steps=TINY_ADAPTATION[0], train=len(train))
    config = PRESETS[preset][task].scaled(options.images_per_step)
    if lr is not None:
        config = replace(config, lr=lr, warmup_lr=min(config.warmup_lr, lr), min_lr=min(config.min_lr, lr))
    if layer_decay is not None:
        config = replace(config, layer_decay=layer_decay)
    tuned = for_fine_tuning(encoder, config.drop_path if method == "full" else 0.0)
    torch.manual_seed(seed)  # the head is the same whatever the backbone drew
    network = _network(task, tuned, names, card.contract, decoder, decoder_width or (64 if preset == "tiny" else None))
    module = Adaptation(network, card.contract, config, method=method)
    record = {
        "verb": "adapt",
        "method": method,
        "task": task,
        "backbone": backbone,
        "preset": preset,
        "config": asdict(config),
        "network": {name: value for name, value in network.config.items() if name != "contract"},  # type: ignore[union-attr, operator]
        "image_size": tuned.image_size,
        "fraction": fraction,
        "shots": shots,
    }
    run = _open(out, record, table, options, data, resume=resume)
    if is_first_process():
        write_seen(run, train=train, val=val, backbone=seen_by(backbone))
    sets = [
        None if part.is_empty() else labelled(part, card.contract, task=task, classes=names, cache=_fits_memory(part))
        for part in (train, val)
    ]
    assert sets[0] is not None
    summary = fit(module, sets[0], run, options, val=sets[1], monitor=MONITOR[task], resume=resume, progress=progress)
    if is_first_process():
        load_best(module, run.path)
        save_task(
            network,
            run.path,
            contract=card.contract,
            backbone=card,
            source=f"{method} on {len(train)} images, from {backbone}",
        )
        _say(run, summary)
    return {**summary, "run": str(run.path)}


def _splits(data: Data, *, task: str | None) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The table, and its rows for training and validation; a table without splits is all for training."""
    table = load_table(data)
    if table["split"].is_null().all():
        table = table.with_columns(pl.lit("train").alias("split"))
    train, val = (select(table, split=split, task=task) for split in ("train", "val"))
    if train.is_empty():
        what = f"for {task} " if task else ""
        raise VesaliusError(f"the table has no training images {what}".strip(), remedy="check its split and labels")
    return table, train, val


def _with_labels(table: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    return table.filter(pl.col("labels").list.set_intersection(list(names)).list.len() > 0)


def _options(given: Mapping[str, Any], *, images: int, epochs: int, steps: int, train: int) -> TrainConfig:
    """How to train: what was given, and the preset's images a step and epochs (or, without epochs, steps)."""
    known = [item.name for item in fields(TrainConfig)]
    for name in given:
        if name not in known:
            raise ConfigError(f"no training option is called {name!r}", remedy=nearest(name, known))
    said = {name: value for name, value in given.items() if value is not None}
    options = TrainConfig(**{"steps": 1, "batch_size": 1, **said})
    if "batch_size" not in said:
        options = replace(options, batch_size=max(1, images // options.images_per_step))
    if "steps" not in said:
        options = replace(options, steps=math.ceil(epochs * train / options.images_per_step) if epochs else steps)
    return options


def _open(
    out: str | Path, record: dict[str, Any], table: pl.DataFrame, options: TrainConfig, data: Data, *, resume: bool
) -> RunFolder:
    paths = [data] if isinstance(data, str | Path) else list(data)
    hashes = {"data_hash": data_hash(table), "split_hash": split_hash(table)}
    named = {"data": [str(Path(path).resolve()) for path in paths], **hashes, "train": asdict(options)}
    return open_run(out, {**record, **named}, resume=resume)


def _network(
    task: str, encoder: Encoder, classes: Sequence[str], contract: InputContract, decoder: str | None, width: int | None
) -> torch.nn.Module:
    build: Any = task_class(task)
    if task == "classification":
        return build(encoder, classes)
    if task == "segmentation":
        decoder = decoder or "upernet"
        return build(encoder, classes, decoder=decoder, width=None if decoder == "linear" else width)
    return build(encoder, contract=contract, head=decoder or "pixel_shuffle")


def _fits_memory(table: pl.DataFrame) -> bool:
    sizes = table["size"].to_list()
    return sum(3 * math.prod(size) for size in sizes if size) < CACHED_BYTES


def _say(run: RunFolder, summary: Mapping[str, Any]) -> None:
    best = {name: value for name, value in summary["val"].items() if name != "step"}
    scores = "".join(f", {name} {value:.4g}" for name, value in best.items())
    Console(soft_wrap=True).print(
        f"{run.path}: {summary['step']} steps, loss {summary['loss']:.4g}{scores}", highlight=False
    )
