"""EPT's claim: with five or ten labels a class, do embedded prompts beat a linear probe, and do they beat the others?

A small transformer learns coloured shapes by supervision and is moved, frozen, to grey tissue of four classes. The
prompts soften the attention before they have learned anything, so beside the paper's comparisons stand the ones that
tell what the learning itself is worth: the same prompts frozen as they were drawn, a single logit a token, and a start
at which the network is still the pre-trained one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vesalius.adapt import methods
from vesalius.adapt.ept import EPTConfig, collapse
from vesalius.claims.ept_images import MEAN, SHAPES, STD, TISSUES, Labelled, shapes, tissue
from vesalius.claims.page import short
from vesalius.claims.verdicts import Comparison, Metric
from vesalius.data.contract import InputContract
from vesalius.data.datasets import generator, mixed_seed
from vesalius.errors import ConfigError
from vesalius.nn.encoder import Encoder
from vesalius.nn.prompts import kept_mass
from vesalius.nn.vit import ViT, ViTConfig
from vesalius.published.card import Card
from vesalius.published.load import load_backbone, save_weights
from vesalius.published.networks import architecture
from vesalius.report.figures import arms as draw_arms
from vesalius.report.html import Block, Figure, Heading, Table, Text
from vesalius.tasks.classification import Classifier
from vesalius.training.short import Tick, train_short

SHOTS = (5, 10)
RATES = (5e-4, 2e-3, 8e-3, 3e-2, 1e-1)
LENGTH = 20
"""Prompts a token: to the 37 tokens of this network what the published 100 are to 197."""


@dataclass(frozen=True)
class FewShotBudget:
    """What every arm gets alike.

    Args:
        trunk_images, trunk_steps, trunk_batch: of the supervised pre-training.
        steps, batch: of a training with few labels.
        draws: support sets that are scored, a seed and number of shots.
        tuning: further support sets, on which each arm's learning rate is chosen.
        validation, test: images; the first score the learning rates, the second the arms.
    """

    trunk_images: int = 12000
    trunk_steps: int = 1200
    trunk_batch: int = 64
    steps: int = 40
    batch: int = 8
    draws: int = 10
    tuning: int = 2
    validation: int = 150
    test: int = 400

    def with_steps(self, steps: int) -> FewShotBudget:
        """The same with other steps of pre-training."""
        return replace(self, trunk_steps=steps)

    def for_table(self) -> FewShotBudget:
        """Refused: the claim is about a trunk and a target that are known.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "the claim of ept has images of its own and takes no table",
            remedy="compare methods on your images with vesalius compare",
        )

    def work(self, arm: str) -> int:
        """What an arm counts on the progress bar, in steps."""
        trainings = len(SHOTS) * (self.draws + self.tuning * len(RATES))
        return self.trunk_steps if arm == TRUNK else trainings * self.steps


UNSEEN = 50
"""Added to a seed: images of smaller numbers were looked at when the settings were chosen."""
TRUNK = "trunk"
FIRST = (TRUNK,)
TITLE = "EPT: embedded prompts with few labels"
BUDGET = FewShotBudget()
ARMS = {
    TRUNK: "the trunk itself, on the shapes that it was trained on (8 classes)",
    "linear": "linear head on the frozen trunk",
    "mlp3": "head of three layers",
    "partial1": "last block",
    "bitfit": "bias vectors",
    "lora": "LoRA of query and value, rank 8",
    "adapter": "bottlenecks beside the MLPs (AdaptFormer)",
    "vp": "values added to the tokens, in every block",
    "vpt_shallow": "VPT: 10 prompt tokens before the first block",
    "vpt_deep": "VPT: 10 prompt tokens in every block",
    "ssf": "scale and shift after every layer",
    "ept_shallow": "EPT in the first block",
    "ept": "EPT in every block, as in the authors' code (concat)",
    "ept_scaled": "EPT in every block, prompts scaled by each query's spread (scaled_concat)",
    "full": "everything (full fine-tuning)",
    "ept_frozen": "EPT in every block, prompts left as they were drawn: only the head learns",
    "ept_collapsed": "EPT as one logit a token, starting at the same attention",
    "ept_identity": "EPT that starts with the pre-trained attention (logit -10)",
    "vpt_frozen": "VPT in every block, prompts left as they were drawn: only the head learns",
}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "vpt_shallow": ("vpt", {"layers": "shallow"}),
    "vpt_deep": ("vpt", {}),
    "vpt_frozen": ("vpt", {"frozen": True}),
    "ept_shallow": ("ept", {"length": LENGTH, "layers": "shallow"}),
    "ept": ("ept", {"length": LENGTH}),
    "ept_scaled": ("ept", {"length": LENGTH, "mode": "scaled_concat"}),
    "ept_frozen": ("ept", {"length": LENGTH, "frozen": True}),
    "ept_collapsed": ("ept", {"length": 1, "init_logit": math.log(LENGTH)}),
    "ept_identity": ("ept", {"length": LENGTH, "init_logit": -10.0}),
}
"""The arms that are not a method's own settings: method and what is changed."""
METRICS = {
    "accuracy_5": Metric("accuracy, 5-shot"),
    "accuracy_10": Metric("accuracy, 10-shot"),
    "source_accuracy": Metric("accuracy on shapes"),
}
METHOD = (
    "The trunk (four blocks of 64 channels, 37 tokens an image of 24 pixels) is trained once a seed on 12000 images of "
    "eight coloured shapes: AdamW 2e-3, weight decay 0.05. The target has four classes; chance is 0.25. All arms share "
    "the trunk, the linear head at its start (MLP-3 has its own), the labelled images and their order, left-right and "
    "top-down flips, and AdamW with 10 % warm-up, half a cosine and weight decay 1e-4. Learning rates from "
    f"{', '.join(f'{lr:g}' for lr in RATES)}, one for all that trains, are scored on validation images after training "
    "on two further draws; each arm takes the best one for each seed and number of shots, the smallest of equals. "
    "Draws to score, draws to choose by, validation and test images have no image in common; the 5-shot set of a draw "
    "is part of its 10-shot set. A linear head on an attention divided by one constant is no arm of its own: untrained "
    "prompts (standard deviation 0.02) are that to within two hundredths of a logit, so it is *ept frozen*. EPT has "
    f"{LENGTH} prompts a token (*ept collapsed* one): to 37 tokens what the published 100 are to 197."
)


