"""The Universal Model's claim: sets that each label some organs train one network, which can learn more.

Three sets of volumes know two organs each. Part A asks what it is worth to leave out of the loss what a set does not
label, beside calling it background and beside a network a set. Part B adds two organs to a network that knows four.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vesalius.claims.page import short
from vesalius.claims.universal_volumes import ORGANS, SIDE, Labelled, organs
from vesalius.claims.verdicts import Comparison, Metric
from vesalius.data.class_tables import ClassTable
from vesalius.errors import ConfigError
from vesalius.nn.class_text import SCALE, WIDTH, hashed
from vesalius.nn.language_head import LanguageDriven
from vesalius.pretrain.extension import Extension, changed_tensors
from vesalius.pretrain.universal import Universal, UniversalConfig, build, score_case
from vesalius.published.card import Card
from vesalius.published.load import load_weights, save_weights
from vesalius.report.html import Block, Figure, Heading, Table
from vesalius.tasks.volume_dice import VolumeDice
from vesalius.training.short import Batch, Tick, train_short

SETS = ((0, 1), (2, 3), (4, 5))
"""The organs that each of three sets labels."""
OLD, NEW = (0, 1, 2, 3), (4, 5)
"""The organs that a network knows, and those that it learns later."""
CONFIG = UniversalConfig(
    trunk="segresnet", width=8, crop=(SIDE,) * 3, spacing=(3.0,) * 3, patches=1, window=(0.0, 1.0), lr=1e-3
)


@dataclass(frozen=True)
class PartialBudget:
    """What every arm gets alike.

    Args:
        volumes: for training, in three sets of the same size; as many again are those that come later.
        test: volumes on which all organs are known.
        steps, batch: of a training.
        more_steps: of learning two organs more.
    """

    volumes: int = 12
    test: int = 12
    steps: int = 300
    batch: int = 2
    more_steps: int = 150

    def with_steps(self, steps: int) -> PartialBudget:
        """The same with other steps."""
        return replace(self, steps=steps, more_steps=max(steps // 2, 1))

    def for_table(self) -> PartialBudget:
        """Refused: which organs lack a label must be known.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "the claim of universal has volumes of its own and takes no table",
            remedy="train on yours with vesalius pretrain universal",
        )

    def work(self, arm: str) -> int:
        """What an arm counts on the progress bar, in steps."""
        return self.more_steps if arm in EXTENSIONS else self.steps


BASE = "base"
FIRST = (BASE,)
EXTENSIONS = ("new_heads", "pseudo_labels", "plain")
TITLE = "Universal Model: partial labels, and classes that come later"
BUDGET = PartialBudget()
ARMS = {
    "masked": "one network on three sets, what a set does not label left out of the loss",
    "background": "the same network, what a set does not label taken for background",
    "per_set": "three networks, one a set, with a third of the steps each",
    "one_hot": "as masked, with one-hot vectors in place of the names' embeddings",
    BASE: "a controller a class, four organs, all labelled",
    "new_heads": "two organs more: their own controllers alone are trained",
    "pseudo_labels": "two organs more: all weights, the old network labels the old organs",
    "plain": "two organs more: all weights on the new labels alone",
}
METRICS = {
    "dice": Metric("Dice, six organs"),
    "old_dice": Metric("Dice, old organs"),
    "new_dice": Metric("Dice, new organs"),
}
METHOD = (
    f"Volumes of {SIDE} voxels a side hold six ellipsoids; two share a brightness, and the place of each varies. Every "
    "set has four volumes and knows two organs; all arms of a seed see the same volumes and are scored on the same "
    "others, on which every organ is known. The network is a SegResNet of 8 channels with the language-driven head. "
    "Names are embedded by stand-ins (a vector each, drawn by the name's hash), so nothing here says what the meaning "
    "of text is worth: that needs a real text encoder. AdamW 1e-3, weight decay 1e-5, 10 % warm-up, half a cosine, no "
    "augmentation. Part B starts from one network of four organs with a controller a class, and learns two more on new "
    "volumes that are labelled for these two alone."
)
COMPARISONS = (
    Comparison(
        "masked", "leaving out what is not labelled beats calling it background", "dice", "masked", "background"
    ),
    Comparison("one network", "one network on all sets beats a network a set", "dice", "masked", "per_set"),
    Comparison("new heads keep", "training new heads alone keeps the old organs", "old_dice", "new_heads", "plain"),
    Comparison("pseudo labels keep", "pseudo labels keep the old organs", "old_dice", "pseudo_labels", "plain"),
    Comparison(
        "pseudo labels learn",
        "pseudo labels learn the new organs better than new heads alone",
        "new_dice",
        "pseudo_labels",
        "new_heads",
        control=True,
    ),
    Comparison("text", "distributed vectors of names beat one-hot ones", "dice", "masked", "one_hot", control=True),
)


