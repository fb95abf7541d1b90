"""A step of an annotation project: every model proposes, what they disagree on is mapped, and a queue is written.

A case is one unit of work: its files are written one by one, whole, and its ``done.json`` and ``summary.json`` last, so
that a step can be killed anywhere and the same command goes on. Cases run in processes of this machine, or on Ray
(`vesalius.curate.ray_engine`).
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vesalius import __version__
from vesalius.curate.attention import attention_maps
from vesalius.curate.masks import read_values, write_values
from vesalius.curate.predictors import Found, Predictor, predict
from vesalius.curate.project import AVERAGE, DONE, KINDS, LABELS, QUEUE, SUMMARY, Atlas
from vesalius.curate.proposals import Masks, Proposal, average_masks
from vesalius.curate.ranking import Minutes, rank, revised_share
from vesalius.curate.records import QueueItem
from vesalius.data.progress import track
from vesalius.data.volumes.transforms import Grid, grid_of
from vesalius.errors import ConfigError, VesaliusError
from vesalius.files import write_text
from vesalius.images import Image

Engine = Literal["processes", "ray"]
LOCK = ".lock"


@dataclass(frozen=True)
class CaseReport:
    """What a step did for a case.

    Args:
        case: which.
        seconds: of each predictor that ran, and of "maps".
        missing: predictors that have no masks of it.
        failed: predictor (or "case") -> what went wrong, without paths.
        size: bytes of its predictions and maps.
    """

    case: str
    seconds: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    size: int = 0


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    Args:
        cases: of the project.
        reports: a case each.
        seconds: altogether.
        workers: that shared the work.
    """

    cases: int
    reports: list[CaseReport]
    seconds: float
    workers: int

    @property
    def failed(self) -> dict[str, dict[str, str]]:
        """What went wrong, by case."""
        return {one.case: one.failed for one in self.reports if one.failed}

    def lines(self) -> list[str]:
        """What it cost, for people: a case, and how that grows."""
        worked = [one for one in self.reports if one.seconds]
        said = [f"{len(worked)} of {self.cases} cases worked on in {self.seconds:.1f} s by {self.workers} workers"]
        if worked:
            names = dict.fromkeys(name for one in worked for name in one.seconds)
            costs = {name: np.mean([one.seconds[name] for one in worked if name in one.seconds]) for name in names}
            said.append("seconds a case: " + ", ".join(f"{name} {cost:.2f}" for name, cost in costs.items()))
            each, size = self.seconds / len(worked), np.mean([one.size for one in worked]) / 1e6
            said.append(f"growth: 1000 more cases take {1000 * each / 3600:.2f} h and {size:.2f} GB like this")
        for case, reasons in self.failed.items():
            said += [f"failed: {case} ({where}): {why}" for where, why in reasons.items()]
        return said


