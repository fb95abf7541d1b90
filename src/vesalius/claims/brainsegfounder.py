"""BrainSegFounder's claim: with few labels, is an encoder pre-trained in two stages better than in one, or in none?

Small (whole phantom brains of 64 x 32 x 32 voxels, 8 channels, one block a stage) and at equal steps of pre-training:
all of them on healthy brains, all on patients, half and half, or none. The authors' own folds give the second stage a
gain of .0005 Dice, so beside the paper's comparison stand those that ask for more: no pre-training, the time of
pre-training spent on labels, and no network at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vesalius.claims.brains import CHANNELS, SIZE, TEST_FROM, Brains, brains, person
from vesalius.claims.page import restorations
from vesalius.claims.verdicts import Comparison, Metric
from vesalius.claims.volume_readouts import averages, encoder_maps, fine_tuned_dice, ridge_dice
from vesalius.data.datasets import generator, mixed_seed
from vesalius.errors import ConfigError
from vesalius.nn.swin_unetr import SwinConfig, SwinUNETR
from vesalius.pretrain.brainsegfounder import BrainSegFounder, BrainSegFounderConfig, draw_boxes, views
from vesalius.report.html import Block, Figure, Heading, Table
from vesalius.training.short import Tick, pretrain

__all__ = ["ARMS", "BUDGET", "COMPARISONS", "FIRST", "METHOD", "METRICS", "TITLE", "details", "load_samples", "run_arm"]

PERCENT = (5, 20, 100)
"""Labelled patients of those that there are."""
STAGES: dict[str, tuple[str, ...]] = {
    "scratch": (),
    "stage_2": ("ill",),
    "stage_1": ("healthy",),
    "both": ("healthy", "ill"),
}
"""Arm -> the brains of its stages, which share its steps."""
LR, SECOND_LR, FINETUNE_LR = 1e-3, 3e-4, 1e-3
"""Of a first stage, of a second one that goes on from it, and of fine-tuning."""


@dataclass(frozen=True)
class BrainBudget:
    """What every arm gets alike.

    Args:
        steps, batch: of pre-training; `steps` are those of all stages together, `batch` counts crops.
        healthy, ill, test: brains; those of 5, 20 and 100 % of the `ill` ones have labels.
        finetune_steps, finetune_batch: of fine-tuning.
        longer: times as many steps of fine-tuning, in the arm that spends the time of pre-training on labels.
    """

    steps: int = 100
    batch: int = 8
    healthy: int = 64
    ill: int = 40
    test: int = 24
    finetune_steps: int = 50
    finetune_batch: int = 2
    longer: int = 5

    def with_steps(self, steps: int) -> BrainBudget:
        """The same with other steps of pre-training."""
        return replace(self, steps=steps)

    def for_table(self) -> BrainBudget:
        """Refused: the claim needs healthy brains, and patients of whom all are labelled.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "the claim of brainsegfounder has brains of its own and takes no table",
            remedy="use vesalius pretrain brainsegfounder and vesalius adapt full on your volumes",
        )

    def work(self, arm: str) -> int:
        """What an arm counts on the progress bar, in steps."""
        if arm in STAGES:
            return (self.steps if STAGES[arm] else 0) + len(PERCENT) * self.finetune_steps
        return self.longer * self.finetune_steps if arm == LONGER else 1

    def labelled(self, percent: int) -> int:
        """How many patients that is; two at least."""
        return max(2, round(self.ill * percent / 100))


