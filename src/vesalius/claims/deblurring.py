"""Deblurring MIM's claim: does restoring the sharp image teach more than a masked autoencoder does?

The blur alone, a low-pass filter that takes the speckle away, helps every network, even a random one. So beside the
paper's comparison (deblurring against a masked autoencoder of sharp images) stands the honest one (against a masked
autoencoder of the same blurred images), and a random encoder of blurred images. Each arm reads at the end what it
read in pre-training; the deblurring encoder is read a second time on sharp images, as if its input contract had been
forgotten.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vesalius.claims.page import restorations as details
from vesalius.claims.readouts import read_out, ridge_dice, tokens
from vesalius.claims.samples import Budget, Samples, load_samples
from vesalius.claims.verdicts import Comparison, Metric
from vesalius.data.blur import Blur
from vesalius.data.datasets import generator
from vesalius.nn.mae import patchify, unpatchify
from vesalius.pretrain.deblurring import Deblurring, DeblurringConfig
from vesalius.training.short import Tick, pretrain

__all__ = ["ARMS", "BUDGET", "COMPARISONS", "METHOD", "METRICS", "TITLE", "details", "load_samples", "run_arm"]

TITLE = "Deblurring MIM: blurred input, sharp target"
BUDGET = Budget(steps=1500)
ARMS = {
    "random_sharp": "random encoder, sharp images",
    "random_blurred": "random encoder, blurred images",
    "mae_sharp": "masked autoencoder, sharp images",
    "mae_blurred": "masked autoencoder, blurred images",
    "deblurring": "deblurring masked autoencoder",
}
METHOD = (
    "All arms share the network (three blocks of 64 channels, 64 tokens an image, learned positions; a decoder of "
    "one block of 48), its initial weights, the order of images, the removed patches (75 %) and the read-outs. "
    "Pre-training: AdamW 2e-3 (0.9, 0.95), weight decay 0.05, 10 % warm-up, cosine. Blur: Gaussian of 1.1 pixels, "
    "after the resize on real images, whose own pixels are too fine for it to be seen here. "
    "Frozen tokens are read by ridge regression of the labelled images: the mask's pixels (ridge Dice), patches with a "
    "calcification (average precision, AP), and the image's label from the mean and standard deviation of its tokens; "
    "on phantoms the label is the type of speckle inside the nodule. Fine-tuning trains the whole encoder with few and "
    "with all labels (Dice). *Blur forgotten*: the ridge regression fitted on blurred images and given sharp ones."
)
METRICS = {
    "ridge_dice": Metric("ridge Dice"),
    "calcification": Metric("calcif. AP"),
    "few_dice": Metric("Dice, few"),
    "all_dice": Metric("Dice, all"),
    "label_accuracy": Metric("label accuracy"),
    "label_auc": Metric("label AUC"),
    "forgotten_ridge_dice": Metric("ridge Dice, blur forgotten"),
}
COMPARISONS = (
    Comparison("A, shape", "deblurring beats MAE on sharp images, few labels", "few_dice", "deblurring", "mae_sharp"),
    Comparison("A, detail", "deblurring beats MAE on sharp images", "calcification", "deblurring", "mae_sharp"),
    Comparison(
        "B, shape",
        "deblurring beats MAE on the same blurred images, few labels",
        "few_dice",
        "deblurring",
        "mae_blurred",
    ),
    Comparison(
        "B, detail", "deblurring beats MAE on the same blurred images", "calcification", "deblurring", "mae_blurred"
    ),
    Comparison(
        "control, blur alone",
        "a random encoder on blurred images beats one on sharp images",
        "few_dice",
        "random_blurred",
        "random_sharp",
        control=True,
    ),
    Comparison(
        "control, blur against MAE",
        "a random encoder on blurred images beats MAE on sharp images",
        "few_dice",
        "random_blurred",
        "mae_sharp",
        control=True,
    ),
    Comparison(
        "contract",
        "the deblurring encoder needs blurred images when it is used",
        "ridge_dice",
        "deblurring",
        "deblurring",
        "forgotten_ridge_dice",
    ),
)


def config(budget: Budget, arm: str) -> DeblurringConfig:
    """The small network: learned positions, a decoder of one block."""
    blurred = arm in ("random_blurred", "mae_blurred", "deblurring")
    return DeblurringConfig(
        image_size=budget.size,
        patch_size=budget.patch,
        in_channels=1,
        width=64,
        depth=3,
        heads=4,
        positions="learned",
        decoder_width=48,
        decoder_depth=1,
        decoder_heads=4,
        blur=Blur("gaussian", sigma=1.1) if blurred else None,
        target="sharp" if arm == "deblurring" else "input",
        loss_on="all" if arm == "deblurring" else "removed",
        mean=(0.0,),
        std=(1.0,),
        lr=2e-3,
        warmup=0.1,
    )


def run_arm(
    arm: str, seed: int, samples: Samples, budget: Budget, tick: Tick
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Pre-train one arm and read it out.

    Returns:
        metrics; pictures ``[n, S, S]`` by name (original, corrupted, restored), empty for a random encoder.
    """
    torch.manual_seed(seed)
    module = Deblurring(config(budget, arm))
    seen = samples if module.config.blur is None else samples.map(lambda images: blur(images, module.config.blur))
    pictures = {}
    if not arm.startswith("random"):
        sharp, blurred = samples.unlabelled.image, seen.unlabelled.image
        pretrain(
            module,
            lambda index, generator: module.corrupt(sharp[index], blurred[index], generator=generator),
            n=len(sharp),
            steps=budget.steps,
            batch=budget.batch,
            seed=seed,
            tick=tick,
        )
        pictures = picture(module, samples.test.image[:4], seen.test.image[:4], seed)
    values = read_out(module.encoder, seen, budget, seed=seed)
    if arm == "deblurring" and "ridge_dice" in values:
        values["forgotten_ridge_dice"] = forgotten(module, samples, seen, budget)
    return values, pictures


def blur(images: Tensor, operator: Blur) -> Tensor:
    """``[N, 1, S, S]`` blurred one by one; the blur is linear, so it may follow the normalisation."""
    return torch.from_numpy(operator(images[:, 0].numpy())).unsqueeze(1)


def forgotten(module: Deblurring, sharp: Samples, blurred: Samples, budget: Budget) -> float:
    """Ridge Dice of a read-out fitted on blurred images and tested on sharp ones."""
    return ridge_dice(
        tokens(module.encoder, blurred.labelled.image),
        blurred.labelled.mask,
        tokens(module.encoder, sharp.test.image),
        sharp.test.mask,
        patch=budget.patch,
    )


@torch.no_grad()
def picture(module: Deblurring, sharp: Tensor, blurred: Tensor, seed: int) -> dict[str, Tensor]:
    """Test images, what the network sees of them (removed patches at the mean), and restored: ``[n, S, S]``."""
    c = module.config
    batch = module.corrupt(sharp, blurred, generator=generator(seed, 0))
    prediction, removed = module(batch["corrupted"], batch["noise"])
    seen = patchify(batch["corrupted"], c.patch_size) * (1 - removed.unsqueeze(-1))
    return {
        "original": sharp[:, 0],
        "corrupted": unpatchify(seen, c.grid, 1)[:, 0],
        "restored": unpatchify(prediction, c.grid, 1)[:, 0],
    }
