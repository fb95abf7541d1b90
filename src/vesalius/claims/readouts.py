"""What a frozen or briefly fine-tuned encoder is asked: shape, fine detail, texture, image labels.

All read-outs use the patch tokens of an encoder at one input size; the linear ones are ridge regressions whose
strength is chosen by leave-one-out within the labelled images, so no arm is favoured by a tuned constant.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from vesalius.claims.samples import Budget, Samples
from vesalius.nn.encoder import Encoder
from vesalius.nn.mae import patchify
from vesalius.nn.optim import adamw, warmup_cosine

ALPHAS = np.logspace(-1, 5, 7)
CUTS = np.linspace(0.1, 0.7, 25)


def read_out(encoder: Encoder, samples: Samples, budget: Budget, *, seed: int) -> dict[str, float]:
    """Every metric that the samples have the truth for."""
    train, test = samples.labelled, samples.test
    values: dict[str, float] = {}
    frozen, unseen = tokens(encoder, train.image), tokens(encoder, test.image)
    if train.mask is not None and test.mask is not None:
        few = min(budget.few, max(1, len(train.image) // 5))
        values["ridge_dice"] = ridge_dice(frozen, train.mask, unseen, test.mask, patch=budget.patch)
        for name, count in (("few_dice", few), ("all_dice", len(train.image))):
            values[name] = fine_tuned_dice(
                encoder,
                train.image[:count],
                train.mask[:count],
                test.image,
                test.mask,
                steps=budget.finetune_steps,
                seed=seed,
            )
    if train.points is not None and test.points is not None:
        values["calcification"] = patch_precision(frozen, train.points, unseen, test.points, patch=budget.patch)
    if train.label is not None and test.label is not None:
        values["label_accuracy"] = label_accuracy(frozen, train.label, unseen, test.label)
        values["label_auc"] = label_auc(frozen, train.label, unseen, test.label)
    return values


@torch.no_grad()
def tokens(encoder: Encoder, images: Tensor) -> np.ndarray:
    """Patch tokens ``[N, patches, width]`` of ``images [N, C, S, S]``."""
    encoder.eval()
    return torch.cat([encoder(part).patches for part in images.split(100)]).numpy()


def ridge_dice(train: np.ndarray, train_mask: Tensor, test: np.ndarray, test_mask: Tensor, *, patch: int) -> float:
    """Mean Dice over images of a ridge regression from a token to its patch's pixels.

    The structure is small, so the regression's values are cut where the Dice of the labelled images is highest.

    Args:
        train, test: tokens ``[N, patches, width]``.
        train_mask, test_mask: ``[N, S, S]`` bool.
        patch: pixels of a token's side.
    """
    model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS))
    model.fit(_rows(train), _rows(_pixels(train_mask, patch)))
    fitted, predicted = (model.predict(_rows(part)).reshape(len(part), -1) for part in (train, test))
    known, truth = (_pixels(mask, patch).reshape(len(mask), -1) > 0.5 for mask in (train_mask, test_mask))
    cut = max(CUTS, key=lambda value: dice(fitted > value, known))
    return dice(predicted > cut, truth)


def patch_precision(train: np.ndarray, train_mask: Tensor, test: np.ndarray, test_mask: Tensor, *, patch: int) -> float:
    """Average precision of "this patch holds a marked pixel", by ridge from its token; arguments as above."""
    model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS))
    model.fit(_rows(train), _pixels(train_mask, patch).max(-1).ravel())
    return float(average_precision_score(_pixels(test_mask, patch).max(-1).ravel(), model.predict(_rows(test))))


def label_accuracy(train: np.ndarray, train_label: np.ndarray, test: np.ndarray, test_label: np.ndarray) -> float:
    """Accuracy of a ridge classifier on the mean and standard deviation of an image's tokens."""
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(ALPHAS)).fit(_moments(train), train_label)
    return float(model.score(_moments(test), test_label))


def label_auc(train: np.ndarray, train_label: np.ndarray, test: np.ndarray, test_label: np.ndarray) -> float:
    """Area under the ROC curve (one class against the rest, mean over classes) of the same classifier's scores."""
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(ALPHAS)).fit(_moments(train), train_label)
    score = model.decision_function(_moments(test))
    classes = model.classes_
    score = np.stack([-score, score], 1) if score.ndim == 1 else score
    present = [i for i, name in enumerate(classes) if 0 < (test_label == name).sum() < len(test_label)]
    return float(np.mean([roc_auc_score(test_label == classes[i], score[:, i]) for i in present]))


def fine_tuned_dice(
    encoder: Encoder,
    train: Tensor,
    train_mask: Tensor,
    test: Tensor,
    test_mask: Tensor,
    *,
    steps: int = 120,
    batch: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
) -> float:
    """Mean Dice over images after training the whole encoder and a linear head on a token's pixels.

    AdamW, 10 % warm-up and half a cosine, cross-entropy plus soft Dice loss, left-right flips. `encoder` itself is not
    changed; the head's start and the order of images depend on `seed` alone.

    Args:
        train, test: images ``[N, C, S, S]``.
        train_mask, test_mask: ``[N, S, S]`` bool.
    """
    generator = torch.Generator().manual_seed(seed)
    encoder = copy.deepcopy(encoder).train()
    patch = encoder.patch_size
    head = nn.Linear(encoder.width, patch**2)
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    model = nn.ModuleDict({"encoder": encoder, "head": head})
    plan = adamw(model, lr=lr, schedule=lambda step: warmup_cosine(step, total=steps, warmup=steps // 10, lr=lr))
    optimizer, scheduler = plan["optimizer"], plan["lr_scheduler"]["scheduler"]
    for _ in range(steps):
        index = torch.randint(len(train), (batch,), generator=generator)
        flip = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
        image, mask = train[index], train_mask[index].unsqueeze(1).float()
        image, mask = (torch.where(flip, x.flip(-1), x) for x in (image, mask))
        logits = head(encoder(image).patches).flatten(1)
        target = patchify(mask, patch).flatten(1)
        probability = logits.sigmoid()
        overlap = 2 * (probability * target).sum(1) / (probability.sum(1) + target.sum(1) + 1e-6)
        loss = binary_cross_entropy_with_logits(logits, target) + (1 - overlap).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    predicted = head(torch.from_numpy(tokens(encoder, test))).flatten(1) > 0
    return dice(predicted.numpy(), _pixels(test_mask, patch).reshape(len(test), -1) > 0.5)


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean over images of the Dice of ``[N, pixels]`` bool; images without truth are left out.

    >>> dice(np.array([[True, True], [True, False]]), np.array([[True, False], [False, False]])).__round__(3)
    0.667
    """
    there = truth.any(1)
    predicted, truth = predicted[there], truth[there]
    return float((2 * (predicted & truth).sum(1) / (predicted.sum(1) + truth.sum(1))).mean())


def _pixels(mask: Tensor, patch: int) -> np.ndarray:
    return patchify(mask.unsqueeze(1).float(), patch).numpy()


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])


def _moments(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features.mean(1), features.std(1)], axis=1)
