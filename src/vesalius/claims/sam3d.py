"""3DSAM-adapter's claim: does pre-training in 2-D carry over to volumes, and does the click select?

A small SAM learns random 2-D shapes. Part A adapts it to volumes with one ellipsoid, beside the same adapters on a
random trunk and beside the trunk without adapters. In part B two ellipsoids look alike, and the one that is clicked on
is meant: beside the published clicks stand no click, and the options that the published network lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vesalius.adapt.sam3d import PRESETS, Sam3DAdaptation, prompted_contract, training_clicks
from vesalius.adapt.sam_shapes import pretrain_shapes
from vesalius.claims.page import short
from vesalius.claims.sam3d_volumes import SIDE, Lesions, lesions
from vesalius.claims.verdicts import Comparison, Metric
from vesalius.data.datasets import generator, mixed_seed
from vesalius.errors import ConfigError
from vesalius.images import Image, overlay
from vesalius.nn.sam import SAM_PRESETS
from vesalius.nn.sam3d import Sam3D
from vesalius.nn.sam_decoder import Sam
from vesalius.published import sam as published
from vesalius.published.card import Card
from vesalius.published.load import load_weights, save_weights
from vesalius.report.html import Block, Figure, Heading, Table
from vesalius.tasks.prompted_volumes import PromptedVolumeSegmentation, draw_clicks
from vesalius.training.short import Tick

SAM = "sam_tiny"
UNSEEN = 50
"""Added to a seed: volumes of smaller numbers were looked at when the settings were chosen."""


@dataclass(frozen=True)
class ClickBudget:
    """What every arm gets alike.

    Args:
        trunk_steps: of pre-training on random shapes, eight pictures a step.
        steps: of an adaptation to one ellipsoid.  click_steps: to two.
        batch: volumes a step, new ones each time.
        test: volumes that are scored.
    """

    trunk_steps: int = 300
    steps: int = 150
    click_steps: int = 200
    batch: int = 2
    test: int = 24

    def with_steps(self, steps: int) -> ClickBudget:
        """The same with other steps of pre-training."""
        return replace(self, trunk_steps=steps)

    def for_table(self) -> ClickBudget:
        """Refused: what is meant by a click must be known.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "the claim of sam3d has volumes of its own and takes no table",
            remedy="train on yours with vesalius adapt sam3d",
        )

    def work(self, arm: str) -> int:
        """What an arm counts on the progress bar, in steps."""
        return self.trunk_steps if arm == TRUNK else self.click_steps if arm in ALIKE else self.steps


TRUNK = "trunk"
FIRST = (TRUNK,)
ALIKE: dict[str, dict[str, Any]] = {
    "click": {},
    "varied": {},
    "no_click": {"prompted": False},
    "labels": {"labels": True},
    "positions": {"positions": True},
    "both": {"labels": True, "positions": True},
}
"""Arms of part B -> what their network has that the published one has not."""
VARIED = ("varied", "labels", "positions", "both")
"""Arms that train with clicks of varying number, since one click is what they are scored with."""
TITLE = "3DSAM-adapter: from pictures to volumes, by a click"
BUDGET = ClickBudget()
ARMS = {
    TRUNK: "the SAM itself, trained on random 2-D shapes",
    "pretrained": "one ellipsoid: adapted as published",
    "random": "one ellipsoid: the same on a random trunk, frozen alike",
    "no_adapters": "one ellipsoid: without the convolutional adapters; norms, third tables, embeddings and necks train",
    "click": "two alike: clicks as published, without labels and position codes",
    "varied": "two alike: the same, but trained with clicks of varying number",
    "no_click": "two alike: the automatic variant, which is not told",
    "labels": "two alike: clicks that say whether they hit",
    "positions": "two alike: clicks that say where they are",
    "both": "two alike: clicks that say where they are and whether they hit",
}
METRICS = {
    "shapes_loss": Metric("loss on shapes", higher=False),
    "dice": Metric("Dice, one ellipsoid"),
    "clicked": Metric("Dice with the clicked one"),
    "other": Metric("Dice with the other one", higher=False),
}
METHOD = (
    f"The trunk is a SAM of four blocks of 96 channels, trained on random overlapping 2-D shapes. Volumes of {SIDE} "
    "voxels a side hold bright ellipsoids in noise, one in part A, two of the same radii and brightness in part B, "
    "where the target is the first. Network, freezing, loss, clipping and clicks are the published ones: ten in the "
    "target and twenty anywhere in training, one in the target to score. Clicks that say more (where they are, whether "
    "they hit) train in varying number, from one to ten in the target and up to twenty anywhere; *varied* tells what "
    "that alone is worth. AdamW 2e-3, falling linearly; new volumes at each step, the same for all arms of a seed. In "
    "part B each test volume is clicked on twice, once on either ellipsoid. Who labels both whatever is clicked gets "
    "two thirds; who always answers with one of them, a half."
)
COMPARISONS = (
    Comparison("pre-training", "pre-training in 2-D carries the adaptation", "dice", "pretrained", "random"),
    Comparison("adapters", "the convolutional adapters help", "dice", "pretrained", "no_adapters"),
    Comparison("click", "the published click selects among look-alikes", "clicked", "click", "no_click"),
    *(
        Comparison(name, f"clicks that say {what} select better", "clicked", name, "varied", control=True)
        for name, what in (
            ("labels", "whether they hit"),
            ("positions", "where they are"),
            ("both", "where they are and whether they hit"),
        )
    ),
)


