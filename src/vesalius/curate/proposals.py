"""What several models say of a structure, and the average of it (AbdomenAtlas, Li 2024, "label ensemble").

Masks are kept at a bit a voxel, so that thirty structures of a large CT fit where their probabilities would not.
Arrays are ``[D, H, W]`` whose first axis grows to the patient's right and whose last grows to the head, since the
averaged masks are cleaned by `vesalius.tasks.organs` (see `vesalius.data.volumes.transforms.grid_of`, "RAS").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesalius.data.abdomen import TEMPLATE
from vesalius.data.class_tables import ClassTable
from vesalius.data.label_tables import CONNECTIVITY
from vesalius.data.volumes.transforms import Box, foreground_box
from vesalius.errors import VesaliusError
from vesalius.tasks.organs import clean

Mask = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Order = Literal["C", "F"]
Scalar = TypeVar("Scalar", bound=np.generic)

AROUND = 8
"""Voxels that the rules of `vesalius.tasks.organs` look beyond a mask."""
SLAB = 1 << 22
"""Voxels that are worked on at once."""

_P = np.maximum(np.arange(256) / 255, 1e-300)
ENTROPY: Bytes = (-255 * _P * np.log(_P)).astype(np.uint8)
"""floor(255 x -p ln p) of a byte 255 x p: one-sided, 0 at p = 0 and 1, most (0.368) at p = 1/e."""


@dataclass(frozen=True)
class Proposal:
    """What one model says of one structure.

    Args:
        soft: ``[D, H, W]`` uint8, 255 x probability, 0 beyond the neighbourhood of the model's own cleaned mask.
        entropy: ``[D, H, W]`` uint8, 255 x ``-p ln p``; None where the model gave no probabilities: then its doubt
            does not count at all, neither for nor against.
    """

    soft: Bytes
    entropy: Bytes | None = None

    @classmethod
    def from_mask(cls, mask: Mask) -> Proposal:
        """Of a model that gives masks alone.

        >>> Proposal.from_mask(np.array([[[True, False]]])).soft.tolist()
        [[[255, 0]]]
        """
        return cls(mask.view(np.uint8) * np.uint8(255))

    @classmethod
    def from_probability(cls, probability: Bytes, mask: Mask) -> Proposal:
        """Of a model's probabilities and its cleaned mask, grown by a voxel: what lies farther out was cleaned away.

        Args:
            probability: ``[D, H, W]`` uint8, 255 x p.
            mask: ``[D, H, W]`` bool.
        """
        soft = np.zeros_like(probability)
        if mask.any():
            box = grown_box(foreground_box(mask), 1, mask.shape)
            near = ndimage.binary_dilation(mask[box], CONNECTIVITY)
            soft[box] = np.where(near, probability[box], 0)
        return cls(soft, ENTROPY[probability])


Read = Callable[[str], Sequence[Proposal]]
"""Gives what the models that know a structure say of it. It is called twice a structure, so that nothing is kept."""


class Masks:
    """Binary volumes by name, a bit a voxel.

    Args:
        shape: of each.
        order: of their voxels in memory: "C" with the last axis running fastest, "F" with the first, as in NIfTI.

    >>> masks = Masks((1, 1, 3))
    >>> masks["liver"] = np.array([[[True, False, True]]])
    >>> masks["liver"].tolist(), list(masks)
    ([[[True, False, True]]], ['liver'])
    """

    def __init__(self, shape: Sequence[int], order: Order = "C") -> None:
        self.shape, self.order = tuple(shape), order
        self._bits: dict[str, Bytes] = {}

    def __setitem__(self, name: str, mask: Mask) -> None:
        self._bits[name] = np.packbits(mask.ravel(self.order))

    def __getitem__(self, name: str) -> Mask:
        flags = np.unpackbits(self._bits[name], count=prod(self.shape)).view(np.bool_)
        return flags.reshape(self.shape, order=self.order)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __contains__(self, name: object) -> bool:
        return name in self._bits


def average_masks(read: Read, structures: Sequence[str], *, table: ClassTable | None = TEMPLATE) -> Masks:
    """The mean probability over the models that know a structure, above one half, cleaned by the atlas's rules.

    Memory: two bits a voxel and structure; for one structure at a time its proposals (2 bytes a voxel and model), 2
    bytes a voxel, and some 20 bytes a voxel of the box that it and what it is cleaned with fill.

    Args:
        read: what the models say of a structure.
        structures: all of them; those that no model knows are left out of the result.
        table: how each is cleaned; one that it does not know stays as it is. None: all stay, as published where there
            is but one model, whose masks have been cleaned.

    Raises:
        VesaliusError: proposals of different shapes.
    """
    raw: Masks | None = None
    for structure in structures:
        proposals = read_all(read, structure, raw.order if raw else None)
        if not proposals:
            continue
        mask = np.zeros_like(proposals[0].soft, np.bool_)
        raw = raw or Masks(mask.shape, "C" if mask.flags.c_contiguous else "F")
        if mask.shape != raw.shape:
            raise VesaliusError(f"{structure} has {mask.shape} voxels, the others {raw.shape}")
        for slab in slabs(mask.size):
            parts = [flat(proposal.soft)[slab] for proposal in proposals]
            if any(part.any() for part in parts):  # most of a volume is empty, and that is quickly seen
                flat(mask)[slab] = summed(parts) > 255 * len(parts) // 2
        raw[structure] = mask
    if raw is None:
        return Masks((0, 0, 0))
    return raw if table is None else _cleaned(raw, table)


def _cleaned(raw: Masks, table: ClassTable) -> Masks:
    """Every mask by its rule, in the box that it and what the rule needs fill."""
    done = Masks(raw.shape, raw.order)
    for name in raw:
        if name in done:
            continue
        if name not in table.names:
            done[name] = raw[name]
            continue
        entry = table.entry(name)
        sides: Sequence[str] = next((pair for pair in table.pairs.values() if name in pair), ())
        if entry.rule != "sides":
            sides = ()
        needed = [other for other in (*entry.organs, *sides) if other in raw and other != name]
        if entry.rule == "inside" and not needed:  # nobody drew its organs: nothing to be inside of
            done[name] = raw[name]
            continue
        masks = {other: raw[other] for other in (name, *needed)}
        box = grown_box(box_of(np.logical_or.reduce(list(masks.values()))), AROUND, raw.shape)
        if sides:  # a single lung is told by the half of the volume that it is in
            box = (slice(0, raw.shape[0]), *box[1:])
        cleaned = clean(np.stack([mask[box] for mask in masks.values()]), list(masks), rules="atlas", table=table)
        for other, mask in zip(masks, cleaned, strict=True):
            if other == name or other in sides:
                whole = np.zeros_like(masks[other])
                whole[box] = mask
                done[other] = whole
    return done


def read_all(read: Read, structure: str, order: Order | None = None) -> list[Proposal]:
    """What `read` gives, all in one order in memory: that of the first, unless it is given.

    Raises:
        VesaliusError: proposals of different shapes.
    """
    proposals = list(read(structure))
    if len({proposal.soft.shape for proposal in proposals}) > 1:
        raise VesaliusError(
            f"models segment {structure} on volumes of different shapes", remedy="bring all onto the image's voxels"
        )
    if proposals and order is None:
        flags = proposals[0].soft.flags
        order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
    return [
        Proposal(
            np.asarray(proposal.soft, order=order),
            None if proposal.entropy is None else np.asarray(proposal.entropy, order=order),
        )
        for proposal in proposals
    ]


def summed(parts: Sequence[Bytes]) -> NDArray[np.uint16]:
    """The sum of bytes, in their own order in memory."""
    total = parts[0].astype(np.uint16)
    for part in parts[1:]:
        total += part
    return total


def flat(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """A view of a contiguous array's elements as they lie in memory."""
    return (array if array.flags.c_contiguous else array.T).reshape(-1)


def slabs(size: int) -> Iterator[slice]:
    """Parts of `flat` arrays."""
    for start in range(0, size, SLAB):
        yield slice(start, min(start + SLAB, size))


def box_of(mask: Mask) -> Box:
    """The box of what is set; an empty one if nothing is."""
    return foreground_box(mask) if mask.any() else (slice(0, 0),) * 3


def grown_box(box: Box, margin: int, shape: Sequence[int]) -> Box:
    """The box and `margin` voxels around it, as far as the volume goes."""
    first, second, third = (
        slice(max(span.start - margin, 0), min(span.stop + margin, side)) for span, side in zip(box, shape, strict=True)
    )
    return first, second, third