def _both(name: str, statement: str, better: str, worse: str, *, control: bool = False) -> list[Comparison]:
    """The comparison at either number of shots."""
    return [
        Comparison(f"{name}, {shots}-shot", statement, f"accuracy_{shots}", better, worse, control=control)
        for shots in SHOTS
    ]


COMPARISONS = (
    *_both("linear", "EPT beats a linear head", "ept", "linear"),
    *_both("VPT", "EPT beats VPT in every block", "ept", "vpt_deep"),
    *_both("full", "EPT beats full fine-tuning", "ept", "full"),
    *_both("deep", "EPT in every block beats EPT in the first", "ept", "ept_shallow"),
    *_both("scaled", "prompts scaled by the query's spread beat plain ones", "ept_scaled", "ept"),
    *_both("untrained", "EPT beats its own prompts frozen as drawn", "ept", "ept_frozen", control=True),
    *_both("collapsed", "EPT beats one logit a token", "ept", "ept_collapsed", control=True),
    *_both("frozen EPT", "prompts that learn nothing beat a linear head", "ept_frozen", "linear", control=True),
    *_both("frozen VPT", "prompt tokens that learn nothing do, too", "vpt_frozen", "linear", control=True),
    *_both("identity", "EPT from the pre-trained attention does, too", "ept_identity", "linear", control=True),
)


def image_seed(seed: int, number: int) -> int:
    """The seed of one set of images of a seed of the claim."""
    return 1000 * (seed + UNSEEN) + number


@dataclass(frozen=True)
class Split:
    """``image [N, 3, S, S]`` and ``label [N]``."""

    image: Tensor
    label: Tensor

    @classmethod
    def of(cls, batch: Labelled) -> Split:
        """The same as tensors."""
        return cls(torch.from_numpy(batch.image), torch.from_numpy(batch.label))


@dataclass(frozen=True)
class Transfer:
    """The images of one seed, each made when it is wanted, and where the seed's trunk is."""

    seed: int
    budget: FewShotBudget
    trunk: Path

    @cached_property
    def validation(self) -> Split:
        """Target images that score learning rates."""
        return self._tissue(2, self.budget.validation)

    @cached_property
    def test(self) -> Split:
        """Target images that score arms."""
        return self._tissue(3, self.budget.test)

    def support(self, draw: int, shots: int) -> Split:
        """The labelled images of a draw: the first ones of each class are those of fewer shots."""
        return self._tissue(10 + draw, shots * len(TISSUES))

    def source(self, *, test: bool = False) -> Split:
        """Coloured shapes: to train the trunk, or others to test it."""
        number, count = (1, self.budget.test) if test else (0, self.budget.trunk_images)
        return Split.of(shapes(count, seed=image_seed(self.seed, number)))

    def _tissue(self, number: int, count: int) -> Split:
        return Split.of(tissue(np.arange(count) % len(TISSUES), seed=image_seed(self.seed, number)))


