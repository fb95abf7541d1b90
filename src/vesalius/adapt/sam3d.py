"""3DSAM-adapter: one click in a CT volume segments a tumour (Gong et al., MedIA 98:103324, 2024).

SAM's 2-D weights stay frozen, and every operation around them becomes 3-D (`vesalius.nn.sam3d`); what trains is a
quarter of the network. Cite: doi:10.1016/j.media.2024.103324, arXiv 2306.13465.

Differences from the authors' code. Batches are possible. Crops come from `PatchView` (the tumour in two of three),
mirrored and turned by quarters, with a small shift of intensities; there is no zoom and no small rotation. A validation
segments whole volumes. Clicks in training are drawn as published: some in the tumour, and twice as many anywhere, all
of which say the same to the network. With `labels` of the network those anywhere say whether they hit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from vesalius.adapt.volume_training import VolumeTraining
from vesalius.data.datasets import generator as seeded
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.dataset import PatchView
from vesalius.data.volumes.intensity import ClipZScore, Intensity, ZScore
from vesalius.nn.sam3d import Sam3D, Sam3DShape
from vesalius.nn.sam3d_heads import ABSENT
from vesalius.tasks.prompted_volumes import PromptedVolumeSegmentation, draw_clicks

FROZEN = ("patch_embed.", "pos_embed", "attn.qkv.", "attn.proj.", "attn.rel_pos_h", "attn.rel_pos_w", "mlp.")
"""Parts of names of the encoder's tensors that stay as SAM has them."""


@dataclass(frozen=True)
class Sam3DConfig:
    """Hyper-parameters; the defaults are those of the published code.

    Args:
        network: what is built around the SAM.
        crop: voxels of a crop (d, h, w), of 1 mm in CT.
        clicks: in the tumour, a training crop that has one.
        anywhere: further clicks, wherever they hit.
        vary: draw how many of either there are, too, from one (none) to all; False for always all.
        val_clicks: in the tumour, a validation volume.
        lr: at the start; falls linearly to `end` of it.  weight_decay: of AdamW.
        foreground: probability that a crop lies around a voxel of the tumour.
        flip: probability of mirroring each axis.  rot90: of turning within slices.
        scale, shift: of intensities, see `PatchView`.
        grad_clip: largest norm of the gradient of encoder, sampler and decoder each; 0 = as it is.
        images: crops a step.  epochs: over the training volumes; 0 where `steps` count.  steps: of the optimiser.
    """

    network: Sam3DShape = field(default_factory=Sam3DShape)
    crop: tuple[int, int, int] = (128, 128, 128)
    clicks: int = 10
    anywhere: int = 20
    vary: bool = False
    val_clicks: int = 10
    lr: float = 4e-4
    end: float = 0.01
    weight_decay: float = 0.0
    foreground: float = 2 / 3
    flip: float = 0.5
    rot90: float = 0.5
    scale: float = 0.0
    shift: float = 0.3
    grad_clip: float = 1.0
    images: int = 1
    epochs: int = 500
    steps: int = 0


PRESETS = {
    "paper": Sam3DConfig(),
    "automatic": Sam3DConfig(
        network=Sam3DShape(upsample=2, prompted=False), crop=(256, 256, 256), clicks=0, anywhere=0, grad_clip=12.0
    ),
    "tiny": Sam3DConfig(
        network=Sam3DShape(window=4, layers=8, neck=32, sampler_heads=4, sampler_hidden=64, hidden=16),
        crop=(32, 32, 32),
        lr=2e-3,
        images=2,
        epochs=0,
        steps=300,
    ),
}
"""Preset -> hyper-parameters; "automatic" is the authors' variant without clicks."""


def freeze(network: Sam3D) -> list[str]:
    """Leave what is SAM's own as it is, and return the names of what trains.

    Norms, the third table, slice and depth embeddings, adapters and necks train, and all of sampler and decoder.
    """
    for name, parameter in network.encoder.named_parameters():
        own = ".pre_attn." not in name and any(part in name for part in FROZEN)
        parameter.requires_grad_(not own)
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def prompted_contract(
    channels: Iterable[str],
    config: Sam3DConfig,
    *,
    intensity: Intensity | None = None,
    spacing: tuple[float, float, float] | None = (1.0, 1.0, 1.0),
) -> VolumeContract:
    """Volumes as 3DSAM-adapter reads them: slices from below, voxels of 1 mm.

    Args:
        channels: one, which is repeated, or SAM's three.
        config: with the crop.
        intensity: `vesalius.published.sam3d.INTENSITIES` of the authors' sets, or `measured`; z-scores by default.
        spacing: mm; None for each volume's own.
    """
    return VolumeContract(
        tuple(channels),
        spacing=spacing,
        orientation="SPL",
        intensity=intensity or ZScore(nonzero=False),
        roi=config.crop,
    )


