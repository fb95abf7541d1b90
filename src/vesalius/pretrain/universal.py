"""The Universal Model: one network for 32 organs and tumours, from datasets that each label only some of them.

The embedding of a class's name and the volume's own features write the weights of a tiny network for that class, whose
sigmoid says class or not. The loss counts only the classes that the case's dataset labels, so that datasets join
without agreeing, and a new class is a new row of text.

    J. Liu et al., "Universal and extensible language-vision models for organ segmentation and tumor detection from
    abdominal computed tomography", Medical Image Analysis 97, 103226, 2024. doi:10.1016/j.media.2024.103226
    J. Liu et al., "CLIP-Driven Universal Model for organ segmentation and tumor detection", ICCV 2023.

What differs from the authors' code: Dice is that of the whole patch (theirs was taken slice by slice, where every slice
without the class costs 1, so that the loss idles near 0.8; `per_slice` gives it back), classes are computed only when
asked for, and their memory does not grow with the number of classes (`vesalius.nn.language_head.dynamic_head`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from vesalius.data.abdomen import NAMES
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.intensity import Window
from vesalius.errors import ConfigError
from vesalius.nn.dints import DiNTS, DiNTSConfig
from vesalius.nn.language_head import Controller, Encoding, LanguageDriven
from vesalius.nn.optim import linear_warmup_cosine
from vesalius.nn.swin_unetr import SwinConfig, SwinUNETR
from vesalius.nn.unet3d import NestedUNet3D, NestedUNet3DConfig, SegResNet, SegResNetConfig, UNet3D, UNet3DConfig
from vesalius.nn.volumes import VolumeTrunk

SYSTEM = "universal"
Trunk = Literal["unet3d", "swin_unetr", "segresnet", "nested_unet3d", "dints"]
TRUNKS: dict[str, Callable[[int], VolumeTrunk]] = {
    "unet3d": lambda width: UNet3D(UNet3DConfig(width=width)),
    "swin_unetr": lambda width: SwinUNETR(SwinConfig(width=width)),
    "segresnet": lambda width: SegResNet(SegResNetConfig(width=width)),
    "nested_unet3d": lambda width: NestedUNet3D(
        NestedUNet3DConfig(widths=(width, width, 2 * width, 4 * width, 8 * width, width))
    ),
    "dints": lambda width: DiNTS(DiNTSConfig(width=width)),
}
"""Name -> the trunk of a width: channels at (or, for Swin UNETR, after the first halving of) full resolution."""


@dataclass(frozen=True)
class UniversalConfig:
    """The Universal Model's hyper-parameters; the defaults are the published Swin UNETR.

    Args:
        classes: names of the outputs.
        trunk, width: a name of `TRUNKS`, and channels of its finest level; as published 48 for Swin UNETR, 32 for the
            U-Net, UNet++ and DiNTS, 16 for SegResNet.
        embedding: columns of the class embeddings; 512 for CLIP ViT-B/32.
        encoding: "text": fixed embeddings of class names; "learned": a table that trains, for comparison.
        controller: "shared", as published; "per_class", which classes that come later leave as it is.
        crop: voxels of a patch.
        patches: drawn from one volume at a time.
        window: Hounsfield units that become 0 and 1.
        spacing: mm of a voxel.
        foreground: patches around a labelled voxel for every one around background.
        per_slice: take Dice slice by slice as the authors' code did.
        lr, weight_decay: of AdamW.
        epochs, warmup: of the schedule, stepped once an epoch.
    """

    classes: tuple[str, ...] = NAMES
    trunk: Trunk = "swin_unetr"
    width: int = 48
    embedding: int = 512
    encoding: Encoding = "text"
    controller: Controller = "shared"
    crop: tuple[int, int, int] = (96, 96, 96)
    patches: int = 4
    window: tuple[float, float] = (-175.0, 250.0)
    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    foreground: float = 2.0
    per_slice: bool = False
    lr: float = 1e-4
    weight_decay: float = 1e-5
    epochs: int = 2000
    warmup: int = 100

    @property
    def contract(self) -> VolumeContract:
        """The volumes that the network expects."""
        return VolumeContract(("CT",), spacing=self.spacing, intensity=Window(*self.window), roi=self.crop)


PRESETS = {
    "paper": UniversalConfig(),
    "unet": UniversalConfig(trunk="unet3d", width=32),
    "tiny": UniversalConfig(
        trunk="segresnet", width=16, crop=(32, 32, 32), patches=2, lr=3e-3, epochs=40, warmup=4, spacing=(3.0, 3.0, 3.0)
    ),
}


def build(config: UniversalConfig, embeddings: Tensor | None = None) -> LanguageDriven:
    """The network with fresh weights.

    Args:
        embeddings: ``[len(config.classes), config.embedding]`` of the class names; needed for encoding="text".

    Raises:
        ConfigError: they are missing, or of another shape.
    """
    network = LanguageDriven(
        TRUNKS[config.trunk](config.width),
        classes=config.classes,
        embedding=config.embedding,
        encoding=config.encoding,
        controller=config.controller,
    )
    if config.encoding == "text":
        if embeddings is None or embeddings.shape != network.head.embedding.shape:
            given = "none" if embeddings is None else list(embeddings.shape)
            raise ConfigError(
                f"text embeddings: {given}, not {list(network.head.embedding.shape)}",
                remedy="make one a class with a text encoder, or use encoding = learned",
            )
        network.head.embedding.copy_(embeddings)
    return network


def partial_loss(
    logits: Tensor, target: Tensor, labelled: Tensor, *, per_slice: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Binary cross-entropy plus Dice, both averaged over the pairs of a case and a class that its dataset labels.

    What is not labelled has no part in it, and a gradient of exactly 0 (section 3.3, masked back-propagation). Dice is
    ``1 - 2 sum(pt) / (sum(p) + sum(t) + 1)``.

    Args:
        logits: ``[B, K, D, H, W]``.
        target: the same shape, 1 = class; any value where not labelled.
        labelled: ``[B, K]`` bool.
        per_slice: average Dice over slices along D.

    Returns:
        The sum, the cross-entropy and the Dice term; all 0 where nothing is labelled.

    >>> import torch
    >>> logits = torch.tensor([[[[[9.0, -9.0]]], [[[3.0, 3.0]]]]])
    >>> target = torch.tensor([[[[[1, 0]]], [[[255, 255]]]]])
    >>> [round(float(term), 4) for term in partial_loss(logits, target, torch.tensor([[True, False]]))]
    [0.3335, 0.0001, 0.3334]
    """
    chosen, truth = logits[labelled], target[labelled].to(logits.dtype)
    pairs = max(len(chosen), 1)
    entropy = F.binary_cross_entropy_with_logits(chosen, truth, reduction="none").flatten(1).mean(1).sum() / pairs
    start = 2 if per_slice else 1
    probability, truth = chosen.sigmoid().flatten(start), truth.flatten(start)
    overlap = 2 * (probability * truth).sum(-1) / (probability.sum(-1) + truth.sum(-1) + 1)
    dice = (1 - overlap).flatten(1).mean(1).sum() / pairs if per_slice else (1 - overlap).sum() / pairs
    return entropy + dice, entropy, dice


def with_pseudo_labels(
    target: Tensor, labelled: Tensor, old: Tensor, known: Sequence[int], *, threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Complete new cases by what the model before the extension says of its own classes (section 3.4).

    Args:
        target: ``[B, K, D, H, W]`` uint8.
        labelled: ``[B, K]`` bool.
        old: logits ``[B, len(known), D, H, W]`` of the old model.
        known: the old model's classes, as channels of `target`.
        threshold: of the probability.

    Returns:
        The target and what is labelled now: true labels stay, the others of the old classes are filled.
    """
    target, labelled = target.clone(), labelled.clone()
    guessed = (old.sigmoid() > threshold).to(target.dtype)
    for column, row in enumerate(known):
        unknown = ~labelled[:, row]
        target[unknown, row] = guessed[unknown, column]
        labelled[unknown, row] = True
    return target, labelled


def learning_rate(epoch: float, config: UniversalConfig) -> float:
    """In force during an epoch: the published trainer steps its schedule before it."""
    return linear_warmup_cosine(epoch + 1, total=config.epochs, warmup=config.warmup, lr=config.lr)
