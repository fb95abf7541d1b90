"""The next round: runs among the predictors are trained again on what was reviewed, or the project may stop.

Rounds end, as published, when the cases that need most review need none (Li 2024): here when the open queue is
expected to change less than ``stop_gain`` ml, as earlier reviews tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from vesalius.curate.masks import write_values
from vesalius.curate.predictors import Predictor
from vesalius.curate.project import ROUND, Atlas
from vesalius.curate.release import assembled
from vesalius.curate.steps import experience, working_on
from vesalius.data.progress import track
from vesalius.data.table import make_table, save_table
from vesalius.errors import ConfigError, VesaliusError
from vesalius.files import write_text


@dataclass(frozen=True)
class Outcome:
    """What `next_round` decided.

    Args:
        stop: nothing was trained.
        round: the one that goes on now.
        gain: ml that the open queue was expected to change.
        text: for people.
    """

    stop: bool
    round: int
    gain: float
    text: str


def open_gain(atlas: Atlas) -> float:
    """Millilitres that reviewing the rest of the queue is expected to change."""
    _, share = experience(atlas)
    return sum(share * item.mm3 for item in atlas.queue() if item.state == "open") / 1000


def next_round(atlas: Atlas, *, workers: int = 0, force: bool = False) -> Outcome:
    """Train again and begin the next round, unless the queue is expected to gain too little.

    Learns from the reviewed cases (and those with public masks) outside the test split, all of whose structures are
    taken as they are now: what was not disputed as the models see it, as published. An interrupted training goes on.

    Args:
        atlas: the project.
        workers: processes that load data.
        force: train whatever the queue says.

    Raises:
        ConfigError: no predictor says how to be trained again.
        VesaliusError: nothing was reviewed.
    """
    gain, now = open_gain(atlas), atlas.round()
    limit = atlas.settings.stop_gain
    if gain < limit and not force:
        text = f"stop: the open queue is expected to change {gain:.2f} ml, less than {limit:g}; assemble it"
        return Outcome(True, now, gain, text)
    members = [Predictor.from_dict(name, values) for name, values in atlas.predictors.items()]
    students = [one for one in members if one.retrain]
    if not students:
        raise ConfigError(
            "no predictor is a run with retrain", remedy="write retrain: {method: universal} in its YAML file"
        )
    folder = atlas.path / "rounds" / str(now + 1)
    with working_on(atlas):
        data = _training_table(atlas, folder)
        changed, scores = {}, {}
        for one in students:
            summary = _train(one, atlas, folder, data, workers)
            changed[one.name] = {**one.to_dict(), "run": str((folder / "runs" / one.name).resolve())}
            scores[one.name] = summary["val"]
        record = {"predictors": changed, "val": scores, "gain_ml": round(gain, 3), "reviews": len(atlas.all_reviews())}
        write_text(folder / ROUND, json.dumps(record, indent=1) + "\n")
    names = ", ".join(changed)
    return Outcome(False, now + 1, gain, f"round {now + 1}: trained {names} again; step {atlas.path} proposes anew")


def _training_table(atlas: Atlas, folder: Path) -> Path:
    """The index of the cases to learn from, with their masks as they are now; made once a round."""
    path = folder / "train.parquet"
    if path.is_file():
        return path
    reviewed = {one.case for one in atlas.all_reviews() if one.mask}
    cases = [case for case in atlas.cases() if case in reviewed or atlas.annotated(case)]
    cases = [case for case in cases if atlas.row(case)["split"] != "test"]
    if not cases:
        raise VesaliusError("nothing outside the test split was reviewed", path=atlas.path, remedy="review some cases")
    rows = []
    for case in track(cases, len(cases), "collecting masks"):
        image = atlas.image(case)
        done, grid, _ = assembled(atlas, case, image)
        mask = write_values(grid.invert(done.labels), image, folder / "labels" / f"{case}.nii.gz")
        rows.append(
            {
                **atlas.row(case),
                "mask": str(mask.resolve()),
                "mask_classes": list(atlas.classes.names),
                "annotated": list(done.sources),
                "dataset": None,
                "duplicate_of": None,
            }
        )
    table = make_table(rows)
    if not (table["split"] == "train").any():
        table = table.with_columns(pl.lit("train").alias("split"))
    return save_table(table, path)


def _train(student: Predictor, atlas: Atlas, folder: Path, data: Path, workers: int) -> dict[str, Any]:
    """Train a run on, or anew where its ``retrain`` says from what."""
    from vesalius.training.verbs import adapt_backbone, pretrain_system  # networks take seconds to import

    options: dict[str, Any] = dict(student.retrain)
    method = options.pop("method")
    run = folder / "runs" / student.name
    shared: Mapping[str, Any] = {"data": data, "out": run, "resume": run.exists(), "workers": workers}
    if method == "full":
        options.setdefault("backbone", student.run)
        return adapt_backbone("full", task="segmentation", **shared, **options)
    classes = folder / "classes.yaml"
    write_text(classes, yaml.safe_dump(atlas.classes.to_dict(), sort_keys=False, allow_unicode=True))
    options.setdefault("init", student.run)
    return pretrain_system("universal", classes=classes, **shared, **options)
