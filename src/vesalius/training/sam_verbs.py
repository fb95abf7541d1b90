"""Adapting Segment Anything to volumes: what ``vesalius adapt masam`` and ``vesalius adapt sam3d`` run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from vesalius.adapt import masam, sam3d
from vesalius.adapt.labels import class_names
from vesalius.adapt.sam_files import (
    SamBase,
    click_segmentation,
    open_base,
    own_tensors,
    preset_of,
    save_adapted,
    stack_segmentation,
)
from vesalius.adapt.volume_training import VolumeTraining
from vesalius.data.progress import track
from vesalius.data.table import mask_names
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.dataset import VolumeDataset
from vesalius.data.volumes.intensity import Intensity, Percentiles, Window, ZScore
from vesalius.errors import ConfigError, nearest
from vesalius.nn.sam_decoder import Sam
from vesalius.published import masam as published_masam
from vesalius.published import sam3d as published_sam3d
from vesalius.published.card import Card
from vesalius.training.backbones import override
from vesalius.training.common import Data, train_options
from vesalius.training.loop import TrainConfig
from vesalius.training.volume_runs import VolumeRun

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
        intensity: auto (CT from -200 to 250 HU, MR up to its 99th percentile), a window such as -100:240, kits, lits,
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
    seed = training.get("seed") or 0
    volumes = VolumeRun.of(
        data, out, fraction=fraction, shots=shots, seed=seed, cache=cache, resume=resume, progress=progress
    )
    start = _Start.of("masam", base, preset, masam.PRESETS, model, volumes)
    names = class_names(volumes.table, "segmentation", classes)
    if box and len(names) > 1:
        raise ConfigError(f"boxes for {len(names)} classes", remedy="name the one they are drawn around with --classes")
    config = start.config if lr is None else replace(start.config, lr=lr, per_images=0)
    options = train_options(
        training, images=config.images, epochs=config.epochs, steps=config.steps, train=volumes.slices
    )
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
    contract = masam.stack_contract(_channels(channels, volumes), config, ct=True)
    contract = replace(contract, intensity=_intensity(intensity, volumes, names, masam.CT, masam.MR))
    module = masam.MaSamAdaptation(task, contract, config)
    # without a crop: slices are whole, as they are predicted
    return start.run(module, architecture, options, crop=False, citation=published_masam.CITATION)


def adapt_sam3d(
    *,
    base: str,
    data: Data,
    out: str | Path,
    target: str,
    preset: str = "auto",
    model: Mapping[str, Any] | None = None,
    clicks: int = 1,
    crop: Sequence[int] = (),
    spacing: Sequence[float] = (1.0,),
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
    """Adapt a SAM to one structure of volumes that is clicked on (3DSAM-adapter).

    Stored is what trained; the base is named in the card with its hash. The weights of the best validation are kept.

    Args:
        base: a SAM, as of masam: an authors' file such as sam_vit_b_01ec64.pth (or transformers' of it), a file or
            folder with a card; random:sam_tiny for fresh weights, shapes:sam_tiny for a small one that learns to
            segment random shapes first, which takes a minute and is kept beside the run.
        data: one or several tables (.parquet) of volumes made by `index`.
        out: the run folder.
        target: what is clicked on: a class of the masks by name, or by its value.
        preset: tiny, paper or automatic (the authors' variant without clicks); auto goes by the base's width.
        model: settings that differ from the preset's; the SAM within is the base's.
        clicks: of a validation volume.
        crop: voxels of a crop, one or three numbers; by default the preset's.
        spacing: mm between the voxels that the network reads, one or three numbers; 0 for each volume's own.
        intensity: auto (CT cut and scaled by the target's voxels, as nnU-Net does; MR by z-scores), kits, lits,
            pancreas or colon (the authors' numbers), measured, zscore, percentiles, or a window such as
            -100:240.
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
        VesaliusError: wrong options or tables; a base that does not load; a folder that holds another run.
    """
    if (model or {}).get("network", {}).get("sam"):
        raise ConfigError("model.network.sam", remedy="leave it out: the SAM within is the base's")
    seed = training.get("seed") or 0
    volumes = VolumeRun.of(
        data, out, fraction=fraction, shots=shots, seed=seed, cache=cache, resume=resume, progress=progress
    )
    start = _Start.of("sam3d", base, preset, sam3d.PRESETS, model, volumes)
    names = (_target(volumes.table, target),)
    config = replace(start.config, val_clicks=clicks)
    config = config if lr is None else replace(config, lr=lr)
    config = replace(
        config, crop=_three("crop", crop, config.crop), network=replace(config.network, sam=start.sam.config)
    )
    step = config.network.multiple
    if any(side % one for side, one in zip(config.crop, step, strict=True)):
        raise ConfigError(f"crop = {list(config.crop)}", remedy=f"give multiples of {list(step)}")
    apart = _three("spacing", spacing, None)
    options = train_options(
        training, images=config.images, epochs=config.epochs, steps=config.steps, train=len(volumes.train)
    )
    architecture = {"network": asdict(config.network), "classes": list(names)}
    torch.manual_seed(options.seed)  # what is fresh is the same whatever the base drew
    task = click_segmentation(start.sam, architecture)
    contract = sam3d.prompted_contract(
        _channels(channels, volumes),
        config,
        intensity=_intensity(intensity, volumes, names, None, ZScore(nonzero=False)),
        spacing=apart if apart and min(apart) > 0 else None,
    )
    module = sam3d.Sam3DAdaptation(task, contract, config)
    return start.run(module, architecture, options, crop=True, citation=published_sam3d.CITATION)


@dataclass(frozen=True)
class _Start:
    """What both adaptations begin with, and end with.

    Args:
        system: masam or sam3d.
        given: what was asked for, for the record.
        config: the preset with changes.
        volumes: that it trains on.
        sam, card, base: see `open_base`.
    """

    system: str
    given: dict[str, Any]
    config: Any
    volumes: VolumeRun
    sam: Sam
    card: Card
    base: SamBase | None

    @classmethod
    def of(
        cls,
        system: str,
        base: str,
        preset: str,
        presets: Mapping[str, Any],
        model: Mapping[str, Any] | None,
        volumes: VolumeRun,
    ) -> _Start:
        """Read the base."""
        if preset == "auto":
            preset = preset_of(base)
        if preset not in presets:
            raise ConfigError(f"unknown preset {preset!r}", remedy=nearest(preset, presets))
        config = override(presets[preset], model or {})
        beside = Path(volumes.out).parent
        sam, card, found = open_base(base, beside=beside, seed=volumes.seed, progress=volumes.progress)
        return cls(system, {"base": base, "preset": preset}, config, volumes, sam, card, found)

    def run(
        self,
        module: VolumeTraining,
        architecture: Mapping[str, Any],
        options: TrainConfig,
        *,
        crop: bool,
        citation: str,
    ) -> dict[str, Any]:
        """Train, and store what trained."""
        own = own_tensors(self.sam)
        asked = {
            **self.given,
            "config": asdict(module.config),
            "network": dict(architecture),
            "contract": module.contract.to_dict(),
        }

        def save(path: Path) -> None:
            save_adapted(
                module.task,
                path,
                architecture=architecture,
                contract=module.contract,
                card=self.card,
                base=self.base,
                own=own,
                system=self.system,
                citation=citation,
                source=f"{self.system} on {len(self.volumes.train)} volumes, from {self.given['base']}",
            )

        return self.volumes.fit(module, options, self.system, asked, save, crop=crop)


def _target(table: pl.DataFrame, target: str) -> str:
    """A class of the masks, by its name or its value."""
    names = mask_names(table)
    if target in names:
        return target
    if target.isdigit():
        found = {tuple(values) for values in table["mask_classes"].to_list() if values}
        meant = {values[int(target) - 1] for values in found if 0 < int(target) <= len(values)}
        if len(meant) == 1 and "" not in meant:
            return meant.pop()
        raise ConfigError(f"target {target}, which is {', '.join(sorted(meant)) or 'no value'} here", remedy="name it")
    raise ConfigError(f"no mask has the class {target!r}", remedy=nearest(target, names))


def _three(name: str, numbers: Sequence[Any], default: Any) -> Any:
    """One or three numbers as three, `default` for none."""
    if not numbers:
        return default
    if len(numbers) not in (1, 3) or min(numbers) < 0:
        raise ConfigError(f"{name} = {list(numbers)}", remedy="give one or three numbers from 0")
    return tuple(numbers) * (3 // len(numbers))


def _channels(chosen: Sequence[str], volumes: VolumeRun) -> tuple[str, ...]:
    """The channels that a network reads: those chosen, or the one that the volumes have."""
    if not chosen and len(volumes.channels) > 1:
        raise ConfigError(f"the volumes have {', '.join(volumes.channels)}", remedy="choose with --channels")
    return tuple(chosen) or volumes.channels


def _measured(volumes: VolumeRun, names: Sequence[str]) -> Intensity:
    """By the labelled voxels of the training volumes, as they are stored."""
    contract = VolumeContract(_channels((), volumes))
    stored = VolumeDataset(volumes.train, contract, task="segmentation", classes=names)
    return sam3d.measured(track((stored[k] for k in range(len(stored))), len(stored), "measuring intensities"))


def _intensity(word: str, volumes: VolumeRun, names: Sequence[str], ct: Intensity | None, mr: Intensity) -> Intensity:
    """The intensities that the command line names.

    Args:
        word: one of `INTENSITIES`, or LOW:HIGH.
        volumes: those that are trained on.
        names: classes whose voxels are measured.
        ct, mr: for "auto"; None to measure.
    """
    if word == "auto":
        if volumes.is_ct:
            return ct or _measured(volumes, names)
        if set(volumes.train["modality"].to_list()) == {"MR"}:
            return mr
        raise ConfigError("the table does not say whether the volumes are CT or MR", remedy="give --intensity")
    if word in published_sam3d.INTENSITIES:
        return published_sam3d.INTENSITIES[word]
    if word == "measured":
        return _measured(volumes, names)
    if word in ("zscore", "percentiles"):
        return ZScore() if word == "zscore" else Percentiles(0, 99, nonzero=False)
    low, _, high = word.partition(":")
    try:
        return Window(float(low), float(high))
    except ValueError as error:
        raise ConfigError(f"intensity {word!r}", remedy=f"give LOW:HIGH or one of {', '.join(INTENSITIES)}") from error
