"""The main job on data of its own: phantoms in, a page out.

An ultrasound collection is generated and indexed; USFM and a plain masked autoencoder are pre-trained on it with equal
data, steps and trunk (Deblurring MIM, too, where it is asked for); these, and the same trunk with random weights, are
adapted to classification, segmentation and enhancement with few labels; all are scored on patients that nobody saw.
Several seeds, two processes, every step resumable: a demo that was interrupted goes on where it stopped. With a table
of one's own it is the same comparison on real images, for the tasks that the table has labels of.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.data.progress import track
from vesalius.errors import ConfigError, VesaliusError, nearest
from vesalius.files import output_folder

ARMS = {
    "usfm": "USFM",
    "deblurring": "Deblurring MIM",
    "mae": "masked autoencoder",
    "scratch": "from scratch",
}
"""Arm -> its name on the page."""
PRETRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "usfm": ("usfm", {}),
    "deblurring": ("deblurring", {}),
    "mae": ("deblurring", {"blur": None, "loss_on": "removed"}),  # He 2022: nothing is blurred
}
"""Arm -> system, and what differs from its tiny preset."""
TASKS = {
    "segmentation": {"dice": "Dice", "hd95": "HD95"},
    "classification": {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC"},
    "enhancement": {"psnr": "PSNR (dB)", "ssim": "SSIM"},
}
"""Task -> its scores; the first one is the headline."""


@dataclass(frozen=True)
class Plan:
    """What the demo runs.

    Args:
        out: the folder.  table: the collection's index.
        tasks: those that the table has labels of.  arms: what is compared.
        seeds: pre-trainings and adaptations per arm.
        pretrain_steps, adapt_steps: optimiser steps, the same for every arm.
        fraction: of the training patients whose labels are used.
        decoder_width: channels of the segmentation decoder, which takes most of a step's time.
    """

    out: Path
    table: Path
    tasks: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: int
    pretrain_steps: int
    adapt_steps: int
    fraction: float
    decoder_width: int

    @property
    def named(self) -> dict[str, str]:
        """Arm -> its name on the page."""
        return {arm: ARMS[arm] for arm in self.arms}

    @property
    def pretrained(self) -> list[str]:
        """The arms that are pre-trained."""
        return [arm for arm in self.arms if arm in PRETRAINED]

    def backbone(self, arm: str, seed: int) -> Path:
        """The run folder of a pre-training."""
        return self.out / "runs" / f"{arm}-seed{seed}"

    def adapted(self, task: str, arm: str, seed: int) -> Path:
        """The run folder of an adaptation."""
        return self.out / "runs" / f"{task}-{arm}-seed{seed}"

    def pretrainings(self) -> list[tuple[str, int]]:
        """(arm, seed) of each."""
        return [(arm, seed) for seed in range(self.seeds) for arm in self.pretrained]

    def adaptations(self) -> list[tuple[str, str, int]]:
        """(task, arm, seed) of each."""
        return [(task, arm, seed) for seed in range(self.seeds) for task in self.tasks for arm in self.arms]


def demo(
    *,
    out: str = "demo",
    data: str | None = None,
    n: int = 300,
    arms: Sequence[str] = ("usfm", "mae", "scratch"),
    seeds: int = 3,
    pretrain_steps: int = 300,
    adapt_steps: int = 150,
    fraction: float = 0.25,
    decoder_width: int = 16,
    workers: int = 2,
) -> int:
    """Pre-train, adapt and compare on generated ultrasound images, and leave OUT/index.html.

    Args:
        out: the folder; what it holds already is not done again.
        data: a table of your own, in place of phantoms; its masks, labels and clean targets say which tasks there are.
        n: number of phantoms.
        arms: what is compared: usfm, deblurring, mae, scratch; usfm and scratch are always among them.
        seeds: pre-trainings and adaptations per arm.
        pretrain_steps: optimiser steps of each pre-training.
        adapt_steps: optimiser steps of each adaptation.
        fraction: of the training patients whose labels are used.
        decoder_width: channels of the segmentation decoder, which takes most of a step's time.
        workers: processes, one thread each.
    """
    for arm in arms:
        if arm not in ARMS:
            raise ConfigError(f"no arm is called {arm!r}", remedy=nearest(arm, ARMS))
    chosen = tuple(arm for arm in ARMS if arm in {*arms, "usfm", "scratch"})
    folder = output_folder(out)
    table = Path(data) if data else _collection(folder, n, workers)
    plan = Plan(folder, table, _tasks(table), chosen, seeds, pretrain_steps, adapt_steps, fraction, decoder_width)
    with _pool(workers) as pool:
        for text, jobs, work in (
            ("pre-training", plan.pretrainings(), _pretrain),
            ("adapting and scoring", plan.adaptations(), _adapt),
        ):
            waiting = [pool.submit(work, plan, *job) for job in jobs]
            for done in track(as_completed(waiting), len(waiting), text):
                done.result()
    from vesalius.demo.page import demo_page

    page = demo_page(plan)
    print(f"{page} is ready to look at")
    return 0


def _collection(folder: Path, n: int, workers: int) -> Path:
    """Generate and index the phantoms, unless they are there."""
    from vesalius.data.index import index
    from vesalius.data.phantoms import phantom

    table = folder / f"ultrasound-{n}.parquet"
    if not table.exists():
        phantom("ultrasound", folder / f"ultrasound-{n}", n=n, workers=workers)
        index(folder / f"ultrasound-{n}", table, val=0.15, test=0.25)
    return table


def _tasks(path: Path) -> tuple[str, ...]:
    """The tasks that a table has training and test images of; one label alone is nothing to tell apart."""
    from vesalius.data.table import label_names, load_table, select

    table = load_table(path)
    found = [task for task in TASKS if all(len(select(table, split=part, task=task)) for part in ("train", "test"))]
    if len(label_names(table)) < 2:
        found = [task for task in found if task != "classification"]
    if not found:
        raise VesaliusError(
            "has no masks, clean targets or several labels with a training and a test split",
            path=path,
            remedy="index it with them",
        )
    return tuple(found)


def _pretrain(plan: Plan, arm: str, seed: int) -> None:
    from vesalius.report.run import run_report
    from vesalius.training.verbs import pretrain_system

    system, changes = PRETRAINED[arm]
    with _silent():
        pretrain_system(
            system,
            data=plan.table,
            out=plan.backbone(arm, seed),
            model=changes,
            steps=plan.pretrain_steps,
            seed=seed,
            resume=True,
            progress=False,
        )
    run_report(plan.backbone(arm, seed))


def _adapt(plan: Plan, task: str, arm: str, seed: int) -> None:
    from vesalius.evaluation.verbs import evaluate
    from vesalius.report.run import run_report
    from vesalius.training.verbs import adapt_backbone

    run = plan.adapted(task, arm, seed)
    if (run / "results.json").exists():
        return
    backbone = f"random:{plan.backbone('usfm', seed)}" if arm == "scratch" else str(plan.backbone(arm, seed))
    with _silent():
        adapt_backbone(
            "full",
            backbone=backbone,
            task=task,  # type: ignore[arg-type]
            data=plan.table,
            out=run,
            decoder_width=plan.decoder_width if task == "segmentation" else None,
            fraction=plan.fraction,
            steps=plan.adapt_steps,
            seed=seed,
            resume=True,
            progress=False,
        )
        evaluate(run, plan.table)
    run_report(run)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each: small networks do not gain from more."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Two processes must not print into each other's lines."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def labels(plan: Plan) -> dict[str, str]:
    """Score -> its name; HD95 is in mm where the files say how large a pixel is."""
    from vesalius.evaluation.results import Result

    names = {name: label for task in plan.tasks for name, label in TASKS[task].items()}
    if "hd95" in names:
        unit = Result.load(plan.adapted("segmentation", "usfm", 0) / "results.json").metrics["hd95_unit"]
        names["hd95"] = f"HD95 ({unit})"
    return names


def scores(plan: Plan) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Task -> score -> arm -> one value per seed."""
    from vesalius.evaluation.results import Result

    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for task in plan.tasks:
        names = TASKS[task]
        found[task] = {name: {arm: [] for arm in plan.arms} for name in names}
        for arm in plan.arms:
            for seed in range(plan.seeds):
                result = Result.load(plan.adapted(task, arm, seed) / "results.json")
                for name in names:
                    value = result.metrics.get(name)
                    found[task][name][arm].append(np.nan if value is None else float(value))
    return found