def measured(samples: Iterable[dict[str, Any]]) -> ClipZScore:
    """The intensities of a set, from its labelled voxels: the authors' numbers were found so, by nnU-Net's rule.

    Args:
        samples: of a `VolumeDataset` with masks.

    Returns:
        Clipping at the percentiles 0.5 and 99.5, and mean and deviation.
    """
    found = [
        sample["image"][(0, *sample["points"][:, 1:].long().T)].numpy() for sample in samples if len(sample["points"])
    ]
    values = np.concatenate(found).astype(np.float64)
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    return ClipZScore(low, max(high, low + 1), float(values.mean()), float(values.std()) or 1.0)


def training_clicks(mask: Tensor, config: Sam3DConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clicks of a training crop.

    Args:
        mask: ``[D, H, W]``, 1 the tumour, 255 ignored.
        config: how many.

    Returns:
        Points ``[N, 3]`` float (d, h, w) and labels ``[N]``, 1 where a click hits, else 0, -1 for none; N is always
        ``clicks + anywhere``.
    """
    here = draw_clicks(mask == 1, config.clicks, generator).float()
    sides = torch.tensor(mask.shape)
    there = (torch.rand(config.anywhere, 3, generator=generator) * sides).long()
    labels = (mask[tuple(there.T)] == 1).long()
    missing = torch.zeros(config.clicks - len(here), 3)
    points = torch.cat([here, missing, there.float()])
    known = torch.cat([torch.ones(len(here)).long(), torch.full((len(missing),), ABSENT), labels])
    if config.vary:
        counts = torch.rand(2, generator=generator)
        kept = 1 + int(counts[0] * config.clicks), int(counts[1] * (config.anywhere + 1))
        known[kept[0] : config.clicks] = ABSENT
        known[config.clicks + kept[1] :] = ABSENT
    return points, known


class Sam3DAdaptation(VolumeTraining):
    """How a batch of crops with clicks becomes a loss, and whole volumes a score.

    Args:
        task: a segmentation on a network built on a SAM; what is SAM's own is frozen here.
        contract: the volumes that it reads, with the crops' size.
        config: hyper-parameters.
    """

    task: PromptedVolumeSegmentation

    def __init__(self, task: PromptedVolumeSegmentation, contract: VolumeContract, config: Sam3DConfig):
        super().__init__(task, contract, config)
        freeze(task.encoder)
        options = {name: getattr(config, name) for name in ("foreground", "flip", "rot90", "scale", "shift")}
        self.patch = PatchView(contract, **options)

    def view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """A crop ``[C, *roi]``, its mask ``[*roi]``, and, if the network takes them, ``points`` and ``labels``."""
        patch = self.patch(sample, generator)
        seen = {name: patch[name] for name in ("image", "mask")}
        if self.task.prompted:
            seen["points"], seen["labels"] = training_clicks(seen["mask"], self.config, generator)
        return seen

    def val_view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """A whole validation volume ``[C, D, H, W]`` and its mask; its clicks are the same in every validation."""
        seen = super().val_view(sample, generator)
        if self.task.prompted:
            seen["points"] = draw_clicks(seen["mask"] == 1, self.config.val_clicks, seeded(0, int(sample["row"])))
        return seen

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The task's loss."""
        return self.task.loss(self.task(batch["image"], batch.get("points"), batch.get("labels")), batch)

    def validation_step(self, batch: list[dict[str, Any]], batch_idx: int) -> None:
        """Dice of each volume that has something to click on."""
        for case in batch:
            points = case.get("points")
            if points is not None and not len(points):
                continue
            if points is not None:
                points = points.cpu()
            found = self.task.probability(case["image"], points, roi=self.contract.roi) > 0.5
            self.score(found, case["mask"])

    def on_validation_epoch_end(self) -> None:
        """Log the mean over volumes."""
        self.log("val/dice", self._dice.named(self.task.scored)["dice"].nan_to_num())

    def configure_optimizers(self) -> Any:
        """AdamW for what trains; its rate falls linearly."""
        return self.adamw(lambda step: 1 - (1 - self.config.end) * min(step / self.total_steps, 1))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """`clip` at the configuration's norm unless the loop was given another; as a whole where it is sharded."""
        if isinstance(self.trainer.strategy.model, FullyShardedDataParallel):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif norm := gradient_clip_val or self.config.grad_clip:
            self.clip(norm)

    def clip(self, norm: float) -> None:
        """Clip the gradients of encoder, sampler and decoder each."""
        network = self.task.encoder
        for part in (network.encoder, network.sampler, network.decoder):
            if part is not None:
                nn.utils.clip_grad_norm_(part.parameters(), norm)
