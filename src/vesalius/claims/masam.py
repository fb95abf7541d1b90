"""MA-SAM's claim: do slice adapters tell a frozen SAM what lies in the slices beside, and does the SAM matter at all?

A small SAM learns to outline random shapes in flat pictures and is moved, frozen, to stacks of five slices in which
discs drift. In a third of the slices the discs are missing from the picture and still in the label: no network that
reads its slices one by one can find them there, and one that mixes neighbouring slices can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vesalius.adapt.sam_shapes import STEPS, pretrain_shapes
from vesalius.claims.page import short
from vesalius.claims.verdicts import Comparison, Metric
from vesalius.data.datasets import generator, mixed_seed
from vesalius.errors import ConfigError
from vesalius.nn.masam import MaSam, StackAdapters
from vesalius.nn.sam import SAM_PRESETS
from vesalius.nn.sam_decoder import Sam
from vesalius.published.card import Card
from vesalius.published.load import load_weights, save_weights
from vesalius.published.sam import contract
from vesalius.report.html import Block, Figure, Heading, Table
from vesalius.tasks.stacks import StackSegmentation
from vesalius.training.short import Tick, train_short

SLICES, DISCS = 5, 4
BLANK = 0.35
"""Probability that a slice lacks its discs; one slice of a stack has them in any case."""
NOISE = 0.1
WIDTH, RANK = 48, 8
"""Of the slice adapters (half the encoder's width, as published for ViT-B), and of the increments."""
UNSEEN = 50
"""Added to a seed: stacks of smaller numbers were looked at when the settings were chosen."""


@dataclass(frozen=True)
class StackBudget:
    """What every arm gets alike.

    Args:
        trunk_steps: of SAM's training on random shapes.
        steps, batch: of an adaptation, in stacks.
        lr: of an adaptation, at its peak.
        test: stacks.
    """

    trunk_steps: int = STEPS
    steps: int = 200
    batch: int = 3
    lr: float = 1e-3
    test: int = 40

    def with_steps(self, steps: int) -> StackBudget:
        """The same with other steps of SAM's training."""
        return replace(self, trunk_steps=steps)

    def for_table(self) -> StackBudget:
        """Refused: the claim needs to know what is missing from a slice.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "the claim of masam has stacks of its own and takes no table",
            remedy="use vesalius adapt masam on your volumes",
        )

    def work(self, arm: str) -> int:
        """What an arm counts on the progress bar, in steps."""
        return self.trunk_steps if arm == TRUNK else self.steps


TRUNK = "trunk"
FIRST = (TRUNK,)
TITLE = "MA-SAM: slices that know of each other"
BUDGET = StackBudget()
ARMS = {
    TRUNK: "SAM itself, on the shapes that it was trained on",
    "masam": "MA-SAM: slice adapters and FacT on the trained SAM",
    "fact": "FacT without slice adapters",
    "lora": "LoRA of query and value, of the same rank, without slice adapters",
    "decoder": "nothing in the encoder: the decoder alone",
    "random": "MA-SAM on a SAM that was not trained",
    "random_fact": "FacT without slice adapters on a SAM that was not trained",
}
FULL = StackAdapters(width=WIDTH, rank=RANK)
FLAT = replace(FULL, width=0)
ADAPTERS = {
    "masam": FULL,
    "fact": FLAT,
    "lora": replace(FLAT, rank=0, lora=RANK),
    "decoder": replace(FLAT, rank=0),
    "random": FULL,
    "random_fact": FLAT,
}
METRICS = {
    "dice": Metric("Dice, all slices"),
    "dice_blank": Metric("Dice, blanked slices"),
    "dice_clear": Metric("Dice, clear slices"),
    "loss": Metric("loss on shapes", higher=False),
}
METHOD = (
    "SAM: 128 pixels, patches of 16, four blocks of 96 channels (two with windows of 4 tokens, two global), a decoder "
    "of 64 channels. It is trained on pictures of random overlapping shapes with clicks and boxes, "
    f"{BUDGET.trunk_steps} steps of 8 pictures. Stacks: {SLICES} slices of {DISCS} discs whose centres move along "
    f"straight lines, noise of {NOISE}; each slice is blanked with probability {BLANK}, one of five at least is not. "
    f"Adaptation: {BUDGET.steps} steps of {BUDGET.batch} stacks drawn anew, AdamW {BUDGET.lr:g}, 10 % warm-up, half a "
    "cosine, 0.2 cross-entropy + 0.8 Dice. All arms of a seed share the stacks, their order, and the decoder's start "
    f"(on the trained SAM, or the untrained one). Dice is of all discs' pixels in {BUDGET.test} test stacks. The "
    "learning rate was tuned for no arm."
)
COMPARISONS = (
    Comparison("slices", "slice adapters beat none", "dice", "masam", "fact"),
    Comparison("blanked slices", "they find what its own slice does not show", "dice_blank", "masam", "fact"),
    Comparison("SAM", "MA-SAM on the trained SAM beats it on an untrained one", "dice", "masam", "random"),
    Comparison("SAM, FacT", "FacT on the trained SAM beats it on an untrained one", "dice", "fact", "random_fact"),
    Comparison("FacT", "FacT beats the decoder alone", "dice_clear", "fact", "decoder", control=True),
    Comparison("LoRA", "FacT beats LoRA of the same rank", "dice_clear", "fact", "lora", control=True),
    Comparison(
        "untrained slices",
        "slice adapters help without a trained SAM, too",
        "dice",
        "random",
        "random_fact",
        control=True,
    ),
    Comparison(
        "clear slices", "slice adapters help where a slice shows all", "dice_clear", "masam", "fact", control=True
    ),
)


@dataclass(frozen=True)
class Stacks:
    """``image [N, 5, 1, S, S]`` in about [0, 1], ``mask [N, 5, S, S]`` of 0 and 1, ``blank [N, 5]`` bool."""

    image: Tensor
    mask: Tensor
    blank: Tensor


def draw_stacks(count: int, size: int, chance: torch.Generator) -> Stacks:
    """Stacks of drifting discs with blanked slices.

    Args:
        count: stacks.  size: pixels of the side.  chance: where all randomness comes from.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=chance)

    start, speed = uniform(0.15, 0.85, DISCS, 2), uniform(-0.03, 0.03, DISCS, 2)
    radius, grey = uniform(0.06, 0.12, DISCS), uniform(0.6, 0.9, DISCS)
    steps = torch.arange(SLICES) - SLICES // 2
    centre = start[:, None] + steps[:, None, None] * speed[:, None]
    grid = (torch.arange(size) + 0.5) / size
    y, x = grid[:, None] - centre[..., 1, None, None], grid - centre[..., 0, None, None]
    inside = x**2 + y**2 < radius[:, None, :, None, None] ** 2
    blank = torch.rand(count, SLICES, generator=chance) < BLANK
    kept = torch.randint(SLICES, (count,), generator=chance)
    blank[torch.arange(count), kept] = False
    shown = torch.where(inside, grey[:, None, :, None, None], 0).amax(2) * ~blank[:, :, None, None]
    image = torch.where(shown > 0, shown, 0.4) + NOISE * torch.randn(shown.shape, generator=chance)
    return Stacks(image[:, :, None], inside.any(2).long(), blank)


