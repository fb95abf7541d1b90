"""What the files of an annotation project say: settings, the queue, reviews; and names that say nothing of patients."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from vesalius.curate.attention import AttentionConfig
from vesalius.curate.ranking import Minutes, Order, Ranked
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
        changed: voxels that differ from the version it was based on.  changed_mm3: the same in mm^3.
        marked_mm3: what the attention map marked when it was reviewed.
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
    changed_mm3: float = 0.0
    marked_mm3: float = 0.0
    mask: str = ""
    round: int = 0


@dataclass(frozen=True)
class QueueItem(Ranked):
    """A structure of a case that somebody should look at.

    Args:
        case, structure, score, mm3, gain, minutes: as of `Ranked`.
        state: open, done, or cannot_tell (waits for a second reader).
    """

    state: str = "open"


@dataclass(frozen=True)
class Settings:
    """How maps are made and reviews are planned.

    Args:
        attention: thresholds, weights and opening of the maps.
        minutes: what a review costs, until there are reviews to tell.
        order: of the queue: attention, uncertainty, or random (a control).
        stop_gain: ml that the open queue must be expected to change for another round to be worth it.
        seed: of the random order.

    >>> Settings.from_dict({"attention": {"opening": 3.0}, "stop_gain": 5.0}).attention.opening
    3.0
    """

    attention: AttentionConfig = field(default_factory=AttentionConfig)
    minutes: Minutes = field(default_factory=Minutes)
    order: Order = "attention"
    stop_gain: float = 1.0
    seed: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """From YAML.

        Raises:
            ConfigError: an unknown key or order.
        """
        given = dict(values)
        if (order := given.get("order", "attention")) not in get_args(Order):
            raise ConfigError(f"no order is called {order!r}", remedy=nearest(order, get_args(Order)))
        for name, kind in (("attention", AttentionConfig), ("minutes", Minutes)):
            if name in given:
                given[name] = _only_known(kind, given[name], name)
        return _only_known(cls, given, "settings")

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what `from_dict` takes."""
        return dict(json.loads(json.dumps(asdict(self))))


def _only_known(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    known = [item.name for item in fields(kind)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{where} know no {name!r}", remedy=nearest(name, known))
    return kind(**{name: tuple(one) if isinstance(one, list) else one for name, one in values.items()})


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
