"""EPT: its network, VPT and the plain trunk, training of the prompts, the schedules, few-shot draws, losses, scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vesalius.data.medfmc import SETS, published_rule
from vesalius.evaluation.parity.common import Adapter, Outputs, hints_of, image_of, tensor
from vesalius.nn.optim import warmup_cosine
from vesalius.nn.prompts import kept_mass
from vesalius.nn.vit import ViT, ViTConfig
from vesalius.published.fixture import Fixture
from vesalius.published.load import load
from vesalius.published.networks import Classifier
from vesalius.tasks.classification import Classifier as AdaptedClassifier
from vesalius.tasks.metrics import classification
from vesalius.tasks.multilabel import binary_cross_entropy, multilabel

# --- networks


def classifier(fixture: Fixture, file: Path) -> Outputs:
    """Class token, logits and scores of a trunk with EPT's prompts, VPT's, or none."""
    network, image = _load(fixture, file), image_of(fixture)
    feature = network.features(image)
    logits = network.head(feature)
    many = "multi-label" in fixture.config["head"]
    outputs = {"feature": feature, "logits": logits, "score": logits.sigmoid() if many else logits.softmax(-1)}
    if "kept_mass" in fixture.outputs:
        outputs["kept_mass"] = kept_mass(network.encoder, image)
    return outputs


def training(fixture: Fixture, file: Path) -> Outputs:
    """Steps of the published optimiser on the prompts and the head."""
    network = _load(fixture, file)
    network.encoder.requires_grad_(False)
    prompts = [p.requires_grad_() for name, p in network.encoder.named_parameters() if name.endswith("prompt.prompt")]
    optimizer = torch.optim.SGD([*prompts, *network.head.parameters()], **fixture.config["optimizer"])
    target = tensor(fixture, "target")
    criterion = nn.functional.cross_entropy if target.dim() == 1 else binary_cross_entropy
    losses: list[Tensor] = []
    with torch.enable_grad():
        for _ in fixture.outputs["loss"]["value"]:
            optimizer.zero_grad()
            loss = criterion(network(image_of(fixture)), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return {
        "loss": torch.stack(losses),
        "prompt_after": torch.stack([prompt.detach() for prompt in prompts]),
        "head_weight_after": network.head.weight.detach(),
    }


def _load(fixture: Fixture, file: Path) -> Classifier:
    """The published classifier, its prompts replaced where the fixture has others than the file's."""
    if "prompt" in fixture.inputs:
        content = fixture.checkpoint()
        state = content[fixture.wrapper] if fixture.wrapper else content
        state[f"{fixture.prefix}backbone.prompt"] = tensor(fixture, "prompt")
        torch.save(content, file)
    network = load("ept", file, part="classification", hints=hints_of(fixture.config["backbone"]))
    assert isinstance(network, Classifier)
    return network


# --- parts without weights


def schedule(fixture: Fixture, file: Path) -> Outputs:
    """The cosine of the prompts' training, and the warm-up that full fine-tuning never leaves."""
    c = fixture.config
    cosine = [warmup_cosine(epoch, total=c["epochs"], warmup=0, lr=c["base_lr"]) for epoch in fixture.inputs["epoch"]]
    warm = [
        warmup_cosine(
            step, total=np.inf, warmup=c["warmup_iters"], lr=c["full_lr"], warmup_lr=c["full_lr"] * c["warmup_ratio"]
        )
        for step in fixture.inputs["full_finetune_iter"]
    ]
    return {"lr": np.array(cosine), "full_finetune_warmup_lr": np.array(warm)}


def few_shot(fixture: Fixture, file: Path) -> Outputs:
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


def losses(fixture: Fixture, file: Path) -> Outputs:
    """Losses of given logits: any number of labels an image, and one."""
    encoder = ViT(ViTConfig(image_size=8, patch_size=8, width=8, depth=1, heads=1))
    outputs = {}
    for kind in ("multilabel", "multiclass"):
        logits, target = tensor(fixture, f"{kind}_logits"), tensor(fixture, f"{kind}_target")
        names = [str(c) for c in range(logits.shape[1])]
        task = AdaptedClassifier(encoder, names, multilabel=kind == "multilabel", label_smoothing=0.0)
        outputs[f"{kind}_loss"] = task.loss(logits, {"label": target}).double().view(1)
    return outputs


def multilabel_scores(fixture: Fixture, file: Path) -> Outputs:
    """Multi-label scores in percent, as published and over the classes that have them."""
    probabilities, labels = fixture.inputs["score"], fixture.inputs["target"]
    classes = [str(c) for c in range(labels.shape[1])]
    threshold = fixture.config["thr"]
    published = multilabel(probabilities, labels, classes=classes, threshold=threshold, as_published=True)
    honest = multilabel(probabilities, labels, classes=classes, threshold=threshold)
    scores = {name: published[name] for name in ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1")}
    scores |= {"AUC_multilabel": published["auroc"], "valid_mAP": honest["mAP"], "valid_AUC": honest["auroc"]}
    return _percent(scores)


def multiclass_scores(fixture: Fixture, file: Path) -> Outputs:
    """Accuracy and the AUC of the softmax taken twice, in percent."""
    probabilities, labels = fixture.inputs["score"], fixture.inputs["target"]
    classes = [str(c) for c in range(probabilities.shape[1])]
    scores = classification(probabilities, labels, classes=classes, as_published=True)
    return _percent({"accuracy": scores["accuracy"], "AUC_multiclass": scores["auroc"]})


def _percent(scores: dict[str, float]) -> Outputs:
    return {name: np.array([100 * score]) for name, score in scores.items()}


FAMILIES: dict[str, Adapter] = {
    "ept": classifier,
    "ept_small": classifier,
    "ept_shallow": classifier,
    "ept_vpt_deep": classifier,
    "ept_vpt_shallow": classifier,
    "ept_vpt_b16": classifier,
    "ept_vit_small": classifier,
    "ept_vit_b16": classifier,
    "ept_train": training,
    "ept_schedule": schedule,
    "ept_fewshot": few_shot,
    "ept_losses": losses,
    "ept_metrics": multilabel_scores,
    "ept_metrics_empty_class": multilabel_scores,
    "ept_metrics_multiclass": multiclass_scores,
}
