"""BrainSegFounder: teach a 3-D encoder brains twice, healthy ones first, then those with the disease, and no labels.

Crops are turned by quarter turns and corrupted by boxes of noise and boxes of other crops. A Swin encoder with three
heads says how far a crop was turned, recognises the other corrupted view of the same crop, and restores it. Stage 1
reads a large healthy cohort (UK Biobank), stage 2 the unlabelled scans of the disease at hand; the whole Swin UNETR is
fine-tuned afterwards.

    J. Cox et al., "BrainSegFounder: Towards 3D foundation models for neuroimage segmentation", Medical Image Analysis
    97, 103301, 2024. doi:10.1016/j.media.2024.103301

What differs from the authors' code: modalities are matched by name between the stages (theirs throws the pre-trained
patch embedding away), intensities come from percentiles of the brain instead of a window of -1000 to 1000 made for CT,
new training joins all eight neighbours in patch merging, and the learning rate stays at zero after the last step. Their
ATLAS variant restores the corrupted crop itself and pushes views of one scan apart; here ATLAS takes the same losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from monai.losses import ContrastiveLoss
from torch import Tensor
from torch.nn import functional as F

from vesalius.data.datasets import mixed_seed
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.dataset import PatchView, VolumeDataset
from vesalius.data.volumes.intensity import Percentiles
from vesalius.errors import ConfigError
from vesalius.nn.optim import Clipped, adamw, warmup_cosine
from vesalius.nn.swin_ssl import ROTATIONS, SSLOutputs, SwinSSL
from vesalius.nn.swin_unetr import SwinConfig, SwinEncoder
from vesalius.pretrain.volumes import Plan, VolumePretraining
from vesalius.published.networks import architecture

SYSTEM = "brainsegfounder"
BRATS = ("flair", "t1ce", "t1", "t2")
"""The channels of the published second stage, in its order."""
_BOXES_AT_ONCE = 128


@dataclass(frozen=True)
class BrainSegFounderConfig:
    """BrainSegFounder's hyper-parameters; the defaults are stage 1 of the published 64 million parameter model.

    Args:
        channels: modalities by name, in the network's order.
        spacing: mm of a voxel, None for the volumes' own.
        crop: voxels of a crop along D, H and W: multiples of 32, H = W, 64 x 32 x 32 or more.
        volumes: scans a step; published: 2 on each of 64 GPUs.
        crops_per_volume: drawn from one scan at a time.
        width, depths, heads, window: of the Swin encoder.
        merging: "repaired"; "legacy" only to go on from published weights.
        drop_path: stochastic depth at the last block.
        noise_share: the boxes of one pass hold at most this share of the crop's volume, overlaps counted twice.
        box_low, box_high: edges of a box, as shares of the crop's.
        temperature: of the contrastive loss.
        rotation_weight, contrastive_weight, reconstruction_weight: of the sum.
        lr, weight_decay: of AdamW.
        steps, warmup: optimiser steps; the learning rate rises linearly and falls as half a cosine.
        grad_clip: the gradient's greatest norm.
    """

    channels: tuple[str, ...] = ("t1", "flair")
    spacing: tuple[float, float, float] | None = (1.0, 1.0, 1.0)
    crop: tuple[int, int, int] = (96, 96, 96)
    volumes: int = 128
    crops_per_volume: int = 2
    width: int = 48
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    merging: Literal["repaired", "legacy"] = "repaired"
    drop_path: float = 0.0
    noise_share: float = 0.3
    box_low: float = 0.05
    box_high: float = 0.25
    temperature: float = 0.5
    rotation_weight: float = 1.0
    contrastive_weight: float = 1.0
    reconstruction_weight: float = 1.0
    lr: float = 4e-4
    weight_decay: float = 0.1
    steps: int = 100_000
    warmup: int = 500
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        depth, height, width = self.crop
        if height != width:
            raise ConfigError(f"crop = {self.crop} cannot be turned", remedy="give the last two sides one size")
        if any(side % 32 for side in self.crop) or depth * height * width < 2 * 32**3:
            raise ConfigError(f"crop = {self.crop}", remedy="use multiples of 32, and (64, 32, 32) or more")

    @property
    def encoder(self) -> SwinConfig:
        """The trunk that is pre-trained."""
        return SwinConfig(
            in_channels=len(self.channels),
            width=self.width,
            depths=self.depths,
            heads=self.heads,
            window=self.window,
            merging=self.merging,
            drop_path=self.drop_path,
        )

    @property
    def contract(self) -> VolumeContract:
        """The volumes that the trunk expects."""
        return VolumeContract(self.channels, spacing=self.spacing, intensity=Percentiles(), roi=self.crop)


PRESETS = {
    "paper": BrainSegFounderConfig(),
    "tiny": BrainSegFounderConfig(
        spacing=None,
        crop=(64, 32, 32),
        volumes=4,  # eight crops: fewer leave the contrastive task no candidates
        width=12,
        depths=(2, 2, 2, 2),
        window=4,  # a step in a third of the time
        lr=1e-3,
        weight_decay=1e-2,
        steps=300,
        warmup=15,
    ),
}
STAGES = {
    1: PRESETS,
    2: {
        "paper": replace(PRESETS["paper"], channels=BRATS, lr=6e-6, steps=50_000),
        "tiny": replace(PRESETS["tiny"], channels=BRATS, lr=3e-4, steps=150),
    },
}
"""What each stage starts from, by preset."""


def build(config: BrainSegFounderConfig) -> SwinSSL:
    """The encoder with its three heads."""
    return SwinSSL(SwinEncoder(config.encoder))


def turn(crops: Tensor, turns: Tensor) -> Tensor:
    """Turn every crop by its own number of quarter turns in the plane of the last two axes.

    Args:
        crops: ``[N, C, D, S, S]``.
        turns: ``[N]`` integers from 0 to 3.

    >>> turn(torch.tensor([[[[[1, 2], [3, 4]]]]]), torch.tensor([1])).tolist()
    [[[[[2, 4], [1, 3]]]]]
    """
    return torch.stack([torch.rot90(crop, int(k), (-2, -1)) for crop, k in zip(crops, turns, strict=True)])


def draw_boxes(
    size: tuple[int, int, int], *, share: float, low: float, high: float, generator: torch.Generator
) -> Tensor:
    """Boxes of one pass: drawn until their volumes add up to a share of the crop that is drawn from U(0, `share`).

    A box starts anywhere in ``[0, S - floor(low S))``, is ``[floor(low S), floor(high S))`` voxels long before it is
    clipped at the border, and overlaps count twice, so that on average 14 % of the voxels are replaced.

    Args:
        size: voxels of the crop.
        share, low, high: `noise_share`, `box_low` and `box_high` of the configuration.

    Returns:
        ``[n, 6]`` integers: start and end along D, H and W.

    >>> boxes = draw_boxes((32, 32, 32), share=0.3, low=0.05, high=0.25, generator=torch.Generator().manual_seed(0))
    >>> bool((boxes[:, 1::2] > boxes[:, 0::2]).all() and (boxes <= 32).all())
    True
    """
    sides = torch.tensor(size, dtype=torch.float64)
    target = float(torch.rand((), generator=generator)) * share * float(sides.prod())
    shortest, longest = (low * sides).long(), (high * sides).long()
    drawn, filled = [torch.zeros(0, 6, dtype=torch.long)], 0.0
    while filled < target:
        unit = torch.rand(2, _BOXES_AT_ONCE, 3, generator=generator, dtype=torch.float64)
        start = (unit[0] * (sides.long() - shortest)).long()
        end = torch.minimum(start + shortest + (unit[1] * (longest - shortest)).long(), sides.long())
        volume = (end - start).prod(1).cumsum(0) + filled
        needed = int((volume < target).sum()) + 1  # the box that reaches the target is the last
        drawn.append(torch.stack([start, end], dim=2).flatten(1)[:needed])
        filled = float(volume[-1])
    return torch.cat(drawn)


def paste(crop: Tensor, boxes: Tensor, source: Tensor) -> Tensor:
    """`crop` ``[C, D, H, W]`` with `source` in every box of `draw_boxes`, in all channels."""
    pasted = crop.clone()
    for d0, d1, h0, h1, w0, w1 in boxes.tolist():
        pasted[:, d0:d1, h0:h1, w0:w1] = source[:, d0:d1, h0:h1, w0:w1]
    return pasted


def noise(crop: Tensor, boxes: Tensor, *, generator: torch.Generator) -> Tensor:
    """Gaussian noise in every box, scaled to [0, 1] within the box, and zero elsewhere: `crop`'s shape."""
    filled = torch.zeros_like(crop)
    for d0, d1, h0, h1, w0, w1 in boxes.tolist():
        values = torch.randn(len(crop), d1 - d0, h1 - h0, w1 - w0, generator=generator).to(crop)
        low, high = values.min(), values.max()
        filled[:, d0:d1, h0:h1, w0:w1] = (values - low) / (high - low).clamp(min=1e-12)
    return filled


