"""Batches as a pure function of (seed, step), and one readable error when a worker meets a bad case."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from vesalius.data.datasets import Draws
from vesalius.data.sampling import DrawSampler
from vesalius.errors import VesaliusError


class Samples(Protocol):
    """A map-style dataset of samples; with `where(index)`, errors name the case's file."""

    def __len__(self) -> int:
        """How many samples."""

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """One sample."""


class Failed:
    """What a worker sends in place of a batch that it could not prepare."""

    def __init__(self, error: VesaliusError):
        self.what, self.path, self.remedy = error.what, error.path, error.remedy
        self.trace = "".join(traceback.format_exception(error))

    def error(self) -> VesaliusError:
        """The error for the user; the worker's traceback is in its notes."""
        error = VesaliusError(self.what, path=self.path, remedy=self.remedy)
        error.add_note(self.trace)
        return error


class _Guarded(Dataset[Any]):
    """A dataset whose items never raise: a loader would turn the error of a worker into a page, and lose its path."""

    def __init__(self, draws: Draws):
        self.draws = draws

    def __getitem__(self, item: tuple[int, int]) -> Any:
        try:
            return self.draws[item]
        except VesaliusError as error:
            return Failed(error)


class _Collate:
    """A batch of items, or the first failure among them."""

    def __init__(self, collate: Callable[[list[Any]], Any]):
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        failed = [item for item in items if isinstance(item, Failed)]
        return failed[0] if failed else self.collate(items)


class Batches(lightning.LightningDataModule):
    """Train and validation loaders that start where the trainer stands.

    Args:
        train: samples to draw from.
        view: (sample, generator) -> what the network reads; runs in the workers.
        batch_size: per process.
        accumulate: batches per optimiser step.
        seed: of everything.
        workers: loader processes.
        weights: sampling weights of `train`, None for a permutation an epoch.
        val: samples to validate on, in order.  val_view: their view.
        collate: items -> a batch; runs in the workers.
    """

    def __init__(
        self,
        train: Samples,
        view: Callable[[Any, torch.Generator], Any],
        *,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        workers: int = 0,
        weights: Sequence[float] | np.ndarray | None = None,
        val: Samples | None = None,
        val_view: Callable[[Any, torch.Generator], Any] | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
    ):
        super().__init__()
        self.collate = collate
        self.train, self.view, self.weights = train, view, weights
        self.val, self.val_view = val, val_view or view
        self.batch_size, self.accumulate, self.seed, self.workers = batch_size, accumulate, seed, workers

    def first_draw(self, batch: int) -> int:
        """The global number of the first draw of this process's batch number `batch`."""
        assert self.trainer is not None
        return (batch * self.trainer.world_size + self.trainer.global_rank) * self.batch_size

    def train_dataloader(self) -> DataLoader:
        """An endless loader; after a resume it goes on with the batch that an unbroken run would draw next."""
        assert self.trainer is not None
        world, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DrawSampler(
            len(self.train),
            seed=self.seed,
            batch_size=self.batch_size,
            weights=None if self.weights is None else np.asarray(self.weights),
            start=self.trainer.global_step * self.accumulate * self.batch_size * world,
            rank=rank,
            world=world,
        )
        return self._loader(self.train, self.view, sampler)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """All of `val` in order, every process its part; a case's draw number is its index, so that it never varies."""
        if self.val is None:
            return []
        assert self.trainer is not None
        mine = range(self.trainer.global_rank, len(self.val), self.trainer.world_size)
        batches = [
            [(index, index) for index in mine[start : start + self.batch_size]]
            for start in range(0, len(mine), self.batch_size)
        ]
        return self._loader(self.val, self.val_view, batches)

    def _loader(self, samples: Samples, view: Callable[..., Any], batches: Any) -> DataLoader:
        return DataLoader(
            _Guarded(Draws(cast("Dataset[dict[str, Any]]", samples), view, self.seed)),
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=_Collate(self.collate),
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
