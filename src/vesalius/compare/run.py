"""Run what is missing of a comparison in a pool of processes, then make its tables and its page from the cells."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.console import Console

from vesalius.compare import cells
from vesalius.compare.arms import Arm
from vesalius.compare.page import markdown, page, show
from vesalius.compare.plan import Job, open_comparison, plan, read_cells
from vesalius.compare.sets import Study
from vesalius.compare.tables import gather
from vesalius.data.draws import units
from vesalius.data.progress import track
from vesalius.errors import VesaliusError
from vesalius.files import output_folder, write_text
from vesalius.training.provenance import patient_keys, read_seen
from vesalius.training.runs import RunFolder


def run(
    study: Study,
    *,
    data: Sequence[str],
    out: Path,
    backbones: Sequence[str],
    arms: Sequence[Arm],
    shots: Sequence[int],
    draws: int,
    seeds: int,
    workers: int,
) -> dict[str, Any]:
    """What `vesalius.compare.compare_methods` does once its options are read; returns what results.json holds.

    Raises:
        VesaliusError: the sets overlap, a method does not fit a backbone, or `out` holds another comparison.
    """
    out = output_folder(out)
    setup = study.setup
    test = set(patient_keys(study.split("test")))
    for number in range(draws if study.lists is not None else 1):
        for shot in shots:
            study.validation(shot, number)
            common = test & set(patient_keys(study.support(shot, number)))
            if common:
                raise VesaliusError(
                    f"{len(common)} test patients are in the support set", remedy="index with --resplit"
                )
    seen = {backbone: _leakage(backbone, study) for backbone in backbones}
    trunks: dict[str, str] = {}
    for backbone in backbones:
        trunk = cells.open_trunk(backbone, setup.image_size)
        for arm in arms:  # what does not fit is told before hours of work
            cells.build(arm, trunk, setup, 0)
        trunks[backbone] = trunk.weights
    open_comparison(out, setup, trunks)
    jobs = plan(
        data=data,
        lists=study.lists,
        out=out,
        setup=setup,
        backbones=backbones,
        arms=arms,
        shots=shots,
        draws=draws,
        seeds=seeds,
    )
    _work(jobs, workers)
    results = gather(read_cells(out), setup.plain(), leakage=seen, notes=_notes(study, shots))
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(out / "table.md", markdown(results))
    page(results).save(out / "report.html")
    show(results, Console())
    return results


def _leakage(backbone: str, study: Study) -> dict[str, int]:
    """How many of the validation and test patients a backbone has seen, as far as its run's folder tells.

    Raises:
        VesaliusError: it was itself trained on some test patients.
    """
    folder = Path(backbone)
    if not folder.is_dir():
        return {}
    seen = read_seen(RunFolder(folder))
    parts = {name: set(patient_keys(study.rows.filter(pl.col("split") == name))) for name in ("train", "val", "test")}
    learned = parts["test"] & (seen["train"] | seen["val"])
    if learned:
        raise VesaliusError(
            f"{len(learned)} of the {len(parts['test'])} test patients are among those that the backbone learned from",
            path=folder,
            remedy="index with the split that it was trained with, or train it without them",
        )
    everyone = set().union(*seen.values())
    return {name: len(keys & everyone) for name, keys in parts.items()}


def _notes(study: Study, shots: Sequence[int]) -> list[str]:
    """What a reader must know about the sets."""
    setup = study.setup
    if study.lists is not None or setup.task != "classification":
        return []
    unit: Any = setup.unit
    counts = units(study.split("train"), classes=setup.classes, unit=unit)
    few = {name: count for name, count in counts.items() if count < max(shots)}
    said = ", ".join(f"{name} ({count})" for name, count in few.items())
    return [f"Fewer than {max(shots)} training {unit}s, so that every draw holds all of them: {said}."] if few else []


def _work(jobs: Sequence[Job], workers: int) -> None:
    if workers == 1 or len(jobs) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a pool: the same numbers
        try:
            for job in track(jobs, len(jobs), "training"):
                cells.run(job)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start)
    with pool:
        try:
            futures = [pool.submit(cells.run, job) for job in jobs]
            for future in track(as_completed(futures), len(futures), "training"):
                future.result()
        except BrokenProcessPool as error:
            raise VesaliusError(
                "a worker was killed, probably for want of memory",
                remedy="use fewer --workers or a smaller --batch_size; what is done is kept",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start() -> None:
    """One thread a worker, which ends at once with the comparison, however that ends."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def leave() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
