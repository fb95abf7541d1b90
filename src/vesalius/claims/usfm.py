"""USFM's claim: does corrupting in space *and* frequency teach what corrupting in space alone does not?

Small (32 pixels, three blocks), equal budgets, every control: a random encoder, spatial masking alone (SimMIM with mean
padding), frequency masking alone, and natural beside organ-balanced sampling. 1000 steps are part of the claim: after
300, no arm reads texture better than chance.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from vesalius.claims.page import restorations as details
from vesalius.claims.readouts import read_out
from vesalius.claims.samples import Budget, Samples, load_samples
from vesalius.claims.verdicts import Comparison, Metric
from vesalius.data.datasets import generator
from vesalius.nn.masking import pixel_mask
from vesalius.pretrain.usfm import USFM, USFMConfig
from vesalius.training.short import Tick, pretrain

__all__ = ["ARMS", "BUDGET", "COMPARISONS", "METHOD", "METRICS", "TITLE", "details", "load_samples", "run_arm"]

TITLE = "USFM: masking in space and frequency, and organ-balanced sampling"
BUDGET = Budget(steps=1000)
ARMS = {
    "random": "random encoder",
    "spatial": "spatial mask only (SimMIM, mean-padded)",
    "frequency": "frequency mask only",
    "dual": "USFM: both",
    "natural": "USFM, images of three organs (90/7/3 %) as they occur",
    "balanced": "USFM, the same images, organs drawn equally often",
}
METHOD = (
    "All arms share the network (three blocks of 64 channels, 64 tokens an image, learned positions), its initial "
    "weights, the order of images and the read-outs. Pre-training: AdamW 2e-3 (0.9, 0.95), weight decay 0.05, 10 % "
    "warm-up, cosine; blocks of 2 x 2 tokens, 60 % masked; 40 % of the rings stopped; lambda 1. "
    "Frozen tokens are read by ridge regression of the labelled images: the mask's pixels (ridge Dice), patches with a "
    "calcification (average precision, AP), and the image's label from the mean and standard deviation of its tokens; "
    "on phantoms the label is the type of speckle inside the nodule. Fine-tuning trains the whole encoder with few and "
    "with all labels (Dice). The arms about organ sampling restore equally many test images of each organ, corrupted "
    "alike; the error is the mean absolute one of masked pixels, in standard deviations of the image."
)
ORGAN_ARMS = ("natural", "balanced")
METRICS = {
    "label_accuracy": Metric("label accuracy"),
    "label_auc": Metric("label AUC"),
    "calcification": Metric("calcif. AP"),
    "ridge_dice": Metric("ridge Dice"),
    "few_dice": Metric("Dice, few"),
    "all_dice": Metric("Dice, all"),
    "worst_organ_error": Metric("worst organ's error", higher=False),
    "rarest_organ_error": Metric("rarest organ's error", higher=False),
    "mean_organ_error": Metric("mean organ error", higher=False),
}
COMPARISONS = (
    Comparison("A, texture", "dual reads texture better than spatial only", "label_accuracy", "dual", "spatial"),
    Comparison("A, detail", "dual reads fine detail better than spatial only", "calcification", "dual", "spatial"),
    Comparison("A, shape", "dual segments better than spatial only with few labels", "few_dice", "dual", "spatial"),
    Comparison("B", "dual with few labels beats no pre-training with all", "few_dice", "dual", "random", "all_dice"),
    Comparison("C", "balanced sampling lowers the worst organ's error", "worst_organ_error", "balanced", "natural"),
    Comparison("C, rarest", "and the rarest organ's", "rarest_organ_error", "balanced", "natural"),
    Comparison(
        "control of A, texture", "dual beats frequency only", "label_accuracy", "dual", "frequency", control=True
    ),
    Comparison("control of A, detail", "dual beats frequency only", "calcification", "dual", "frequency", control=True),
    Comparison("control of A, shape", "dual beats frequency only", "few_dice", "dual", "frequency", control=True),
    Comparison("control of B", "spatial only does it too", "few_dice", "spatial", "random", "all_dice", control=True),
)


def config(budget: Budget, corruption: str = "dual") -> USFMConfig:
    """The small network: learned positions, blocks of two tokens."""
    return USFMConfig(
        image_size=budget.size,
        patch_size=budget.patch,
        in_channels=1,
        width=64,
        depth=3,
        heads=4,
        positions="learned",
        layer_scale=None,
        drop_path=0.0,
        corruption=corruption,
        mask_block=2 * budget.patch,
        mean=(0.0,),
        std=(1.0,),
        lr=2e-3,
        betas=(0.9, 0.95),
        schedule="cosine",
        warmup=0.1,
        warmup_lr=0.0,
    )


def run_arm(
    arm: str, seed: int, samples: Samples, budget: Budget, tick: Tick
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Pre-train one arm and read it out.

    Returns:
        metrics; pictures ``[n, S, S]`` by name (original, corrupted, restored), empty for the random encoder.
    """
    torch.manual_seed(seed)
    if arm in ORGAN_ARMS:
        return _organs(arm, seed, samples, budget, tick), {}
    module = USFM(config(budget, "dual" if arm == "random" else arm))
    pictures = {}
    if arm != "random":
        images = samples.unlabelled.image
        pretrain(
            module,
            lambda index, generator: module.corrupt(images[index], generator=generator),
            n=len(images),
            steps=budget.steps,
            batch=budget.batch,
            seed=seed,
            tick=tick,
        )
        pictures = picture(module, samples.test.image[:4], seed)
    return read_out(module.encoder, samples, budget, seed=seed), pictures


@torch.no_grad()
def picture(module: USFM, images: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """Test images, the same as the network sees them, and restored: ``[n, S, S]``."""
    batch = module.corrupt(images, generator=generator(seed, 0))
    restored = module(batch["corrupted"], batch["mask"])
    return {"original": images[:, 0], "corrupted": batch["corrupted"][:, 0], "restored": restored[:, 0]}


def _organs(arm: str, seed: int, samples: Samples, budget: Budget, tick: Tick) -> dict[str, float]:
    """Claim C: the error that each organ's test images are restored with, all corrupted alike in both arms."""
    train, test = samples.organs
    module = USFM(replace(config(budget), organ_alpha=1.0 if arm == "natural" else 0.0))
    pretrain(
        module,
        lambda index, generator: module.corrupt(train.image[index], generator=generator),
        n=len(train.image),
        steps=budget.organ_steps,
        batch=budget.batch,
        seed=seed,
        tick=tick,
        weights=module.sampling_weights([str(organ) for organ in train.label]),
    )
    with torch.no_grad():
        batch = module.corrupt(test.image, generator=generator(seed, 0))
        restored = module(batch["corrupted"], batch["mask"])
    masked = pixel_mask(batch["mask"], (budget.size, budget.size)).float()
    error = ((restored - test.image).abs() * masked).sum((1, 2, 3)) / masked.sum((1, 2, 3))
    organs = np.unique(train.label)
    errors = {int(organ): float(error[torch.from_numpy(test.label == organ)].mean()) for organ in organs}
    rarest = int(min(organs, key=lambda organ: (train.label == organ).sum()))
    return {
        "worst_organ_error": max(errors.values()),
        "rarest_organ_error": errors[rarest],
        "mean_organ_error": float(np.mean(list(errors.values()))),
        **{f"organ_{organ}_error": value for organ, value in errors.items()},
    }
