"""Fine-tune a backbone and a task's head, or the head alone.

`full` follows USFM's downstream code: AdamW with layer-wise learning-rate decay, warm-up and half a cosine, all
learning rates in proportion to the images a step; its segmentation configuration sets layer decay, but the code ignores
it, and here it is applied. `linear` trains the head on a frozen trunk, which stays in evaluation mode.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from vesalius.adapt import METHODS
from vesalius.data.contract import InputContract
from vesalius.data.datasets import EvalView, TrainView
from vesalius.errors import ConfigError, nearest
from vesalius.nn.encoder import Encoder
from vesalius.nn.optim import adamw, warmup_cosine

FIELDS = {"classification": "label", "segmentation": "mask", "enhancement": "target"}
"""What a task learns from, in a sample."""
MONITOR = {"classification": "val/balanced_accuracy", "segmentation": "val/dice", "enhancement": "val/loss"}
"""What the best checkpoint is chosen by."""


@dataclass(frozen=True)
class AdaptConfig:
    """Hyper-parameters of an adaptation; the defaults are USFM's for classification.

    Args:
        lr: peak learning rate of the head.
        warmup_lr, min_lr: where it starts and ends.
        per_images: the learning rates are for steps of this many images and scale with them; 0 = as they are.
        warmup: share of the steps (20 of 200 epochs).
        weight_decay, betas: of AdamW.
        layer_decay: factor of the learning rate from one layer to the one below.
        drop_path: stochastic depth at the last block.
        grad_clip: largest norm of the gradient.
        flip, rot90: augmentation, see `TrainView`. USFM's classification has none.
    """

    lr: float = 1.25e-3
    warmup_lr: float = 2.5e-4
    min_lr: float = 2.5e-7
    per_images: int = 512
    warmup: float = 0.1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 0.65
    drop_path: float = 0.1
    grad_clip: float = 5.0
    flip: bool = False
    rot90: bool = False

    def scaled(self, images: int) -> AdaptConfig:
        """With the learning rates for steps of `images` images.

        >>> AdaptConfig(lr=1e-3, per_images=512).scaled(64).lr
        0.000125
        """
        if not self.per_images:
            return self
        factor = images / self.per_images
        rates = {name: getattr(self, name) * factor for name in ("lr", "warmup_lr", "min_lr")}
        return replace(self, per_images=0, **rates)


_SEGMENTATION = AdaptConfig(lr=3e-4, warmup_lr=5e-5, min_lr=0.0, warmup=20 / 400, flip=True, rot90=True)
_TINY = AdaptConfig(
    lr=1e-3, warmup_lr=0.0, min_lr=0.0, per_images=0, layer_decay=0.75, drop_path=0.0, grad_clip=1.0, flip=True
)
PRESETS = {
    "paper": {"classification": AdaptConfig(), "segmentation": _SEGMENTATION, "enhancement": _SEGMENTATION},
    "tiny": dict.fromkeys(FIELDS, _TINY),
}
"""Preset -> task -> hyper-parameters. The enhancement's are not published; segmentation's are taken. [rec]"""


def for_fine_tuning(encoder: Encoder, drop_path: float) -> Encoder:
    """The same network with stochastic depth, and with a table of relative positions for every block.

    USFM pre-trains one table that all blocks share and fine-tunes one per block, each of which starts as its copy.
    """
    config = encoder.config
    changes: dict[str, Any] = {"drop_path": drop_path}
    state = encoder.state_dict()
    if getattr(config, "relative", "none") == "shared":
        changes["relative"] = "per_block"
        table = state.pop("relative.table")
        state |= {f"relative.{block}.table": table for block in range(encoder.depth)}
    tuned = type(encoder)(replace(config, **changes))
    tuned.load_state_dict(state)
    return tuned


class Adaptation(L.LightningModule):
    """How one labelled batch becomes a loss.

    Args:
        task: a head on an encoder (`vesalius.tasks`).
        contract: the pixels that the encoder expects.
        config: hyper-parameters, their learning rates already `scaled`.
        method: full or linear.
    """

    def __init__(self, task: Any, contract: InputContract, config: AdaptConfig, *, method: str = "full"):
        super().__init__()
        if method not in METHODS:
            raise ConfigError(f"unknown method {method!r}", remedy=nearest(method, METHODS))
        self.task: Any = task
        self.contract, self.config, self.method = contract, config, method
        self.total_steps = 1  # the loop sets it before it asks for the optimiser
        self.train_view = TrainView(contract, flip=config.flip, rot90=config.rot90)
        self.eval_view = EvalView(contract)
        if method == "linear":
            self.encoder.freeze()
        self._counts: Tensor | None = None

    @property
    def encoder(self) -> Encoder:
        """The trunk."""
        return self.task.encoder

    def train(self, mode: bool = True) -> Adaptation:
        """As of any module; a frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.method == "linear":
            self.encoder.eval()
        return self

    def view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """What the network reads of a training sample."""
        return self._fields(self.train_view(sample, generator))

    def val_view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """What the network reads of a validation sample; without chance."""
        return self._fields(self.eval_view(sample))

    def _fields(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        return {name: sample[name] for name in ("image", FIELDS[self.task.TASK])}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The task's loss."""
        return self.task.loss(self.task(batch["image"]), batch)

    def on_validation_epoch_start(self) -> None:
        """Forget the counts of the validation before."""
        self._counts = None

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The loss, and the counts of which the epoch's score is made."""
        output = self.task(batch["image"])
        loss = self.task.loss(output, batch)
        self.log("val/loss", loss, batch_size=len(batch["image"]), sync_dist=True)
        counts = self._count(output, batch)
        if counts is not None:
            self._counts = counts if self._counts is None else self._counts + counts

    def on_validation_epoch_end(self) -> None:
        """Balanced accuracy, or Dice over all pixels of the set at the network's size (a mean over classes)."""
        if self._counts is None:
            return
        counts = self.trainer.strategy.reduce(self._counts, reduce_op="sum").double()
        if self.task.TASK == "classification":
            found = counts.sum(1) > 0
            self.log("val/balanced_accuracy", (counts.diagonal()[found] / counts.sum(1)[found]).mean().float())
        else:
            found = counts[1] > 0
            self.log("val/dice", (2 * counts[0][found] / counts[1][found]).mean().nan_to_num().float())

    def _count(self, output: Any, batch: dict[str, Tensor]) -> Tensor | None:
        """Classification: confusion ``[K, K]``, rows the truth; segmentation: overlap and sum of areas ``[2, K]``."""
        if self.task.TASK == "enhancement":
            return None
        if self.task.TASK == "classification":
            k = output.shape[1]
            return torch.bincount(batch["label"] * k + output.argmax(1), minlength=k * k).view(k, k)
        valid = batch["mask"] != 255
        guess = output["logits"].argmax(1)[valid]
        truth = batch["mask"][valid].long()
        k = output["logits"].shape[1]
        overlap = torch.bincount(truth[truth == guess], minlength=k)
        return torch.stack([overlap, torch.bincount(truth, minlength=k) + torch.bincount(guess, minlength=k)])[:, 1:]

    def configure_optimizers(self) -> Any:
        """AdamW for `total_steps` steps; the head takes the full learning rate."""
        c = self.config

        def schedule(step: int) -> float:
            return warmup_cosine(
                step,
                total=self.total_steps,
                warmup=c.warmup * self.total_steps,
                lr=c.lr,
                min_lr=c.min_lr,
                warmup_lr=c.warmup_lr,
            )

        layer_decay = 1.0 if self.method == "linear" else c.layer_decay
        return adamw(
            self, lr=c.lr, schedule=schedule, weight_decay=c.weight_decay, betas=c.betas, layer_decay=layer_decay
        )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip at the configuration's norm unless the loop was given another."""
        self.clip_gradients(optimizer, gradient_clip_val or self.config.grad_clip, gradient_clip_algorithm or "norm")
