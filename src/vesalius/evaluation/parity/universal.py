"""The Universal Model: its networks, labels of sixteen datasets, loss, post-processing, windows and schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vesalius.data.abdomen import DATASETS, NAMES, dataset_of
from vesalius.data.label_tables import paint
from vesalius.evaluation.parity.common import Adapter, Outputs, image_of, tensor
from vesalius.evaluation.sliding import sliding_window
from vesalius.nn.language_head import dynamic_head
from vesalius.nn.windows import legacy_gaussian
from vesalius.pretrain.universal import UniversalConfig, learning_rate, partial_loss
from vesalius.published.fixture import Fixture
from vesalius.published.load import load
from vesalius.tasks.organs import clean


def network(fixture: Fixture, file: Path) -> Outputs:
    """Logits of every class, on any trunk and with either controller."""
    logits = load("universal", file, part="segmentation")(image_of(fixture))
    space = (2, 3, 4)
    return {"logits": logits, "per_class_mean": logits.mean(space), "per_class_std": logits.std(space, correction=0)}


def head(fixture: Fixture, file: Path) -> Outputs:
    """One network a class, from given parameters."""
    features, parameters = tensor(fixture, "features"), tensor(fixture, "parameters")
    return {"logits": dynamic_head(features.unsqueeze(0), parameters.unsqueeze(0))[0]}


def dataset_labels(fixture: Fixture, file: Path) -> Outputs:
    """Raw labels of every dataset as classes, a bit each, and the classes that it labels."""
    outputs: dict[str, Any] = {}
    for key, case in fixture.config.items():
        masks, labelled = dataset_of(case["name"]).channels(fixture.inputs[f"raw_{key}"], NAMES)
        outputs |= {f"bits_{key}": bits_of(masks), f"known_{key}": bits_of(labelled)}
    return outputs


def loss(fixture: Fixture, file: Path) -> Outputs:
    """Cross-entropy and both forms of Dice over what is labelled, and where the gradient goes."""
    logits, target, labelled = (tensor(fixture, name) for name in ("logits", "target", "labelled"))
    with torch.enable_grad():
        logits = logits.requires_grad_()
        total, entropy, sliced = partial_loss(logits, target, labelled, per_slice=True)
        total.backward()
    assert logits.grad is not None
    whole = partial_loss(logits.detach(), target, labelled)[2]
    return {
        "bce": entropy.detach(),
        "dice_per_slice": sliced.detach(),
        "dice_volume": whole,
        "grad_per_channel": logits.grad.abs().sum((2, 3, 4)),
    }


def schedule(fixture: Fixture, file: Path) -> Outputs:
    """The learning rate of every epoch."""
    c = fixture.config
    config = UniversalConfig(lr=c["base"], warmup=c["warmup_epochs"], epochs=c["max_epochs"])
    return {"lr": np.array([learning_rate(epoch, config) for epoch in range(config.epochs)])}


def merge_back(fixture: Fixture, file: Path) -> Outputs:
    """Predictions in each dataset's own values, without and with sides."""
    masks = fixture.inputs["prediction"]
    outputs: dict[str, Any] = {}
    for name in fixture.outputs:
        version, key = name.split("_", 1)
        table = DATASETS[key]
        outputs[name] = paint(masks, table.export if version == "v1" else table.export_sides, NAMES)
    return outputs


def postprocess(fixture: Fixture, file: Path) -> Outputs:
    """Both rule sets on predictions, a bit a class."""
    bits = fixture.inputs["bits"]
    masks = np.stack([(bits >> row) & 1 for row in range(len(NAMES))]).astype(bool)
    outputs: dict[str, Any] = {}
    for rules in ("universal", "atlas"):
        cleaned = clean(masks, rules=rules)
        outputs |= {rules: bits_of(cleaned), f"{rules}_count": cleaned.sum((1, 2, 3))}
    return outputs


def sliding(fixture: Fixture, file: Path) -> Outputs:
    """Windows blended by constant or Gaussian weights, at every overlap that is asked for."""
    roi = tuple(fixture.config["roi"])
    outputs: dict[str, Any] = {}
    for name in fixture.outputs:
        mode, overlap, *old = name.split("_")
        outputs[name] = np.stack(
            [
                sliding_window(
                    _ramp,
                    volume,
                    roi=roi,
                    decide=lambda scores: scores,
                    overlap=int(overlap) / 100,
                    blending=mode,
                    weights=legacy_gaussian(roi) if old else None,
                )
                for volume in image_of(fixture)
            ]
        )
    return outputs


def _ramp(patch: Tensor) -> Tensor:
    """A predictor that depends on where in its window a voxel lies."""
    first, _, last = patch.shape[2:]
    ramp = torch.linspace(-1, 1, first)[:, None, None] * torch.linspace(0.5, 1, last)
    return torch.cat([patch * ramp, patch + ramp], dim=1)


def bits_of(masks: np.ndarray) -> np.ndarray:
    """Masks ``[K, ...]`` -> ``[...]`` uint32, bit k for the k-th."""
    powers = (1 << np.arange(len(masks), dtype=np.uint64)).reshape(-1, *[1] * (masks.ndim - 1))
    return np.asarray((masks * powers).sum(0), dtype=np.uint32)


FAMILIES: dict[str, Adapter] = {
    "universal_unet": network,
    "universal_swin": network,
    "universal_csheads": network,
    "universal_unetpp": network,
    "universal_dints": network,
    "universal_head": head,
    "universal_labels": dataset_labels,
    "universal_loss": loss,
    "universal_lr": schedule,
    "universal_merge_back": merge_back,
    "universal_postprocess": postprocess,
    "universal_sliding": sliding,
}