@dataclass(frozen=True)
class Transfer:
    """A seed's test stacks, and where its trained SAM is."""

    test: Stacks
    trunk: Path


def load_samples(seed: int, budget: StackBudget, *, data: str | None, folder: Path) -> Transfer:
    """The test stacks of a seed; `folder` holds its SAM."""
    size = SAM_PRESETS["sam_tiny"].image_size
    return Transfer(draw_stacks(budget.test, size, generator(mixed_seed(seed + UNSEEN, 1), 0)), folder / "trunk")


def run_arm(
    arm: str, seed: int, samples: Transfer, budget: StackBudget, tick: Tick
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train SAM on shapes, or adapt it to stacks.

    Returns:
        metrics (see `scores`); of an adaptation, slices of the first test stack by name (image, truth, found).
    """
    torch.manual_seed(mixed_seed(seed + UNSEEN, 0))
    sam = Sam(SAM_PRESETS["sam_tiny"])
    if arm == TRUNK:
        losses = pretrain_shapes(sam, steps=budget.trunk_steps, seed=seed + UNSEEN, progress=False)
        what = {"name": "sam", "config": asdict(sam.config)}
        note = f"trained {budget.trunk_steps} steps on random shapes"
        save_weights(
            sam, samples.trunk, Card("sam", "promptable", what, contract(sam.config.image_size, 3), source=note)
        )
        return {"loss": float(np.mean(losses[-20:]))}, {}
    if not arm.startswith("random"):
        sam.load_state_dict(load_weights(samples.trunk).state_dict())
    task = build(sam, ADAPTERS[arm], seed)
    stacks = mixed_seed(seed + UNSEEN, 2)

    def batches(chance: torch.Generator) -> dict[str, Tensor]:
        drawn = draw_stacks(budget.batch, sam.config.image_size, chance)
        return {"image": drawn.image, "mask": drawn.mask}

    train_short(task, batches, lr=budget.lr, steps=budget.steps, seed=stacks, tick=tick)
    with torch.inference_mode():
        found = torch.cat([task(part).argmax(2) for part in samples.test.image.split(8)])
    inside = (p for name, p in task.encoder.named_parameters() if not name.startswith(("mask_", "prompt_")))
    trained = sum(p.numel() for p in inside if p.requires_grad)
    pictures = {"image": samples.test.image[0, :, 0], "truth": samples.test.mask[0], "found": found[0]}
    return {**scores(found, samples.test), "mixing": mixing(task, samples.test.image[:1]), "trained": trained}, pictures


def build(sam: Sam, adapters: StackAdapters, seed: int) -> StackSegmentation:
    """MA-SAM on a SAM; the fresh parts of the decoder are the same whatever is put into the encoder."""
    torch.manual_seed(mixed_seed(seed + UNSEEN, 3))
    plain = MaSam.on(sam, 1, ADAPTERS["decoder"])
    network = MaSam.on(sam, 1, adapters)
    network.load_state_dict(plain.state_dict(), strict=False)
    size = sam.config.image_size
    return StackSegmentation(network.freeze(), ("disc",), slices=SLICES, frame=(size, size), stretch=False)


def scores(found: Tensor, truth: Stacks) -> dict[str, float]:
    """Dice over the pixels of all slices, of the blanked ones, and of the clear ones.

    Args:
        found: ``[N, 5, S, S]`` of 0 and 1.
    """
    every = torch.ones_like(truth.blank)
    return {
        name: float(2 * (found * truth.mask)[which].sum() / (found + truth.mask)[which].sum().clamp(min=1))
        for name, which in (("dice", every), ("dice_blank", truth.blank), ("dice_clear", ~truth.blank))
    }


@torch.no_grad()
def mixing(task: StackSegmentation, image: Tensor) -> float:
    """How far the scores of a stack move when its slices are put in another order and back, relative to them.

    It is that of the slice that moves least, and 0 for a network that reads slices one by one.
    """
    order = torch.tensor([3, 0, 4, 1, 2])
    plain, moved = task(image)[:, order], task(image[:, order])
    return float(((moved - plain).flatten(2).norm(dim=2) / plain.flatten(2).norm(dim=2)).min())


def details(results: Mapping[str, Any], out: Path) -> list[Block]:
    """What must hold exactly, how large the gains are, and what was found in one stack."""
    summary, rows = results["summary"], []
    for arm, adapters in ADAPTERS.items():
        if arm in summary:
            values = summary[arm]["mixing"]["values"]
            holds = min(values) > 1e-3 if adapters.width else max(values) < 1e-4
            shown = ", ".join(f"{value:.1g}" for value in values)
            rows.append([short(arm), round(summary[arm]["trained"]["mean"]), shown, holds])
    blocks: list[Block] = [
        Heading("What must hold exactly"),
        Table(
            ["arm", "numbers trained in the encoder", "moved by other neighbours", "holds"],
            rows,
            "The slices of a stack in another order: a network that reads them one by one gives the same scores in "
            "that order (to rounding), one that mixes them does not, in any slice. A seed each.",
        ),
    ]
    verdicts = {verdict["name"]: verdict for verdict in results["verdicts"]}
    if {"slices", "blanked slices"} <= set(verdicts):
        sizes = [("slices", 0.08), ("blanked slices", 0.5)]
        least = [(name, min(verdicts[name]["gains"]), size) for name, size in sizes]
        blocks += [
            Heading("How large the gains are"),
            Table(
                ["gain", "smallest of the seeds", "asked for beforehand", "holds"],
                [[name, f"{gain:.3f}", f"{size:g}", gain > size] for name, gain, size in least],
            ),
        ]
    pictures = _pictures(out / f"seed{results['seeds'][0]}")
    return [*blocks, Heading("One test stack"), *pictures] if pictures else blocks


def _pictures(folder: Path, *, gap: int = 4) -> list[Block]:
    """The first test stack as every arm found it: rows are what is seen, what is true, and what was found."""
    blocks: list[Block] = []
    for arm in ADAPTERS:
        if (path := folder / f"{arm}.npz").is_file():
            with np.load(path) as stored:
                rows = [np.concatenate(_framed(stored[name], gap), axis=1) for name in ("image", "truth", "found")]
            sheet = (255 * np.concatenate(rows).clip(0, 1)).round().astype(np.uint8)
            blocks.append(Figure(sheet, f"**{ARMS[arm]}**: the slices, the truth, and what was found."))
    return blocks


def _framed(slices: np.ndarray, gap: int) -> list[np.ndarray]:
    return [np.pad(one.astype(np.float32), ((0, gap), (0, gap)), constant_values=0.5) for one in slices]
