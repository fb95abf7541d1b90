"""The folder of an annotation project: what it holds, and reviews that can neither be lost nor be half there.

```
atlas/ atlas.yaml               classes, predictors, settings
       cases.parquet            the index, one row per volume (see vesalius.data.table)
       predictions/NAME/CASE/   labels.nii.gz, or STRUCTURE.nii.gz each where they may overlap; STRUCTURE.prob.nii.gz
                                (uint8, 255 x probability) where there are probabilities; done.json
       maps/CASE/KIND/          STRUCTURE.nii.gz, uint8: average is a mask, the others 255 x heat; summary.json
       queue.json, queue.csv    case and structure in order of need
       reviews/CASE/STRUCTURE/  0001.json, 0002.json, ... with the masks they name; never changed, only added to
       rounds/N/                which models proposed, what the round cost, whether to stop
```

A case goes by an identifier made from its file's checksum: patients' names and paths stay in ``cases.parquet``
(and, of files that could not be read, ``cases.unreadable.csv``).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from vesalius.curate.masks import member_mask, read_values, write_values
from vesalius.curate.records import READERS, VERDICTS, Conflict, QueueItem, Review, Settings, case_id, check_name, claim
from vesalius.data.class_tables import ClassTable
from vesalius.data.table import MASK_SEPARATOR, load_table, save_table
from vesalius.data.volumes.cases import case_of
from vesalius.errors import ConfigError, VesaliusError, nearest
from vesalius.files import output_folder, write_text
from vesalius.images import Image, read_volume

CONFIG, CASES, QUEUE, ROUND = "atlas.yaml", "cases.parquet", "queue.json", "round.json"
DONE, SUMMARY, LABELS = "done.json", "summary.json", "labels.nii.gz"
KINDS = ("average", "inconsistency", "uncertainty", "overlap", "attention")
"""The maps of a case and structure."""
AVERAGE = "average"
"""The proposal that a review starts from."""


@dataclass(frozen=True)
class Atlas:
    """An annotation project.

    Args:
        path: its folder.
        classes: the structures, in the order of the label values.
        predictors: name -> what it runs (see `vesalius.curate.predictors`).
        targets: the structures that are mapped, ranked and reviewed; all by default.
        settings: of maps, ranking and rounds.
    """

    path: Path
    classes: ClassTable
    predictors: Mapping[str, Mapping[str, Any]]
    targets: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        for name in (*self.classes.names, *self.predictors):
            check_name(name)
        for name in self.targets:
            if name not in self.classes.names:
                raise ConfigError(f"target {name!r} is no class", remedy=nearest(name, self.classes.names))
        object.__setattr__(self, "targets", self.targets or self.classes.names)

    @classmethod
    def create(
        cls,
        path: str | Path,
        table: pl.DataFrame,
        *,
        classes: ClassTable,
        predictors: Mapping[str, Mapping[str, Any]],
        targets: Sequence[str] = (),
        settings: Settings | None = None,
    ) -> Atlas:
        """Start a project on the volumes of a table.

        Exact copies of a volume are left out; adding volumes later keeps the identifiers of the others.

        Raises:
            VesaliusError: there is a project already, or the folder cannot be written.
        """
        path = new_folder(path)
        volumes = table.filter(pl.col("size").list.len() == 3)
        volumes = volumes.unique(["sha256", "frame"], keep="first", maintain_order=True)
        if volumes.is_empty():
            raise VesaliusError("no volumes among the images", path=path, remedy="index a folder of CT or MR volumes")
        save_table(volumes, path / CASES)
        atlas = cls(path, classes, dict(predictors), tuple(targets), settings or Settings())
        atlas.save()
        return atlas

    @classmethod
    def open(cls, path: str | Path) -> Atlas:
        """A project that `create` made.

        Raises:
            ConfigError: there is none, or ``atlas.yaml`` is not right.
        """
        path = Path(path)
        try:
            values = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
            return cls(
                path,
                ClassTable.from_dict(values["classes"]),
                {**values["predictors"], **_trained_again(path)},
                tuple(values["targets"]),
                Settings.from_dict(values["settings"]),
            )
        except FileNotFoundError as error:
            raise ConfigError(
                f"{path} is no annotation project", remedy="make one with vesalius curate atlas init"
            ) from error
        except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path / CONFIG} is damaged ({error!r})", remedy="restore it from a copy") from error

    def save(self) -> None:
        """Write ``atlas.yaml``."""
        values = {
            "classes": self.classes.to_dict(),
            "predictors": {name: dict(one) for name, one in self.predictors.items()},
            "targets": list(self.targets),
            "settings": self.settings.to_dict(),
        }
        write_text(self.path / CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    # Cases

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        rows = load_table(self.path / CASES).to_dicts()
        return {case_id(row): row for row in rows}

    def cases(self) -> list[str]:
        """The identifiers, in the table's order."""
        return list(self._rows)

    def row(self, case: str) -> dict[str, Any]:
        """The index row: it holds path and patient, which must not leave the project.

        Raises:
            ConfigError: no such case.
        """
        if case not in self._rows:
            raise ConfigError(f"no case {case!r} in {self.path}", remedy="queue.csv lists those to review")
        return self._rows[case]

    def image_path(self, case: str) -> Path:
        """The volume's file, the first one where each channel has its own; a series' folder."""
        return Path(self.row(case)["path"].split(MASK_SEPARATOR)[0])

    def image(self, case: str) -> Image:
        """The volume ``[C, D, H, W]``."""
        return case_of(self.row(case))

    def only(self, case: str) -> Atlas:
        """The project as if it had this case alone: what a worker needs, and small."""
        one = replace(self, path=self.path.resolve())
        vars(one)["_rows"] = {case: self.row(case)}
        return one

    def annotated(self, case: str) -> list[str]:
        """The classes and pairs that the case's dataset has drawn: `vesalius.data.class_tables.ClassTable.sources`."""
        row = self.row(case)
        if row["mask"] is None:
            return []
        found = (self.classes.resolve(name, dataset=row["dataset"]) for name in row["annotated"])
        return [name for name in found if name]

    def _structure(self, structure: str) -> str:
        if structure not in self.classes.names:
            raise ConfigError(f"no structure {structure!r}", remedy=nearest(structure, self.classes.names))
        return structure

    # Proposals and maps

    def prediction(self, predictor: str, case: str) -> Path:
        """The folder of a predictor's files for a case; there is a ``done.json`` in it if they are whole."""
        self.row(case)
        return self.path / "predictions" / predictor / case

    def done(self, predictor: str, case: str) -> dict[str, Any]:
        """What a predictor's ``done.json`` says of a case; nothing while its files are not whole."""
        path = self.prediction(predictor, case) / DONE
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def proposals(self, case: str, structure: str) -> dict[str, Path]:
        """The files with what is proposed for a structure, ``average`` first if it was made, then by predictor.

        `proposal` reads them: a predictor's file may be a label map of all structures.
        """
        found = {}
        if path := self.map_path(case, AVERAGE, structure):
            found[AVERAGE] = path
        for name in self.predictors:
            done = self.done(name, case)
            if structure in done.get("structures", ()):
                file = LABELS if done["exclusive"] else f"{structure}.nii.gz"
                found[name] = self.prediction(name, case) / file
        return found

    def proposal(self, case: str, structure: str, source: str = AVERAGE) -> NDArray[np.bool_]:
        """What a predictor, or their average, proposes: ``[D, H, W]`` on the image's voxels.

        Raises:
            VesaliusError: it has not been predicted.
        """
        path = self.proposals(case, self._structure(structure)).get(source)
        if path is None:
            raise VesaliusError(
                f"{source} proposes no {structure} for {case} yet", remedy="run vesalius curate atlas step"
            )
        values = read_values(path)
        return member_mask(self.classes, values, structure) if path.name == LABELS else values > 0

    def map_folder(self, case: str) -> Path:
        """The folder of a case's maps; they are whole if there is a ``summary.json`` in it."""
        self.row(case)
        return self.path / "maps" / case

    def map_path(self, case: str, kind: str, structure: str) -> Path | None:
        """The file of a map, None where it was not made."""
        if kind not in KINDS:
            raise ConfigError(f"no map is called {kind!r}", remedy=nearest(kind, KINDS))
        path = self.map_folder(case) / kind / f"{self._structure(structure)}.nii.gz"
        return path if path.is_file() else None

    def summary(self, case: str) -> dict[str, dict[str, float]]:
        """By structure, what a case is ranked by (`vesalius.curate.attention.StructureMaps.summary`)."""
        path = self.map_folder(case) / SUMMARY
        return dict(json.loads(path.read_text(encoding="utf-8"))["structures"]) if path.is_file() else {}

    # The queue

    def queue(self) -> list[QueueItem]:
        """What should be looked at, neediest first, with its state as of now; empty before the first step."""
        path = self.path / QUEUE
        if not path.is_file():
            return []
        items = [QueueItem(**item) for item in json.loads(path.read_text(encoding="utf-8"))]
        return [replace(item, state=self.state(item.case, item.structure)) for item in items]

    def state(self, case: str, structure: str) -> str:
        """open, done, or cannot_tell."""
        newest = self.newest(case, structure)
        if newest is None:
            return "open"
        return "cannot_tell" if newest.verdict == "cannot_tell" else "done"

    # Reviews

    def _review_folder(self, case: str, structure: str) -> Path:
        self.row(case)
        return self.path / "reviews" / case / self._structure(structure)

    def reviews(self, case: str, structure: str) -> list[Review]:
        """All of them, oldest first."""
        folder = self._review_folder(case, structure)
        records = sorted(folder.glob("[0-9][0-9][0-9][0-9].json")) if folder.is_dir() else []
        return [Review(**json.loads(path.read_text(encoding="utf-8"))) for path in records]

    def all_reviews(self) -> list[Review]:
        """Those of all cases and structures, by time."""
        folders = sorted(self.path.glob("reviews/*/*/"))
        known = [(one.parent.name, one.name) for one in folders if one.parent.name in self._rows]
        return sorted((one for place in known for one in self.reviews(*place)), key=lambda one: one.when)

    def newest(self, case: str, structure: str) -> Review | None:
        """The last review, None where there is none."""
        folder = self._review_folder(case, structure)
        records = folder.glob("[0-9][0-9][0-9][0-9].json") if folder.is_dir() else ()
        last = max(records, default=None)
        return None if last is None else Review(**json.loads(last.read_text(encoding="utf-8")))

    def version_image(self, case: str, structure: str, version: int) -> Image:
        """The mask ``[1, D, H, W]`` as of a version, in its place: its own, or where it has none the one before.

        Raises:
            VesaliusError: nothing was proposed yet.
        """
        for review in reversed(self.reviews(case, structure)[:version]):
            if review.mask:
                return read_volume(self._review_folder(case, structure) / review.mask)
        path = self.map_path(case, AVERAGE, structure)
        if path is None:
            raise VesaliusError(f"no {structure} is proposed for {case} yet", remedy="run vesalius curate atlas step")
        return read_volume(path)

    def version_mask(self, case: str, structure: str, version: int) -> NDArray[np.bool_]:
        """The mask ``[D, H, W]`` as of a version."""
        return np.asarray(self.version_image(case, structure, version).array[0] > 0)

    def current(self, case: str, structure: str) -> tuple[int, NDArray[np.bool_]]:
        """The newest version's number, 0 for the proposal, and its mask ``[D, H, W]``."""
        newest = self.newest(case, structure)
        version = 0 if newest is None else newest.version
        return version, self.version_mask(case, structure, version)

    def save_review(
        self,
        case: str,
        structure: str,
        mask: NDArray[np.bool_] | None,
        *,
        based_on: int,
        verdict: str,
        who: str,
        reader: str = "first",
        seconds: float = 0.0,
        comment: str = "",
    ) -> Review:
        """Add a review; when this returns it is on the disk, and if the machine stops before, nothing is there.

        The record comes last and by a hard link, which a file system makes for one of two writers, whole, or not.

        Args:
            case, structure: which.
            mask: ``[D, H, W]`` on the image's voxels; None to keep that of the version it is based on. What was
                accepted is stored, too, so that later proposals do not change it.
            based_on: the newest version that the reader saw, 0 for the proposal.
            verdict: accept, corrected or cannot_tell.
            who: name or initials.  reader: first or second.
            seconds: spent.
            comment: free text.

        Raises:
            Conflict: there is a newer version than `based_on`.
            VesaliusError: the mask does not fit the image, or the disk refuses.
        """
        for value, known in ((verdict, VERDICTS), (reader, READERS)):
            if value not in known:
                raise ConfigError(f"a review cannot be {value!r}", remedy=nearest(value, known))
        if not who.strip():
            raise ConfigError("a review needs the reader's name or initials", remedy="say who you are")
        folder = self._review_folder(case, structure)
        newest = self.newest(case, structure)
        if based_on != (0 if newest is None else newest.version):
            if newest is None or based_on > newest.version:
                raise VesaliusError(f"{structure} of {case} has no version {based_on}", remedy="load it again")
            raise Conflict(newest)
        image = self.version_image(case, structure, based_on)
        before = image.array[0] > 0
        after = before if mask is None else np.asarray(mask, dtype=bool)
        if after.shape != image.size:
            raise VesaliusError(
                f"a mask of {after.shape} for {case}, which has {image.size} voxels",
                remedy="draw on the case's own grid",
            )
        if verdict == "corrected" and mask is None:
            raise ConfigError("a correction without a mask", remedy="send the mask, or accept")
        version = based_on + 1
        name = "" if verdict == "cannot_tell" and mask is None else f"{version:04}-{secrets.token_hex(4)}.nii.gz"
        changed = int((before != after).sum())
        review = Review(
            case=case,
            structure=structure,
            version=version,
            verdict=verdict,
            who=who.strip(),
            reader=reader,
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            based_on=based_on,
            seconds=round(float(seconds), 1),
            comment=comment,
            changed=changed,
            changed_mm3=changed * float(np.prod(image.spacing or 1.0)),
            marked_mm3=self.summary(case).get(structure, {}).get("mm3", 0.0),
            mask=name,
            round=self.round(),
        )
        folder.mkdir(parents=True, exist_ok=True)
        if name:
            write_values(after, image, folder / name)
        if not claim(folder / f"{version:04}.json", json.dumps(asdict(review), indent=1) + "\n"):
            if name:
                (folder / name).unlink(missing_ok=True)
            other = self.newest(case, structure)
            assert other is not None
            raise Conflict(other)
        return review

    # Rounds

    def round(self) -> int:
        """The round that is going on: 0 until models were trained again."""
        return _round(self.path)


def new_folder(path: str | Path) -> Path:
    """A folder for a new project.

    Raises:
        VesaliusError: there is one already, or the folder cannot be written.
    """
    path = output_folder(path)
    if (path / CONFIG).exists():
        raise ConfigError(f"{path} is an annotation project already", remedy="choose another folder, or `step` it")
    return path


def _round(path: Path) -> int:
    return max((int(one.parent.name) for one in path.glob(f"rounds/[0-9]*/{ROUND}")), default=0)


def _trained_again(path: Path) -> dict[str, Any]:
    """The predictors that the newest round changed: its record is what begins it."""
    record = path / "rounds" / str(_round(path)) / ROUND
    return dict(json.loads(record.read_text(encoding="utf-8"))["predictors"]) if record.is_file() else {}
