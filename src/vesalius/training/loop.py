"""The one training loop: Lightning's, with randomness that depends on (seed, step) alone.

Because batches, views and dropout are functions of the seed and the step's number, a killed run that is resumed from
its last checkpoint ends with the same weights, bit for bit, as one that was never interrupted (on the same machine and
thread count), and n processes with batch B see exactly the images that one process with batch n * B sees.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import default_collate

from vesalius.errors import ConfigError, VesaliusError
from vesalius.nn.checkpointing import recompute
from vesalius.training.callbacks import AtomicCheckpoints, Bar, Checkpoints, Curve, Steps, read_metrics
from vesalius.training.loading import Batches, Samples
from vesalius.training.runs import RunFolder, is_first_process, open_run

_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass(frozen=True)
class TrainConfig:
    """How a training runs, whatever it trains.

    Args:
        steps: optimiser steps.
        batch_size: images per process and batch; a step sees batch_size * accumulate * devices * nodes.
        accumulate: batches per optimiser step.
        precision: 32, bf16 or 16 (mixed).
        devices, nodes: processes per machine, and machines.
        strategy: Lightning's name (auto, ddp, fsdp, ...).
        accelerator: auto, cpu, gpu.
        compile: run the networks through torch.compile.
        channels_last: keep convolutions' weights in channels-last order (faster on GPUs).
        ema: decay of the weights' exponential moving average, which is then what is validated and saved; 0 = none.
        workers: processes that prepare images, and fill the cache of volumes; 0 = the training process itself.
        seed: of everything random.
        save_every: steps between checkpoints.
        save_minutes: minutes after which one is written whatever the step.
        val_every: steps between validations; None = a tenth of the training.
        log_every: steps between rows of metrics.csv.
        grad_clip: largest norm of the gradient; None = as it is.
        checkpointing: compute what happens within the trunk's blocks anew in the backward pass: less memory, more time.
        deterministic: refuse fast but order-dependent GPU kernels where there is another (a CPU needs none of it).
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    precision: Literal["32", "bf16", "16"] = "32"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    accelerator: str = "auto"
    compile: bool = False
    channels_last: bool = False
    ema: float = 0.0
    workers: int = 0
    seed: int = 0
    save_every: int = 100
    save_minutes: float = 5.0
    val_every: int | None = None
    log_every: int = 10
    grad_clip: float | None = None
    checkpointing: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "devices", "nodes", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}", remedy="give a number of at least 1")
        if not self.save_minutes > 0:
            raise ConfigError(f"save_minutes = {self.save_minutes}", remedy="give a number above 0")
        if self.precision not in _PRECISION:
            raise ConfigError(f"precision = {self.precision!r}", remedy=f"use one of {', '.join(_PRECISION)}")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema = {self.ema}", remedy="give a decay in [0, 1)")

    @property
    def images_per_step(self) -> int:
        """Images that one optimiser step sees, over all processes: what learning rates scale with."""
        return self.batch_size * self.accumulate * self.devices * self.nodes


