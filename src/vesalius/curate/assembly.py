"""One label map from public labels, reviews and proposals, with every conflict named (AbdomenAtlas, Li 2024).

As published, a public label goes before a radiologist's revision, and that before what models propose. The authors
paint in that order, so that a public label silently overwrites other structures, and a structure that the public label
knows to be absent stays as models imagined it. Here every voxel that two structures claim is counted, the source that
is trusted more keeps it, and the trust may differ by dataset and structure: sets draw the same organ by different
protocols (an aorta with or without its arch), which no painting order resolves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vesalius.data.abdomen import NAMES
from vesalius.data.class_tables import ClassTable, name_key
from vesalius.data.label_tables import LabelTable, left_side
from vesalius.errors import ConfigError, VesaliusError, nearest

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]
Source = Literal["original", "revised", "proposal"]
SOURCES: tuple[Source, ...] = get_args(Source)
"""The public label, a reader's revision, the models' average: in the published order of trust."""
PUBLISHED_PARTS: Mapping[str, Sequence[str]] = {
    "liver": ("hepatic_vessel", "liver_tumor", "hepatic_vessel_tumor"),
    "kidney_right": ("kidney_tumor", "kidney_cyst"),
    "kidney_left": ("kidney_tumor", "kidney_cyst"),
    "pancreas": ("pancreas_tumor",),
    "lung_right": ("lung_tumor",),
    "lung_left": ("lung_tumor",),
    "intestine": ("colon_tumor",),
}
"""Structure -> what the authors add to it before training: tumours to both sides, colon tumours to the small bowel."""


@dataclass(frozen=True)
class Trust:
    """Which source of a structure is believed, by dataset.

    Args:
        default: sources from most to least trusted.
        datasets: dataset -> structure (or ``"*"``) -> its own order; a source that is left out is never used.

    Raises:
        ConfigError: an unknown source.

    >>> trust = Trust(datasets={"FLARE22": {"aorta": ("revised", "proposal")}})
    >>> trust.order("aorta", dataset="flare22"), trust.order("liver", dataset="flare22")[0]
    (('revised', 'proposal'), 'original')
    """

    default: tuple[Source, ...] = SOURCES
    datasets: Mapping[str, Mapping[str, Sequence[Source]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for order in (self.default, *(order for table in self.datasets.values() for order in table.values())):
            for source in order:
                if source not in SOURCES:
                    raise ConfigError(f"trust: unknown source {source!r}", remedy=nearest(source, SOURCES))

    def order(self, structure: str, *, dataset: str | None = None) -> tuple[Source, ...]:
        """Sources of a structure from most to least trusted."""
        for name, table in self.datasets.items():
            if name_key(name) == name_key(dataset or ""):
                return tuple(table.get(structure, table.get("*", self.default)))
        return self.default


@dataclass(frozen=True)
class Conflict:
    """Voxels that two structures claim.

    Args:
        kept, lost: the structure that has them now, and the other one.
        kept_source, lost_source: where each is from.
        voxels: how many.  mm3: their volume, NaN where the spacing is not known.
    """

    kept: str
    lost: str
    kept_source: Source
    lost_source: Source
    voxels: int
    mm3: float


@dataclass(frozen=True)
class Assembled:
    """A finished case.

    Args:
        labels: ``[D, H, W]`` uint8, value i + 1 being the table's i-th class.
        sources: structure -> where it is from; structures of no source are missing, and not annotated.
        conflicts: largest first.
    """

    labels: Labels
    sources: dict[str, Source]
    conflicts: list[Conflict]


Read = Callable[[str], Mapping[Source, Mask]]
"""Gives the masks that there are of a structure; an empty mask says that the patient lacks it."""


def assemble(
    read: Read,
    table: ClassTable,
    *,
    dataset: str | None = None,
    trust: Trust | None = None,
    spacing: Sequence[float] | None = None,
) -> Assembled:
    """Put a case together, one structure after the other.

    Of each structure the most trusted source alone is used. A tumour is painted over its organ without a conflict; of
    two other structures the one whose source is trusted more keeps the voxel, of equal ones the later in the table.

    Memory: 1 byte a voxel, and the masks of one structure.

    Args:
        read: the masks of a structure.
        table: the classes; its order is that of the values.
        dataset: where the case is from.
        trust: which source is believed.
        spacing: mm along the axes.

    Raises:
        VesaliusError: no structure has a mask, or they differ in shape.

    >>> table = ClassTable.from_dict({"classes": ["liver", "spleen"]})
    >>> masks = {
    ...     "liver": {"original": np.array([[[True, True, False]]])},
    ...     "spleen": {"proposal": np.array([[[False, True, True]]])},
    ... }
    >>> done = assemble(lambda name: masks[name], table)
    >>> done.labels.tolist(), [(one.kept, one.lost, one.voxels) for one in done.conflicts]
    ([[[1, 1, 2]]], [('liver', 'spleen', 1)])
    """
    trust = trust or Trust()
    sources: dict[str, Source] = {}
    for name in table.names:
        there = read(name)
        chosen = next((source for source in trust.order(name, dataset=dataset) if source in there), None)
        if chosen is not None:
            sources[name] = chosen
    if not sources:
        raise VesaliusError("no structure has a mask", remedy="let models propose, or review, first")

    labels: Labels | None = None
    conflicts = []
    # What is trusted most is painted last; sorting is stable, so that the table's order decides among equals.
    for name in sorted(sources, key=lambda one: -SOURCES.index(sources[one])):
        mask = read(name)[sources[name]].copy()
        labels = np.zeros(mask.shape, np.uint8) if labels is None else labels
        if mask.shape != labels.shape:
            raise VesaliusError(f"{name} has {mask.shape} voxels, the others {labels.shape}")
        held = np.bincount(labels[mask], minlength=len(table.names) + 1)
        for value in np.flatnonzero(held[1:]) + 1:
            other, voxels = table.names[value - 1], int(held[value])
            if name in table.entry(other).organs:
                mask &= labels != value
            elif other not in table.entry(name).organs:
                mm3 = voxels * prod(spacing) if spacing else float("nan")
                conflicts.append(Conflict(name, other, sources[name], sources[other], voxels, mm3))
        labels[mask] = table.names.index(name) + 1
    assert labels is not None
    conflicts.sort(key=lambda conflict: -conflict.voxels)
    return Assembled(labels, sources, conflicts)


def published_original(raw: NDArray[np.integer], table: LabelTable, classes: Sequence[str] = NAMES) -> Labels:
    """A public label in the numbers of `classes`, sides told apart by place; what falls out of both sides is right.

    Args:
        raw: ``[D, H, W]`` the set's own values, its first axis growing to the patient's right.
        table: what they mean.
    """
    number = {name: value for value, name in enumerate(classes, start=1)}
    told = np.zeros(raw.shape, np.uint8)
    for value, name in table.values.items():
        told[raw == value] = number[name]
    for right, left in table.split:
        told[left_side(told == number[right])] = number[left]
    return told


def published_label(pseudo: Labels, revised: Mapping[int, Mask], original: Labels | None = None) -> Labels:
    """As published: paint the revisions over the pseudo label, and what the public label holds over both.

    Args:
        pseudo: ``[D, H, W]``, what models propose.
        revised: value -> its revised mask.
        original: ``[D, H, W]`` in the same numbers; a value that it lacks is not erased.

    >>> published_label(np.array([[[1, 2, 2]]], np.uint8), {2: np.array([[[False, False, True]]])}).tolist()
    [[[1, 0, 2]]]
    """
    label = pseudo.copy()
    for value, mask in revised.items():
        label[label == value] = 0
        label[mask] = value
    if original is not None:
        label[np.isin(label, np.setdiff1d(original, 0))] = 0
        np.copyto(label, original, where=original > 0)
    return label


def published_containment(
    masks: NDArray[np.uint8], classes: Sequence[str] = NAMES, parts: Mapping[str, Sequence[str]] = PUBLISHED_PARTS
) -> NDArray[np.uint8]:
    """As published: structures with what the authors take to be part of them, whatever the side.

    `vesalius.data.class_tables.ClassTable.sides` and ``members`` give a tumour to the nearer side instead.

    Args:
        masks: ``[K, D, H, W]`` of `classes`, 0 or 1.
        parts: structure -> its parts.
    """
    merged = masks.copy()
    for structure, others in parts.items():
        for other in others:
            merged[classes.index(structure)] |= merged[classes.index(other)]
    return merged
