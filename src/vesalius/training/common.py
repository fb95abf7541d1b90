"""What the verbs that train have in common: the table's splits, how to train, the run's folder, the last line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from vesalius.data.table import load_table, select
from vesalius.errors import ConfigError, VesaliusError, nearest
from vesalius.training.loop import TrainConfig
from vesalius.training.provenance import data_hash, split_hash
from vesalius.training.runs import RunFolder, open_run

Data = str | Path | Sequence[str | Path]
CACHED_BYTES = 1_000_000_000
"""Images are kept in memory where all of them need less than this."""


def read_splits(data: Data, *, task: str | None) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The table, and its rows for training and validation; a table without splits is all for training."""
    table = load_table(data)
    if table["split"].is_null().all():
        table = table.with_columns(pl.lit("train").alias("split"))
    train, val = (select(table, split=split, task=task) for split in ("train", "val"))
    if train.is_empty():
        what = f"for {task} " if task else ""
        raise VesaliusError(f"the table has no training images {what}".strip(), remedy="check its split and labels")
    return table, train, val


def train_options(given: Mapping[str, Any], *, images: int, train: int, epochs: int = 0, steps: int = 0) -> TrainConfig:
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


def open_training(
    out: str | Path, record: dict[str, Any], table: pl.DataFrame, options: TrainConfig, data: Data, *, resume: bool
) -> RunFolder:
    """The run's folder, its configuration written or compared."""
    paths = [data] if isinstance(data, str | Path) else list(data)
    hashes = {"data_hash": data_hash(table), "split_hash": split_hash(table)}
    named = {"data": [str(Path(path).resolve()) for path in paths], **hashes, "train": asdict(options)}
    return open_run(out, {**record, **named}, resume=resume)


def cache_folder(cache: str | Path | None, run: RunFolder) -> Path:
    """Where prepared volumes lie: the folder given, or "cache" beside the run's."""
    return Path(cache) if cache is not None else run.path.parent / "cache"


def fits_memory(table: pl.DataFrame) -> bool:
    """Whether the images, decoded, need less than `CACHED_BYTES`."""
    sizes = table["size"].to_list()
    return sum(3 * math.prod(size) for size in sizes if size) < CACHED_BYTES


def say(run: RunFolder, summary: Mapping[str, Any]) -> None:
    """Print how a training ended."""
    best = {name: value for name, value in summary["val"].items() if name != "step"}
    scores = "".join(f", {name} {value:.4g}" for name, value in best.items())
    Console(soft_wrap=True).print(
        f"{run.path}: {summary['step']} steps, loss {summary['loss']:.4g}{scores}", highlight=False
    )
