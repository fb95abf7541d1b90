"""One cell: a method put into a backbone, trained on one draw with every learning rate, chosen, and scored once.

What is the same for all arms: the images and their augmented versions, the order of batches, the head's initial
weights, the number of steps, the grid of learning rates, and what chooses among them (the validation images, with the
first seed).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesalius.adapt import methods
from vesalius.adapt.networks import tensor_hash
from vesalius.compare.arms import Arm
from vesalius.compare.plan import Job, Setup, read_json
from vesalius.compare.reading import ClassifierReader, Reader, SegmenterReader
from vesalius.compare.sets import Data, cached, evaluation_data, open_study, training_data
from vesalius.data.contract import InputContract
from vesalius.data.datasets import generator, mixed_seed
from vesalius.errors import ConfigError
from vesalius.files import write_text
from vesalius.nn.encoder import Encoder
from vesalius.tasks.classification import Classifier
from vesalius.tasks.segmentation import Segmenter
from vesalius.training.backbones import open_backbone
from vesalius.training.provenance import data_hash
from vesalius.training.runs import code_version
from vesalius.training.short import step_memory, train_short

HEAD_STD = 0.01
"""Standard deviation of the head's initial weights, as published with EPT."""
PROMPTS, HEAD = 1, 2
"""What a seed is mixed with, to draw different numbers for each."""


@dataclass(frozen=True)
class Trunk:
    """A backbone as it was opened; nothing is put into it, but into copies.

    Args:
        encoder: the network.
        contract: the pixels that it expects.
        weights: hash of all its tensors.
    """

    encoder: Encoder
    contract: InputContract
    weights: str


@lru_cache(maxsize=2)
def open_trunk(backbone: str, image_size: int | None) -> Trunk:
    """A backbone, read once in a process; fresh weights ("random:") are the same everywhere.

    Raises:
        ConfigError: it reads volumes.
    """
    torch.manual_seed(0)
    encoder, card = open_backbone(backbone, image_size=image_size)
    if not isinstance(card.contract, InputContract):
        raise ConfigError(f"{backbone} reads volumes", remedy="compare backbones of 2-D images")
    weights = tensor_hash(encoder)[:24]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Trunk(encoder.to(device).freeze(), card.image_contract, weights)


def build(arm: Arm, trunk: Trunk, setup: Setup, seed: int) -> tuple[Any, Reader]:
    """A copy of the trunk with an arm's method in it and a fresh head on it, and how it is read.

    Raises:
        ConfigError: the method does not fit the trunk.
    """
    encoder = copy.deepcopy(trunk.encoder)
    methods.install(encoder, arm.method, arm.config, generator=generator(seed, PROMPTS))
    torch.manual_seed(mixed_seed(seed, HEAD))  # the same head whatever the method drew
    device = next(trunk.encoder.parameters()).device
    if setup.task == "segmentation":
        segmenter = Segmenter(encoder, setup.classes, decoder="linear").to(device).eval()
        return segmenter, SegmenterReader(segmenter, trunk.contract)
    classifier = Classifier(
        encoder,
        setup.classes,
        pool="encoder",
        head=methods.head(arm.method),
        multilabel=setup.multilabel,
        label_smoothing=0.0,
        head_std=HEAD_STD,
    )
    classifier.to(device).eval()
    return classifier, ClassifierReader(classifier, trunk.contract, as_published=setup.as_published)


def run(job: Job) -> None:
    """Train and score the missing seeds of a job, and write each as it is done."""
    rates = job.setup.lrs if 0 in job.seeds else (float(read_json(job.cell(0))["lr"]),)
    for seed in job.seeds:
        record = run_cell(job, seed, rates)
        rates = (record["lr"],)
        write_text(job.cell(seed), json.dumps(record, indent=1) + "\n")