CHECKS, AVERAGES, LONGER = "checks", "averages", "scratch_longer"
FIRST = (CHECKS,)
TITLE = "BrainSegFounder: one stage of pre-training, two, or none"
BUDGET = BrainBudget()
ARMS = {
    CHECKS: "what must hold exactly",
    AVERAGES: "no network: the image averaged to the grids of the encoder's maps",
    "scratch": "no pre-training",
    "stage_2": "stage 2 alone: all steps on unlabelled patients",
    "stage_1": "stage 1 alone: all steps on healthy brains",
    "both": "BrainSegFounder: half the steps on healthy brains, then half on patients",
    LONGER: f"no pre-training, {BUDGET.longer} times the steps of fine-tuning",
}
METRICS = {
    **{f"dice_{percent}": Metric(f"Dice, {percent} %") for percent in PERCENT},
    **{f"probe_{percent}": Metric(f"probe, {percent} %") for percent in PERCENT},
    "rotation_accuracy": Metric("turns recognised"),
    "contrastive": Metric("contrastive loss", higher=False),
    "reconstruction": Metric("restoration error", higher=False),
}
METHOD = (
    "All arms of a seed share brains, the network's start, the decoder's start, the labelled patients and the order in "
    "which they are seen. The encoder is the Swin transformer of Swin UNETR with 8 channels, one block a stage "
    "(1, 2, 4, 8 heads, windows of 4^3 tokens), on T1 and FLAIR. Pre-training: eight brains a step in two turned and "
    "corrupted views, so that the contrastive task has 15 candidates and its loss, where nothing is learned, is "
    f"ln 15 = {math.log(15):.3f}; AdamW {LR:g} ({SECOND_LR:g} in a stage that goes on from another), weight decay "
    "0.01, 10 % warm-up, half a cosine a stage. Healthy brains come from one scanner, patients from a noisier one with "
    "a stronger field; each patient has one glioma, and the whole tumour is segmented. Labelled are 5, 20 and 100 % of "
    "the patients of stage 2. Dice: the whole Swin UNETR is fine-tuned (AdamW "
    f"{FINETUNE_LR:g}, cross-entropy and soft Dice, mirrored by chance), as many steps at every number of labels. "
    "Probe: the Dice of a ridge regression on the frozen encoder's maps, whose strength and threshold come from "
    "labelled patients left out in turn. Turns, contrastive loss and restoration error are those of the test patients, "
    "corrupted alike in all arms. Sizes and numbers of steps were set by the time that a step takes; the learning "
    "rates are those of the tiny presets and were tuned for no arm."
)


def _at(
    percents: tuple[int, ...], name: str, statement: str, better: str, worse: str, *, control: bool = False
) -> list[Comparison]:
    """The comparison at some numbers of labels, fine-tuned and frozen."""
    measures = (("dice", "fine-tuned"), ("probe", "frozen"))
    return [
        Comparison(f"{name}, {percent} %, {how}", statement, f"{measure}_{percent}", better, worse, control=control)
        for (measure, how), percent in product(measures, percents)
    ]


COMPARISONS = (
    *_at(PERCENT, "pre-training", "both stages beat no pre-training", "both", "scratch"),
    *_at((5, 100), "second stage", "both stages beat stage 1 alone", "both", "stage_1"),
    *_at((5, 100), "first stage", "both stages beat stage 2 alone", "both", "stage_2"),
    Comparison(
        "labels", "both stages with 20 % of the labels beat none with all", "dice_20", "both", "scratch", "dice_100"
    ),
    *_at((5,), "stage 1 alone", "it beats no pre-training, too", "stage_1", "scratch", control=True),
    *_at((5,), "stage 2 alone", "it beats no pre-training, too", "stage_2", "scratch", control=True),
    Comparison(
        "time", "both stages beat longer fine-tuning without them", "dice_5", "both", "scratch_longer", control=True
    ),
    Comparison("network, 5 %", "the frozen encoder beats averages", "probe_5", "both", AVERAGES, control=True),
    Comparison("network, 100 %", "the frozen encoder beats averages", "probe_100", "both", AVERAGES, control=True),
)