@dataclass(frozen=True)
class Sets:
    """The volumes of one seed, made when they are wanted, and where the seed's network of four organs is."""

    seed: int
    budget: PartialBudget
    base: Path

    @cached_property
    def train(self) -> Labelled:
        """The three sets, one after the other."""
        return organs(self.budget.volumes, seed=4 * self.seed)

    @cached_property
    def later(self) -> Labelled:
        """Volumes that come with the new organs."""
        return organs(self.budget.volumes, seed=4 * self.seed + 1)

    @cached_property
    def test(self) -> Labelled:
        """Others, to score."""
        return organs(self.budget.test, seed=4 * self.seed + 2)


@lru_cache(maxsize=1)
def load_samples(seed: int, budget: PartialBudget, *, data: str | None, folder: Path) -> Sets:
    """The volumes of a seed; `folder` holds the seed's base."""
    return Sets(seed, budget, folder / "base")


class Learner(nn.Module):
    """A `Universal` in the form that `train_short` takes."""

    def __init__(self, module: Universal):
        super().__init__()
        self.module = module

    def loss(self, output: None, batch: Mapping[str, Tensor]) -> Tensor:
        """The module's own, of the whole batch."""
        return self.module.loss(dict(batch))["loss"]


def run_arm(
    arm: str, seed: int, samples: Sets, budget: PartialBudget, tick: Tick
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train one arm and score it; no pictures.

    Returns:
        ``dice`` (part A), or ``old_dice``, ``new_dice`` and how many tensors of the old network changed (part B).
    """
    torch.manual_seed(seed)
    if arm in EXTENSIONS:
        return extend(arm, seed, samples, budget, tick), {}
    if arm == BASE:
        module = Universal(replace(CONFIG, controller="per_class"), table=table(OLD))
        known = [OLD] * budget.volumes
        train(module, samples.train, known, OLD, steps=budget.steps, batch=budget.batch, seed=seed, tick=tick)
        card = Card("universal", module.PART, module.architecture, module.contract, extra=module.extra)
        save_weights(module.network, samples.base, card)
        return {"old_dice": dice(module, samples.test, OLD, OLD)}, {}
    part = budget.volumes // len(SETS)
    if arm == "per_set":
        scores = []
        for number, set_organs in enumerate(SETS):
            torch.manual_seed(seed)
            module = Universal(CONFIG, table=table(set_organs))
            own = slice(number * part, (number + 1) * part)
            steps = budget.steps // len(SETS)
            volumes = Labelled(samples.train.image[own], samples.train.mask[own])
            train(
                module,
                volumes,
                [set_organs] * part,
                set_organs,
                steps=steps,
                batch=budget.batch,
                seed=seed,
                tick=lambda step, done=number * steps: tick(done + step),  # type: ignore[misc]
            )
            scores.append(dice(module, samples.test, set_organs, set_organs))
        return {"dice": float(np.mean(scores))}, {}
    every = tuple(range(len(ORGANS)))
    vectors = hashed(table(every).names) if arm != "one_hot" else SCALE * WIDTH**0.5 * torch.eye(len(ORGANS))
    module = Universal(CONFIG, table=table(every), network=build(CONFIG, table(every).names, vectors))
    known = [SETS[number // part] for number in range(budget.volumes)]
    train(
        module,
        samples.train,
        known,
        every,
        steps=budget.steps,
        batch=budget.batch,
        seed=seed,
        tick=tick,
        background=arm == "background",
    )
    return {"dice": dice(module, samples.test, every, every)}, {}


def extend(arm: str, seed: int, samples: Sets, budget: PartialBudget, tick: Tick) -> dict[str, Any]:
    """Teach the seed's network of four organs two more."""
    network = cast(LanguageDriven, load_weights(samples.base))
    every = (*OLD, *NEW)
    words = table(every)
    config = replace(CONFIG, controller="per_class")
    pseudo = arm == "pseudo_labels"
    module = Extension(config, network, table=words, embeddings=hashed(words.names[len(OLD) :]), pseudo_labels=pseudo)
    if arm == "plain":
        module.network.requires_grad_(True)
    known = [NEW] * budget.volumes
    train(module, samples.later, known, every, steps=budget.more_steps, batch=budget.batch, seed=seed, tick=tick)
    return {
        "old_dice": dice(module, samples.test, every, OLD),
        "new_dice": dice(module, samples.test, every, NEW),
        "changed": len(changed_tensors(module.old, module.network)),
    }


def table(chosen: Sequence[int]) -> ClassTable:
    """The classes of some organs."""
    return ClassTable.from_dict({"classes": [ORGANS[organ] for organ in chosen]})


def train(
    module: Universal,
    volumes: Labelled,
    known: Sequence[tuple[int, ...]],
    classes: Sequence[int],
    *,
    steps: int,
    batch: int,
    seed: int,
    tick: Tick,
    background: bool = False,
) -> None:
    """Train on volumes of which each is labelled for some organs.

    Args:
        known: the organs that each volume's annotator drew.
        classes: organs of the network's outputs.
        background: believe that an organ is nowhere where nobody drew it.
    """
    masks = torch.stack(
        [renumbered(Labelled(volumes.image[n], volumes.mask[n]).knowing(known[n]), classes) for n in range(len(known))]
    )
    labelled = torch.tensor([[background or organ in drawn for organ in classes] for drawn in known])

    def batches(chance: torch.Generator) -> Batch:
        rows = torch.randperm(len(known), generator=chance)[:batch]
        return {"image": volumes.image[rows], "mask": masks[rows], "labelled": labelled[rows]}

    train_short(
        Learner(module),
        batches,
        lr=CONFIG.lr,
        steps=steps,
        seed=seed,
        weight_decay=CONFIG.weight_decay,
        output=lambda batch: None,
        tick=tick,
    )


def renumbered(mask: Tensor, classes: Sequence[int]) -> Tensor:
    """Value k + 1 of the k-th of `classes`, 0 for other organs."""
    numbers = torch.zeros(len(ORGANS) + 1, dtype=torch.uint8)
    numbers[[organ + 1 for organ in classes]] = torch.arange(1, len(classes) + 1, dtype=torch.uint8)
    return numbers[mask.long()]


def dice(module: Universal, volumes: Labelled, classes: Sequence[int], scored: Sequence[int]) -> float:
    """Mean over organs of the mean Dice over volumes."""
    found = VolumeDice(len(classes))
    labelled = torch.tensor([organ in scored for organ in classes])
    for image, mask in zip(volumes.image, volumes.mask, strict=True):
        case = {"image": image, "mask": renumbered(mask, classes), "labelled": labelled}
        score_case(module.network.eval(), case, found, members=module.members, roi=(SIDE,) * 3)
    return float(found.compute()[labelled].mean())


def details(results: Mapping[str, Any], out: Path) -> list[Block]:
    """The volumes, and what must hold exactly."""
    rows = [
        [short(arm), round(values["changed"]["mean"])]
        for arm, values in results["summary"].items()
        if "changed" in values
    ]
    return [
        Heading("The volumes"),
        Figure(_sheet(organs(6, seed=0)), "Middle slices of six volumes, and the organs in them, in greys by number."),
        Heading("What must hold exactly"),
        Table(
            ["arm", "old tensors changed"], rows, "New heads alone leave every old tensor as it was, to the last bit."
        ),
    ]


def _sheet(batch: Labelled, *, zoom: int = 4) -> np.ndarray:
    """Middle slices above their masks, ``[H, W, 3]`` uint8."""
    middle = batch.image.shape[-1] // 3
    image = np.concatenate(list(batch.image[:, 0, :, :, middle].numpy()), axis=1)
    mask = np.concatenate(list(batch.mask[:, :, :, middle].numpy()), axis=1) / len(ORGANS)
    grey = (255 * np.concatenate([image, mask]).clip(0, 1)).round().astype(np.uint8)
    return grey.repeat(zoom, 0).repeat(zoom, 1)[..., None].repeat(3, 2)
