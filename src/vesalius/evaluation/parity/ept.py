"""Embedded Prompt Tuning: its published parts as this library computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vesalius.data.medfmc import SETS, published_rule
from vesalius.evaluation.parity.common import Adapter, Outputs, tensor
from vesalius.nn.vit import ViT, ViTConfig
from vesalius.published.fixture import Fixture
from vesalius.tasks.classification import Classifier
from vesalius.tasks.metrics import classification
from vesalius.tasks.multilabel import multilabel

# --- parts without weights


def few_shot_draws(fixture: Fixture, file: Path) -> Outputs:
    """The rows of the published few-shot draws, class by class, from lists of MedFMC's three sets."""
    outputs: dict[str, np.ndarray] = {}
    for kind, all_shots in fixture.config["shots"].items():
        lines = [SETS[kind].parse(str(line)) for line in fixture.inputs[f"{kind}_lines"]]
        names, flags = [name for name, _ in lines], [found for _, found in lines]
        for shots in all_shots:
            rows = published_rule(names, flags, kind=kind, shots=shots, seed=fixture.config["seed"])
            outputs[f"{kind}_{shots}"] = np.array([row for of_class in rows for row in of_class])
            outputs[f"{kind}_{shots}_per_class"] = np.array([len(of_class) for of_class in rows])
    return outputs


def ept_losses(fixture: Fixture, file: Path) -> Outputs:
    """Losses of given logits: any number of labels an image, and one."""
    encoder = ViT(ViTConfig(image_size=8, patch_size=8, width=8, depth=1, heads=1))
    outputs = {}
    for kind in ("multilabel", "multiclass"):
        logits, target = tensor(fixture, f"{kind}_logits"), tensor(fixture, f"{kind}_target")
        classes = [str(c) for c in range(logits.shape[1])]
        head = Classifier(encoder, classes, pool="encoder", multilabel=kind == "multilabel", label_smoothing=0.0)
        outputs[f"{kind}_loss"] = head.loss(logits, {"label": target}).double().view(1)
    return outputs


def ept_metrics(fixture: Fixture, file: Path) -> Outputs:
    """Multi-label scores in percent, as published and over the classes that have them."""
    probabilities, labels = fixture.inputs["score"], fixture.inputs["target"]
    classes = [str(c) for c in range(labels.shape[1])]
    threshold = fixture.config["thr"]
    published = multilabel(probabilities, labels, classes=classes, threshold=threshold, as_published=True)
    honest = multilabel(probabilities, labels, classes=classes, threshold=threshold)
    scores = {name: published[name] for name in ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1")}
    scores |= {"AUC_multilabel": published["auroc"], "valid_mAP": honest["mAP"], "valid_AUC": honest["auroc"]}
    return _percent(scores)


def ept_multiclass_metrics(fixture: Fixture, file: Path) -> Outputs:
    """Accuracy and the AUC of the softmax taken twice, in percent."""
    probabilities, labels = fixture.inputs["score"], fixture.inputs["target"]
    classes = [str(c) for c in range(probabilities.shape[1])]
    scores = classification(probabilities, labels, classes=classes, as_published=True)
    return _percent({"accuracy": scores["accuracy"], "AUC_multiclass": scores["auroc"]})


def _percent(scores: dict[str, float]) -> Outputs:
    return {name: np.array([100 * score]) for name, score in scores.items()}


FAMILIES: dict[str, Adapter] = {
    "ept_losses": ept_losses,
    "ept_metrics": ept_metrics,
    "ept_metrics_empty_class": ept_metrics,
    "ept_metrics_multiclass": ept_multiclass_metrics,
    "ept_fewshot": few_shot_draws,
}