@dataclass(frozen=True)
class Clicked:
    """The volumes of one seed, and where the seed's SAM is."""

    seed: int
    budget: ClickBudget
    trunk: Path

    def batch(self, step: int, count: int) -> Lesions:
        """The training volumes of a step."""
        return lesions(self.budget.batch, seed=self._seed(10 + step), count=count)

    @cached_property
    def one(self) -> Lesions:
        """Test volumes with one ellipsoid."""
        return lesions(self.budget.test, seed=self._seed(0))

    @cached_property
    def two(self) -> Lesions:
        """Test volumes with two that look alike."""
        return lesions(self.budget.test, seed=self._seed(1), count=2)

    def _seed(self, number: int) -> int:
        return 10_000 * (self.seed + UNSEEN) + number


@lru_cache(maxsize=1)
def load_samples(seed: int, budget: ClickBudget, *, data: str | None, folder: Path) -> Clicked:
    """The volumes of a seed; `folder` holds the seed's SAM."""
    return Clicked(seed, budget, folder / "trunk")


def run_arm(
    arm: str, seed: int, samples: Clicked, budget: ClickBudget, tick: Tick
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train the SAM, or adapt it and score it.

    Returns:
        ``dice`` (part A), or ``clicked`` and ``other`` with ``found [6, 2, S, S]``, projections of what was found in
        six volumes for a click on either ellipsoid (part B).
    """
    torch.manual_seed(mixed_seed(seed + UNSEEN, 0))
    sam = Sam(SAM_PRESETS[SAM])
    if arm == TRUNK:
        losses = pretrain_shapes(sam, steps=budget.trunk_steps, seed=seed + UNSEEN, progress=False)
        contract = published.contract(sam.config.image_size, 3)
        what = {"name": "sam", "config": asdict(sam.config)}
        save_weights(sam, samples.trunk, Card("sam", "promptable", what, contract, source="random shapes"))
        return {"shapes_loss": fmean(losses[-20:])}, {}
    if arm != "random":
        sam = cast(Sam, load_weights(samples.trunk))
    count = 2 if arm in ALIKE else 1
    torch.manual_seed(mixed_seed(seed + UNSEEN, 1))  # what is fresh is the same on either trunk
    module = adaptation(sam, ALIKE.get(arm, {"adapters": arm != "no_adapters"}), vary=arm in VARIED)
    train(module, samples, steps=budget.work(arm), count=count, tick=tick)
    if count == 1:
        return {"dice": fmean(one for one, _ in score(module, samples.one, seed)[0])}, {}
    scores, found = score(module, samples.two, seed)
    return {"clicked": fmean(hit for hit, _ in scores), "other": fmean(miss for _, miss in scores)}, {"found": found}


def adaptation(sam: Sam, changes: Mapping[str, Any], *, vary: bool = False) -> Sam3DAdaptation:
    """The published training on a SAM, with changes of the network, and perhaps with clicks of varying number."""
    config = PRESETS["tiny"]
    config = replace(config, vary=vary, network=replace(config.network, **changes))
    task = PromptedVolumeSegmentation(Sam3D.on(sam.image_encoder, config.network), ("lesion",))
    return Sam3DAdaptation(task, prompted_contract(["image"], config), config)


def train(module: Sam3DAdaptation, samples: Clicked, *, steps: int, count: int, tick: Tick) -> None:
    """Train on new volumes each step; the first ellipsoid is meant."""
    module.total_steps = steps
    plan = module.configure_optimizers()
    optimizer, scheduler = plan["optimizer"], plan["lr_scheduler"]["scheduler"]
    for step in range(steps):
        drawn, chance = samples.batch(step, count), generator(samples.seed, step)
        batch = {"image": drawn.image, "mask": drawn.mask[:, 0].long()}
        clicks = [training_clicks(mask, module.config, chance) for mask in batch["mask"]]
        if module.task.prompted:
            batch["points"], batch["labels"] = (torch.stack(part) for part in zip(*clicks, strict=True))
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        module.clip(module.config.grad_clip)
        optimizer.step()
        scheduler.step()
        tick(step + 1)


@torch.inference_mode()
def score(module: Sam3DAdaptation, test: Lesions, seed: int) -> tuple[list[tuple[float, float]], Tensor]:
    """A click on each ellipsoid of each volume: Dice with it and with the other one, and projections of six volumes."""
    task, scores, pictures = module.task.eval(), [], []
    for number, (image, masks) in enumerate(zip(test.image, test.mask, strict=True)):
        found = []
        for which, mask in enumerate(masks):
            point = draw_clicks(mask, 1, generator(seed, 1000 * which + number))
            probability = task.probability(image, point if task.prompted else None, roi=module.contract.roi)
            found.append(probability > 0.5)
            scores.append((dice(found[-1], mask), dice(found[-1], masks[1 - which]) if len(masks) > 1 else 0.0))
        pictures.append(torch.stack(found).any(1))
    return scores, torch.stack(pictures[:6])


def dice(a: Tensor, b: Tensor) -> float:
    """Of two bool masks; 1 where both are empty."""
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def details(results: Mapping[str, Any], out: Path) -> list[Block]:
    """What the arms found among look-alikes, and how often a click was told from the other."""
    first = results["seeds"][0]
    test = Clicked(first, ClickBudget(**results["setup"]["budget"]), out).two
    rows = [
        [short(arm), *(round(results["summary"][arm][name]["mean"], 3) for name in ("clicked", "other"))]
        for arm in ALIKE
        if arm in results["summary"]
    ]
    blocks: list[Block] = [
        Heading("Two that look alike"),
        Table(["arm", "Dice with the clicked one", "Dice with the other"], rows, "One click, on either ellipsoid."),
    ]
    for arm in ALIKE:
        file = out / f"seed{first}" / f"{arm}.npz"
        if file.is_file():
            with np.load(file) as kept:
                blocks.append(
                    Figure(
                        _sheet(test, kept["found"]),
                        f"{ARMS[arm]}. Orange: what was found, in projection; "
                        "above for a click on the first ellipsoid, below on the second (blue outline).",
                    )
                )
    return blocks


def _sheet(test: Lesions, found: np.ndarray, *, zoom: int = 4) -> np.ndarray:
    """Projections of volumes with what was found for either click, ``[H, W, 3]`` uint8."""
    rows = []
    for which in range(2):
        cells = []
        for number, masks in enumerate(found):
            grey = np.asarray(test.image[number, 0].amax(0))
            grey = (255 * ((grey - grey.min()) / np.ptp(grey))).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
            meant = np.asarray(test.mask[number, which].any(0)).repeat(zoom, 0).repeat(zoom, 1)
            mask = masks[which].astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
            picture = overlay(Image(grey[None], ("gray",)), mask, classes=("found",))
            edge = meant & ~_inner(meant)
            picture[edge] = (86, 180, 233)
            cells.append(picture)
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows)


def _inner(mask: np.ndarray) -> np.ndarray:
    """A mask without its outermost pixels."""
    padded = np.pad(mask, 1)
    sides: Sequence[np.ndarray] = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return mask & np.logical_and.reduce(sides)
