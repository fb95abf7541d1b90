"""How labelled volumes train a segmentation: patches with class balance, and whole volumes to validate on.

BrainSegFounder is fine-tuned with AdamW, a linear warm-up and half a cosine, on patches that are mirrored and whose
intensities are scaled and shifted a little. Its code validates on probabilities (the threshold does nothing there);
here the best weights are those of the best Dice of label maps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from vesalius.adapt.volume_training import VolumeTraining
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.dataset import PatchView
from vesalius.nn.optim import linear_warmup_cosine
from vesalius.nn.swin_unetr import SwinEncoder, SwinUNETR
from vesalius.nn.volumes import VolumeTrunk
from vesalius.tasks.volume_segmentation import VolumeSegmentation

METHODS = ("full", "linear")
"""Those of `vesalius.adapt.METHODS` that there are for volumes."""
DECODERS = ("unetr", "linear")


@dataclass(frozen=True)
class VolumeAdaptConfig:
    """Hyper-parameters of a segmentation of volumes; the defaults are those of BrainSegFounder's fine-tuning on BraTS.

    Args:
        crop: voxels of a patch; None for the backbone's.
        lr: peak learning rate.  weight_decay: of AdamW.
        warmup: share of the steps (50 of 300 epochs).
        entropy: add cross-entropy to the Dice of regions.
        foreground: probability that a patch lies around a labelled voxel, see `PatchView`.
        flip: probability of mirroring each axis.
        scale, shift: of intensities, see `PatchView`.
        grad_clip: largest norm of the gradient; 0 = as it is.
        images: patches a step.  epochs: over the training volumes; 0 where `steps` count.  steps: of the optimiser.
    """

    crop: tuple[int, int, int] | None = (128, 128, 128)
    lr: float = 1e-4
    weight_decay: float = 1e-5
    warmup: float = 50 / 300
    entropy: bool = False
    foreground: float = 0.0
    flip: float = 0.5
    scale: float = 0.1
    shift: float = 0.1
    grad_clip: float = 0.0
    images: int = 4
    epochs: int = 300
    steps: int = 0


PRESETS = {
    "paper": VolumeAdaptConfig(),
    "tiny": VolumeAdaptConfig(
        crop=None, lr=1e-3, warmup=0.1, entropy=True, foreground=2 / 3, grad_clip=1.0, images=2, epochs=0, steps=300
    ),
}
"""Preset -> hyper-parameters."""


def with_decoder(trunk: VolumeTrunk, decoder: str) -> VolumeTrunk:
    """The trunk that a segmentation stands on: a Swin encoder gets the decoder of Swin UNETR, others have their own."""
    return SwinUNETR.on(trunk) if isinstance(trunk, SwinEncoder) and decoder == "unetr" else trunk


def freeze(task: VolumeSegmentation, trunk: VolumeTrunk) -> nn.Module:
    """Take what was pre-trained out of training, and return it.

    Args:
        task: built on `with_decoder(trunk)`.
        trunk: what was loaded.
    """
    grown = isinstance(trunk, SwinEncoder) and isinstance(task.encoder, SwinUNETR)
    frozen: nn.Module = task.encoder.encoder if grown else task.encoder  # type: ignore[assignment]
    return frozen.requires_grad_(False)


class VolumeAdaptation(VolumeTraining):
    """How a batch of patches becomes a loss, and whole volumes a score.

    Args:
        task: a segmentation on a trunk.
        contract: the volumes that the trunk expects, with the patches' size.
        config: hyper-parameters.
        frozen: the part of the trunk that does not train, in evaluation mode; None for none.
    """

    task: VolumeSegmentation

    def __init__(
        self,
        task: VolumeSegmentation,
        contract: VolumeContract,
        config: VolumeAdaptConfig,
        *,
        frozen: nn.Module | None = None,
    ):
        super().__init__(task, contract, config)
        options = {name: getattr(config, name) for name in ("foreground", "flip", "scale", "shift")}
        self.patch = PatchView(contract, **options)
        self._frozen = [frozen] if frozen is not None else []  # in a list: it is the task's module, not another

    def train(self, mode: bool = True) -> VolumeAdaptation:
        """As of any module; what does not train stays in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """A patch of a training volume: image ``[C, *roi]`` and mask ``[*roi]``."""
        patch = self.patch(sample, generator)
        return {name: patch[name] for name in ("image", "mask")}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The task's loss."""
        return self.task.loss(self.task(batch["image"]), batch)

    def validation_step(self, batch: list[dict[str, Any]], batch_idx: int) -> None:
        """Dice of each volume, predicted in windows."""
        for case in batch:
            scores = sliding_window_inference(
                case["image"][None], self.contract.roi, 1, self.task, overlap=0.5, mode="gaussian"
            )
            self.score(self.task.decide(scores[0]), case["mask"])

    def configure_optimizers(self) -> Any:
        """AdamW for what trains, with warm-up and half a cosine over `total_steps` steps."""

        def factor(step: int) -> float:
            total = self.total_steps
            return linear_warmup_cosine(step + 1, total=total + 1, warmup=self.config.warmup * total, lr=1.0)

        return self.adamw(factor)


def patches_of(contract: VolumeContract, crop: tuple[int, int, int] | None) -> VolumeContract:
    """The contract with another size of patches, if one is given."""
    return contract if crop is None else replace(contract, roi=crop)