@contextmanager
def working_on(atlas: Atlas) -> Iterator[None]:
    """Nobody else steps the project meanwhile; a lock of the operating system, which a killed process cannot leave.

    Raises:
        VesaliusError: somebody does.
    """
    with (atlas.path / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise VesaliusError("another step is at work", path=atlas.path, remedy="wait until it is done") from error
        yield


def run_step(atlas: Atlas, *, engine: Engine = "processes", workers: int = 1) -> StepReport:
    """Predict and map what is not done yet, and rank what is not reviewed.

    Args:
        atlas: the project.
        engine: processes of this machine, or ray.
        workers: that share the cases; with 1 of this machine, everything runs in this process.

    Raises:
        VesaliusError: another step is at work, or a worker was killed.
        ConfigError: a predictor is described wrongly.
    """
    for name, values in atlas.predictors.items():
        Predictor.from_dict(name, values)
    cases, began = atlas.cases(), time.monotonic()
    with working_on(atlas):
        jobs = [atlas.only(case) for case in cases]
        if engine == "ray":
            from vesalius.curate.ray_engine import run

            results = run(work, jobs, workers=workers)
        else:
            results = _processes(jobs, workers)
        reports = sorted(track(results, len(cases), "proposing"), key=lambda one: cases.index(one.case))
        write_queue(atlas)
        report = StepReport(len(cases), reports, time.monotonic() - began, workers)
        _record(atlas, report)
    return report


def _record(atlas: Atlas, report: StepReport) -> None:
    worked = [asdict(one) for one in report.reports if one.seconds or one.failed]
    if worked:
        record = {"seconds": round(report.seconds, 2), "workers": report.workers, "cases": worked}
        write_text(atlas.path / "rounds" / str(atlas.round()) / "step.json", json.dumps(record, indent=1) + "\n")


def _processes(jobs: Sequence[Atlas], workers: int) -> Iterator[CaseReport]:
    if workers < 1:
        raise ConfigError(f"workers = {workers}", remedy="give 1 or more")
    if workers == 1:
        yield from map(work, jobs)
        return
    threads = max((os.cpu_count() or 1) // workers, 1)
    # Started afresh rather than forked: the threads of PyTorch and polars do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(threads,)) as pool:
        try:
            for future in as_completed([pool.submit(work, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool as error:
            raise VesaliusError(
                "a worker was killed, perhaps for want of memory",
                remedy="the same command goes on where it stopped; try it with fewer workers",
            ) from error


def _begin(threads: int) -> None:
    """In a new worker: its share of the cores, and an end when the process that started it is gone."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def work(atlas: Atlas) -> CaseReport:
    """Predict and map the one case that `atlas` was narrowed to (`Atlas.only`), as far as that is not done.

    What fails is reported and leaves the rest to go on; maps are made of what there is.
    """
    (case,) = atlas.cases()
    report = CaseReport(case)
    image: Image | None = None
    keys: dict[str, str] = {}
    try:
        for name, values in atlas.predictors.items():
            predictor, folder = Predictor.from_dict(name, values), atlas.prediction(name, case)
            files = predictor.existing(atlas.image_path(case), case)
            if predictor.masks and not files:
                (folder / DONE).unlink(missing_ok=True)
                report.missing.append(name)
                continue
            began = time.monotonic()
            try:
                key = predictor.key(files)
                if _key_of(folder / DONE) != key:
                    image = image or atlas.image(case)
                    found = predict(predictor, image, atlas.classes, files=files)
                    report.seconds[name] = round(time.monotonic() - began, 3)
                    _store(found, image, folder, key=key, seconds=report.seconds[name], round=atlas.round())
                keys[name] = key
            except VesaliusError as error:
                report.failed[name] = error.what
        if keys:
            described = [keys, asdict(atlas.settings.attention), atlas.targets, atlas.classes.to_dict()]
            key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
            if _key_of(atlas.map_folder(case) / SUMMARY) != key:
                began = time.monotonic()
                _map(atlas, case, image or atlas.image(case), list(keys), key)
                report.seconds["maps"] = round(time.monotonic() - began, 3)
    except VesaliusError as error:
        report.failed["case"] = error.what
    size = sum(path.stat().st_size for path in _files(atlas, case)) if report.seconds else 0
    return CaseReport(case, report.seconds, report.missing, report.failed, size)


def _key_of(path: Path) -> str:
    """What a record says that it was made from; nothing where there is none."""
    return str(json.loads(path.read_text(encoding="utf-8"))["key"]) if path.is_file() else ""


def _files(atlas: Atlas, case: str) -> Iterator[Path]:
    for folder in (*(atlas.prediction(name, case) for name in atlas.predictors), atlas.map_folder(case)):
        yield from (path for path in folder.rglob("*") if path.is_file())


def _sweep(folder: Path) -> None:
    """Remove what a kill in the middle of a write left."""
    for path in folder.rglob(".*-*.*"):
        path.unlink(missing_ok=True)


def _store(found: Found, image: Image, folder: Path, *, key: str, seconds: float, round: int) -> None:
    """Write what was found; the record that says so last."""
    (folder / DONE).unlink(missing_ok=True)
    _sweep(folder)
    if found.labels is not None:
        write_values(found.labels, image, folder / LABELS)
    for name, mask in found.masks.items():
        write_values(mask, image, folder / f"{name}.nii.gz")
    for name, soft in found.probabilities.items():
        write_values(soft, image, folder / f"{name}.prob.nii.gz")
    record: dict[str, Any] = {
        "key": key,
        "structures": list(found.structures),
        "exclusive": found.labels is not None,
        "probabilities": list(found.probabilities),
        "seconds": seconds,
        "round": round,
        "version": __version__,
    }
    write_text(folder / DONE, json.dumps(record, indent=1) + "\n")


class _Proposals:
    """What the predictors say of a case's structures, on axes that go right, forward and up.

    Args:
        atlas, case: which.
        names: of the predictors.
        grid: of the image.
    """

    def __init__(self, atlas: Atlas, case: str, names: Sequence[str], grid: Grid) -> None:
        self.atlas, self.case, self.grid = atlas, case, grid
        self.done = {name: atlas.done(name, case) for name in names}
        table = atlas.classes
        self.labels = {  # turned and with sides told once, not for every structure
            name: table.sides(self._read(name, LABELS), ()) for name, done in self.done.items() if done["exclusive"]
        }
        known = {one for done in self.done.values() for one in done["structures"]}
        self.structures = [one for one in table.names if one in known]

    def _read(self, predictor: str, file: str) -> NDArray[np.uint8]:
        values = read_values(self.atlas.prediction(predictor, self.case) / file)
        return self.grid.apply(values, labels=True).astype(np.uint8)

    def __call__(self, structure: str) -> list[Proposal]:
        table, found = self.atlas.classes, []
        for name, done in self.done.items():
            if structure not in done["structures"]:
                continue
            if done["exclusive"]:
                mask = table.members[:, table.names.index(structure)][self.labels[name]]
            else:
                mask = self._read(name, f"{structure}.nii.gz") > 0
            if structure in done["probabilities"]:
                found.append(Proposal.from_probability(self._read(name, f"{structure}.prob.nii.gz"), mask))
            else:
                found.append(Proposal.from_mask(mask))
        return found


def _map(atlas: Atlas, case: str, image: Image, predictors: Sequence[str], key: str) -> None:
    """Write the average masks and the maps of a case, and last what it is ranked by."""
    folder, grid = atlas.map_folder(case), grid_of(image, orientation="RAS", spacing=None)
    (folder / SUMMARY).unlink(missing_ok=True)
    _sweep(folder)
    proposals, config = _Proposals(atlas, case, predictors, grid), atlas.settings.attention
    table = None if config.as_published and len(predictors) == 1 else atlas.classes
    masks: Masks = average_masks(proposals, proposals.structures, table=table)
    written = {write_values(grid.invert(masks[name]), image, folder / AVERAGE / f"{name}.nii.gz") for name in masks}
    drawn = atlas.classes.labelled(atlas.annotated(case))
    asked = [name for name in atlas.targets if not drawn[atlas.classes.names.index(name)]]
    summaries = {}
    for maps in attention_maps(proposals, masks, asked, spacing=grid.spacing, config=config, table=atlas.classes):
        summaries[maps.structure] = maps.summary()
        for kind in KINDS:
            if kind != AVERAGE and getattr(maps, kind).any():
                path = folder / kind / f"{maps.structure}.nii.gz"
                values = maps.full(kind) * (255 if kind == "overlap" else 1)
                written.add(write_values(grid.invert(values), image, path))
    for kind in KINDS:  # of an earlier round
        for path in (folder / kind).glob("*.nii.gz"):
            if path not in written:
                path.unlink()
    record = {"key": key, "predictors": list(predictors), "structures": summaries}
    write_text(folder / SUMMARY, json.dumps(record, indent=1) + "\n")


def write_queue(atlas: Atlas) -> list[QueueItem]:
    """Rank what has not been reviewed, and put what has behind it; minutes and gains as earlier reviews went."""
    minutes, share = experience(atlas)
    unseen: dict[str, dict[str, Any]] = {}
    seen: dict[str, dict[str, Any]] = {}
    for case in atlas.cases():
        for structure, summary in atlas.summary(case).items():
            place = unseen if atlas.newest(case, structure) is None else seen
            place.setdefault(case, {})[structure] = summary
    settings, items = atlas.settings, []
    for group in (unseen, seen):
        ranked = rank(
            group,
            order=settings.order,
            minutes=minutes,
            precision=share,
            as_published=settings.attention.as_published,
            seed=settings.seed + atlas.round(),
        )
        items += [QueueItem(**asdict(one)) for one in ranked]
    write_text(atlas.path / QUEUE, json.dumps([asdict(item) for item in items], indent=0) + "\n")
    queue = atlas.queue()
    stream = io.StringIO()
    table = csv.DictWriter(stream, [*asdict(queue[0])] if queue else ["case"], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(item) for item in queue)
    write_text((atlas.path / QUEUE).with_suffix(".csv"), stream.getvalue())
    return queue


def experience(atlas: Atlas) -> tuple[Minutes, float]:
    """What reviews so far say of the minutes that one takes, and of the share of marked volume that it changes."""
    reviews = [one for one in atlas.all_reviews() if one.reader == "first" and one.verdict != "cannot_tell"]
    minutes = atlas.settings.minutes.fit([(one.marked_mm3, one.seconds) for one in reviews if one.seconds > 0])
    return minutes, revised_share([(one.marked_mm3, one.changed_mm3) for one in reviews if one.marked_mm3 > 0])