def config(budget: BrainBudget, *, lr: float = LR) -> BrainSegFounderConfig:
    """The small network and its schedule."""
    return BrainSegFounderConfig(
        channels=CHANNELS,
        spacing=None,
        crop=SIZE,
        volumes=budget.batch,
        crops_per_volume=1,
        width=8,
        depths=(1, 1, 1, 1),
        heads=(1, 2, 4, 8),
        window=4,
        lr=lr,
        weight_decay=1e-2,
        steps=budget.steps,
        warmup=max(1, budget.steps // 10),
    )


def load_samples(seed: int, budget: BrainBudget, *, data: str | None, folder: Path) -> Brains:
    """The brains of a seed; `folder` keeps them."""
    return brains(seed, healthy=budget.healthy, ill=budget.ill, test=budget.test, folder=folder)


def run_arm(
    arm: str, seed: int, samples: Brains, budget: BrainBudget, tick: Tick
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Pre-train one arm and read it out, or look at what must hold exactly.

    Returns:
        metrics; pictures ``[n, H, W]`` by name (original, corrupted, restored) of an arm that was pre-trained.
    """
    torch.manual_seed(seed)
    module = BrainSegFounder(config(budget))
    if arm == CHECKS:
        return exact(module, samples.ill[: budget.batch], seed), {}
    if arm == AVERAGES:
        return probes(averages(samples.ill), averages(samples.test), samples, budget), {}
    if arm == LONGER:
        return {
            "dice_5": _tuned(module, 5, seed, samples, budget, tick, steps=budget.longer * budget.finetune_steps)
        }, {}
    done = train_stages(module, STAGES[arm], seed, samples, budget, tick)
    encoder = module.network.encoder
    metrics = probes(encoder_maps(encoder, samples.ill), encoder_maps(encoder, samples.test), samples, budget)
    for percent in PERCENT:
        metrics[f"dice_{percent}"] = _tuned(module, percent, seed, samples, budget, _after(done, tick))
        done += budget.finetune_steps
    return {**metrics, **tasks(module, samples.test, seed)}, picture(module, samples.test[:2], seed) if STAGES[
        arm
    ] else {}


def train_stages(
    module: BrainSegFounder, stages: tuple[str, ...], seed: int, samples: Brains, budget: BrainBudget, tick: Tick
) -> int:
    """Pre-train in place, stage after stage, in `budget.steps` steps altogether; how many were done."""
    done = 0
    for number, group in enumerate(stages):
        images: Tensor = getattr(samples, group)
        steps = budget.steps * (number + 1) // len(stages) - done
        module.config = replace(config(budget, lr=SECOND_LR if number else LR))
        pretrain(
            module,
            _corruption(module, images),
            n=len(images),
            steps=steps,
            batch=budget.batch,
            seed=mixed_seed(seed, number),
            tick=_after(done, tick),
        )
        done += steps
    return done


def _corruption(module: BrainSegFounder, images: Tensor) -> Callable[[Tensor, torch.Generator], dict[str, Tensor]]:
    return lambda index, chance: views(images[index], module.config, generator=chance)


def _after(done: int, tick: Tick) -> Tick:
    """Count steps on from those that were done."""
    return lambda step: tick(done + step)


def probes(train: list[Tensor], test: list[Tensor], samples: Brains, budget: BrainBudget) -> dict[str, float]:
    """What maps of patients and of test patients say by themselves, at every number of labels."""
    scores = {}
    for percent in PERCENT:
        n = budget.labelled(percent)
        labelled = [level[:n] for level in train]
        scores[f"probe_{percent}"] = ridge_dice(labelled, samples.ill_mask[:n], test, samples.test_mask)
    return scores


def _tuned(
    module: BrainSegFounder,
    percent: int,
    seed: int,
    samples: Brains,
    budget: BrainBudget,
    tick: Tick,
    *,
    steps: int | None = None,
) -> float:
    n = budget.labelled(percent)
    return fine_tuned_dice(
        module.network.encoder,
        samples.ill[:n],
        samples.ill_mask[:n],
        samples.test,
        samples.test_mask,
        steps=steps or budget.finetune_steps,
        batch=budget.finetune_batch,
        lr=FINETUNE_LR,
        seed=seed,
        tick=tick,
    )


@torch.no_grad()
def tasks(module: BrainSegFounder, volumes: Tensor, seed: int) -> dict[str, float]:
    """How well the three tasks are done on volumes that were not trained on, turned and corrupted by the seed."""
    module.eval()
    parts = [part for part in volumes.split(module.config.volumes) if len(part) > 1]
    terms = [
        module.loss(views(part, module.config, generator=generator(seed, number))) for number, part in enumerate(parts)
    ]
    names = ("rotation_accuracy", "contrastive", "reconstruction")
    return {name: torch.stack([term[name] for term in terms]).mean().item() for name in names}


@torch.no_grad()
def picture(module: BrainSegFounder, volumes: Tensor, seed: int) -> dict[str, Tensor]:
    """Middle slices of FLAIR: as turned, as the network sees them, and restored."""
    batch = views(volumes, module.config, generator=generator(seed, 0))
    restored = module(batch["corrupted"]).reconstruction
    middle = (slice(None), CHANNELS.index("flair"), SIZE[0] // 2)
    return {"original": batch["target"][middle], "corrupted": batch["corrupted"][middle], "restored": restored[middle]}


def exact(module: BrainSegFounder, volumes: Tensor, seed: int) -> dict[str, float]:
    """What can be counted rather than learned.

    Returns:
        ``reached_*``: the share of the encoder's tensors that get a gradient from one term of the loss alone;
        ``replaced``: the share of voxels in one pass's boxes, a mean over crops of the published 96^3 voxels;
        ``merging``: how far features move when the same weights join other neighbours (MONAI <= 1.4), relative to them.
    """
    found = {}
    batch = views(volumes, module.config, generator=generator(seed, 0))
    for term in ("rotation", "contrastive", "reconstruction"):
        module.zero_grad()
        module.loss(batch)[term].backward()
        parameters = list(module.network.encoder.parameters())
        found[f"reached_{term}"] = float(
            np.mean([weight.grad is not None and bool(weight.grad.any()) for weight in parameters])
        )
    module.zero_grad()
    return {**found, "replaced": replaced_share(seed), "merging": merging_difference(module.config.encoder, volumes)}


def replaced_share(seed: int, crops: int = 1500) -> float:
    """Mean share of voxels in the boxes of one pass of corruption, over crops of 96^3 voxels."""
    size, published, total = (96, 96, 96), BrainSegFounderConfig(), 0.0
    for number in range(crops):
        inside = torch.zeros(size, dtype=torch.bool)
        boxes = draw_boxes(
            size,
            share=published.noise_share,
            low=published.box_low,
            high=published.box_high,
            generator=generator(seed, number),
        )
        for d0, d1, h0, h1, w0, w1 in boxes.tolist():
            inside[d0:d1, h0:h1, w0:w1] = True
        total += inside.float().mean().item()
    return total / crops


@torch.no_grad()
def merging_difference(encoder: SwinConfig, volumes: Tensor) -> float:
    """Distance of Swin UNETR's features in either order of patch merging, with the same weights, over their norm."""
    torch.manual_seed(0)
    repaired, legacy = (SwinUNETR(replace(encoder, merging=order)).eval() for order in ("repaired", "legacy"))
    legacy.load_state_dict(repaired.state_dict())
    ours, theirs = (trunk(volumes[:2]).decoder for trunk in (repaired, legacy))
    return ((ours - theirs).norm() / ours.norm()).item()


def details(results: Mapping[str, Any], out: Path) -> list[Block]:
    """The brains, what must hold exactly, and what the networks saw and restored."""
    summary, first = results["summary"], results["seeds"][0]
    checks = {name: values["values"] for name, values in summary.get(CHECKS, {}).items()}
    rows: list[list[Any]] = []
    for name, values in checks.items():
        statement, holds = EXACT[name]
        rows.append([statement, ", ".join(f"{value:.3f}" for value in values), all(map(holds, values))])
    for arm in (arm for arm, stages in STAGES.items() if stages and arm in summary):
        turns = summary[arm]["rotation_accuracy"]["values"]
        statement = f"{arm.replace('_', ' ')}: turns recognised (chance .25)"
        rows.append([statement, ", ".join(f"{value:.3f}" for value in turns), min(turns) > 0.25])
    return [
        Heading("The brains"),
        Figure(_sheet(first), "T1, FLAIR and the whole tumour: middle slices of two healthy brains and four patients."),
        Heading("What must hold exactly"),
        Table(["statement", "measured, a seed each", "holds"], rows),
        *restorations(results, out),
    ]


EXACT = {
    "reached_rotation": ("rotation alone reaches the encoder's tensors (share)", lambda value: value == 1),
    "reached_contrastive": ("the contrastive term alone", lambda value: value == 1),
    "reached_reconstruction": ("restoration alone", lambda value: value == 1),
    "replaced": ("voxels replaced by one pass on 96^3 (.14 ± .01)", lambda value: abs(value - 0.14) <= 0.01),
    "merging": ("features move when the same weights merge in the old order", lambda value: value > 0.01),
}
"""What `exact` finds -> what is stated of it, and whether a value agrees."""


def _sheet(seed: int, *, zoom: int = 3) -> np.ndarray:
    """Rows T1, FLAIR, tumour; columns two healthy brains and four patients: ``[H, W]`` uint8."""
    people = [("healthy", 1), ("healthy", 2), *(("ill", number) for number in range(TEST_FROM, TEST_FROM + 4))]
    columns = []
    for group, number in people:
        image, mask = person(seed, number, group)
        level = int(mask.sum((1, 2)).argmax()) or SIZE[0] // 2
        columns.append(np.concatenate([*image[:, level].astype(np.float32), mask[level].astype(np.float32)]))
    return (255 * np.concatenate(columns, axis=1)).round().astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