@lru_cache(maxsize=1)
def load_samples(seed: int, budget: FewShotBudget, *, data: str | None, folder: Path) -> Transfer:
    """The images of a seed; `folder` holds the seed's trunk."""
    return Transfer(seed, budget, folder / "trunk")


def run_arm(
    arm: str, seed: int, samples: Transfer, budget: FewShotBudget, tick: Tick
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train the trunk, or adapt it by one method to every draw.

    Returns:
        ``accuracy_5`` and ``accuracy_10``, one number a draw, and what is known besides (see `details`); no pictures.
    """
    if arm == TRUNK:
        return {"source_accuracy": pretrain(seed, samples, budget, tick)}, {}
    method, changes = RECIPES.get(arm, (arm, {}))
    trial = Trial(method, methods.settings(method, changes), load_backbone(samples.trunk), samples, tick)
    metrics: dict[str, Any] = {}
    for shots in SHOTS:
        lr = trial.best_rate(shots)
        tasks = [trial.fit(draw, shots, lr) for draw in range(budget.draws)]
        metrics[f"accuracy_{shots}"] = [accuracy(task, samples.test) for task in tasks]
        metrics[f"lr_{shots}"] = lr
    facts = [trial.facts(task) for task in tasks]  # of the larger number of shots
    for name in facts[0]:
        over_draws = np.mean if name.startswith("kept") else np.max
        metrics[name] = over_draws([fact[name] for fact in facts], axis=0).tolist()
    return metrics, {}


def pretrain(seed: int, samples: Transfer, budget: FewShotBudget, tick: Tick) -> float:
    """Train the trunk on coloured shapes and keep it as a backbone with its card; its accuracy on others."""
    torch.manual_seed(seed)
    trunk = ViT(ViTConfig(image_size=24, patch_size=4, width=64, depth=4, heads=4))
    task = Classifier(trunk, SHAPES, pool="encoder", label_smoothing=0.0, head_std=0.02)
    train = samples.source()

    def batches(chance: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(train.image), (budget.trunk_batch,), generator=chance)
        return {"image": train.image[index], "label": train.label[index]}

    train_short(task, batches, lr=2e-3, steps=budget.trunk_steps, seed=seed, weight_decay=0.05, tick=tick)
    score = accuracy(task, samples.source(test=True))
    contract = InputContract(24, 3, (MEAN,) * 3, (STD,) * 3)
    note = f"trained on coloured shapes, {score:.1%} right on others"
    save_weights(trunk, samples.trunk, Card("vit", "backbone", architecture(trunk), contract, notes=(note,)))
    return score


class Trial:
    """One method on one trunk: it trains on a draw, after it has chosen its learning rate on other draws."""

    def __init__(self, method: str, config: Any, trunk: Encoder, samples: Transfer, tick: Tick):
        self.method, self.config, self.trunk, self.samples, self.tick = method, config, trunk, samples, tick
        self.cached = methods.reads_frozen_features(method, config)
        self.done = 0

    def best_rate(self, shots: int) -> float:
        """The learning rate of the best mean accuracy on the validation images, the smallest of equals."""
        b = self.samples.budget
        draws = range(b.draws, b.draws + b.tuning)
        scores = {
            lr: fmean(accuracy(self.fit(draw, shots, lr), self.samples.validation) for draw in draws) for lr in RATES
        }
        return max(RATES, key=scores.__getitem__)

    def fresh(self, seed: int) -> Classifier:
        """The trunk with the method in it and a new head, both functions of the seed."""
        encoder = methods.install(copy.deepcopy(self.trunk), self.method, self.config, generator=generator(seed, 0))
        torch.manual_seed(seed)
        return Classifier(
            encoder, TISSUES, pool="encoder", head=methods.head(self.method), label_smoothing=0.0, head_std=0.01
        )

    def fit(self, draw: int, shots: int, lr: float) -> Classifier:
        """Train on the labelled images of a draw."""
        budget, support = self.samples.budget, self.samples.support(draw, shots)
        seed = mixed_seed(self.samples.seed, draw)
        task = self.fresh(seed)
        flips = ((), (-1,), (-2,), (-2, -1))
        views = torch.stack([support.image.flip(axes) for axes in flips])
        if self.cached:  # the trunk's features of every view, since they never change
            with torch.no_grad():
                views = task.features(views.flatten(0, 1)).unflatten(0, views.shape[:2])

        def batches(chance: torch.Generator) -> dict[str, Tensor]:
            index = torch.randperm(len(support.label), generator=chance)[: budget.batch]
            flip = torch.randint(len(flips), index.shape, generator=chance)
            return {"image": views[flip, index], "label": support.label[index]}

        train_short(
            task,
            batches,
            lr=lr,
            steps=budget.steps,
            seed=seed,
            output=(lambda batch: task.head(batch["image"])) if self.cached else None,
            tick=lambda step: self.tick(self.done + step),
        )
        self.done += budget.steps
        return task.eval()

    @torch.no_grad()
    def facts(self, task: Classifier) -> dict[str, Any]:
        """What holds of a trained network besides its accuracy.

        Returns:
            ``trained``: numbers trained in the trunk or put into it; ``changed``: tensors of the trunk that are no
            longer what they were; with embedded prompts ``kept_before`` and ``kept_after``: what the prompts leave of
            the attention, a block, and ``collapse``: how far the outputs move when they are folded into one logit.
        """
        encoder, tensors = task.encoder, task.encoder.state_dict()
        values: dict[str, Any] = {
            "trained": sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad),
            "changed": sum(not torch.equal(tensors[name], old) for name, old in self.trunk.state_dict().items()),
        }
        if isinstance(self.config, EPTConfig):
            image = self.samples.test.image[:100]
            untrained = self.fresh(mixed_seed(self.samples.seed, 0)).encoder
            for name, network in (("kept_before", untrained), ("kept_after", encoder)):
                values[name] = kept_mass(network, image).mean((1, 2, 3)).tolist()
            if self.config.mode == "concat":
                folded = copy.deepcopy(task)
                collapse(folded)
                values["collapse"] = (folded(image) - task(image)).abs().max().item()
        return values


def accuracy(task: Classifier, split: Split) -> float:
    """Share of images whose class has the highest probability."""
    return (task.predict(split.image).argmax(-1) == split.label).float().mean().item()


def details(results: Mapping[str, Any], out: Path) -> list[Block]:
    """The images, what was trained and what must hold exactly, and what the prompts leave of the attention."""
    summary = results["summary"]
    rows = []
    for arm, values in summary.items():
        if arm != TRUNK:
            collapsed = f"{max(values['collapse']['values']):.1g}" if "collapse" in values else None
            rates = (", ".join(f"{lr:g}" for lr in values[f"lr_{shots}"]["values"]) for shots in SHOTS)
            rows.append(
                [short(arm), round(values["trained"]["mean"]), round(values["changed"]["mean"]), collapsed, *rates]
            )
    first = results["seeds"][0]
    source = shapes(200, seed=image_seed(first, 1))
    target = tissue(np.arange(40) % len(TISSUES), seed=image_seed(first, 3))
    panels: dict[str, dict[str, list[float]]] = {}
    for arm, values in summary.items():
        if arm in ("ept", "ept_scaled", "ept_collapsed", "ept_identity"):
            for when in ("before", "after"):
                for block, kept in enumerate(zip(*values[f"kept_{when}"]["each"], strict=True), start=1):
                    panels.setdefault(f"block {block}", {})[f"{short(arm)}, {when}"] = list(kept)
    return [
        Heading("The images"),
        Figure(_sheet(source, 10), f"What the trunk learned, a row a class: {', '.join(SHAPES)}."),
        Figure(_sheet(target, 10), f"What it was moved to, a row a class: {', '.join(TISSUES)}."),
        Heading("What was trained, and what must hold exactly"),
        Table(
            ["arm", "numbers trained", "trunk tensors changed", "collapse changes", *(f"lr, {s}-shot" for s in SHOTS)],
            rows,
            "Numbers trained besides the head. A method that leaves the trunk alone changes none of its tensors. "
            "Folding trained prompts into one logit a token must not change an output: the largest difference of a "
            "class score is given. Learning rates are those chosen, a seed each.",
        ),
        Heading("What the prompts leave of the attention"),
        Text(
            "A token's attention sums to one before prompts are embedded, and to Z / (Z + E) with them. The mean over "
            "test images, heads and tokens, before training and after it (over all 10-shot draws)."
        ),
        Figure(draw_arms(panels, columns=4), "Small points are seeds; the large one is their mean.", wide=True),
    ]


def _sheet(batch: Labelled, count: int, *, zoom: int = 2) -> np.ndarray:
    """The first `count` images of each class, a row a class: ``[H, W, 3]`` uint8."""
    rows = [
        np.concatenate(list(batch.image[batch.label == label][:count]), axis=2)
        for label in range(batch.label.max() + 1)
    ]
    sheet = np.concatenate(rows, axis=1).transpose(1, 2, 0) * STD + MEAN
    return (255 * sheet.clip(0, 1)).round().astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