def corrupt(crops: Tensor, config: BrainSegFounderConfig, *, generator: torch.Generator) -> Tensor:
    """Replace boxes of every crop by noise, and then by the same boxes of another one.

    The other crop is drawn evenly from all; where the draw gives the crop itself, the second pass is left out. A crop
    that came earlier is pasted as it was corrupted.

    Args:
        crops: one view of every crop of the batch, ``[N, C, D, S, S]``.
    """
    size = (crops.shape[2], crops.shape[3], crops.shape[4])
    draw = partial(
        draw_boxes, size, share=config.noise_share, low=config.box_low, high=config.box_high, generator=generator
    )
    corrupted = list(crops)
    for index in range(len(crops)):
        boxes = draw()
        corrupted[index] = paste(corrupted[index], boxes, noise(corrupted[index], boxes, generator=generator))
        other = int(torch.randint(len(crops), (), generator=generator))
        if other != index:
            corrupted[index] = paste(corrupted[index], draw(), corrupted[other])
    return torch.stack(corrupted)


def views(crops: Tensor, config: BrainSegFounderConfig, *, generator: torch.Generator) -> dict[str, Tensor]:
    """Two turned and corrupted views of every crop.

    Args:
        crops: ``[N, C, D, S, S]`` in [0, 1].

    Returns:
        corrupted ``[2N, C, D, S, S]``, target (turned, not corrupted) of the same shape and turns ``[2N]``: the first
        views of all crops, then the second.
    """
    turns = torch.randint(ROTATIONS, (2 * len(crops),), generator=generator)
    target = turn(torch.cat([crops, crops]), turns)
    halves = target.chunk(2)
    corrupted = torch.cat([corrupt(half, config, generator=generator) for half in halves])
    return {"corrupted": corrupted, "target": target, "turns": turns}