def fit(
    module: LightningModule,
    train: Samples,
    out: str | Path | RunFolder | None,
    config: TrainConfig,
    *,
    val: Samples | None = None,
    weights: Sequence[float] | np.ndarray | None = None,
    monitor: str = "val/loss",
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train `module` and leave it with its final weights (the average, where there is one).

    Args:
        module: has `view(sample, generator)`, run by the loader workers, and optionally `val_view` and
            `collate(items)`, which makes a batch; `total_steps` is set on it before its `configure_optimizers` is
            called. It logs its validation as "val/...".
        train: samples, map-style.
        out: the run folder, made here or by `open_run`; None trains in memory.
        config: how to train.
        val: samples to validate on.
        weights: sampling probabilities of `train` (drawn with replacement); None goes through it in permutations.
        monitor: the validation metric that best.ckpt follows (low where it ends in "loss", otherwise high).
        resume: continue from the folder's last checkpoint, or start where there is none.
        progress: show a bar on standard error.

    Returns:
        {"step", "loss", "history": rows of the training curve, "val": the last validation's metrics}.

    Raises:
        VesaliusError: the folder holds another run; a case cannot be read; the disk is full; the loss is not finite.
    """
    if len(train) == 0:
        raise VesaliusError("no training images", remedy="check the table's split column")
    run = open_run(out, {"train": asdict(config)}, resume=resume) if isinstance(out, str | Path) else out
    resumed = resume and run is not None and run.last.exists()
    if run is not None and resumed and _finished(module, run, config):
        return _summary(config.steps, read_metrics(run.metrics))
    module.total_steps = config.steps  # type: ignore[assignment]
    batches = Batches(
        train,
        module.view,  # type: ignore[arg-type]
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        seed=config.seed,
        workers=config.workers,
        weights=weights,
        val=val,
        val_view=getattr(module, "val_view", None),
        collate=getattr(module, "collate", default_collate),
    )
    curve = Curve(run, every=config.log_every, always=config.save_every)
    callbacks: list[Callback] = [Steps(batches), curve]
    if run is not None:
        every, minutes = config.save_every, config.save_minutes
        callbacks.append(Checkpoints(run, every=every, minutes=minutes, monitor=monitor, resume=resumed))
    if config.ema:
        # as a linear interpolation, so that what does not move stays as it is, to the last bit
        callbacks.append(WeightAveraging(use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(config.ema)))
    if progress and is_first_process():
        title = "training" if run is None else run.path.name
        callbacks.append(Bar(curve, steps=config.steps, images=config.images_per_step, title=title))
    if config.channels_last:
        deep = any(parameter.ndim == 5 for parameter in module.parameters())
        order = torch.channels_last_3d if deep else torch.channels_last
        module.to(memory_format=order)  # type: ignore[call-overload]
    if config.checkpointing:
        recompute(module)
    if config.compile:
        for child in module.children():
            child.compile()
    with _quiet():
        trainer = _trainer(config, callbacks, validate=val is not None)
        module.train()
        try:
            ckpt = str(run.last) if run is not None and resumed else None
            trainer.fit(module, datamodule=batches, ckpt_path=ckpt, weights_only=True)
        except RuntimeError as error:
            if "DataLoader worker" in str(error):
                raise VesaliusError(
                    "a loader worker was killed, most often for lack of memory",
                    remedy="use fewer workers (0 prepares images in the training process)",
                ) from error
            raise
        except SystemExit as error:  # how Lightning ends after Ctrl-C
            raise VesaliusError(
                f"interrupted at step {trainer.global_step}",
                path=None if run is None else run.path,
                remedy="continue with --resume, from the last checkpoint "
                f"(--save_every {config.save_every}, --save_minutes {config.save_minutes:g})",
            ) from error
    return _summary(trainer.global_step, curve.rows)


def _trainer(config: TrainConfig, callbacks: list[Callback], *, validate: bool) -> Trainer:
    many = config.devices * config.nodes > 1
    strategy = "ddp" if config.strategy == "auto" and many else config.strategy
    val_every = config.val_every or max(1, config.steps // 10)
    if strategy.startswith("fsdp") and (config.accelerator == "cpu" or not torch.cuda.is_available()):
        raise ConfigError(f"strategy = {strategy} without a GPU", remedy="use ddp")
    return Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=strategy,
        precision=_PRECISION[config.precision],  # type: ignore[arg-type]
        max_steps=config.steps,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.grad_clip,
        deterministic="warn" if config.deterministic else None,
        val_check_interval=min(val_every, config.steps) * config.accumulate if validate else None,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if validate else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the batch sampler knows its rank
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
    )


def _finished(module: LightningModule, run: RunFolder, config: TrainConfig) -> bool:
    """Whether the last checkpoint is of the last step; the module then has its weights."""
    checkpoint = AtomicCheckpoints().load_checkpoint(run.last)
    if checkpoint["global_step"] < config.steps:
        return False
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return True


def load_best(module: LightningModule, out: str | Path) -> float | None:
    """Give `module` the weights of the run's best validation; its step, or None where there was no validation."""
    run = RunFolder(Path(out))
    if not run.best.exists():
        return None
    checkpoint = AtomicCheckpoints().load_checkpoint(run.best)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return float(checkpoint["global_step"])


def _summary(step: int, rows: list[dict[str, float]]) -> dict[str, Any]:
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    validated = [row for row in rows if any(name.startswith("val/") for name in row)]
    return {
        "step": step,
        "loss": losses[-1] if losses else None,
        "val": validated[-1] if validated else {},
        "history": rows,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """No tips, banners and warnings of Lightning: what is printed is ours."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for module in (
                r"lightning\..*",
                r"torch\.utils\.data.*",
                r"torch\.distributed.*",
                r"torch\.nn\.parallel.*",
            ):
                warnings.filterwarnings("ignore", module=module)
            warnings.filterwarnings(
                "ignore", message=r".*(does not have many workers|CUDA is available|isinstance\(tree).*"
            )
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
