"""One list of classes for many datasets: ``classes.yaml``, in which each class is named once and all labels meet.

Datasets call the same organ differently, tell its sides apart or do not, and count a tumour as part of its organ or
not. A `ClassTable` gives every name its class, every voxel all classes that it belongs to, and every case the classes
that it was annotated for, so that a loss can leave out the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from scipy import ndimage

from vesalius.data.label_tables import left_side
from vesalius.data.masks import IGNORE
from vesalius.errors import ConfigError, nearest

RULES = ("largest", "sides", "above", "inside", "keep")
"""What becomes of a predicted mask, see `vesalius.tasks.organs`."""
KINDS = ("organ", "tumor", "cyst")
LEFT = 128
"""Added to the value of voxels on the left, of what a mask does not tell apart."""
MOST_NAMES = 126
PROMPT = "A computerized tomography of a {}"
"""The template of the published class embeddings."""


@dataclass(frozen=True)
class ClassEntry:
    """One class.

    Args:
        name: identifier, as in file names.  title: for people, and in the prompt; by default the name's words.
        kind: organ, tumor or cyst.
        prompt: the text that is embedded; by default the table's template with the title.
        organs: that a tumour or cyst lies in, or (rule "above") that the class does not reach below.
        counts: voxels of a tumour or cyst count as its organs', too.
        rule: of `RULES`; by default "largest" for organs, "keep" for others.
        most, least: components that AbdomenAtlas keeps of it, each of more than `least` voxels; 0 for all.
        also: other names of it, in any dataset.
    """

    name: str
    title: str = ""
    kind: str = "organ"
    prompt: str = ""
    organs: tuple[str, ...] = ()
    counts: bool = True
    rule: str = ""
    most: int = 0
    least: int = 0
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("organs", "also"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # YAML has lists
        object.__setattr__(self, "title", self.title or re.sub(r"[\W_]+", " ", self.name).strip())
        object.__setattr__(self, "rule", self.rule or ("largest" if self.kind == "organ" else "keep"))
        for value, known in ((self.rule, RULES), (self.kind, KINDS)):
            if value not in known:
                raise ConfigError(f"class {self.name!r}: unknown {value!r}", remedy=nearest(value, known))


@dataclass(frozen=True)
class ClassTable:
    """Classes in the network's order, and how datasets name them.

    Args:
        classes: in the order of the network's outputs.
        pairs: name of a paired organ whose sides a mask does not tell -> its right and its left class.
        datasets: dataset's name -> what its masks' names or values mean, where they do not speak for themselves; a
            meaning of null or "" leaves the name out.
        prompt: template of the classes' texts.

    Raises:
        ConfigError: a name is used twice, or one that is referred to is no class.

    >>> table = ClassTable.load()
    >>> len(table.classes), table.resolve("Liver tumour"), table.resolve(2, dataset="04_LiTS")
    (32, 'liver_tumor', 'liver_tumor')
    """

    classes: tuple[ClassEntry, ...]
    pairs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    datasets: Mapping[str, Mapping[str | int, str | None]] = field(default_factory=dict)
    prompt: str = PROMPT

    def __post_init__(self) -> None:
        if not self.classes:
            raise ConfigError("a class table without classes", remedy="name at least one under classes")
        for pair, sides in self.pairs.items():
            if len(sides) != 2:
                raise ConfigError(f"pair {pair!r} of {len(sides)} classes", remedy="give [right, left]")
        meant = [*(side for sides in self.pairs.values() for side in sides)]
        meant += [organ for entry in self.classes for organ in entry.organs if entry.kind == "organ"]
        for name in meant:
            if name not in self.names:
                raise ConfigError(f"{name!r} is not a class", remedy=nearest(name, self.names))
        for dataset, names in self.datasets.items():
            for name in filter(None, names.values()):
                if name_key(name) not in self._known:
                    raise ConfigError(f"{dataset}: {name!r} is not a class", remedy=nearest(name, self.sources))
        if len(set(self._known.values())) > MOST_NAMES:
            raise ConfigError(f"{len(self.sources)} classes and pairs", remedy=f"use {MOST_NAMES} at most")

    @classmethod
    def load(cls, path: str | Path | None = None) -> ClassTable:
        """Read a ``classes.yaml``; without a path, the Universal Model's 32 classes of abdominal CT.

        Raises:
            ConfigError: it is missing, or not a class table.
        """
        source = files("vesalius.data").joinpath("abdomen.yaml") if path is None else Path(path)
        try:
            return cls.from_dict(yaml.safe_load(source.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", remedy="give a classes.yaml") from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.what}", remedy=error.remedy) from error
        except (yaml.YAMLError, TypeError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(
                f"{path} is not a class table ({reason})", remedy="see docs/systems/universal.md"
            ) from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassTable:
        """From plain values; a class may be given by its name alone.

        >>> ClassTable.from_dict({"classes": ["liver", {"name": "cyst", "kind": "cyst"}]}).names
        ('liver', 'cyst')
        """
        options = dict(values)
        entries = [{"name": entry} if isinstance(entry, str) else entry for entry in options.pop("classes")]
        pairs = {name: (sides[0], *sides[1:]) for name, sides in (options.pop("pairs", None) or {}).items()}
        datasets = options.pop("datasets", None) or {}
        return cls(tuple(ClassEntry(**entry) for entry in entries), pairs, datasets, **options)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for cards and YAML: what `from_dict` takes."""
        return dict(json.loads(json.dumps(asdict(self))))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, in order."""
        return tuple(entry.name for entry in self.classes)

    @cached_property
    def _known(self) -> dict[str, str]:
        """Every name by which a class or a pair goes, as `name_key` has it."""
        known: dict[str, str] = {}
        called = [(entry.name, (entry.name, entry.title, *entry.also)) for entry in self.classes]
        for name, others in (*called, *((pair, (pair,)) for pair in self.pairs)):
            for other in others:
                if known.setdefault(name_key(other), name) != name:
                    raise ConfigError(f"{other!r} names {known[name_key(other)]!r}, too", remedy=f"rename {name!r}")
        return known

    @property
    def sources(self) -> tuple[str, ...]:
        """What a voxel of a mask can be called: a class, or a pair."""
        return (*self.names, *self.pairs)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The texts that are embedded, a class each."""
        return tuple(entry.prompt or self.prompt.format(entry.title) for entry in self.classes)

    def entry(self, name: str) -> ClassEntry:
        """The class of that name.

        Raises:
            ConfigError: there is none.
        """
        for entry in self.classes:
            if entry.name == name:
                return entry
        raise ConfigError(f"no class {name!r}", remedy=nearest(name, self.names))

    def extended(self, *entries: ClassEntry) -> ClassTable:
        """With more classes at the end."""
        return replace(self, classes=(*self.classes, *entries))

    def resolve(self, name: str | int, *, dataset: str | None = None, value: int | None = None) -> str | None:
        """The class (or pair) that a name means.

        Args:
            name: in a mask's list of classes.
            dataset: where the mask is from: its own meanings come first.
            value: of the voxels with that name.

        Returns:
            One of `sources`, None where it is not in this table.
        """
        for key, meanings in self.datasets.items():
            if name_key(key) == name_key(dataset or ""):
                own = {name_key(str(called)): meant for called, meant in meanings.items()}
                for called in (name_key(str(name)), str(value)):
                    if called in own:
                        return self._known.get(name_key(own[called] or ""))
        return self._known.get(name_key(str(name)))

    def translate(self, table: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, list[str]]]:
        """An index whose masks speak in this table's names.

        Returns:
            The rows with ``mask_classes`` and ``annotated`` in `sources` ("" for what is left out); and the names that
            are left out, by dataset.

        Raises:
            ConfigError: a row whose mask has none of the classes.
        """
        masks: list[list[str]] = []
        annotated: list[list[str]] = []
        left_out: dict[str, list[str]] = {}
        for row in table.select("path", "dataset", "mask_classes", "annotated").to_dicts():
            dataset, names = row["dataset"], row["mask_classes"]
            meant = [self.resolve(name, dataset=dataset, value=n) for n, name in enumerate(names, start=1)]
            known = {name: found for name, found in zip(names, meant, strict=True) if name}
            others = [found for name in row["annotated"] if (found := known.get(name, self.resolve(name)))]
            for name, found in known.items():
                if found is None and name not in left_out.setdefault(dataset or "", []):
                    left_out[dataset or ""].append(name)
            if not any(meant):
                raise ConfigError(
                    f"{row['path']}: none of its classes ({', '.join(names)}) is in the class table",
                    remedy=f"say under datasets what {dataset} calls them",
                )
            masks.append([name or "" for name in meant])
            annotated.append(list(dict.fromkeys(others)))
        columns = [pl.Series("mask_classes", masks, pl.List(pl.String)), pl.Series("annotated", annotated)]
        return table.with_columns(columns), {name: names for name, names in left_out.items() if names}

    def labelled(self, annotated: Iterable[str]) -> np.ndarray:
        """``[K]`` bool: the classes that a case with these annotated `sources` is labelled for."""
        known = set(annotated)
        known |= {side for pair, sides in self.pairs.items() if pair in known for side in sides}
        return np.array([name in known for name in self.names])

    @cached_property
    def members(self) -> np.ndarray:
        """``[256, K]`` bool: the classes of a voxel by its value in a mask that `sides` has been through.

        >>> table = ClassTable.load()
        >>> [name for name, is_one in zip(table.names, table.members[32 + 128 - 6], strict=True) if is_one]
        ['kidney_left', 'kidney_tumor']
        """
        found = np.zeros((256, len(self.classes)), dtype=bool)
        right_of = {left: right for right, left in self.pairs.values()}
        for value, name in enumerate(self.sources, start=1):
            if name in self.pairs:
                meant: Sequence[str] = self.pairs[name]
            else:
                entry = self.entry(name)
                found[[value, value + LEFT], value - 1] = True
                inside = entry.kind != "organ" and entry.counts
                meant = [organ for organ in entry.organs if organ in self.names] if inside else ()
            for organ in meant:
                is_left, is_right = right_of.get(organ) in meant, organ in map(right_of.get, meant)
                found[value, self.names.index(organ)] |= not is_left
                found[value + LEFT, self.names.index(organ)] |= not is_right
        return found

    def sides(self, mask: np.ndarray, annotated: Sequence[str]) -> np.ndarray:
        """Tell left from right where the mask does not, as published: see `left_side`.

        Where it does, a tumour is part of the side that it is nearer to.

        Args:
            mask: ``[D, H, W]`` uint8, value i + 1 being ``sources[i]``; its first axis grows to the patient's right.
            annotated: the `sources` that the case was annotated for.

        Returns:
            The same, with `LEFT` added to the value of voxels on the left: `members` has their classes.
        """
        told = mask.copy()
        on_right, on_left = self.members[:LEFT], self.members[LEFT:]
        for pair, sides in self.pairs.items():
            right, left = (self.names.index(side) for side in sides)
            open_values = np.flatnonzero(on_right[:, right] & on_left[:, left])  # whose name leaves the side open
            union = np.isin(mask, open_values)
            if not union.any():
                continue
            away = left_side(union) if pair in annotated else _nearer(mask == left + 1, mask == right + 1)
            told[union & away] += LEFT
        return told