def nt_xent(first: Tensor, second: Tensor, *, temperature: float = 0.5) -> Tensor:
    """The contrastive loss of N pairs ``[N, E]``: all 2N - 1 others are candidates, the mean is over 2N (SimCLR).

    Where nothing was learned it stays at ln(2N - 1).
    """
    return ContrastiveLoss(temperature=temperature)(first, second)


def ssl_loss(
    outputs: SSLOutputs, batch: dict[str, Tensor], *, temperature: float = 0.5, weights: tuple[float, ...] = (1, 1, 1)
) -> dict[str, Tensor]:
    """The sum of the three tasks, as ``loss``, and its terms (section 3.2).

    Args:
        outputs: for the views of `views`.
        batch: target and turns of `views`.
        weights: of rotation, contrastive and reconstruction.
    """
    first, second = outputs.contrastive.chunk(2)
    terms = {
        "rotation": F.cross_entropy(outputs.rotation, batch["turns"]),
        "contrastive": nt_xent(first, second, temperature=temperature),
        "reconstruction": F.l1_loss(outputs.reconstruction, batch["target"]),
    }
    total = torch.stack([weight * term for weight, term in zip(weights, terms.values(), strict=True)]).sum()
    return {"loss": total, **terms}


def learning_rate(step: float, config: BrainSegFounderConfig) -> float:
    """Linear warm-up, then half a cosine to 0; it stays there (the published one rises again)."""
    return warmup_cosine(step, total=config.steps, warmup=config.warmup, lr=config.lr)


