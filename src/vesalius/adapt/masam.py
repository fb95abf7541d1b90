"""MA-SAM: Segment Anything on volumes, without prompts or with a box (Chen et al., MedIA 98:103310, 2024).

Five neighbouring slices are a batch for SAM's image encoder, which stays as it is; slice adapters in every block let
them know of each other (`vesalius.nn.masam`). Cite: doi:10.1016/j.media.2024.103310, arXiv 2309.08842.

Differences from the published code. Mixed precision in 16 bits without clipping became NaN for many who had one GPU:
here gradients are clipped, the learning rate follows the number of stacks a step, and bf16 is the mixed precision. The
weights of the best validation are kept, not the last ones. Slices of any size are resized into the frame with their
aspect kept. A box is that of the labels as they are after the augmentation, so that none can be turned wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vesalius.adapt.masam_augment import augment
from vesalius.adapt.sam_files import open_base, own_tensors, save_adapted, stack_segmentation
from vesalius.adapt.volume_training import VolumeTraining
from vesalius.data.masks import IGNORE
from vesalius.data.volumes.contract import VolumeContract
from vesalius.data.volumes.dataset import PatchView
from vesalius.data.volumes.intensity import Percentiles, Window
from vesalius.data.volumes.segmentation_layouts import BTCV
from vesalius.data.volumes.transforms import foreground_box
from vesalius.errors import WeightsError
from vesalius.files import output_folder
from vesalius.nn.masam import StackAdapters
from vesalius.published.card import Card
from vesalius.published.masam import CITATION, load_masam
from vesalius.tasks.stacks import Box, StackSegmentation, fit, places_of


@dataclass(frozen=True)
class MaSamConfig:
    """Hyper-parameters; the defaults are those of the published code for BTCV.

    Args:
        slices: of a stack.
        frame: rows and columns that slices are resized into.
        adapters: what is put into the encoder.
        stretch: intensities of a stack from its least to its greatest.
        stride: slices from one stack to the next at inference.
        lr: peak learning rate for steps of `per_images` stacks, with which it grows in proportion; 0 = as it is.
        weight_decay, betas: of AdamW.
        warmup: share of the steps (250 of 300 epochs of 80).
        horizon: where the learning rate would be 0, in trainings (400 of 300 epochs).  exponent: of its decay.
        dice: share of the Dice loss.
        foreground: probability that a stack is centred at a labelled slice, see `PatchView`.
        augmented: use the augmentations.
        mirror: of them, quarter turns and mirror images, which the published code has although some of its classes have
            sides.
        jitter: a box's edges move by up to this share of its sides; those of the published code are exact.
        grad_clip: largest norm of the gradient; 0 = as it is, as published.
        images: stacks a step.
        epochs: of as many stacks as there are training slices; 0 where `steps` count.  steps: of the optimiser.
    """

    slices: int = 5
    frame: tuple[int, int] = (512, 512)
    adapters: StackAdapters = field(default_factory=StackAdapters)
    stretch: bool = True
    stride: int = 1
    lr: float = 8e-4
    per_images: int = 24
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 250 / 24000
    horizon: float = 400 / 300
    exponent: float = 7.0
    dice: float = 0.8
    foreground: float = 0.0
    augmented: bool = True
    mirror: bool = True
    jitter: float = 0.0
    grad_clip: float = 1.0
    images: int = 24
    epochs: int = 300
    steps: int = 0

    def scaled(self, images: int) -> MaSamConfig:
        """With the learning rate for steps of `images` stacks.

        >>> MaSamConfig().scaled(6).lr
        0.0002
        """
        return replace(self, per_images=0, lr=self.lr * images / self.per_images) if self.per_images else self


PRESETS = {
    "paper": MaSamConfig(),
    "tiny": MaSamConfig(
        frame=(128, 128),
        adapters=StackAdapters(width=48, rank=8),
        lr=1e-3,
        per_images=0,
        warmup=0.1,
        horizon=1.0,
        exponent=0.9,
        foreground=0.5,
        augmented=False,  # in some hundred steps the augmentations cost more than they give
        mirror=False,
        images=3,
        epochs=0,
        steps=300,
    ),
}
"""Preset -> hyper-parameters."""
BTCV_CLASSES = (*BTCV[:11], "adrenal gland")
"""Of the published network for abdominal CT, to which both adrenal glands are one."""
ASSUMED = (
    "The file does not say which classes it has, how its slices lay, or in which window: those of BTCV, from below, "
    "rows to the back and columns to the left, are assumed"
)
CT, MR = Window(-200, 250), Percentiles(0, 99, nonzero=False)
"""Intensities of the published experiments: Hounsfield units of BTCV, and percentiles of prostate MR."""


def stack_contract(channels: Iterable[str], config: MaSamConfig, *, ct: bool) -> VolumeContract:
    """Volumes as MA-SAM reads them: axial slices from below, on their own voxels.

    Args:
        channels: one, which is repeated, or as many as the base has.
        ct: Hounsfield units, in the window of BTCV; otherwise up to the 99th percentile.
    """
    return VolumeContract(
        tuple(channels), orientation="SPL", intensity=CT if ct else MR, roi=(config.slices, *config.frame)
    )


def warmup_poly(
    step: float, *, total: float, warmup: float, lr: float, horizon: float = 400 / 300, exponent: float = 7.0
) -> float:
    """Linear to `lr` at the last of `warmup` steps, then ``lr (1 - (step - warmup) / (horizon total)) ** exponent``.

    >>> [round(warmup_poly(step, total=10, warmup=2, lr=1.0, horizon=1.0, exponent=1.0), 3) for step in (0, 1, 2, 7)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * max(1 - (step - warmup) / (horizon * total), 0.0) ** exponent


class StackView:
    """A stack of slices by chance, augmented, and a box around what is labelled.

    Args:
        task: how stacks are read.
        contract: the volumes' intensities.
        config: where stacks lie and how they are augmented.
    """

    def __init__(self, task: StackSegmentation, contract: VolumeContract, config: MaSamConfig):
        self.slices, self.frame, self.boxes, self.read = task.slices, task.frame, task.boxes, task.read
        self.contract, self.config = contract, config
        near = 1.0 if task.boxes else config.foreground  # what has a box is in the box's slices
        self._centre = PatchView(replace(contract, roi=(1, 1, 1)), foreground=near)
        self._shadows: dict[int, Tensor] = {}

    def __call__(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """``image [D, C, *frame]`` float32, ``mask [D, *frame]`` uint8; prompted, too, ``boxes [D, 4]``."""
        centre = self._centre.corner(sample, generator)[0]
        places = places_of(centre, self.slices).clamp(0, sample["image"].shape[1] - 1)
        image = self.read(self.contract.normalise(sample["image"][:, places], sample["limits"]))
        labels = fit(sample["mask"][places], self.frame)
        if self.boxes:
            labels = torch.cat([labels, fit(self._shadow(sample), self.frame)[None]])
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        if self.config.augmented:
            flat = image.clamp(0, 1).flatten(0, 1).numpy()
            turned, masks = augment(flat, labels.numpy(), rng, mirror=self.config.mirror)
            image, labels = torch.from_numpy(turned).view_as(image), torch.from_numpy(masks)
        stack = {"image": image, "mask": labels[: self.slices]}
        if self.boxes:
            box = flat_box(labels[-1], jitter=self.config.jitter, rng=rng)
            stack["boxes"] = box.expand(self.slices, 4)
        return stack

    def _shadow(self, sample: dict[str, Any]) -> Tensor:
        """The label as seen along the slices ``[H, W]``, found once a volume: that of the whole lesion."""
        row = int(sample["row"])
        if row not in self._shadows:
            mask = sample["mask"]
            self._shadows[row] = ((mask > 0) & (mask != IGNORE)).any(0).to(torch.uint8)
        return self._shadows[row]


def flat_box(mask: Tensor, *, jitter: float = 0.0, rng: np.random.Generator | None = None) -> Tensor:
    """(x0, y0, x1, y1) of the labelled pixels of a mask ``[H, W]``, all of it where there are none.

    Args:
        jitter: each edge moves by up to this share of the box's side, by `rng`.

    >>> mask = torch.zeros(6, 8, dtype=torch.uint8)
    >>> mask[2:4, 3:7] = 1
    >>> flat_box(mask).tolist()
    [3.0, 2.0, 6.0, 3.0]
    """
    rows, columns = foreground_box(((mask > 0) & (mask != IGNORE)).numpy()[None])[1:]
    box = np.array([columns.start, rows.start, columns.stop - 1, rows.stop - 1], np.float32)
    if jitter and rng is not None:
        sides = np.tile(box[2:] - box[:2], 2)
        limit = np.tile(np.array(mask.shape[::-1], np.float32) - 1, 2)
        box = np.clip(box + sides * rng.uniform(-jitter, jitter, 4), 0, limit).astype(np.float32)
    return torch.from_numpy(box)


def whole_box(mask: Tensor) -> Box | None:
    """(x0, y0, z0, x1, y1, z1) of the labelled voxels of a mask ``[D, H, W]``, None where there are none."""
    labelled = ((mask > 0) & (mask != IGNORE)).numpy()
    if not labelled.any():
        return None
    spans = foreground_box(labelled)[::-1]
    return [*(float(span.start) for span in spans), *(float(span.stop - 1) for span in spans)]


def import_published(
    path: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    classes: Sequence[str] = BTCV_CLASSES,
    frame: int = 512,
    boxes: bool = False,
) -> Card:
    """Make a run folder of the authors' file, which `evaluate` and `predict` take.

    Args:
        path: the authors' file.
        base: SAM's file that it was trained on.
        out: the run folder; the base stays where it is.
        classes: their names, in the file's order; by default those of the published network for BTCV.
        frame: pixels of the side that it was trained with.
        boxes: it is a prompted one.

    Raises:
        WeightsError: the files do not load, or have another number of classes.
    """
    network = load_masam(path, base, image_size=frame)
    if network.classes != len(classes):
        raise WeightsError(f"has {network.classes} classes, not {len(classes)}", path=path, remedy="name each of them")
    sam, card, found = open_base(str(base), beside=Path(out))
    own, made = own_tensors(sam), cast(Card, network.card)
    task = stack_segmentation(
        sam, {"adapters": asdict(network.adapters), "classes": classes, "frame": (frame, frame), "boxes": boxes}
    )
    task.encoder.freeze(boxes=boxes).load_state_dict(network.adapted_state(), strict=False)
    return save_adapted(
        task,
        output_folder(out),
        architecture={"adapters": asdict(network.adapters), **task.config},
        contract=made.contract,
        card=replace(card, licence=made.licence, notes=(*made.notes, ASSUMED)),
        base=found,
        own=own,
        system="masam",
        citation=CITATION,
        source=made.source,
    )


class MaSamAdaptation(VolumeTraining):
    """How a batch of stacks becomes a loss, and whole volumes a score.

    Args:
        task: on a network that is frozen as MA-SAM is (`MaSam.freeze`).
        contract: the volumes that it reads.
        config: hyper-parameters, `scaled` for the stacks a step.
    """

    task: StackSegmentation

    def __init__(self, task: StackSegmentation, contract: VolumeContract, config: MaSamConfig):
        super().__init__(task, contract, config)
        self.stack = StackView(task, contract, config)

    def view(self, sample: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """A stack of a training volume, see `StackView`."""
        return self.stack(sample, generator)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The task's loss."""
        return self.task.loss(self.task(batch["image"], batch.get("boxes")), batch)

    def validation_step(self, batch: list[dict[str, Any]], batch_idx: int) -> None:
        """Dice of each volume, each slice seen once; prompted, with the box around its label."""
        for case in batch:
            mask = case["mask"]
            box = whole_box(mask.cpu()) if self.task.boxes else None
            if self.task.boxes and box is None:
                continue  # nobody would draw a box around nothing
            self.score(torch.from_numpy(self.task.label(case["image"], box=box, stride=self.task.slices)), mask)

    def configure_optimizers(self) -> Any:
        """AdamW for what trains, with `warmup_poly` over `total_steps` steps."""
        c = self.config

        def factor(step: int) -> float:
            total = self.total_steps
            options = {"warmup": c.warmup * total, "horizon": c.horizon, "exponent": c.exponent}
            return warmup_poly(step, total=total, lr=1.0, **options)

        return self.adamw(factor, betas=c.betas)
