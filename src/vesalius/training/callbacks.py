"""What happens around each training step: seeds, errors of workers, the training curve, checkpoints, progress."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from vesalius.data.datasets import mixed_seed
from vesalius.errors import VesaliusError, WeightsError
from vesalius.files import atomic
from vesalius.training.loading import Batches, Failed
from vesalius.training.runs import RunFolder


class AtomicCheckpoints(CheckpointIO):
    """Checkpoints that are whole or not there, read without running code from the file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path` at once.

        Raises:
            VesaliusError: the disk is full; the earlier checkpoint is untouched.
        """
        with atomic(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch's writer reports a full disk as this
                raise OSError(str(error).splitlines()[0]) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint; tensors and plain values only, whatever `weights_only` says.

        Raises:
            WeightsError: it is missing, damaged or holds something else.
        """
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:
            raise WeightsError(
                f"cannot be read as a checkpoint ({str(error).splitlines()[0]})",
                path=path,
                remedy="delete the run folder and start again, or restore the file",
            ) from error

    def remove_checkpoint(self, path: Any) -> None:
        """Delete `path`."""
        Path(path).unlink(missing_ok=True)


class Steps(Callback):
    """Seeds torch before every batch from (seed, draw), and raises what a worker could not."""

    def __init__(self, batches: Batches):
        self.batches = batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed dropout, stochastic depth and whatever else the network draws."""
        if isinstance(batch, Failed):
            raise batch.error()
        number = trainer.global_step * trainer.accumulate_grad_batches + batch_idx % trainer.accumulate_grad_batches
        torch.manual_seed(mixed_seed(self.batches.seed, self.batches.first_draw(number)))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Raise what a worker could not."""
        if isinstance(batch, Failed):
            raise batch.error()
        torch.manual_seed(mixed_seed(self.batches.seed, batch_idx))


class Curve(Callback):
    """The training curve, in memory, as metrics.csv and for TensorBoard; stops a training whose loss is not finite.

    Attributes:
        rows: {"step", "train/loss", "lr", what the module logged} at every logged step; {"step", "val/..."}
            after validation.

    Args:
        run: where to write, None to keep the curve in memory only.
        every, always: log when the step is a multiple of either.
    """

    def __init__(self, run: RunFolder | None, *, every: int, always: int):
        self.run, self.every, self.always = run, every, always
        self.rows: list[dict[str, float]] = []
        self.loss = math.nan
        self._sum: torch.Tensor | float = 0.0
        self._batches = 0
        self._writer: SummaryWriter | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the curve where the checkpoint was written."""
        if self.run is None:
            return
        self.rows = read_metrics(self.run.metrics, until=trainer.global_step)
        if trainer.is_global_zero:
            self._rewrite()
            self._writer = SummaryWriter(str(self.run.tensorboard), purge_step=trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the mean loss since the last logged step, over all processes."""
        every = trainer.accumulate_grad_batches
        self._sum = self._sum + outputs["loss"].detach() * every  # Lightning has divided it
        self._batches += 1
        step = trainer.global_step
        if (batch_idx + 1) % every or (step % self.every and step % self.always and step != trainer.max_steps):
            return
        loss = trainer.strategy.reduce(torch.as_tensor(self._sum / self._batches), reduce_op="mean")
        self.loss, self._sum, self._batches = float(loss), 0.0, 0
        if not math.isfinite(self.loss):
            raise VesaliusError(f"the loss is {self.loss} at step {step}", remedy="lower the learning rate or clip")
        row = {
            "step": step,
            "train/loss": self.loss,
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
        }
        self._log(row | _values(trainer.callback_metrics, validation=False), trainer)

    @property
    def state_key(self) -> str:
        """Its name in the checkpoint."""
        return "Curve"

    def state_dict(self) -> dict[str, Any]:
        """The loss since the last row: a checkpoint may be written between two."""
        return {"sum": torch.as_tensor(self._sum), "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self._sum, self._batches = state_dict["sum"], state_dict["batches"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the module measured on the validation set."""
        self._log({"step": trainer.global_step} | _values(trainer.callback_metrics, validation=True), trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the event file."""
        self.on_train_end(trainer, pl_module)

    def _log(self, row: dict[str, float], trainer: Trainer) -> None:
        known = _columns(self.rows)
        self.rows.append(row)
        if self.run is None or not trainer.is_global_zero:
            return
        try:
            if set(row) - set(known):  # a new column
                self._rewrite()
            else:
                with self.run.metrics.open("a", newline="", encoding="utf-8") as stream:
                    csv.DictWriter(stream, known).writerow(row)
            if self._writer is not None:
                for name in row.keys() - {"step"}:
                    self._writer.add_scalar(name, row[name], int(row["step"]))
        except OSError as error:
            raise VesaliusError(
                f"writing failed ({error.strerror})",
                path=self.run.metrics,
                remedy="free some space, then continue with --resume",
            ) from error

    def _rewrite(self) -> None:
        assert self.run is not None
        with atomic(self.run.metrics) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, _columns(self.rows))
            writer.writeheader()
            writer.writerows(self.rows)


class Checkpoints(Callback):
    """last.ckpt every so many steps or minutes and at the end; best.ckpt whenever validation improves.

    last.ckpt is written before the first batch of the step after, and so after any validation at that step.

    Args:
        run: where to write.
        every: steps.
        minutes: since the last one was written, or training began.
        monitor: the validation metric that best.ckpt follows; a name that ends in "loss" is to be low, others high.
        resume: best.ckpt, where there is one, is of this run.
    """

    def __init__(self, run: RunFolder, *, every: int, minutes: float, monitor: str, resume: bool):
        self.run, self.every, self.minutes, self.monitor, self.resume = run, every, minutes, monitor, resume
        self.saved, self.clock = 0, time.monotonic()
        self.score = -math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what is there."""
        self.saved, self.clock = trainer.global_step, time.monotonic()
        # The checkpoint was written with one batch ready and not started; Lightning takes that back in the epoch's
        # count only, and validates by the total.
        trainer.fit_loop.epoch_loop.batch_progress.total.reset_on_restart()
        if self.resume and self.run.best.exists():
            self.score = float(AtomicCheckpoints().load_checkpoint(self.run.best)["callbacks"]["Checkpoints"]["score"])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write last.ckpt when it is time."""
        if batch_idx % trainer.accumulate_grad_batches or trainer.global_step <= self.saved:
            return
        late = time.monotonic() - self.clock > 60 * self.minutes
        if trainer.world_size > 1:  # clocks differ, and all processes must write together
            late = trainer.strategy.reduce_boolean_decision(late, all=False)
        if late or trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write best.ckpt when the score is better than any before."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            return
        score = -float(value) if self.monitor.endswith("loss") else float(value)
        if score > self.score:
            self.score = score
            trainer.save_checkpoint(self.run.best)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last last.ckpt."""
        if trainer.global_step > self.saved:
            self._save(trainer)

    @property
    def state_key(self) -> str:
        """Its name in the checkpoint."""
        return "Checkpoints"

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"score": self.score}

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.run.last)
        self.saved, self.clock = trainer.global_step, time.monotonic()


class Bar(Callback):
    """A progress bar on standard error: loss, images per second, time left."""

    def __init__(self, curve: Curve, *, steps: int, images: int, title: str):
        self.curve, self.steps, self.images = curve, steps, images
        self.title = title
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._started, self._first = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        self._started, self._first = time.monotonic(), trainer.global_step
        self._task = self._progress.add_task(self.title, total=self.steps, completed=trainer.global_step, shown="")
        self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move it."""
        speed = (trainer.global_step - self._first) * self.images / max(time.monotonic() - self._started, 1e-6)
        shown = f"loss {self.curve.loss:.4g} · {speed:.0f} images/s"
        self._progress.update(self._task, completed=trainer.global_step, shown=shown)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._progress.stop()


def read_metrics(path: Path, *, until: float = math.inf) -> list[dict[str, float]]:
    """The rows of a metrics.csv up to a step; empty cells are left out, and so is a line that a kill cut short."""
    if not path.exists():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8") as stream:
        for record in csv.DictReader(stream):
            try:
                row = {name: float(value) for name, value in record.items() if value and name}
            except ValueError:
                continue
            if (
                len(record) == sum(value is not None for value in record.values())
                and row.get("step", math.inf) <= until
            ):
                rows.append(row | {"step": int(row["step"])})
    return rows


def _columns(rows: list[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(["step", "train/loss", "lr", *(name for row in rows for name in row)]))


def _values(metrics: Mapping[str, Any], *, validation: bool) -> dict[str, float]:
    """What the module logged; its "train/loss" is that of one batch, the curve's is the mean since the last row."""
    named = {name: float(value) for name, value in metrics.items() if name.startswith("val/") == validation}
    return {name: value for name, value in named.items() if name != "train/loss"}
