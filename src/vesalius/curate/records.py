"""What the files of an annotation project say: settings, the queue, reviews; and names that say nothing of patients."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vesalius.errors import ConfigError, VesaliusError, nearest

VERDICTS = ("accept", "corrected", "cannot_tell")
READERS = ("first", "second")


class Conflict(VesaliusError):
    """Somebody saved a newer version than the one that an edit was based on.

    Args:
        newest: the version that is there.
    """

    def __init__(self, newest: Review) -> None:
        self.newest = newest
        super().__init__(
            f"{newest.who} saved version {newest.version} of {newest.structure} of {newest.case} at {newest.when}",
            remedy="load it and decide again; nothing was overwritten",
        )


@dataclass(frozen=True)
class Review:
    """What a person said of a structure of a case.

    Args:
        case, structure: which.
        version: 1, 2, ... of this structure of this case.
        verdict: of `VERDICTS`.
        who: the reader's name or initials.  reader: first or second.
        when: UTC, ISO 8601.
        based_on: the version that was shown, 0 for the proposal.
        seconds: spent.  comment: free text.
        changed: voxels that differ from the version it was based on.
        mask: name of the mask's file beside the record; empty for cannot_tell.
        round: of the proposals that were shown.
    """

    case: str
    structure: str
    version: int
    verdict: str
    who: str
    reader: str
    when: str
    based_on: int
    seconds: float
    comment: str = ""
    changed: int = 0
    mask: str = ""
    round: int = 0


@dataclass(frozen=True)
class QueueItem:
    """A structure of a case that somebody should look at.

    Args:
        case, structure: which.
        score: what it is ranked by: mm^3 of its attention map (or voxels, as published).
        mm3: the volume that the attention map marks.
        gain: mm^3 that a correction is expected to change.
        minutes: that it is expected to take.
        state: open, done, or cannot_tell (waits for a second reader).
    """

    case: str
    structure: str
    score: float
    mm3: float
    gain: float
    minutes: float
    state: str = "open"


@dataclass(frozen=True)
class Settings:
    """How maps are made and reviews are planned.

    Args:
        inconsistency: standard deviation over models above which they disagree.
        uncertainty: mean entropy ``-p ln p`` above which they are unsure.
        weights: of inconsistency, uncertainty and overlap in the attention map.
        opening: mm that a marked region must measure; thinner ones vanish.
        as_published: thresholds, 3 x 3 x 3 opening and ranking in voxels, as the authors' code has them.
        order: what the queue is ranked by: attention, uncertainty, or random (a control).
        minutes_each: to open and judge a structure.  minutes_per_ml: to correct a ml of marked volume.
        stop_gain: ml that the open queue must be expected to gain for another round to be worth it.
        seed: of the random order and of the splits.
    """

    inconsistency: float = 0.10
    uncertainty: float = 0.05
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    opening: float = 5.0
    as_published: bool = False
    order: str = "attention"
    minutes_each: float = 0.5
    minutes_per_ml: float = 0.5
    stop_gain: float = 1.0
    seed: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """From YAML.

        Raises:
            ConfigError: an unknown key.
        """
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"settings know no {name!r}", remedy=nearest(name, known))
        return cls(**{**values, **({"weights": tuple(values["weights"])} if "weights" in values else {})})


def case_id(row: Mapping[str, Any]) -> str:
    """A name for a case that says nothing about the patient: its modality, and the start of its file's SHA-256.

    >>> case_id({"modality": "CT", "sha256": "3fa8c1d2099b", "frame": None})
    'ct-3fa8c1d209'
    """
    kind = re.sub(r"[^a-z]", "", (row["modality"] or "").lower()) or "case"
    volume = "" if row["frame"] is None else f"-{row['frame']}"  # of a 4-D file
    return f"{kind}-{row['sha256'][:10]}{volume}"


def check_name(name: str) -> str:
    """Itself, if it can be a file's name everywhere.

    Raises:
        ConfigError: it cannot.

    >>> check_name("kidney_left")
    'kidney_left'
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ConfigError(f"{name!r} cannot name files", remedy="use letters, digits, _ and -: kidney_left")
    return name


def claim(path: Path, text: str) -> bool:
    """Write `text` to `path` unless that is there; of two writers one succeeds, and what is there is whole."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
            os.chmod(stream.name, 0o644)
            os.link(stream.name, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise VesaliusError(
            f"cannot be written ({error.strerror})", path=path, remedy="use a disk with space, and with hard links"
        ) from error
    return True