def run_cell(job: Job, seed: int, rates: Sequence[float]) -> dict[str, Any]:
    """Train one seed with each of `rates`, keep the one that validates best and score it on the test images.

    Returns:
        The cell, as plain values: the arm and its place; ``lr``, ``trials`` (each rate's validation score and loss,
        last loss in training, seconds), ``test`` (scores), ``trained`` (parameters, ``of_head`` of them the head's),
        ``seconds`` of the chosen training, ``memory`` (bytes of a step), hashes of the trunk and of the drawn images.
    """
    setup, cache = job.setup, Path(job.out) / "cache"
    study, trunk = open_study(job.data, job.lists, setup), open_trunk(job.backbone, setup.image_size)
    support = study.support(job.shots, job.draw)
    train = training_data(study, support, trunk.contract, cache, number=job.draw, seed=seed)
    validation, tested = study.validation(job.shots, job.draw), study.split("test")
    val, test = (evaluation_data(study, rows, trunk.contract, cache) for rows in (validation, tested))
    task, reader = build(job.arm, trunk, setup, seed)
    if job.arm.reads_frozen_features and isinstance(reader, ClassifierReader):
        what = (trunk.weights, *_prompts(job.arm, seed))
        train, val, test = (with_features(data, reader, cache, *what) for data in (train, val, test))
    batches = sampler(train, setup.batch_size, next(task.parameters()).device)
    start = _trained(task)
    memory = step_memory(task, batches(generator(seed, 0)), output=reader.output)
    trials: list[dict[str, float]] = []
    kept, chosen = start, {"lr": min(rates), "seconds": 0.0}
    for lr in rates:
        task.load_state_dict(start, strict=False)
        began = time.perf_counter()
        loss = train_short(task, batches, lr=lr, steps=setup.steps, seed=seed, output=reader.output)
        seconds = round(time.perf_counter() - began, 4)
        score, val_loss = reader.validate(val) if math.isfinite(loss) else (math.nan, math.nan)
        trials.append({"lr": lr, "val": score, "val_loss": val_loss, "train_loss": loss, "seconds": seconds})
        if max(trials, key=_rank) is trials[-1]:
            kept, chosen = _trained(task), trials[-1]
    task.load_state_dict(kept, strict=False)
    return {
        "backbone": job.backbone,
        "arm": job.arm.name,
        "method": job.arm.method,
        "config": asdict(job.arm.config),
        "controls": job.arm.controls,
        "shots": job.shots,
        "draw": job.draw,
        "seed": seed,
        "lr": chosen["lr"],
        "trials": trials,
        "test": reader.score(test),
        "trained": sum(value.numel() for value in start.values()),
        "of_head": sum(value.numel() for name, value in start.items() if not name.startswith("encoder.")),
        "seconds": chosen["seconds"],
        "memory": memory,
        "images": {"train": len(support), "val": len(validation), "test": len(tested)},
        "support": data_hash(support),
        "trunk": trunk.weights,
        "code": code_version(),
    }


def with_features(data: Data, reader: ClassifierReader, cache: Path, *identity: Any) -> Data:
    """The same set with a trunk's features in place of its images; computed once for all that share `identity`."""
    images = data["image"]
    pixels = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    found = cached(cache, lambda: {"features": reader.features(images)}, pixels, *identity)
    return {**{name: value for name, value in data.items() if name != "image"}, **found}


def sampler(data: Data, size: int, device: torch.device) -> Callable[[torch.Generator], Data]:
    """Batches of `size` different images (or of all, if there are fewer), each in one of its versions by chance."""
    pictures = data["features" if "features" in data else "image"]
    n, views = pictures.shape[:2]

    def batch(chance: torch.Generator) -> Data:
        image = torch.randperm(n, generator=chance)[:size]
        view = torch.randint(views, (len(image),), generator=chance)
        found = {
            name: value[image] if name in ("label", "annotated") else value[image, view] for name, value in data.items()
        }
        return {name: value.to(device) for name, value in found.items()}

    return batch


def _prompts(arm: Arm, seed: int) -> tuple[Any, ...]:
    """What a frozen trunk's features depend on besides its weights: prompts that stay as they were drawn."""
    return (arm.method, asdict(arm.config), seed) if getattr(arm.config, "frozen", False) else ()


def _trained(task: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of what trains."""
    return {name: parameter.detach().clone() for name, parameter in task.named_parameters() if parameter.requires_grad}


def _rank(trial: dict[str, float]) -> tuple[float, float]:
    """By validation score; few validation images often tie, then by loss."""
    score, loss = trial["val"], trial["val_loss"]
    return (score, -loss) if math.isfinite(score) and math.isfinite(loss) else (-math.inf, -math.inf)
