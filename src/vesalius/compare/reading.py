"""How a comparison reads a task's network: what it puts out for a batch, and its scores on a whole set.

Sets hold pixels in 8 bits, or in their place the features that a frozen trunk made of them; both give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from vesalius.compare.sets import Data
from vesalius.data.contract import InputContract
from vesalius.tasks.metrics import classification, within_class_scatter
from vesalius.tasks.multilabel import multilabel

PUBLISHED = ("mAP", "auroc", "CP", "CR", "CF1")
"""Scores that EPT's code computes in another way."""
AT_ONCE = 64
"""Images that are scored at a time."""
METRIC = {"classification": "balanced_accuracy", "multilabel": "mAP", "segmentation": "dice"}
"""What chooses the learning rate, and what the tables show."""


class Reader(Protocol):
    """A task's network as a comparison reads it."""

    def output(self, batch: Mapping[str, Tensor]) -> Any:
        """What the task's loss takes."""

    def validate(self, data: Data) -> tuple[float, float]:
        """The score by which a learning rate is chosen, and the loss, which decides between equal scores."""

    def score(self, data: Data) -> dict[str, float]:
        """All scores of a set."""


class ClassifierReader:
    """A classifier, of one label an image or of several.

    Args:
        task: the network, in evaluation mode.
        contract: the pixels that it expects.
        as_published: add the scores that the published code of EPT would give.
    """

    def __init__(self, task: Any, contract: InputContract, *, as_published: bool = False):
        self.task, self.contract, self.as_published = task, contract, as_published

    def output(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits ``[B, K]``."""
        return self.task.head(batch["features"] if "features" in batch else self._read(batch["image"]))

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Images ``[..., C, S, S]`` in 8 bits -> what the head reads, ``[..., width]``, on the CPU."""
        flat = images.flatten(end_dim=-4)
        found = torch.cat([self._read(part.to(_device(self.task))).cpu() for part in flat.split(AT_ONCE)])
        return found.view(*images.shape[:-3], -1)

    def validate(self, data: Data) -> tuple[float, float]:
        """See `Reader`."""
        logits, _ = self._logits(data)
        loss = float(self.task.loss(logits, data))
        return self._scores(logits, data)[METRIC["multilabel" if self.task.multilabel else "classification"]], loss

    def score(self, data: Data) -> dict[str, float]:
        """All single numbers of the task's metrics; for one label an image also the features' scatter."""
        logits, features = self._logits(data)
        found = _numbers(self._scores(logits, data))
        if not self.task.multilabel:
            found["scatter"] = within_class_scatter(features, data["label"])["ratio"]
        if self.as_published:
            published = _numbers(self._scores(logits, data, as_published=True))
            found |= {f"{name}_as_published": published[name] for name in PUBLISHED if name in published}
        return found

    def _read(self, images: Tensor) -> Tensor:
        return self.task.features(self.contract.normalise(images.float() / 255))

    def _logits(self, data: Data) -> tuple[Tensor, Tensor]:
        features = data["features"] if "features" in data else self.features(data["image"])
        with torch.inference_mode():
            return self.task.head(features.to(_device(self.task))).float().cpu(), features

    def _scores(self, logits: Tensor, data: Data, *, as_published: bool = False) -> dict[str, Any]:
        options: dict[str, Any] = {"classes": self.task.classes, "as_published": as_published}
        if not self.task.multilabel:
            return classification(logits.softmax(1), data["label"], **options)
        return multilabel(logits.sigmoid(), data["label"], annotated=data["annotated"], **options)


class SegmenterReader:
    """A segmentation network; Dice is a mean over images and classes, at the network's size.

    Args:
        task, contract: as of `ClassifierReader`.
    """

    def __init__(self, task: Any, contract: InputContract):
        self.task, self.contract = task, contract

    def output(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Logits ``[B, K + 1, S, S]`` and what the decoder's loss needs."""
        return self.task(self.contract.normalise(batch["image"].float() / 255))

    def validate(self, data: Data) -> tuple[float, float]:
        """See `Reader`; the loss is not needed where scores hardly tie."""
        return self.score(data)["dice"], 0.0

    @torch.inference_mode()
    def score(self, data: Data) -> dict[str, float]:
        """Dice and IoU."""
        overlaps = [self._overlap(batch) for batch in _batches(data, _device(self.task))]
        both, either = (torch.cat(part).double() for part in zip(*overlaps, strict=True))
        return {"dice": _mean(2 * both / (both + either)), "iou": _mean(both / either)}

    def _overlap(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Pixels of prediction and truth that are both, and either, of a class: ``[B, K]`` each."""
        guess, truth = self.output(batch)["logits"].argmax(1), batch["mask"]
        both, either = [], []
        for value in range(1, len(self.task.classes) + 1):
            a, b = (guess == value) & (truth != 255), truth == value
            both.append((a & b).sum((1, 2)))
            either.append((a | b).sum((1, 2)))
        return torch.stack(both, 1).cpu(), torch.stack(either, 1).cpu()


def _batches(data: Data, device: torch.device) -> Iterator[Data]:
    for start in range(0, len(data["image"]), AT_ONCE):
        yield {name: value[start : start + AT_ONCE].to(device) for name, value in data.items()}


def _mean(values: Tensor) -> float:
    """Over classes of the mean over images, ``[N, K]``, leaving out images where there is nothing to find or find."""
    per_class = values.nanmean(0)
    return float(per_class.nanmean())


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)}


def _device(task: torch.nn.Module) -> torch.device:
    return next(task.parameters()).device
