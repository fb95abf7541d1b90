"""AbdomenAtlas's claim: where models disagree is where they are wrong, and a reader's minutes belong there first.

Three small networks learn from six volumes and propose masks of forty others, every eighth of which is strange to them.
A reader who knows the truth reviews structure after structure until the minutes are spent, in the order of the
attention maps, by chance, or by uncertainty alone. Then one more round: do networks that train on the first five
reviewed volumes, too, read strange volumes better?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import Tensor, nn

from vesalius.claims.atlas_volumes import SPACING, TABLE, Volumes, volumes
from vesalius.claims.page import short
from vesalius.claims.verdicts import Comparison, Metric
from vesalius.curate.attention import AttentionConfig, StructureMaps, attention_maps
from vesalius.curate.checks import map_quality
from vesalius.curate.proposals import Masks, Proposal, average_masks
from vesalius.curate.ranking import Minutes, Order, Ranked, rank
from vesalius.data.datasets import mixed_seed
from vesalius.errors import ConfigError
from vesalius.files import atomic
from vesalius.pretrain.universal import partial_loss
from vesalius.report.figures import label_efficiency
from vesalius.report.html import Block, Figure, Heading
from vesalius.tasks.organs import clean
from vesalius.training.short import Batch, Tick, train_short

__all__ = ["ARMS", "BUDGET", "COMPARISONS", "FIRST", "METHOD", "METRICS", "TITLE", "details", "load_samples", "run_arm"]

NETWORKS = ((8, 3, 2), (6, 3, 3), (4, 5, 2))
"""Channels, kernel and layers of the three networks that propose."""
LR = 1e-2
MIDDLE, SPREAD = 0.35, 0.2
"""Of the ordinary volumes' brightness; networks that are not told learn no organ but the brightest in these steps."""
CONFIG = AttentionConfig(as_published=True)
READER = Minutes(each=0.5, per_ml=0.5)
"""What a review costs: so much for each structure, and so much for each millilitre that the proposal has wrong."""
PERCENT = (5, 10, 20, 40)
"""Of the minutes that it would take to review everything."""
EVERY = 8
"""One volume in so many of the pool is strange."""
DRAWS = 20
"""Random orders of review whose mean is chance."""
TOP = 5
"""Volumes that are counted as the first, and that another round trains on."""