@dataclass(frozen=True)
class Sides:
    """`ClassTable.sides` for the rows of an index, as a cache of prepared cases takes it.

    Args:
        table: the classes.
    """

    table: ClassTable

    @property
    def key(self) -> str:
        """All that its result depends on, beside the mask."""
        entries = [(entry.name, entry.organs, entry.kind, entry.counts) for entry in self.table.classes]
        return json.dumps([entries, sorted(self.table.pairs.items())])

    def __call__(self, mask: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
        """``[D, H, W]`` uint8 -> the same with sides told."""
        ignored = mask == IGNORE
        told = self.table.sides(np.where(ignored, 0, mask), row["annotated"])
        told[ignored] = IGNORE
        return told


def name_key(name: str) -> str:
    """What names are compared by: without case, punctuation and the spelling of tumour.

    >>> name_key("Liver-Tumour") == name_key("liver_tumor")
    True
    """
    return re.sub(r"[\W_]+", " ", name).strip().casefold().replace("tumour", "tumor")


def _nearer(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where the first mask is nearer than the second; nowhere if it is empty, everywhere if the second is."""
    if not one.any() or not other.any():
        return np.full(one.shape, bool(one.any()))
    return np.asarray(ndimage.distance_transform_edt(~one) < ndimage.distance_transform_edt(~other))
