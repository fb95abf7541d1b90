"""What the verbs that train a segmentation of volumes have in common: which volumes, and a training from end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from vesalius.adapt.labels import few_labels
from vesalius.adapt.volume_training import VolumeTraining
from vesalius.data.volumes.dataset import VolumeDataset
from vesalius.training.common import Data, cache_folder, open_training, read_splits, say
from vesalius.training.loop import TrainConfig, fit, load_best
from vesalius.training.provenance import write_seen
from vesalius.training.runs import is_first_process


@dataclass(frozen=True)
class VolumeRun:
    """Volumes, and the folder of what is trained on them.

    Args:
        data, out, fraction, shots, seed, cache, resume, progress: as of the verbs.
        table: all rows.  train: those that are trained on, of the patients whose labels are used.  val: for validation.
    """

    data: Data
    out: str | Path
    fraction: float
    shots: int | None
    seed: int
    cache: str | Path | None
    resume: bool
    progress: bool
    table: pl.DataFrame
    train: pl.DataFrame
    val: pl.DataFrame

    @classmethod
    def of(
        cls,
        data: Data,
        out: str | Path,
        *,
        fraction: float,
        shots: int | None,
        seed: int,
        cache: str | Path | None,
        resume: bool,
        progress: bool,
    ) -> VolumeRun:
        """Read the tables; `seed` chooses the patients whose labels are used."""
        table, train, val = read_splits(data, task="segmentation")
        train = few_labels(train, fraction=fraction, shots=shots, seed=seed)
        return cls(data, out, fraction, shots, seed, cache, resume, progress, table, train, val)

    @property
    def slices(self) -> int:
        """Of all training volumes."""
        return sum(size[0] for size in self.train["size"].to_list())

    @property
    def is_ct(self) -> bool:
        """All training volumes are CT."""
        return set(self.train["modality"].to_list()) == {"CT"}

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the training volumes' channels; one, CT or image, where the table does not say."""
        known = {name for names in self.train["channels"].to_list() for name in names or ()}
        return tuple(sorted(known)) or (("CT",) if self.is_ct else ("image",))

    def fit(
        self,
        module: VolumeTraining,
        options: TrainConfig,
        method: str,
        asked: Mapping[str, Any],
        save: Callable[[Path], object],
        *,
        crop: bool,
        seen: Iterable[str] = (),
    ) -> dict[str, Any]:
        """Train, and store the weights of the best validation.

        Args:
            module: that trains; the volumes are those of its contract, with the classes of its task.
            options: how to train.
            method: the verb's.
            asked: for the run's configuration, all else that determines the result.
            save: stores what was trained in a folder.
            crop: leave out the border without foreground.
            seen: keys of those whom the backbone had seen.

        Returns:
            step, loss, val, history of the training curve, and the run folder's path.

        Raises:
            VesaliusError: as of `open_run` and `vesalius.training.loop.fit`; volumes that cannot be prepared.
        """
        task = module.task
        few = {"fraction": self.fraction, "shots": self.shots}
        record = {"verb": "adapt", "method": method, "task": task.TASK, **few, **asked}
        run = open_training(self.out, record, self.table, options, self.data, resume=self.resume)
        if is_first_process():
            write_seen(run, train=self.train, val=self.val, backbone=seen)
        ways: dict[str, Any] = {"cache": cache_folder(self.cache, run), "crop": crop, "workers": options.workers}

        def samples(part: pl.DataFrame) -> VolumeDataset:
            return VolumeDataset(part, module.contract, task="segmentation", classes=task.classes, **ways)

        summary = fit(
            module,
            samples(self.train),
            run,
            options,
            val=None if self.val.is_empty() else samples(self.val),
            monitor=module.monitor,
            resume=self.resume,
            progress=self.progress,
        )
        if is_first_process():
            load_best(module, run.path)
            save(run.path)
            say(run, summary)
        return {**summary, "run": str(run.path)}
