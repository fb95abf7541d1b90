"""EPT: its network, VPT and the plain trunk, training of the prompts, the schedules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vesalius.evaluation.parity.common import Adapter, Outputs, hints_of, image_of, tensor
from vesalius.nn.optim import warmup_cosine
from vesalius.nn.prompts import kept_mass
from vesalius.published.fixture import Fixture
from vesalius.published.load import load
from vesalius.published.networks import Classifier
from vesalius.tasks.multilabel import binary_cross_entropy

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
    losses: list[Tensor] = []
    with torch.enable_grad():
        for _ in fixture.outputs["loss"]["value"]:
            optimizer.zero_grad()
            loss = binary_cross_entropy(network(image_of(fixture)), tensor(fixture, "target"))
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
}
