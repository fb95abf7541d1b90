"""Run a claim: every arm of every seed once, two at a time, continued where it stopped; then judge, draw and write.

OUT/seed0/dual.json    what one arm ended with; an arm that has one is not run again
OUT/seed0/dual.npz     pictures of what it saw and restored
OUT/results.json       all numbers, summaries, differences and verdicts
OUT/scores.png, OUT/report.html
"""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vesalius.claims.page import groups, page, scores
from vesalius.claims.samples import real_images
from vesalius.claims.verdicts import RULE, RULE_OF_DRAWS, judge, summarise
from vesalius.errors import VesaliusError
from vesalius.files import atomic, output_folder, write_text
from vesalius.training.runs import code_version, environment
from vesalius.training.short import Tick


@dataclass(frozen=True)
class Job:
    """One arm of one seed."""

    module: str
    arm: str
    seed: int
    budget: Any
    data: str | None
    out: str
    setup: dict[str, Any]

    @property
    def result(self) -> Path:
        """Where the arm's numbers go."""
        return Path(self.out) / f"seed{self.seed}" / f"{self.arm}.json"


def run(
    system: str,
    module: ModuleType,
    out: Path,
    *,
    seeds: int,
    data: Path | None,
    workers: int,
    budget: Any,
    progress: bool = True,
) -> dict[str, Any]:
    """Run what is missing, then judge all; returns what results.json holds.

    Args:
        module: one of the claims: TITLE, METHOD, BUDGET, ARMS, METRICS, COMPARISONS; `load_samples` of a seed, which
            `run_arm` is given; `details`, its own blocks of the page; and, where it has such, FIRST (arms that the
            others build on) and ORGAN_ARMS (arms that need images of several organs).
        seeds: seeds 0 to seeds - 1.
        data: a table of real images, or None for phantoms.
        workers: processes, one thread each.

    Raises:
        VesaliusError: `out` holds arms of another set-up.
    """
    jobs = plan(system, module, out, seeds=seeds, data=data, budget=budget)
    first = getattr(module, "FIRST", ())
    for stage in ([job for job in jobs if (job.arm in first) == early] for early in (True, False)):
        _work(missing(stage), workers=workers, progress=progress)
    results = gather(system, module, jobs)
    leave(results, out, module)
    return results


def plan(system: str, module: ModuleType, out: Path, *, seeds: int, data: Path | None, budget: Any) -> list[Job]:
    """All arms of all seeds, a seed after the other."""
    out = output_folder(out)
    setup = {"system": system, "budget": asdict(budget), "data": data.name if data else "phantoms"}
    names = tuple(module.ARMS)
    if data is not None and not real_images(str(data), 0, budget).organs:
        names = tuple(arm for arm in names if arm not in getattr(module, "ORGAN_ARMS", ()))
    table = str(data) if data else None
    return [Job(module.__name__, arm, seed, budget, table, str(out), setup) for seed in range(seeds) for arm in names]


def missing(jobs: list[Job]) -> list[Job]:
    """Those that have no result yet.

    Raises:
        VesaliusError: there is a result of another set-up.
    """
    return [job for job in jobs if not _is_done(job)]


def leave(results: dict[str, Any], out: Path, module: ModuleType) -> None:
    """Write results.json, the figures and the page."""
    write_text(out / "results.json", json.dumps(results, indent=2) + "\n")
    compared = [(arms, metrics) for arms, metrics in groups(results) if len(arms) > 1]
    for number, (arms, metrics) in enumerate(compared, start=1):
        with atomic(out / f"scores_{number}.png") as temporary:
            scores(results, arms, metrics).savefig(temporary, dpi=150)
    page(results, module.details(results, out)).save(out / "report.html")


def gather(system: str, module: ModuleType, jobs: list[Job]) -> dict[str, Any]:
    """What results.json holds: from the arms' files alone."""
    values: dict[str, list[dict[str, Any]]] = {}
    seconds: dict[str, list[float]] = {}
    for job in jobs:
        record = json.loads(job.result.read_text(encoding="utf-8"))
        values.setdefault(job.arm, []).append(record["metrics"])
        seconds.setdefault(job.arm, []).append(record["seconds"])
    judged = (judge(comparison, module.METRICS, values) for comparison in module.COMPARISONS)
    verdicts = [verdict for verdict in judged if verdict is not None]
    return {
        "claim": system,
        "title": module.TITLE,
        "setup": jobs[0].setup,
        "seeds": sorted({job.seed for job in jobs}),
        "environment": environment(),
        "arms": {arm: module.ARMS[arm] for arm in values},
        "metrics": {name: asdict(metric) for name, metric in module.METRICS.items()},
        "summary": summarise(values),
        "verdicts": verdicts,
        "rule": RULE if all(verdict["se"] is None for verdict in verdicts) else RULE_OF_DRAWS,
        "method": module.METHOD,
        "seconds": seconds,
    }


def _is_done(job: Job) -> bool:
    if not job.result.exists():
        return False
    try:
        setup = json.loads(job.result.read_text(encoding="utf-8"))["setup"]
    except (ValueError, KeyError) as error:
        raise VesaliusError("is not an arm's result", path=job.result, remedy="remove it and run again") from error
    if setup != job.setup:
        raise VesaliusError("was run with another budget or other data", path=job.result, remedy="choose another --out")
    return True


def _work(jobs: list[Job], *, workers: int, progress: bool) -> None:
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    steps = context.Array("i", len(jobs))
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start, initargs=(steps,))
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bars, pool:
        bar = bars.add_task("starting", total=sum(job.budget.work(job.arm) for job in jobs))
        running = {pool.submit(_run, number, job): number for number, job in enumerate(jobs)}
        try:
            while running:
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    number = running.pop(future)
                    steps[number] = jobs[number].budget.work(jobs[number].arm)
                now = [f"seed {jobs[n].seed} {jobs[n].arm}" for n in running.values() if steps[n]]
                bars.update(
                    bar, completed=sum(steps), description=", ".join(now) or ("starting" if running else "done")
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_STEPS: Any = None  # of a worker: the array that the main process draws its bars from


def _start(steps: Any) -> None:
    global _STEPS
    _STEPS = steps
    torch.set_num_threads(1)


def _run(number: int, job: Job) -> None:
    def tick(step: int) -> None:
        _STEPS[number] = step

    tick(1)
    execute(job, tick)


def execute(job: Job, tick: Tick) -> None:
    """Run one arm in this process and write its numbers and pictures."""
    module = import_module(job.module)
    began = time.perf_counter()
    samples = module.load_samples(job.seed, job.budget, data=job.data, folder=job.result.parent)
    metrics, pictures = module.run_arm(job.arm, job.seed, samples, job.budget, tick)
    if pictures:
        with atomic(job.result.with_suffix(".npz")) as temporary:
            np.savez_compressed(temporary, **{name: value.numpy() for name, value in pictures.items()})
    record = {
        "arm": job.arm,
        "seed": job.seed,
        "setup": job.setup,
        "metrics": metrics,
        "seconds": round(time.perf_counter() - began, 1),
        "code_version": code_version(),
    }
    write_text(job.result, json.dumps(record, indent=2) + "\n")
