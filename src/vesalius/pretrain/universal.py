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
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from monai.inferers import sliding_window_inference
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from vesalius.data.abdomen import TEMPLATE
from vesalius.data.class_tables import ClassTable, Sides
from vesalius.data.masks import IGNORE
from vesalius.data.sampling import organ_weights
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.dataset import PatchView, VolumeDataset, WholeView
from vesalius.data.volumes.intensity import Window
from vesalius.errors import ConfigError
from vesalius.nn.class_text import HASHED, class_embeddings
from vesalius.nn.dints import DiNTS, DiNTSConfig
from vesalius.nn.language_head import Controller, Encoding, LanguageDriven
from vesalius.nn.optim import adamw, linear_warmup_cosine
from vesalius.nn.swin_unetr import SwinConfig, SwinUNETR
from vesalius.nn.unet3d import NestedUNet3D, NestedUNet3DConfig, SegResNet, SegResNetConfig, UNet3D, UNet3DConfig
from vesalius.nn.volumes import VolumeTrunk
from vesalius.pretrain.volumes import Plan, VolumePretraining
from vesalius.published.networks import architecture
from vesalius.tasks.volume_dice import VolumeDice

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
        trunk, width: a name of `TRUNKS`, and channels of its finest level; as published 48 for Swin UNETR, 32 for the
            U-Net, UNet++ and DiNTS, 16 for SegResNet.
        encoding: "text": fixed embeddings of class names; "learned": a table that trains, for comparison.
        controller: "shared", as published; "per_class", which classes that come later leave as it is.
        volumes: a step; published: 1 on each of 8 GPUs.
        crop: voxels of a patch.
        patches: drawn from one volume at a time.
        even_datasets: draw the datasets equally often, then a case within; else cases as they are.
        window: Hounsfield units that become 0 and 1.
        spacing: mm of a voxel.
        foreground: patches around a labelled voxel for every one around background.
        per_slice: take Dice slice by slice as the authors' code did.
        lr, weight_decay: of AdamW.
        epochs, warmup: of the schedule, stepped once an epoch.
        steps: of the optimiser, over which the schedule is stretched; 0 where the epochs count.
    """

    trunk: Trunk = "swin_unetr"
    width: int = 48
    encoding: Encoding = "text"
    controller: Controller = "shared"
    volumes: int = 8
    crop: tuple[int, int, int] = (96, 96, 96)
    patches: int = 4
    even_datasets: bool = False
    window: tuple[float, float] = (-175.0, 250.0)
    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    foreground: float = 2.0
    per_slice: bool = False
    lr: float = 1e-4
    weight_decay: float = 1e-5
    epochs: int = 2000
    warmup: int = 100
    steps: int = 0

    @property
    def contract(self) -> VolumeContract:
        """The volumes that the network expects."""
        return VolumeContract(("CT",), spacing=self.spacing, intensity=Window(*self.window), roi=self.crop)


PRESETS = {
    "paper": UniversalConfig(),
    "unet": UniversalConfig(trunk="unet3d", width=32),
    "tiny": UniversalConfig(
        trunk="segresnet",
        width=16,
        volumes=2,
        crop=(32, 32, 32),
        patches=2,
        spacing=(3.0, 3.0, 3.0),
        lr=1e-3,  # at 3e-3 controllers of single classes die
        epochs=40,
        warmup=4,
        steps=400,
    ),
}


def build(config: UniversalConfig, classes: Sequence[str], embeddings: Tensor | None = None) -> LanguageDriven:
    """The network with fresh weights.

    Args:
        classes: names of the outputs.
        embeddings: ``[K, E]`` of their names; needed for encoding="text".

    Raises:
        ConfigError: they are missing, or not one a class.
    """
    text = config.encoding == "text"
    if text and (embeddings is None or len(embeddings) != len(classes)):
        given = "none" if embeddings is None else len(embeddings)
        raise ConfigError(
            f"text embeddings: {given}, for {len(classes)} classes",
            remedy="make one a class with a text encoder, or use encoding = learned",
        )
    width = {} if embeddings is None else {"embedding": embeddings.shape[1]}
    network = LanguageDriven(
        TRUNKS[config.trunk](config.width),
        classes=classes,
        encoding=config.encoding,
        controller=config.controller,
        **(width if text else {}),
    )
    if text and embeddings is not None:
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


@torch.no_grad()
def score_case(
    network: LanguageDriven, case: dict[str, Any], dice: VolumeDice, *, members: Tensor, roi: tuple[int, int, int]
) -> None:
    """Take the Dice of a whole volume into `dice`, of those classes that it is labelled for.

    Args:
        network: whose classes begin with those of `members`.
        case: of `Universal.val_view`.
        members: of the class table.
        roi: voxels of a window.
    """
    rows = case["labelled"].nonzero().flatten().tolist()
    if not rows:
        return
    image, mask = (case[name].to(members.device) for name in ("image", "mask"))
    names = [network.classes[row] for row in rows]
    scores = sliding_window_inference(image[None], roi, 1, network, mode="gaussian", classes=names)
    dice.update((scores[0] > 0) & (mask != IGNORE), members[:, rows][mask.long()].movedim(-1, 0), rows)


def _share(labelled: Tensor) -> Tensor | float:
    """Weight of a process's mean over its labelled pairs, with which the mean over processes is that over all pairs."""
    if not torch.distributed.is_initialized():
        return 1.0
    pairs = labelled.sum().float()
    total = pairs.clone()
    torch.distributed.all_reduce(total)
    return pairs * torch.distributed.get_world_size() / total.clamp(min=1)