class BrainSegFounder(Clipped, VolumePretraining):
    """Pre-training: an encoder with three heads, and how crops of a few scans become a loss.

    Stage 1 and 2 differ in data, channels and schedule (`STAGES`), not in what is computed.
    """

    SYSTEM = SYSTEM
    network: SwinSSL
    monitor = "val/reconstruction_loss"

    def __init__(self, config: BrainSegFounderConfig = PRESETS["paper"]):
        super().__init__()
        self.config, self.contract = config, config.contract
        self.plan = Plan(images=config.volumes, steps=config.steps)
        self.network = build(config)
        self.patch = PatchView(self.contract)

    @property
    def architecture(self) -> dict[str, Any]:
        """The encoder and its heads: the second stage goes on with both."""
        network = self.network
        config = {"encoder": architecture(network.encoder), "embedding": network.embedding, "hidden": None}
        return {"name": "swin_ssl", "config": config}

    def samples(self, table: pl.DataFrame, cache: Path, *, workers: int = 0) -> VolumeDataset:
        """Scans without the empty border."""
        return VolumeDataset(table, self.contract, cache=cache, crop=True, workers=workers)

    def view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Crops ``[crops_per_volume, C, D, S, S]`` in [0, 1] of one scan, and a seed for what happens to them."""
        crops = [self.patch(sample, generator)["image"] for _ in range(self.config.crops_per_volume)]
        return {"crops": torch.stack(crops), "seed": mixed_seed(generator.initial_seed(), 1)}

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The `views` of all crops of a batch: a crop may be corrupted by one of another scan."""
        crops = torch.cat([item["crops"] for item in items])
        return views(crops, self.config, generator=torch.Generator().manual_seed(items[0]["seed"]))

    def forward(self, corrupted: Tensor) -> SSLOutputs:
        """``[2N, C, D, S, S]`` -> what the three tasks are scored on."""
        return self.network(corrupted)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a batch of `views` and its terms, and how often the turn was recognised (chance: 1/4)."""
        c = self.config
        outputs = self(batch["corrupted"])
        weights = (c.rotation_weight, c.contrastive_weight, c.reconstruction_weight)
        terms = ssl_loss(outputs, batch, temperature=c.temperature, weights=weights)
        recognised = (outputs.rotation.argmax(1) == batch["turns"]).float().mean()
        return {**terms, "rotation_accuracy": recognised}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        return self._log("train", batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch; views of validation scans are drawn from a fixed seed."""
        return self._log("val", batch)

    def _log(self, stage: str, batch: dict[str, Tensor]) -> Tensor:
        terms = self.loss(batch)
        names = {name: f"{name}_loss" for name in ("rotation", "contrastive", "reconstruction")}
        values = {f"{stage}/{names.get(name, name)}": value for name, value in terms.items()}
        self.log_dict(values, batch_size=len(batch["turns"]), sync_dist=stage == "val")
        return terms["loss"]

    def configure_optimizers(self) -> Any:
        """AdamW by `learning_rate`, stretched to `total_steps`; biases and norms do not decay (the authors' do)."""
        c = self.config

        def schedule(step: int) -> float:
            return learning_rate(step * c.steps / self.total_steps, c)

        return adamw(self, lr=c.lr, schedule=schedule, weight_decay=c.weight_decay)
