"""What trainings of a segmentation of volumes have in common: whole volumes to validate on, and AdamW for what trains.

They differ in what is seen of a volume at a step (patches, stacks of slices, crops with clicks), in how a whole one is
predicted, and in the schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import default_collate

from vesalius.data.masks import IGNORE
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.dataset import WholeView
from vesalius.nn.optim import Clipped, per_step
from vesalius.tasks.volume_dice import VolumeDice


class VolumeTraining(Clipped):
    """Base class of adaptations to volumes, whose best weights are those of the best Dice of label maps.

    A subclass has `view`, `training_step`, `configure_optimizers`, and a `validation_step` that gives each volume's
    label map to `score`.

    Args:
        task: a segmentation of volumes.
        contract: the volumes that it reads.
        config: hyper-parameters, among them lr, weight_decay and grad_clip.
    """

    monitor = "val/dice"
    task: Any

    def __init__(self, task: Any, contract: VolumeContract, config: Any):
        super().__init__()
        self.task, self.contract, self.config = task, contract, config
        self.total_steps = 1  # the loop sets it before it asks for the optimiser
        self.whole = WholeView(contract)
        self._dice = VolumeDice(len(task.scored))

    def val_view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """A whole validation volume: image ``[C, D, H, W]`` and mask ``[D, H, W]``."""
        seen = self.whole(sample)
        return {"image": seen["image"], "mask": seen["mask"], "whole": True}

    def collate(self, items: list[dict[str, Any]]) -> Any:
        """What is seen of training volumes as a batch; whole volumes, of any sizes, as a list."""
        return items if "whole" in items[0] else default_collate(items)

    def on_validation_epoch_start(self) -> None:
        """Forget the validation before."""
        self._dice.reset()

    def score(self, guess: Tensor, mask: Tensor) -> None:
        """Take in the label map of a validation volume.

        Args:
            guess: ``[D, H, W]``, value i + 1 being the task's ``classes[i]``.
            mask: the truth, 255 counting for nothing.
        """
        pair = self.task.region_masks(torch.stack([guess.to(mask), mask]))
        self._dice.update(*(pair & (mask != IGNORE)))

    def on_validation_epoch_end(self) -> None:
        """Log the mean over the classes that some case has, or was said to have, and each of them."""
        found = self._dice.named(self.task.scored)
        self.log_dict({f"val/{name}": score.nan_to_num() for name, score in found.items()})

    def adamw(self, factor: Callable[[int], float], **options: Any) -> dict[str, Any]:
        """AdamW for what trains, whose learning rate is the configuration's times `factor` of the step.

        Args:
            factor: from a step, of `total_steps`, to the share of the learning rate.
            options: of AdamW.
        """
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = AdamW(trained, lr=self.config.lr, weight_decay=self.config.weight_decay, **options)
        return per_step(LambdaLR(optimizer, factor))
