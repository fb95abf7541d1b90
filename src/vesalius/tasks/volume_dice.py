"""Dice over volumes while a training runs: a mean over the cases that know a class, for every class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class VolumeDice(Metric):
    """Dice of every class as a mean over cases; cases without the class in truth and guess do not count.

    Args:
        classes: how many.

    >>> dice = VolumeDice(2)
    >>> dice.update(torch.tensor([[[[True, False]]]]), torch.tensor([[[[True, True]]]]), [1])
    >>> [round(score, 3) for score in dice.compute().tolist()]
    [nan, 0.667]
    """

    full_state_update = False
    total: Tensor
    cases: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("cases", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, guess: Tensor, truth: Tensor, rows: Sequence[int] | None = None) -> None:
        """Take in one case.

        Args:
            guess, truth: ``[J, D, H, W]`` bool.
            rows: the classes that they are of; None for all of them, in order.
        """
        where = list(range(len(self.total))) if rows is None else list(rows)
        areas = guess.flatten(1).sum(1) + truth.flatten(1).sum(1)
        overlap = (guess & truth).flatten(1).sum(1)
        self.total[where] += torch.where(areas > 0, 2 * overlap / areas.clamp(min=1), 0).to(self.total)
        self.cases[where] += areas > 0

    def compute(self) -> Tensor:
        """``[K]``; NaN for a class that no case has."""
        return torch.where(self.cases > 0, self.total / self.cases.clamp(min=1), torch.nan)

    def named(self, classes: Sequence[str]) -> dict[str, Tensor]:
        """``dice``, the mean over the classes that some case has (NaN without one), and ``dice CLASS`` of each.

        >>> dice = VolumeDice(1)
        >>> dice.update(torch.tensor([[[[True, False]]]]), torch.tensor([[[[True, True]]]]))
        >>> {name: round(float(score), 3) for name, score in dice.named(["liver"]).items()}
        {'dice': 0.667, 'dice liver': 0.667}
        """
        scores = self.compute().reshape(-1)  # torchmetrics makes one class a scalar
        known = {name: score.float() for name, score in zip(classes, scores, strict=True) if not score.isnan()}
        return {"dice": scores.nanmean().float(), **{f"dice {name}": score for name, score in known.items()}}
