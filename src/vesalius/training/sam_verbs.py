"""Adapting Segment Anything to volumes: what ``vesalius adapt masam`` and ``vesalius adapt sam3d`` run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from vesalius.adapt import masam
from vesalius.adapt.labels import class_names, few_labels
from vesalius.adapt.sam_files import SamBase, open_base, own_tensors, preset_of, save_adapted, stack_segmentation
from vesalius.data.table import load_table, mask_names
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.dataset import VolumeDataset
from vesalius.data.volumes.fingerprint import measured
from vesalius.data.volumes.intensity import Intensity, Percentiles, Window, ZScore
from vesalius.errors import ConfigError, nearest
from vesalius.nn.sam_decoder import Sam
from vesalius.published import masam as published_masam
from vesalius.published import sam3d as published_sam3d
from vesalius.published.card import Card
from vesalius.training.backbones import override
from vesalius.training.common import Data, open_training, read_splits, say, train_options
from vesalius.training.loop import TrainConfig, fit, load_best
from vesalius.training.provenance import write_seen
from vesalius.training.runs import RunFolder, is_first_process

INTENSITIES = ("auto", *published_sam3d.INTENSITIES, "measured", "zscore", "percentiles")
"""What ``intensity`` may be called, beside a window of two numbers."""


def adapt_masam(
    *,
    base: str,
    data: Data,
    out: str | Path,
    preset: str = "auto",
    model: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    box: bool = False,
    intensity: str = "auto",
    channels: Sequence[str] = (),
    fraction: float = 1.0,
    shots: int | None = None,
    lr: float | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **training: Any,
) -> dict[str, Any]:
    """Adapt a SAM to stacks of slices (MA-SAM): organs and tumours without prompts, or one class within a box.

    Stored is what trained; the base is named in the card with its hash. The weights of the best validation are kept.

    Args:
        base: a SAM: an authors' file such as sam_vit_b_01ec64.pth (or transformers' of it), a file or folder with a
            card; random:sam_tiny for fresh weights, shapes:sam_tiny for a small one that learns to segment random
            shapes first, which takes a minute and is kept beside the run.
        data: one or several tables (.parquet) of volumes made by `index`.
        out: the run folder.
        preset: tiny or paper; auto goes by the base's width.
        model: settings that differ from the preset's.
        classes: which ones, in this order; by default all of the table.
        box: prompted: train one class with boxes around it, which evaluate draws and predict is given.
        intensity: auto (CT from -200 to 250 HU, MR up to its 99th percentile), a window such as=-100:240, kits, lits,
            pancreas, colon, measured, zscore or percentiles.
        channels: what the network shall read of volumes that have several, by name: one, or three.
        fraction: of the training patients whose labels are used.
        shots: labelled patients, in place of a fraction.
        lr: peak learning rate, as it is; by default the preset's, in proportion to the stacks a step.
        cache: folder of prepared volumes, which runs may share; by default "cache" beside the run's folder.
        resume: continue this run.
        progress: show a progress bar.
        training: fields of `TrainConfig`: steps, batch_size, seed, precision, devices, ...; steps and batch_size are
            the preset's by default.

    Returns:
        step, loss, val, history of the training curve, and the run folder's path.

    Raises:
        VesaliusError: wrong options or tables; a base that does not load; a folder that holds another run.
    """
    start = _Start.of("masam", base, preset, masam.PRESETS, model, data, out, fraction, shots, training, progress)
    names = class_names(start.table, "segmentation", classes)
    if box and len(names) > 1:
        raise ConfigError(f"boxes for {len(names)} classes", remedy="name the one they are drawn around with --classes")
    config = start.config if lr is None else replace(start.config, lr=lr, per_images=0)
    slices = sum(size[0] for size in start.train["size"].to_list())
    options = train_options(training, images=config.images, epochs=config.epochs, steps=config.steps, train=slices)
    config = config.scaled(options.images_per_step)
    sam = start.sam
    architecture = {
        "adapters": asdict(config.adapters),
        "classes": list(names),
        "slices": config.slices,
        "frame": list(config.frame),
        "boxes": box,
        "stretch": config.stretch,
        "dice": config.dice,
        "stride": config.stride,
    }
    torch.manual_seed(options.seed)  # what is fresh is the same whatever the base drew
    task = stack_segmentation(sam, architecture)
    task.encoder.freeze(boxes=box)
    contract = masam.stack_contract(channels or ("image",), config, ct=True)
    contract = replace(contract, intensity=_intensity(intensity, start.train, names, masam.CT, masam.MR))
    module = masam.MaSamAdaptation(task, contract, config)
    return start.run(
        module,
        task,
        contract,
        architecture,
        options,
        names=names,
        crop=False,  # whole slices, as they are predicted
        citation=published_masam.CITATION,
        cache=cache,
        resume=resume,
    )


@dataclass(frozen=True)
class _Start:
    """What both adaptations begin with, and end with.

    Args:
        system: masam or sam3d.
        given: what was asked for, for the record.
        config: the preset with changes.
        table, train, val: the volumes.
        sam, card, base: see `open_base`.
    """

    system: str
    given: dict[str, Any]
    config: Any
    data: Data
    out: Path
    table: pl.DataFrame
    train: pl.DataFrame
    val: pl.DataFrame
    sam: Sam
    card: Card
    base: SamBase | None
    progress: bool

    @classmethod
    def of(
        cls,
        system: str,
        base: str,
        preset: str,
        presets: Mapping[str, Any],
        model: Mapping[str, Any] | None,
        data: Data,
        out: str | Path,
        fraction: float,
        shots: int | None,
        training: Mapping[str, Any],
        progress: bool,
    ) -> _Start:
        """Read the tables and the base."""
        if preset == "auto":
            preset = preset_of(base)
        if preset not in presets:
            raise ConfigError(f"unknown preset {preset!r}", remedy=nearest(preset, presets))
        config = override(presets[preset], model or {})
        table, train, val = read_splits(data, task="segmentation")
        seed = training.get("seed") or 0
        train = few_labels(train, fraction=fraction, shots=shots, seed=seed)
        sam, card, found = open_base(base, beside=Path(out).parent, seed=seed, progress=progress)
        given = {"base": base, "preset": preset, "fraction": fraction, "shots": shots}
        return cls(system, given, config, data, Path(out), table, train, val, sam, card, found, progress)

    def run(
        self,
        module: Any,
        task: Any,
        contract: VolumeContract,
        architecture: Mapping[str, Any],
        options: TrainConfig,
        *,
        names: Sequence[str],
        crop: bool,
        citation: str,
        cache: str | Path | None,
        resume: bool,
    ) -> dict[str, Any]:
        """Train, and store what trained."""
        own = own_tensors(self.sam)
        record = {
            "verb": "adapt",
            "method": self.system,
            "task": task.TASK,
            **self.given,
            "config": asdict(module.config),
            "network": dict(architecture),
            "contract": contract.to_dict(),
        }
        run = open_training(self.out, record, self.table, options, self.data, resume=resume)
        if is_first_process():
            write_seen(run, train=self.train, val=self.val, backbone=set())
        folder = Path(cache) if cache is not None else run.path.parent / "cache"
        sets = [
            None
            if part.is_empty()
            else VolumeDataset(part, contract, task="segmentation", classes=names, cache=folder, crop=crop)
            for part in (self.train, self.val)
        ]
        assert sets[0] is not None
        summary = fit(
            module,
            sets[0],
            run,
            options,
            val=sets[1],
            monitor=module.monitor,
            resume=resume,
            progress=self.progress,
        )
        if is_first_process():
            load_best(module, run.path)
            save_adapted(
                task,
                run.path,
                architecture=architecture,
                contract=contract,
                card=self.card,
                base=self.base,
                own=own,
                system=self.system,
                citation=citation,
                source=f"{self.system} on {len(self.train)} volumes, from {self.given['base']}",
            )
            say(run, summary)
        return {**summary, "run": str(run.path)}


def _intensity(word: str, train: pl.DataFrame, names: Sequence[str], ct: Intensity | None, mr: Intensity) -> Intensity:
    """The intensities that the command line names.

    Args:
        word: one of `INTENSITIES`, or LOW:HIGH.
        train: the training volumes.
        names: classes whose voxels are measured.
        ct, mr: for "auto"; None to measure.
    """
    if word == "auto":
        kinds = set(train["modality"].to_list())
        if kinds == {"CT"}:
            return ct or measured(train.to_dicts(), names)
        if kinds and kinds <= {"MR", "MRI"}:
            return mr
        raise ConfigError("the table does not say whether the volumes are CT or MR", remedy="give --intensity")
    if word in published_sam3d.INTENSITIES:
        return published_sam3d.INTENSITIES[word]
    if word == "measured":
        return measured(train.to_dicts(), names)
    if word in ("zscore", "percentiles"):
        return ZScore() if word == "zscore" else Percentiles(0, 99, nonzero=False)
    low, colon, high = word.partition(":")
    try:
        return Window(float(low), float(high))
    except ValueError as error:
        raise ConfigError(f"intensity {word!r}", remedy=f"give LOW:HIGH or one of {', '.join(INTENSITIES)}") from error
