"""TransUNet on volumes, slice by slice: the baseline beside adapted SAMs (Chen et al., arXiv 2102.04306).

Loss, optimiser and learning rate are the published ones. Slices are drawn and augmented as MA-SAM's are, so that the
two differ in the network alone; the published code augments less (turns and mirror images). The weights of the best
validation are kept, not the last ones, and slices keep their aspect in the frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from vesalius.adapt.masam import MaSamAdaptation, MaSamConfig
from vesalius.data.volumes.contract import VolumeContract
from vesalius.nn.optim import per_step
from vesalius.nn.transunet import TRANSUNET_PRESETS, TransUNetConfig
from vesalius.tasks.slices import SliceSegmentation


@dataclass(frozen=True)
class TransUNetAdaptConfig:
    """Hyper-parameters; the defaults are those of the published code for Synapse.

    Args:
        network: its shape; its classes are those of the training.
        frame: rows and columns that slices are resized into.
        lr: at the start, of SGD with `momentum` and `weight_decay`.
        exponent: of its decay to 0.
        dice: share of the Dice loss.
        foreground: probability that a slice is a labelled one, see `PatchView`.
        augmented, mirror: as of `MaSamConfig`.
        grad_clip: largest norm of the gradient; 0 = as it is, as published.
        images: slices a step.
        epochs: of as many slices as the training volumes have; 0 where `steps` count.  steps: of the optimiser.
    """

    network: TransUNetConfig = field(default_factory=TransUNetConfig)
    frame: tuple[int, int] = (224, 224)
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    exponent: float = 0.9
    dice: float = 0.5
    foreground: float = 0.0
    augmented: bool = True
    mirror: bool = True
    grad_clip: float = 0.0
    images: int = 24
    epochs: int = 150
    steps: int = 0

    @property
    def stacks(self) -> MaSamConfig:
        """How slices are drawn: as stacks of one."""
        names = ("frame", "foreground", "augmented", "mirror", "grad_clip")
        return MaSamConfig(slices=1, stretch=False, **{name: getattr(self, name) for name in names})


PRESETS = {
    "paper": TransUNetAdaptConfig(),
    "tiny": TransUNetAdaptConfig(
        network=TRANSUNET_PRESETS["tiny"],
        frame=(128, 128),
        lr=0.05,
        foreground=0.5,
        mirror=False,
        grad_clip=1.0,
        images=8,
        epochs=0,
        steps=300,
    ),
}
"""Preset -> hyper-parameters."""


class TransUNetAdaptation(MaSamAdaptation):
    """How a batch of slices becomes a loss, and whole volumes a score.

    Args:
        task: on a TransUNet, all of which trains.
        contract: the volumes that it reads.
        settings: hyper-parameters.
    """

    def __init__(self, task: SliceSegmentation, contract: VolumeContract, settings: TransUNetAdaptConfig):
        super().__init__(task, contract, settings.stacks)
        self.settings = settings

    def configure_optimizers(self) -> Any:
        """SGD, whose learning rate is ``lr (1 - step / total_steps) ** exponent``."""
        c = self.settings
        optimizer = torch.optim.SGD(self.parameters(), lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)
        return per_step(torch.optim.lr_scheduler.PolynomialLR(optimizer, self.total_steps, c.exponent))
