"""How a labelled batch becomes a loss, and what trains by which optimiser, whatever the method.

`full` follows USFM's downstream code: AdamW with layer-wise learning-rate decay, warm-up and half a cosine, all
learning rates in proportion to the images a step; its segmentation configuration sets layer decay, but the code ignores
it, and here it is applied. The methods for few labels follow EPT's configurations: SGD and half a cosine, and the trunk
stays in evaluation mode. Published prompts move by the head's learning rate, which hardly moves them in a run of few
steps (a prompt's gradient is bounded by its share of the softmax); `inner_lr` gives them their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from vesalius.adapt.networks import trained
from vesalius.data.contract import InputContract
from vesalius.data.datasets import EvalView, TrainView
from vesalius.nn.encoder import Encoder
from vesalius.nn.optim import Clipped, adamw, per_step, warmup_cosine
from vesalius.tasks.validation import ValidationScores

FIELDS = {"classification": "label", "segmentation": "mask", "enhancement": "target"}
"""What a task learns from, in a sample."""


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
        grad_clip: largest norm of the gradient; 0 = as it is.
        flip, rot90, crop_scale: augmentation, see `TrainView`. USFM's classification has none.
        optimizer: adamw, or sgd (every trained number then decays, as in EPT's code).
        momentum: of SGD.
        inner_lr: peak learning rate of what a few-label method trains inside the trunk; None = the head's.
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
    crop_scale: tuple[float, float] | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    inner_lr: float | None = None

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
FEW_LABELS = {
    "paper": AdaptConfig(
        lr=6e-4,
        warmup_lr=0.0,
        min_lr=0.0,
        per_images=0,
        warmup=0.0,
        weight_decay=1e-4,
        layer_decay=1.0,
        drop_path=0.0,
        grad_clip=0.0,
        flip=True,
        crop_scale=(0.08, 1.0),
        optimizer="sgd",
    ),
    "tiny": replace(_TINY, lr=3e-3, layer_decay=1.0, weight_decay=1e-4),
}
"""Preset -> hyper-parameters of classification by every method but `full`: EPT's configurations."""

_STATES = {"state_dict", "current_model_state"}
"""Of a checkpoint: the weights, and with a moving average those beside it."""


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


class Adaptation(Clipped):
    """How one labelled batch becomes a loss.

    Args:
        task: a head on an encoder (`vesalius.tasks`).
        contract: the pixels that the encoder expects.
        config: hyper-parameters, their learning rates already `scaled`.
        method: what was installed in the task's encoder (`vesalius.adapt.methods.install`).
    """

    def __init__(self, task: Any, contract: InputContract, config: AdaptConfig, *, method: str = "full"):
        super().__init__()
        self.task: Any = task
        self.contract, self.config, self.method = contract, config, method
        self.total_steps = 1  # the loop sets it before it asks for the optimiser
        self.train_view = TrainView(contract, flip=config.flip, rot90=config.rot90, crop_scale=config.crop_scale)
        self.eval_view = EvalView(contract)
        self._scores = ValidationScores(task)

    @property
    def monitor(self) -> str:
        """The validation metric that the best checkpoint is chosen by."""
        return self._scores.monitor

    @property
    def encoder(self) -> Encoder:
        """The trunk."""
        return self.task.encoder

    def train(self, mode: bool = True) -> Adaptation:
        """As of any module; a trunk that is not fine-tuned stays in evaluation mode."""
        super().train(mode)
        if self.method != "full":
            self.encoder.eval()
        return self

    def view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """What the network reads of a training sample."""
        return self._fields(self.train_view(sample, generator))

    def val_view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """What the network reads of a validation sample; without chance."""
        return self._fields(self.eval_view(sample))

    def _fields(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        return {name: sample[name] for name in ("image", FIELDS[self.task.TASK], "annotated") if name in sample}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The task's loss."""
        return self.task.loss(self.task(batch["image"]), batch)

    def on_validation_epoch_start(self) -> None:
        """Forget the validation before."""
        self._scores.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The loss, and what the epoch's score is made of."""
        output = self.task(batch["image"])
        self.log("val/loss", self.task.loss(output, batch), batch_size=len(batch["image"]), sync_dist=True)
        self._scores.update(output, batch)

    def on_validation_epoch_end(self) -> None:
        """See `ValidationScores`."""
        for name, value in self._scores.compute().items():
            self.log(f"val/{name}", value)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out a trunk that does not change: it is opened again when the run is continued."""
        if self.method != "full":
            kept = {f"task.{name}" for name in trained(self.task, self.method)}
            for part in _STATES & checkpoint.keys():
                checkpoint[part] = {name: value for name, value in checkpoint[part].items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete the state with the trunk."""
        for part in _STATES & checkpoint.keys():
            checkpoint[part] = {**self.state_dict(), **checkpoint[part]}

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule over `total_steps` steps; the head takes the full learning rate."""
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

        if self.method == "full":
            return adamw(
                self, lr=c.lr, schedule=schedule, weight_decay=c.weight_decay, betas=c.betas, layer_decay=c.layer_decay
            )
        groups = self._groups()
        optimizer: torch.optim.Optimizer
        if c.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)
        else:
            optimizer = torch.optim.AdamW(groups, lr=c.lr, betas=c.betas, weight_decay=c.weight_decay)
        return per_step(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step) / c.lr))

    def _groups(self) -> list[dict[str, Any]]:
        """The head's parameters, and those inside the trunk by their own learning rate."""
        inside = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        known = {id(parameter) for parameter in self.encoder.parameters()}
        head = [p for p in self.task.parameters() if p.requires_grad and id(p) not in known]
        rate = self.config.lr if self.config.inner_lr is None else self.config.inner_lr
        groups = [{"params": head, "lr": self.config.lr}, {"params": inside, "lr": rate}]
        return [group for group in groups if group["params"]]
