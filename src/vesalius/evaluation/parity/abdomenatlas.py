"""AbdomenAtlas: averages, attention maps and both rankings, assembly, containment, lungs, loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vesalius.curate.assembly import published_containment, published_label, published_original
from vesalius.curate.attention import AttentionConfig, attention_maps
from vesalius.curate.checks import map_quality
from vesalius.curate.proposals import Masks, Proposal, average_masks
from vesalius.curate.ranking import published_attention_size, published_case_order, published_structure_order
from vesalius.data.abdomen import NAMES, TEMPLATE, dataset_of
from vesalius.evaluation.parity.common import Adapter, Outputs, tensor
from vesalius.evaluation.parity.universal import bits_of, network
from vesalius.pretrain.universal import partial_loss
from vesalius.published.fixture import Fixture
from vesalius.tasks.lungs import erode_apart
from vesalius.tasks.volume_metrics import mask_scores

TARGETS = (1, 2, 3, 4, 6, 7, 8, 9, 11)
"""Classes, from 1, of which the fixtures hold the models' entropy."""
TASKS = {"liver": "03", "lung": "06", "pancreas": "07", "hepaticvessel": "08", "spleen": "09", "colon": "10"}
"""The Decathlon's tasks, by the first word of a case's name."""


def attention(fixture: Fixture, file: Path) -> Outputs:
    """From the models' bytes to averages, maps and the order of review; a single model is not averaged or cleaned."""
    config, outputs = fixture.config, dict[str, Any]()
    cuts = config["thresholds"]
    settings = AttentionConfig(cuts["inconsistency"], cuts["entropy"], as_published=True)
    targets = {NAMES[number - 1]: number for number in config["organs"]}
    cases, sizes = {}, []
    for case in config["cases"]:
        soft, entropy = fixture.inputs[f"soft_{case}"], fixture.inputs[f"entropy_{case}"]

        def read(name: str, soft: np.ndarray = soft, entropy: np.ndarray = entropy) -> list[Proposal]:
            row = NAMES.index(name)
            doubt = entropy[:, TARGETS.index(row + 1)] if row + 1 in TARGETS else [None] * len(soft)
            return [Proposal(model[row], own) for model, own in zip(soft, doubt, strict=True)]

        masks = average_masks(read, NAMES, table=TEMPLATE if len(config["models"]) > 1 else None)
        maps = list(attention_maps(read, masks, list(targets), spacing=None, config=settings))
        cases[case] = {one.structure: one.summary() for one in maps}
        sizes.append(published_attention_size(cases[case], masks.shape[2]))
        order = published_structure_order(cases[case])
        outputs |= {f"organ_order_{case}": [targets[name] for name in order]} | _averages(masks, case)
        for kind in ("inconsistency", "uncertainty", "overlap", "attention"):
            values = np.stack([one.full(kind) for one in maps])
            outputs |= {f"{kind}_{case}": values, f"{kind}_sum_{case}": values.sum((1, 2, 3), dtype=np.int64)}
    ranked = [config["cases"].index(case) for case in published_case_order(cases)]
    return {**outputs, "case_order": ranked, "attention_size_per_slice": sizes}


def _averages(masks: Masks, case: str) -> dict[str, np.ndarray]:
    averages = np.stack([masks[name] for name in NAMES])
    return {f"average_bits_{case}": bits_of(averages), f"average_counts_{case}": averages.sum((1, 2, 3))}


def assembly(fixture: Fixture, file: Path) -> Outputs:
    """Public labels, revisions and pseudo labels of several datasets, painted as released."""
    outputs = {}
    for dataset, case in fixture.config.items():
        task = TASKS.get(case["case"].split("_")[0], "") if dataset.startswith("10") else ""
        raw, original = fixture.inputs.get(f"original_{dataset}"), None
        if raw is not None:
            original = published_original(raw, dataset_of(f"{dataset}/Task{task}_" if task else dataset))
        revised = {number: fixture.inputs[f"revised_{dataset}_{number}"] == 1 for number in case["revised"]}
        outputs[f"label_{dataset}"] = published_label(fixture.inputs[f"pseudo_{dataset}"], revised, original)
    return outputs


def miscellany(fixture: Fixture, file: Path) -> Outputs:
    """Containment, the quality of a map, Dice."""
    parts = {
        NAMES[int(whole) - 1]: [NAMES[part - 1] for part in listed]
        for whole, listed in fixture.config["containing"].items()
    }
    attended, wrong = fixture.inputs["attention"] == 1, fixture.inputs["real_error"] == 1
    return {
        "merged": published_containment(fixture.inputs["channels"], parts=parts),
        "sens_spec_prec": list(map_quality(attended, wrong).values()),
        "dice": mask_scores(attended, wrong)["dice"],
    }


def loss(fixture: Fixture, file: Path) -> Outputs:
    """Cross-entropy over all classes, Dice over those that the patch holds."""
    logits, target = tensor(fixture, "logits"), tensor(fixture, "target")
    everything = torch.ones(target.shape[:2], dtype=torch.bool)
    present = (target == 1).flatten(2).any(2)
    dice = partial_loss(logits, target, present, per_slice=True)[2] if present.any() else 1.0
    return {"bce": partial_loss(logits, target, everything)[1], "dice_per_slice": dice}


def lungs(fixture: Fixture, file: Path) -> Outputs:
    """A joined mask of both lungs, parted."""
    parted = erode_apart(fixture.inputs["mask"] == 1)
    assert parted is not None
    right, left = parted
    return {"left": left, "right": right, "sizes": [left.sum(), right.sum()]}


FAMILIES: dict[str, Adapter] = {
    "abdomenatlas_attention": attention,
    "abdomenatlas_assemble": assembly,
    "abdomenatlas_misc": miscellany,
    "abdomenatlas_loss": loss,
    "abdomenatlas_lung_split": lungs,
    "abdomenatlas_segresnet": network,
}
