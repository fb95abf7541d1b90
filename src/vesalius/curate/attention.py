"""Where a person should look: maps of disagreement, doubt and overlap of several models (AbdomenAtlas, Li 2024).

Several networks segment the same volume. A voxel of a structure asks for attention where they contradict each other
(inconsistency), where they are unsure themselves (uncertainty), and where the averaged mask overlaps another
structure's (overlap). Each term is kept; their sum is the attention map, and the voxels in it are what volumes are
ranked by (`vesalius.curate.ranking`).

Li, W., Qu, C., et al.: AbdomenAtlas: A large-scale, detailed-annotated, & multi-center dataset for efficient transfer
learning and open algorithmic benchmarking. Medical Image Analysis 97, 103285 (2024), doi:10.1016/j.media.2024.103285;
procedure: Qu, C., et al., NeurIPS Datasets and Benchmarks (2023), arXiv:2305.09666.

What differs from the authors' code: structures stream through one after the other, with bytes instead of float64; the
opening is measured in millimetres unless `AttentionConfig.as_published` says voxels; a model that does not know a
structure has no vote on it; a structure without attention has a map of zeros instead of 0 / 0.

Arrays are ``[D, H, W]`` whose first axis grows to the patient's right and whose last grows to the head, since the
averaged masks are cleaned by `vesalius.tasks.organs` (see `vesalius.data.volumes.transforms.grid_of`, "RAS").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

import numpy as np
from numpy.typing import NDArray

from vesalius.curate.proposals import Bytes, Mask, Masks, Proposal, Read, box_of, flat, read_all, slabs, summed
from vesalius.data.abdomen import TEMPLATE
from vesalius.data.class_tables import ClassTable
from vesalius.data.volumes.transforms import Box
from vesalius.errors import ConfigError

PUBLISHED_OPENING = 2
"""Voxels on either side that two passes of a 3 x 3 x 3 element reach."""
PUBLISHED_OVERLAP = frozenset(
    name
    for number, name in enumerate(TEMPLATE.names, start=1)
    if number <= 7 or 11 <= number <= 14 or 16 <= number <= 24
)
"""Structures that others are compared with, as published: neither vessels nor tumours."""


@dataclass(frozen=True)
class AttentionConfig:
    """How maps are made; the defaults are the paper's, but for the opening.

    Args:
        inconsistency: standard deviation over models (of probabilities) above which they disagree.
        uncertainty: mean over models of ``-p ln p`` above which they are unsure.
        weights: of inconsistency, uncertainty and overlap in the attention map.
        opening: mm that a region of disagreement or doubt must measure along every axis; thinner ones vanish. 5 mm is
            the published element on voxels of 1 mm; an axis of larger voxels is opened less, or not at all.
        as_published: 5 x 5 x 5 voxels instead (two passes of 3 x 3 x 3), whatever they measure; and the published list
            of structures between which overlaps count.

    >>> AttentionConfig().half_widths((5.0, 0.8, 0.8)), AttentionConfig(as_published=True).half_widths(None)
    ((0, 3, 3), (2, 2, 2))
    """

    inconsistency: float = 0.10
    uncertainty: float = 0.05
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    opening: float = 5.0
    as_published: bool = False

    def half_widths(self, spacing: Sequence[float] | None) -> tuple[int, int, int]:
        """Voxels on either side that the opening reaches, along (D, H, W).

        Raises:
            ConfigError: the opening is in mm and the spacing is not known.
        """
        if self.as_published:
            return (PUBLISHED_OPENING,) * 3
        if spacing is None:
            raise ConfigError("the volume does not say how large its voxels are", remedy="open maps as_published")
        first, second, third = (max(round((self.opening / step - 1) / 2), 0) for step in spacing)
        return first, second, third


@dataclass(frozen=True)
class StructureMaps:
    """The maps of one structure, within the box outside which all of them are zero.

    Args:
        structure: its name.
        shape: of the volume.  box: where the arrays lie in it.
        inconsistency, uncertainty: uint8, floor(255 x value) where it is above its threshold and thick enough, else 0.
        overlap: bool, where the averaged mask and another structure's hold the same voxel.
        attention: uint8, floor(255 x weighted sum / its largest value in this volume): to be shown, not compared.
        attended: bool, where any of the three is.
        average: bool, the averaged, cleaned mask.
        strength: sum over voxels of the weighted sum before it is divided.
        spacing: mm, None where it is not known.
    """

    structure: str
    shape: tuple[int, ...]
    box: Box
    inconsistency: Bytes
    uncertainty: Bytes
    overlap: Mask
    attention: Bytes
    attended: Mask
    average: Mask
    strength: float
    spacing: tuple[float, ...] | None = None

    def full(self, kind: str) -> Bytes:
        """``[D, H, W]`` uint8 of the whole volume: a map by the name of its field."""
        values = np.zeros(self.shape, np.uint8)
        values[self.box] = getattr(self, kind)
        return values

    def summary(self) -> dict[str, float]:
        """What is ranked by: attended ``voxels`` and ``mm3``, voxels of each term and of the average, and two sums.

        ``heat`` is the sum of the attention map's bytes, by which the authors order the structures of a case;
        ``strength``, the sum of what it was before it was scaled, can be compared between cases. ``mm3`` and
        ``voxel_mm3`` are NaN where the spacing is not known.
        """
        voxels = int(np.count_nonzero(self.attended))
        size = prod(self.spacing) if self.spacing else float("nan")
        kinds = ("inconsistency", "uncertainty", "overlap", "average")
        return {
            "voxels": voxels,
            "mm3": voxels * size,
            "voxel_mm3": size,
            **{kind: int(np.count_nonzero(getattr(self, kind))) for kind in kinds},
            "heat": int(self.attention.sum(dtype=np.int64)),
            "strength": self.strength,
        }


def attention_maps(
    read: Read,
    masks: Masks,
    targets: Sequence[str],
    *,
    spacing: Sequence[float] | None,
    config: AttentionConfig | None = None,
    table: ClassTable = TEMPLATE,
) -> Iterator[StructureMaps]:
    """The maps of one structure after the other; nothing is kept of those that were handed out.

    Memory: `masks` (a bit a voxel and structure) and a byte a voxel throughout; for one structure its proposals (2
    bytes a voxel and model), 4 bytes a voxel, and in the box that it fills 8 bytes a voxel and 16 an attended one.
    ``benchmarks/attention.py`` measures it: some 20 bytes a voxel for 25 structures and three models.

    Args:
        read: what the models say of a structure.
        masks: of all structures, from `average_masks`.
        targets: the structures asked about: those that nobody has drawn in this volume.
        spacing: mm along (D, H, W).
        config: thresholds, weights and opening.
        table: says which structures may share voxels: tumours with their organs, vessels with what they run through.

    Raises:
        ConfigError: no spacing, and the opening is in mm.

    >>> from vesalius.curate.proposals import average_masks
    >>> one, other = np.zeros((2, 16, 16, 16), np.bool_)
    >>> one[2:14, 2:14, 2:8] = other[2:14, 2:14, 2:14] = True
    >>> read = lambda structure: [Proposal.from_mask(one), Proposal.from_mask(other)]
    >>> masks = average_masks(read, ["liver"])
    >>> (maps,) = attention_maps(read, masks, ["liver"], spacing=(1, 1, 1))
    >>> maps.summary()["mm3"] == int((other & ~one).sum())  # one model's half of the liver
    True
    """
    config = config or AttentionConfig()
    widths = config.half_widths(spacing)
    compared = [name for name in masks if _overlaps_count(name, table, config)]
    holders: Bytes | None = None
    for structure in targets:
        if structure not in masks:
            continue
        if holders is None:
            layers = (masks[name].view(np.uint8) for name in compared)
            holders = reduce(np.add, layers, np.zeros_like(masks[structure], np.uint8))
        proposals, average = read_all(read, structure, masks.order), masks[structure]
        differ, unsure = _above(proposals, config)
        box = box_of(differ | unsure | average)
        differ, unsure, average = _opened(differ[box], widths), _opened(unsure[box], widths), average[box].copy("K")
        others = holders[box].copy("K")
        for name in {structure, *_shared(structure, table, config)} & set(compared):
            others -= masks[name][box].view(np.uint8)
        near = [
            Proposal(one.soft[box].copy("K"), None if one.entropy is None else one.entropy[box].copy("K"))
            for one in proposals
        ]
        yield _combined(structure, masks.shape, box, near, differ, unsure, average, (others > 0) & average, config,
                        tuple(spacing) if spacing else None)  # fmt: skip


def _combined(
    structure: str,
    shape: tuple[int, ...],
    box: Box,
    proposals: Sequence[Proposal],
    differ: Mask,
    unsure: Mask,
    average: Mask,
    overlap: Mask,
    config: AttentionConfig,
    spacing: tuple[float, ...] | None,
) -> StructureMaps:
    """The values of the three terms where they count, and their weighted sum over its maximum."""
    attended = differ | unsure | overlap
    inconsistency, uncertainty, attention = (np.zeros_like(attended, np.uint8) for _ in range(3))
    sums = []
    for slab in slabs(attended.size):
        at = flat(attended)[slab]
        total = np.zeros(int(np.count_nonzero(at)))
        for weight, mask, values_of, out in (
            (config.weights[0], differ, _deviation, inconsistency),
            (config.weights[1], unsure, _doubt, uncertainty),
        ):
            where = flat(mask)[slab]
            if where.any():
                values = values_of(proposals, slab, where)
                flat(out)[slab][where] = (values * 255).astype(np.uint8)
                total[where[at]] += weight * values
        sums.append(total + config.weights[2] * flat(overlap)[slab][at])
    largest = max((total.max() for total in sums if total.size), default=0.0)
    for slab, total in zip(slabs(attended.size), sums, strict=True):
        if largest > 0:
            flat(attention)[slab][flat(attended)[slab]] = (total / largest * 255).astype(np.uint8)
    strength = float(sum(total.sum() for total in sums))
    return StructureMaps(
        structure, shape, box, inconsistency, uncertainty, overlap, attention, attended, average, strength, spacing
    )


def _above(proposals: Sequence[Proposal], config: AttentionConfig) -> tuple[Mask, Mask]:
    """Where models disagree and where they are unsure, before the opening.

    Bytes tell cheaply where a value can be above its threshold at all; it is computed there alone.
    """
    differ, unsure = (np.zeros_like(proposals[0].soft, np.bool_) for _ in range(2))
    for slab in slabs(differ.size):
        parts = [flat(proposal.soft)[slab] for proposal in proposals]
        if len(parts) > 1 and any(part.any() for part in parts):
            # A standard deviation is at most half the range.
            spread = reduce(np.maximum, parts) - reduce(np.minimum, parts)
            possible = spread >= max(int(2 * 255 * config.inconsistency) - 1, 1)
            if possible.any():
                flat(differ)[slab][possible] = _deviation(proposals, slab, possible) > config.inconsistency
        doubts = [flat(proposal.entropy)[slab] for proposal in proposals if proposal.entropy is not None]
        if any(doubt.any() for doubt in doubts):
            possible = summed(doubts) >= max(int(255 * config.uncertainty * len(doubts)) - 1, 1)
            if possible.any():
                flat(unsure)[slab][possible] = _doubt(proposals, slab, possible) > config.uncertainty
    return differ, unsure


def _deviation(proposals: Sequence[Proposal], slab: slice, where: Mask) -> NDArray[np.float64]:
    """Standard deviation over models (of the population) at `where` in a slab."""
    return np.asarray(np.std([flat(proposal.soft)[slab][where] / 255 for proposal in proposals], axis=0))


def _doubt(proposals: Sequence[Proposal], slab: slice, where: Mask) -> NDArray[np.float64]:
    """Mean entropy over the models that have one."""
    doubts = [flat(proposal.entropy)[slab][where] / 255 for proposal in proposals if proposal.entropy is not None]
    return np.asarray(sum(doubts) / len(doubts))


def _opened(mask: Mask, half_widths: Sequence[int]) -> Mask:
    """Opening by a box; beyond the array nothing is set.

    A box is three lines, so that shifted copies of the whole array do it: faster than a structuring element.
    """
    opened = mask.copy("K")  # as it lies in memory
    for grow in (False, True):
        for axis, width in enumerate(half_widths):
            if not width:
                continue
            before, line = np.moveaxis(opened.copy("K"), axis, 0), np.moveaxis(opened, axis, 0)
            for step in range(1, width + 1):
                if grow:
                    line[step:] |= before[:-step]
                    line[:-step] |= before[step:]
                else:
                    line[step:] &= before[:-step]
                    line[:-step] &= before[step:]
                    line[:step] = line[-step:] = False
    return opened


def _overlaps_count(name: str, table: ClassTable, config: AttentionConfig) -> bool:
    """Whether a voxel that `name` shares with another structure is a mistake."""
    if config.as_published:
        return name in PUBLISHED_OVERLAP
    if name not in table.names:
        return True
    entry = table.entry(name)
    return entry.kind == "organ" and entry.rule in ("largest", "sides")


def _shared(structure: str, table: ClassTable, config: AttentionConfig) -> Sequence[str]:
    """The organs that a structure lies in."""
    return table.entry(structure).organs if structure in table.names and not config.as_published else ()
