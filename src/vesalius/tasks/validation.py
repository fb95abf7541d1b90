"""What a validation epoch adds up to: the score that the best checkpoint follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vesalius.data.masks import IGNORE
from vesalius.tasks.metrics import defined_mean
from vesalius.tasks.multilabel import Ranking


class ValidationScores(Metric):
    """A task's scores over one validation epoch, over all batches and all processes.

    ``update(output, batch)`` after each batch, ``compute()`` at the end, ``reset()`` before the next epoch.

    - classification: ``balanced_accuracy`` over the classes that occur;
    - multi-label classification: ``mAP`` and ``auroc`` over the classes that have positives and negatives;
    - segmentation: ``dice`` over all pixels of the set at the network's size, a mean over classes;
    - enhancement: none, its loss is its score.

    Args:
        task: a head on an encoder; it is looked at, not kept.

    >>> from types import SimpleNamespace
    >>> scores = ValidationScores(SimpleNamespace(TASK="classification", classes=("a", "b"), multilabel=False))
    >>> scores.update(torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), {"label": torch.tensor([0, 1, 1])})
    >>> scores.compute(), scores.monitor
    ({'balanced_accuracy': tensor(0.7500)}, 'val/balanced_accuracy')
    """

    full_state_update = False
    counts: Tensor
    rows: list[Tensor]

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.kind = "multilabel" if getattr(task, "multilabel", False) else str(task.TASK)
        k = len(getattr(task, "classes", ()))
        if self.kind == "multilabel":
            self.shape: tuple[int, ...] = (3, k)
            self.add_state("rows", [], dist_reduce_fx="cat")
        else:
            self.shape = {"classification": (k, k), "segmentation": (2, k + 1)}.get(self.kind, (0,))
            self.add_state("counts", torch.zeros(self.shape, dtype=torch.long), dist_reduce_fx="sum")

    @property
    def monitor(self) -> str:
        """The validation metric that the best checkpoint follows."""
        scores = {"classification": "balanced_accuracy", "multilabel": "mAP", "segmentation": "dice"}
        return f"val/{scores.get(self.kind, 'loss')}"

    def update(self, output: Any, batch: Mapping[str, Any]) -> None:
        """Take in what the task's ``forward`` gave for one batch."""
        if self.kind == "multilabel":
            logits = output.float()
            known = batch["annotated"].float() if "annotated" in batch else torch.ones_like(logits)
            # flat, for processes whose shares differ or are empty
            self.rows.append(torch.stack([logits, batch["label"].float(), known], dim=1).flatten())
        elif self.kind == "classification":  # a confusion matrix, rows the truth
            k = output.shape[1]
            self.counts += torch.bincount(batch["label"] * k + output.argmax(1), minlength=k * k).view(k, k)
        elif self.kind == "segmentation":  # overlaps, and sums of both areas
            valid = batch["mask"] != IGNORE
            guess, truth = output["logits"].argmax(1)[valid], batch["mask"][valid].long()
            k = output["logits"].shape[1]
            overlap = torch.bincount(truth[truth == guess], minlength=k)
            areas = torch.bincount(truth, minlength=k) + torch.bincount(guess, minlength=k)
            self.counts += torch.stack([overlap, areas])

    def compute(self) -> dict[str, Tensor]:
        """Name -> score; 0 where no class has one, so that a checkpoint can follow it."""
        if self.kind == "multilabel":
            logits, labels, known = dim_zero_cat(self.rows).view(-1, *self.shape).cpu().numpy().swapaxes(0, 1)
            ranking = Ranking(logits, labels > 0, known > 0)  # logits are in the order of their probabilities
            found = {"mAP": ranking.average_precision(), "auroc": ranking.auroc()}
            return {name: torch.tensor(defined_mean(values)).nan_to_num() for name, values in found.items()}
        counts = self.counts.double()
        if self.kind == "classification":
            seen = counts.sum(1) > 0
            return {"balanced_accuracy": (counts.diagonal()[seen] / counts.sum(1)[seen]).mean().nan_to_num().float()}
        if self.kind == "segmentation":
            overlap, areas = counts[:, 1:]
            seen = areas > 0
            return {"dice": (2 * overlap[seen] / areas[seen]).mean().nan_to_num().float()}
        return {}