def learning_rate(epoch: float, config: UniversalConfig) -> float:
    """In force during an epoch: the published trainer steps its schedule before it."""
    return linear_warmup_cosine(epoch + 1, total=config.epochs, warmup=config.warmup, lr=config.lr)


class Universal(VolumePretraining):
    """Training: a network for all classes, and how patches of partially labelled volumes become its loss.

    Args:
        config: hyper-parameters.
        table: the classes, and what datasets call them.
        text: where the class embeddings come from, see `class_embeddings`.
        network: that goes on training, in place of a fresh one.
    """

    SYSTEM = SYSTEM
    PART = "segmentation"
    LEARNS_FROM = "segmentation"
    monitor = "val/dice"
    network: LanguageDriven
    members: Tensor

    def __init__(
        self,
        config: UniversalConfig = PRESETS["paper"],
        *,
        table: ClassTable = TEMPLATE,
        text: str | None = None,
        network: LanguageDriven | None = None,
    ):
        super().__init__()
        self.config, self.contract, self.table = config, config.contract, table
        self.plan = Plan(images=config.volumes, steps=config.steps, epochs=0 if config.steps else config.epochs)
        self.text = "learned"
        if network is None:
            vectors = None
            if config.encoding == "text":
                vectors, self.text = class_embeddings(text or HASHED, table.names, table.prompts)
            network = build(config, table.names, vectors)
        self.network = network
        self.notes = (f"Class embeddings: {self.text}",)
        self.register_buffer("members", torch.from_numpy(table.members), persistent=False)
        square = config.crop[0] == config.crop[1]
        self.patch = PatchView(
            self.contract,
            foreground=config.foreground / (1 + config.foreground),
            rot90=0.1 if square else 0.0,
            shift=0.1,
        )
        self.whole = WholeView(self.contract)
        self._dice = VolumeDice(len(table.names))

    @classmethod
    def create(cls, config: Any, *, classes: str | Path | None = None, text: str | None = None) -> Universal:
        """With the classes of a ``classes.yaml``, and the embeddings of their names."""
        module = cls(config, table=TEMPLATE if classes is None else ClassTable.load(classes), text=text)
        Console(stderr=True, soft_wrap=True).print(*module.notes, highlight=False, markup=False)
        return module

    @property
    def architecture(self) -> dict[str, Any]:
        """Trunk and head."""
        head = self.network.head
        config = {
            "encoder": architecture(self.network.encoder),
            "classes": list(self.network.classes),
            "embedding": head.embedding.shape[1],
            "encoding": head.encoding,
            "controller": head.controller_kind,
        }
        return {"name": "language_driven", "config": config}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.network.classes

    @property
    def extra(self) -> dict[str, Any]:
        """The class table, by which predictions are cleaned and datasets read, and where the embeddings are from."""
        return {"classes": self.table.to_dict(), "text": self.text}

    def samples(self, table: pl.DataFrame, cache: Path, *, workers: int = 0) -> VolumeDataset:
        """Volumes without the empty border, masks by the class table's names, left and right told apart."""
        named, left_out = self.table.translate(table)
        for dataset, names in left_out.items():
            said = f"{dataset}: {', '.join(names)} not in the class table, left out"
            Console(stderr=True, soft_wrap=True).print(said, highlight=False, markup=False)
        return VolumeDataset(
            named,
            self.contract,
            task="segmentation",
            classes=self.table.sources,
            cache=cache,
            crop=True,
            relabel=Sides(self.table),
            workers=workers,
        )

    def sampling_weights(self, table: pl.DataFrame) -> np.ndarray | None:
        """Every dataset equally often where the configuration says so."""
        return organ_weights(table["dataset"].to_list()) if self.config.even_datasets else None

    def view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Patches of one volume: image ``[P, 1, *roi]``, mask ``[P, *roi]``, labelled ``[P, K]``."""
        patches = [self.patch(sample, generator) for _ in range(self.config.patches)]
        images, masks = (torch.stack([patch[name] for patch in patches]) for name in ("image", "mask"))
        return {"image": images, "mask": masks, "labelled": self._labelled(sample).expand(len(patches), -1)}

    def val_view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """A whole volume: image ``[1, D, H, W]``, mask ``[D, H, W]``, labelled ``[K]``."""
        seen = self.whole(sample)
        return {"image": seen["image"], "mask": seen["mask"], "labelled": self._labelled(sample), "whole": True}

    def collate(self, items: list[dict[str, Any]]) -> Any:
        """The patches of all volumes as one batch; whole volumes, of any sizes, as a list."""
        if "whole" in items[0]:
            return items
        return {name: value.flatten(0, 1) for name, value in default_collate(items).items()}

    def _labelled(self, sample: dict[str, Any]) -> Tensor:
        annotated = zip(self.table.sources, sample["annotated"].tolist(), strict=True)
        return torch.from_numpy(self.table.labelled(name for name, is_one in annotated if is_one))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The `partial_loss` of a batch of patches: only classes that some case is labelled for are computed."""
        asked = batch["labelled"].any(0).nonzero().flatten().tolist()
        if torch.distributed.is_initialized():  # gradients are joined: every process must use the same weights
            asked = list(range(len(self.classes)))
        target = self.members[:, asked][batch["mask"].long()].movedim(-1, 1)
        return self.terms(batch, target, batch["labelled"][:, asked], asked)

    def terms(self, batch: dict[str, Tensor], target: Tensor, labelled: Tensor, rows: list[int]) -> dict[str, Tensor]:
        """The loss and its terms.

        Args:
            batch: image ``[B, 1, D, H, W]`` and mask ``[B, D, H, W]``, of which only what is ignored counts here.
            target, labelled: of `partial_loss`, for the classes in `rows`.
        """
        logits = self.network(batch["image"], [self.classes[row] for row in rows])
        # Voxels that nobody judged: there the network is right whatever it says, without a gradient.
        ignored = (batch["mask"] == IGNORE).unsqueeze(1)
        logits, target = torch.where(ignored, -1e4, logits), target.masked_fill(ignored, 0)
        terms = torch.stack(partial_loss(logits, target, labelled, per_slice=self.config.per_slice))
        total, entropy, dice = terms * _share(labelled)
        return {"loss": total, "cross_entropy": entropy, "dice_loss": dice}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        terms = self.loss(batch)
        self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=len(batch["image"]))
        return terms["loss"]

    def on_validation_epoch_start(self) -> None:
        """Forget the validation before."""
        self._dice.reset()

    def validation_step(self, batch: list[dict[str, Any]], batch_idx: int) -> None:
        """Dice of the classes that each volume is labelled for, predicted in windows."""
        for case in batch:
            score_case(self.network, case, self._dice, members=self.members, roi=self.contract.roi)

    def on_validation_epoch_end(self) -> None:
        """Log the mean over the classes that some case is labelled for, and each of them."""
        self.log_dict({f"val/{name}": score for name, score in self._dice.named(self.classes).items()})

    def configure_optimizers(self) -> Any:
        """AdamW by `learning_rate`, whose epochs are stretched to `total_steps`; biases and norms do not decay."""
        c = self.config

        def schedule(step: int) -> float:
            return learning_rate(step * c.epochs // self.total_steps, c)

        return adamw(self, lr=c.lr, schedule=schedule, weight_decay=c.weight_decay)