@dataclass(frozen=True)
class AtlasBudget:
    """What every arm gets alike.

    Args:
        labelled: volumes that the networks learn from at first.
        pool: volumes that they propose masks of.
        unseen: strange volumes to test another round on.
        steps, batch: of training.
        more_steps: of another round.
    """

    labelled: int = 6
    pool: int = 40
    unseen: int = 16
    steps: int = 300
    batch: int = 2
    more_steps: int = 150

    def with_steps(self, steps: int) -> AtlasBudget:
        """The same with other steps."""
        return replace(self, steps=steps, more_steps=max(steps // 2, 1))

    def for_table(self) -> AtlasBudget:
        """Refused: what a review is worth must be known.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "the claim of atlas has volumes of its own and takes no table",
            remedy="run vesalius curate atlas on yours, with --simulate where the truth is known",
        )

    def work(self, arm: str) -> int:
        """What an arm counts on the progress bar, in steps."""
        return len(NETWORKS) * (self.steps if arm == BASE else self.more_steps) if arm in (BASE, *ROUNDS) else 1


BASE = "proposals"
FIRST = (BASE,)
ORDERS: dict[str, Order] = {"attention": "attention", "random": "random", "uncertainty": "uncertainty"}
ROUNDS: dict[str, Order | None] = {"round_attention": "attention", "round_random": "random", "round_none": None}
TITLE = "AbdomenAtlas: a reader's minutes where models disagree"
BUDGET = AtlasBudget()
ARMS = {
    BASE: "what three networks propose, nothing reviewed",
    "attention": "reviewed by attended volume: disagreement, doubt and overlap",
    "random": f"reviewed by chance, a mean over {DRAWS} orders",
    "uncertainty": "reviewed by uncertain volume alone",
    "round_attention": f"another round on the {TOP} volumes with most attention",
    "round_random": f"another round on {TOP} volumes by chance",
    "round_none": "another round on the first labels alone",
}
METRICS = {
    **{f"dice_{percent}": Metric(f"Dice, {percent} % of the minutes") for percent in PERCENT},
    "dice": Metric("Dice, mean over minutes"),
    "share": Metric(f"errors in the first {TOP} volumes"),
    "precision": Metric("attended voxels that are wrong"),
    "asked_precision": Metric("10 times the share of wrong voxels"),
    "correlation": Metric("rank correlation, attended and wrong"),
    "asked_correlation": Metric("correlation asked for"),
    "asked_share": Metric(f"1.4 times the share of {TOP} volumes"),
    "unseen_dice": Metric("Dice, strange volumes"),
}
METHOD = (
    "Volumes of 28 voxels a side (3 mm) hold four ellipsoids that differ in brightness and place; every eighth is "
    "brighter or darker, with less contrast, and its organs lie elsewhere. Three plain convolutional networks of "
    f"different width, kernel and depth train on six ordinary volumes (AdamW {LR:g}, cross-entropy and Dice). Their "
    "probabilities of forty others are averaged, cleaned and mapped with the published thresholds and opening. A "
    f"review costs {READER.each:g} minutes and {READER.per_ml:g} for each ml that is wrong, and makes the structure "
    "perfect; all orders hold the same structures, those with any attention, a volume at a time, so that they differ "
    "in nothing but the order. The finished set's Dice is a mean over all volumes and structures, at "
    f"{', '.join(map(str, PERCENT))} % of the minutes that reviewing everything would take. Another round goes on from "
    "the three networks with the first labels and five reviewed volumes, and is scored by the average of their masks "
    "on strange volumes that nobody has seen."
)
COMPARISONS = (
    Comparison("attention", "reviewed by attention, the set is better at equal minutes", "dice", "attention", "random"),
    Comparison(
        "errors first", "the first volumes hold 1.4 times their share of errors", "share", "attention", "attention",
        worse_metric="asked_share",
    ),
    Comparison(
        "marks errors", "an attended voxel is wrong 10 times as often as any", "precision", "attention", "attention",
        worse_metric="asked_precision",
    ),
    Comparison(
        "order", "volumes with more attention have more wrong (correlation > .3)", "correlation", "attention",
        "attention", worse_metric="asked_correlation",
    ),
    Comparison(
        "another round", "networks gain more from the volumes with most attention than from others", "unseen_dice",
        "round_attention", "round_random",
    ),
    Comparison("three terms", "attention is better than uncertainty alone", "dice", "attention", "uncertainty",
               control=True),
    Comparison("more labels", "another round is worth its labels, not its steps", "unseen_dice", "round_attention",
               "round_none", control=True),
)  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """The volumes of one seed, made when they are wanted, and where the seed's networks are."""

    seed: int
    budget: AtlasBudget
    folder: Path

    @cached_property
    def labelled(self) -> Volumes:
        """What the networks learn from."""
        return volumes([False] * self.budget.labelled, seed=4 * self.seed)

    @cached_property
    def pool(self) -> Volumes:
        """What they propose masks of."""
        return volumes([number % EVERY == EVERY - 1 for number in range(self.budget.pool)], seed=4 * self.seed + 1)

    @cached_property
    def unseen(self) -> Volumes:
        """Strange volumes that nobody reviews."""
        return volumes([True] * self.budget.unseen, seed=4 * self.seed + 2)

    def networks(self) -> list[Network]:
        """The three networks of the first round, anew each time: another round changes them."""
        found = [Network(*shape) for shape in NETWORKS]
        for number, network in enumerate(found):
            network.load_state_dict(load_file(self.folder / f"network{number}.safetensors"))
        return found

    @cached_property
    def cases(self) -> list[Case]:
        """The pool's volumes with what the networks make of them."""
        networks = self.networks()
        return [Case.of(networks, self.pool[[number]]) for number in range(len(self.pool))]

    @cached_property
    def summaries(self) -> dict[str, dict[str, dict[str, float]]]:
        """What the pool's volumes are ranked by."""
        return {
            str(number): {name: maps.summary() for name, maps in case.maps.items()}
            for number, case in enumerate(self.cases)
        }


@lru_cache(maxsize=1)
def load_samples(seed: int, budget: AtlasBudget, *, data: str | None, folder: Path) -> Pool:
    """The volumes of a seed; `folder` holds its networks."""
    return Pool(seed, budget, folder)


class Network(nn.Module):
    """Convolutions of one width and kernel, dilated 1, 2, 1, 2, ..., and a logit for each structure.

    The reader of a claim wants to see all of it, and a U-Net would know too much of 28 voxels.
    """

    def __init__(self, width: int, kernel: int, layers: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for layer in range(layers):
            dilation = 1 + layer % 2
            padding = dilation * (kernel // 2)
            parts.append(nn.Conv3d(width if layer else 1, width, kernel, padding=padding, dilation=dilation))
            parts.append(nn.ReLU())
        self.body = nn.Sequential(*parts, nn.Conv3d(width, len(TABLE.names), 1))

    def forward(self, image: Tensor) -> Tensor:
        """``[B, 1, D, H, W]`` -> logits ``[B, K, D, H, W]``."""
        logits: Tensor = self.body((image - MIDDLE) / SPREAD)
        return logits

    def loss(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy and Dice of every structure."""
        everything = torch.ones(output.shape[:2], dtype=torch.bool)
        return partial_loss(output, batch["mask"], everything)[0]


def train(network: Network, known: Volumes, *, steps: int, batch: int, seed: int, tick: Tick) -> None:
    """Train in place on volumes of which everything is known."""

    def batches(chance: torch.Generator) -> Batch:
        rows = torch.randperm(len(known), generator=chance)[:batch]
        return {"image": known.image[rows], "mask": known.mask[rows].float()}

    train_short(network, batches, lr=LR, steps=steps, seed=seed, tick=tick)


@torch.no_grad()
def proposals(networks: Sequence[Network], image: Tensor) -> dict[str, list[Proposal]]:
    """What each network says of each structure of a volume ``[1, 1, D, H, W]``."""
    found: dict[str, list[Proposal]] = {name: [] for name in TABLE.names}
    for network in networks:
        chances = (255 * network(image)[0].sigmoid()).to(torch.uint8).numpy()
        masks = clean(chances > 127, TABLE.names, rules="atlas", table=TABLE)
        for name, chance, mask in zip(TABLE.names, chances, masks, strict=True):
            found[name].append(Proposal.from_probability(chance, mask))
    return found


@dataclass(frozen=True)
class Case:
    """A volume of the pool.

    Args:
        truth: ``[K, D, H, W]`` bool.
        masks: the averaged proposals.
        maps: structure -> its attention maps.
    """

    truth: NDArray[np.bool_]
    masks: Masks
    maps: dict[str, StructureMaps]

    @classmethod
    def of(cls, networks: Sequence[Network], volume: Volumes) -> Case:
        """Of one volume."""
        read = proposals(networks, volume.image).__getitem__
        masks = average_masks(read, TABLE.names, table=TABLE)
        maps = attention_maps(read, masks, TABLE.names, spacing=SPACING, config=CONFIG, table=TABLE)
        return cls(volume.mask[0].numpy(), masks, {one.structure: one for one in maps})

    def wrong(self, structure: str) -> NDArray[np.bool_]:
        """Where the proposal differs from the truth."""
        return np.asarray(self.masks[structure] ^ self.truth[TABLE.names.index(structure)])

    def dice(self) -> list[float]:
        """Of each structure's proposal."""
        return [dice(self.masks[name], truth) for name, truth in zip(TABLE.names, self.truth, strict=True)]


def dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Dice of a structure that is there."""
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def run_arm(
    arm: str, seed: int, samples: Pool, budget: AtlasBudget, tick: Tick
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Run one arm; no pictures."""
    if arm == BASE:
        for number, shape in enumerate(NETWORKS):
            torch.manual_seed(mixed_seed(seed, number))
            network = Network(*shape)
            done = number * budget.steps
            train(network, samples.labelled, steps=budget.steps, batch=budget.batch, seed=seed,
                  tick=lambda step, done=done: tick(done + step))  # type: ignore[misc]  # fmt: skip
            with atomic(samples.folder / f"network{number}.safetensors") as temporary:
                save_file(network.state_dict(), temporary)
        start = float(np.mean([case.dice() for case in samples.cases]))
        return {"dice": start} | {f"dice_{percent}": start for percent in PERCENT}, {}
    if arm in ROUNDS:
        return {"unseen_dice": another_round(ROUNDS[arm], samples, tick)}, {}
    if arm == "random":
        drawn = [reviewed(samples, queue(samples, "random", draw=draw)) for draw in range(DRAWS)]
        return {name: float(np.mean([found[name] for found in drawn])) for name in drawn[0]}, {}
    found = reviewed(samples, queue(samples, ORDERS[arm]))
    return found | (quality(samples) if arm == "attention" else {}), {}


def queue(samples: Pool, order: Order, *, draw: int = 0) -> list[Ranked]:
    """The pool's structures in the order in which they are reviewed; `draw` is of the random one."""
    return rank(samples.summaries, order=order, minutes=READER, seed=mixed_seed(samples.seed, draw))


def reviewed(samples: Pool, items: Sequence[Ranked]) -> dict[str, float]:
    """The finished set's Dice at each share of the minutes, and the share of errors in the first volumes."""
    scores = np.array([case.dice() for case in samples.cases])
    wrong = np.array([[case.wrong(name).sum() for name in TABLE.names] for case in samples.cases])
    minutes = np.vectorize(READER)(wrong * prod(SPACING))
    found: dict[str, float] = {}
    for percent in PERCENT:
        left, done = minutes.sum() * percent / 100, scores.copy()
        for item in items:
            place = int(item.case), TABLE.names.index(item.structure)
            left -= minutes[place]
            if left < 0:
                break
            done[place] = 1.0
        found[f"dice_{percent}"] = float(done.mean())
    found["dice"] = float(np.mean(list(found.values())))
    first = [int(case) for case in first_cases(items)]
    return found | {"share": float(wrong[first].sum() / wrong.sum())}


def first_cases(items: Sequence[Ranked]) -> list[str]:
    """The volumes that come first."""
    return list(dict.fromkeys(item.case for item in items))[:TOP]


def quality(samples: Pool) -> dict[str, float]:
    """How well attention marks what is wrong, and what is asked of it."""
    pairs = [
        (maps.full("attended") > 0, case.wrong(name)) for case in samples.cases for name, maps in case.maps.items()
    ]
    attended, wrong = (np.stack(side) for side in zip(*pairs, strict=True))
    counts = [side.reshape(len(samples.cases), -1).sum(1) for side in (attended, wrong)]
    related = all(len(np.unique(side)) > 1 for side in counts)  # untrained networks mark everything, or nothing
    return {
        "precision": map_quality(attended, wrong)["precision"],
        "asked_precision": 10 * float(wrong.mean()),
        "correlation": float(spearmanr(*counts).statistic) if related else 0.0,
        "asked_correlation": 0.3,
        "asked_share": 1.4 * TOP / len(samples.cases),
    }


def another_round(order: Order | None, samples: Pool, tick: Tick) -> float:
    """Go on training with the first volumes of an order, reviewed; returns the Dice on unseen strange ones."""
    known, budget = samples.labelled, samples.budget
    if order is not None:
        known = known + samples.pool[[int(case) for case in first_cases(queue(samples, order))]]
    networks = samples.networks()
    for number, network in enumerate(networks):
        done = number * budget.more_steps
        train(network, known, steps=budget.more_steps, batch=budget.batch, seed=mixed_seed(samples.seed, 9),
              tick=lambda step, done=done: tick(done + step))  # type: ignore[misc]  # fmt: skip
    cases = [Case.of(networks, samples.unseen[[number]]) for number in range(len(samples.unseen))]
    return float(np.mean([case.dice() for case in cases]))


def details(results: Mapping[str, Any], out: Path) -> list[Block]:
    """Dice over minutes, and the volumes."""
    summary = results["summary"]
    curves = {
        short(arm): {
            0: summary[BASE]["dice"]["values"],
            **{percent: summary[arm][f"dice_{percent}"]["values"] for percent in PERCENT},
        }
        for arm in ORDERS
        if arm in summary and BASE in summary
    }
    return [
        Heading("Dice over minutes"),
        Figure(label_efficiency(curves, labels="% of the minutes that everything takes"),
               "The finished set's Dice; bands are a standard deviation over seeds."),
        Heading("The volumes"),
        Figure(_sheet(), "Middle slices of three ordinary volumes and three strange ones, and their organs."),
    ]  # fmt: skip


def _sheet(*, zoom: int = 4) -> np.ndarray:
    """Slices above their organs, ``[H, W]`` uint8."""
    batch = volumes([False] * 3 + [True] * 3, seed=0)
    middle = batch.image.shape[-1] // 2
    numbers = torch.arange(1, len(TABLE.names) + 1)[None, :, None, None]
    organs = (batch.mask[..., middle] * numbers).sum(1) / len(TABLE.names)
    rows = [torch.cat(list(part), dim=1) for part in (batch.image[:, 0, :, :, middle], organs)]
    grey = (255 * torch.cat(rows).clamp(0, 1)).round().to(torch.uint8).numpy()
    return grey.repeat(zoom, 0).repeat(zoom, 1)
